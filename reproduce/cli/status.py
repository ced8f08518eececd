"""`status`: what lies in the runs folder, and how far the experiments of a method are."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reproduce.cli.chosen import chosen_experiments, committed_results, nothing_planned, say_left_out
from reproduce.cli.coverage import state_of
from reproduce.cli.options import (
    DataOption,
    JsonOption,
    MethodsOption,
    OnlyOption,
    RunsOption,
    SeedsOption,
    data_root,
    waiting,
)
from reproduce.errors import UserError
from reproduce.experiment.cells import parse_seeds
from reproduce.results.failed import FAILED, FailedRun, read_failed
from reproduce.results.index import read_briefly
from reproduce.results.record import Result

if TYPE_CHECKING:
    from reproduce.cli.coverage import Coverage
    from reproduce.cli.estimates import Timer
    from reproduce.training.plan import PlannedRun

SHORTEST_WAIT = 0.5  # seconds: each look reads the folder
USUAL_WAIT = 5.0


def status(
    method: Annotated[
        str, typer.Argument(help="A method's name, or 'all': shows what of its experiments stands.")
    ] = "",
    scale: Annotated[str, typer.Option("--scale", help="quick, reduced or paper; default: quick.")] = "",
    seeds: SeedsOption = "",
    only: OnlyOption = "",
    data: DataOption = "",
    runs: RunsOption = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[
        float, typer.Option("--every", show_default=False, help="With --watch: seconds from look to look; default: 5.")
    ] = 0.0,
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """What lies in the runs folder: sealed, interrupted, unreadable. With a method: what of it is done."""
    from reproduce.cli.terminal import console, coverage_table

    if not method and (scale or seeds or only):
        raise UserError("--scale, --seeds and --only choose among a method's experiments: name it, or say all")
    if every and not watch:
        raise UserError(f"--every {every:g}: it is a time between looks: say --watch as well")
    if every and not SHORTEST_WAIT <= every < math.inf:
        raise UserError(f"--every {every:g}: expected a number of seconds, {SHORTEST_WAIT} or more")
    if watch and as_json:
        raise UserError("--watch redraws a screen, and --json prints once: leave one of them out")
    if watch and not console().is_terminal:
        raise UserError("--watch redraws a screen, and this is none: leave it out, or ask for --json now and then")
    parse_seeds(seeds)  # before anything is read
    root = data_root(data)
    looks = Looks(runs)
    if watch:
        covered = Covered(method, scale or "quick", seeds, only, str(root or ""), looks) if method else None
        _watch(looks, covered, every or USUAL_WAIT)
        return
    with waiting("reading experiments and Results"):
        looks.again()
        covered = Covered(method, scale or "quick", seeds, only, str(root or ""), looks) if method else None
        rows = covered.again() if covered else None
    if as_json:
        print(json.dumps(_content(looks, rows), indent=1))
        say_left_out(covered.broken if covered else ())
        return
    for line in looks.lines:
        print(line)
    if covered and rows:
        console().print(coverage_table(rows))
        print("\n".join(covered.lines()))
    if covered:
        say_left_out(covered.broken)


class Looks:
    """What lies in the runs folder. A sealed Result does not change: it is read once."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.results: dict[Path, Result] = {}
        self.problems: list[str] = []
        self.running: list[str] = []
        self.interrupted: list[str] = []
        self.failed: list[FailedRun] = []

    def again(self) -> None:
        files = set(self.runs.glob("*/result.json"))
        self.results = {path: result for path, result in self.results.items() if path in files}
        found, self.problems = read_briefly(files - self.results.keys())
        self.results |= found
        noted = (read_failed(path.parent) for path in sorted(self.runs.glob(f"*/{FAILED}")))
        self.failed = [one for one in noted if one is not None]
        begun = {path.parent for name in (".lock", "checkpoint.pt") for path in self.runs.glob(f"*/{name}")}
        states = {
            folder.name: state_of(folder, None) for folder in sorted(begun) if folder / "result.json" not in files
        }
        self.running = [name for name, state in states.items() if state == "running"]
        self.interrupted = [name for name, state in states.items() if state == "interrupted"]

    @property
    def summary(self) -> str:
        n_diverged = sum(result.status == "diverged" for result in self.results.values())
        running = f"{len(self.running)} running, " if self.running else ""
        failed = f"{len(self.failed)} failed, " if self.failed else ""
        others = f"{len(self.interrupted)} interrupted, {len(self.problems)} unreadable"
        return f"{len(self.results)} sealed ({n_diverged} diverged), {running}{failed}{others}"

    @property
    def lines(self) -> list[str]:
        return [
            self.summary,
            *(f"  running: {name}" for name in self.running),
            *(f"  interrupted: {name}" for name in self.interrupted),
            *(f"  failed: {one.label}: {one.reason}" for one in self.failed),
            *(f"  unreadable: {problem}" for problem in self.problems),
        ]


class Covered:
    """How far the chosen experiments are; they are planned anew only when there are new Results."""

    def __init__(self, method: str, scale: str, seeds: str, only: str, data: str, looks: Looks) -> None:
        self._not_read: list[str] = []
        self._experiments = chosen_experiments(method, scale, only, self._not_read)
        self._choice = seeds, data
        self._looks = looks
        self._planned_with: set[Path] | None = None
        self._committed = committed_results()
        self._planned: list[PlannedRun] = []
        self._left: list[PlannedRun] = []
        self.broken: list[str] = []  # methods that cannot be read or planned, a line each
        self._timer: Timer | None = None
        if not any(self._experiments.values()):
            print(nothing_planned(method, scale), file=sys.stderr)

    def again(self) -> list[Coverage]:
        from reproduce.cli.coverage import TO_TRAIN, coverage, states_of

        results = self._looks.results
        if self._timer is None or self._planned_with != results.keys():
            self._timer = self._plan()
        states = states_of(self._planned, results.values(), self._looks.runs)
        self._left = [run for run in self._planned if states[run.id] in TO_TRAIN]
        return coverage(self._planned, states, self._timer)

    def lines(self) -> list[str]:
        """The time that is left, as `plan` says it."""
        from reproduce.cli.estimates import time_lines

        if not self._left or self._timer is None:
            return ["nothing left to train"]
        return [f"{len(self._left)} of {len(self._planned)} runs left", *time_lines(self._left, self._timer)]

    def _plan(self) -> Timer:
        from reproduce.cli.campaign import planned_runs, settings_of, workers_on
        from reproduce.cli.estimates import Timer, known_times

        sealed, (seeds, data), runs = list(self._looks.results.values()), self._choice, self._looks.runs
        self.broken = list(self._not_read)
        self._planned = planned_runs(self._experiments, seeds, data, results=sealed, broken=self.broken)
        settings = settings_of(workers_on("", 0, len(self._planned)), data, runs, len(self._planned))
        self._planned_with = set(self._looks.results)
        return Timer(known_times([*sealed, *self._committed], runs), settings)


def _watch(looks: Looks, covered: Covered | None, every: float) -> None:
    """Redraw until Ctrl-C, which is how it ends well."""
    from rich.console import Group, RenderableType
    from rich.live import Live
    from rich.text import Text

    from reproduce.cli.terminal import console, coverage_table

    def screen() -> Group:
        looks.again()
        rows = covered.again() if covered else None
        parts: list[RenderableType] = [Text("\n".join(looks.lines if covered is None else [looks.summary]))]
        if covered and rows:
            parts += [coverage_table(rows), Text("\n".join([*covered.lines(), *covered.broken]))]
        return Group(*parts, Text(f"{time.strftime('%H:%M:%S')}, every {every:g} s; Ctrl-C ends it", style="dim"))

    try:
        with Live(screen(), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(screen(), refresh=True)
    except KeyboardInterrupt:
        return


def _content(looks: Looks, rows: list[Coverage] | None) -> dict[str, Any]:
    sealed = [{"id": result.id, "status": result.status} for result in looks.results.values()]
    content = {
        "sealed": sealed,
        "running": looks.running,
        "interrupted": looks.interrupted,
        "failed": [{"id": one.id, "label": one.label, "reason": one.reason} for one in looks.failed],
        "unreadable": looks.problems,
    }
    return content if rows is None else content | {"coverage": [row.content for row in rows]}
