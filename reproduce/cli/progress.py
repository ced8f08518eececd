"""What a person sees while runs train: bars on a terminal, plain lines when piped."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Column

from reproduce.cli.durations import duration
from reproduce.cli.remaining import Remaining
from reproduce.results.record import Result
from reproduce.training.loop import Event
from reproduce.training.plan import PlannedRun
from reproduce.training.workers import Reporter

BESIDE_LABELS = 55  # columns of a terminal that all else takes: bar, steps, loss and time
SHORTEST_LABEL = 12
SECONDS_BETWEEN_ESTIMATES = 1.0
SECONDS_BETWEEN_LINES = 60.0


def reporter(n_runs: int, console: Console, remaining: Remaining, quiet: bool = False) -> Reporter:
    """Bars where there is a terminal, lines where there is none, silence where asked."""
    if quiet:
        return Silent()
    return Bars(n_runs, console, remaining) if console.is_terminal else Lines(n_runs, console, remaining)


def outcome(result: Result) -> str:
    """The Result in a few words."""
    if result.final is None:
        return f"diverged at step {result.diverged_step}"
    metrics = result.final.test or result.final.validation
    return f"{result.metric} {metrics[result.metric]:.2f}"


def shortened(label: str, width: int) -> str:
    """Its end, which tells it from its neighbours, where it is longer."""
    return label if len(label) <= width else "\N{HORIZONTAL ELLIPSIS}" + label[len(label) - width + 1 :]


def left_text(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"


class Bars:
    """One bar for all runs, one for each that is training."""

    def __init__(self, n_runs: int, console: Console, remaining: Remaining) -> None:
        columns = [
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=10),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
        ]
        self.progress = Progress(*columns, console=console, transient=True)
        self.width = max(SHORTEST_LABEL, console.width - BESIDE_LABELS)
        self.remaining = remaining
        self.estimated = float("-inf")
        self.bars: dict[str, TaskID] = {}
        self.all = self.progress.add_task("all runs", total=n_runs, state="", left="")

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def started(self, run: PlannedRun) -> None:
        self.remaining.started(run)
        if run.id in self.bars:  # it ran out of memory, and begins again
            self.progress.remove_task(self.bars.pop(run.id))
        label = shortened(run.label, self.width)
        self.bars[run.id] = self.progress.add_task(label, total=None, state="starting", left="")

    def advanced(self, run: PlannedRun, event: Event) -> None:
        if run.id not in self.bars:
            return
        self.remaining.advanced(run, event)
        metric = "" if event.metric is None else f" · {event.metric:.2f}"
        self.progress.update(
            self.bars[run.id],
            total=event.total_steps,
            completed=event.step,
            state=f"{event.loss:.3f}{metric}",
            left=left_text(self.remaining.of(run)),
        )
        self._estimate()

    def finished(self, run: PlannedRun, result: Result) -> None:
        self.remaining.finished(run, result)
        self._close(run)
        self.noted(f"{run.label}: {outcome(result)}")

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.remaining.failed(run)
        self._close(run)
        self.progress.console.print(f"  failed {reason}", style="red", highlight=False, markup=False, soft_wrap=True)

    def noted(self, line: str) -> None:
        self.progress.console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)

    def _close(self, run: PlannedRun) -> None:
        if run.id in self.bars:
            self.progress.remove_task(self.bars.pop(run.id))
        self.progress.advance(self.all)
        self._estimate()

    def _estimate(self) -> None:
        now = time.monotonic()
        if now - self.estimated >= SECONDS_BETWEEN_ESTIMATES:
            self.estimated = now
            left = self.remaining.seconds()
            state = f"{duration(self.remaining.elapsed)} so far"
            self.progress.update(self.all, state=state, left="" if left is None else f"about {left_text(left)}")


class Lines:
    """A line when a run ends, and one a minute while it trains, with the time that all will take yet."""

    def __init__(self, n_runs: int, console: Console, remaining: Remaining) -> None:
        self.n_runs = n_runs
        self.n_done = 0
        self.console = console
        self.remaining = remaining
        self.last: dict[str, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def started(self, run: PlannedRun) -> None:
        self.remaining.started(run)
        self.last[run.id] = time.monotonic()

    def advanced(self, run: PlannedRun, event: Event) -> None:
        self.remaining.advanced(run, event)
        if time.monotonic() - self.last.get(run.id, 0.0) < SECONDS_BETWEEN_LINES:
            return
        self.last[run.id] = time.monotonic()
        metric = "" if event.metric is None else f", metric {event.metric:.2f}"
        share = 100 * event.step / event.total_steps
        self._print(f"{run.label}: {share:.0f} %, loss {event.loss:.3f}{metric}; {self._time()}")

    def finished(self, run: PlannedRun, result: Result) -> None:
        self.remaining.finished(run, result)
        seconds = result.environment.wall_seconds
        self._done(f"{run.label}: {outcome(result)} ({duration(seconds)})")

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.remaining.failed(run)
        self._done(f"failed {reason}")

    def noted(self, line: str) -> None:
        self._print(line)

    def _done(self, text: str) -> None:
        self.n_done += 1
        self._print(f"[{self.n_done}/{self.n_runs}] {text}; {self._time()}")

    def _time(self) -> str:
        left = self.remaining.seconds() if self.n_done < self.n_runs else None
        return f"{duration(self.remaining.elapsed)} so far" + ("" if left is None else f", about {left_text(left)}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class Silent:
    """For --json."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def started(self, run: PlannedRun) -> None:
        return

    def advanced(self, run: PlannedRun, event: Event) -> None:
        return

    def finished(self, run: PlannedRun, result: Result) -> None:
        return

    def failed(self, run: PlannedRun, reason: str) -> None:
        return

    def noted(self, line: str) -> None:
        return
