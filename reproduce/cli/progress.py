"""What a person sees while runs train: bars on a terminal, plain lines when piped."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from reproduce.results.record import Result
from reproduce.training.loop import Event
from reproduce.training.plan import PlannedRun
from reproduce.training.workers import Reporter


def reporter(n_runs: int, console: Console, quiet: bool = False) -> Reporter:
    """Bars where there is a terminal, lines where there is none, silence where asked."""
    if quiet:
        return Silent()
    return Bars(n_runs, console) if console.is_terminal else Lines(n_runs, console)


def outcome(result: Result) -> str:
    """The Result in a few words."""
    if result.final is None:
        return f"diverged at step {result.diverged_step}"
    metrics = result.final.test or result.final.validation
    return f"{result.metric} {metrics[result.metric]:.2f}"


class Bars:
    """One bar for all runs, one for each that is training."""

    def __init__(self, n_runs: int, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self.bars: dict[str, TaskID] = {}
        self.all = self.progress.add_task("all runs", total=n_runs, state="")

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def started(self, run: PlannedRun) -> None:
        if run.id in self.bars:  # it ran out of memory, and begins again
            self.progress.remove_task(self.bars.pop(run.id))
        self.bars[run.id] = self.progress.add_task(run.label, total=None, state="starting")

    def advanced(self, run: PlannedRun, event: Event) -> None:
        if run.id not in self.bars:
            return
        metric = "" if event.metric is None else f" · {event.metric:.2f}"
        self.progress.update(
            self.bars[run.id],
            total=event.total_steps,
            completed=event.step,
            state=f"loss {event.loss:.3f}{metric}",
        )

    def finished(self, run: PlannedRun, result: Result) -> None:
        self._close(run)
        self.progress.console.print(f"  {run.label}: {outcome(result)}", highlight=False, markup=False)

    def failed(self, run: PlannedRun, reason: str) -> None:
        self._close(run)
        self.progress.console.print(f"  failed {reason}", style="red", highlight=False, markup=False)

    def noted(self, line: str) -> None:
        self.progress.console.print(f"  {line}", highlight=False, markup=False)

    def _close(self, run: PlannedRun) -> None:
        if run.id in self.bars:
            self.progress.remove_task(self.bars.pop(run.id))
        self.progress.advance(self.all)


class Lines:
    """A line when a run ends, and one a minute while it trains."""

    def __init__(self, n_runs: int, console: Console) -> None:
        self.n_runs = n_runs
        self.n_done = 0
        self.console = console
        self.last: dict[str, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def started(self, run: PlannedRun) -> None:
        self.last[run.id] = time.monotonic()

    def advanced(self, run: PlannedRun, event: Event) -> None:
        if time.monotonic() - self.last.get(run.id, 0.0) < 60:
            return
        self.last[run.id] = time.monotonic()
        metric = "" if event.metric is None else f", metric {event.metric:.2f}"
        share = 100 * event.step / event.total_steps
        self._print(f"{run.label}: {share:.0f} %, loss {event.loss:.3f}{metric}")

    def finished(self, run: PlannedRun, result: Result) -> None:
        self.n_done += 1
        seconds = result.environment.wall_seconds
        self._print(f"[{self.n_done}/{self.n_runs}] {run.label}: {outcome(result)} ({seconds:.0f} s)")

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.n_done += 1
        self._print(f"[{self.n_done}/{self.n_runs}] failed {reason}")

    def noted(self, line: str) -> None:
        self._print(line)

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
