"""What commands print: the one console, and tables for it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reproduce.cli.coverage import STATES, Coverage
from reproduce.cli.durations import duration, time_text

if TYPE_CHECKING:  # both know torch, and `list` prints too
    from reproduce.bench.timing import Row
    from reproduce.training.calibrate import GradientRatio


@cache
def console() -> Console:
    """The terminal, or the file or pipe in its place."""
    return Console()


def print_entry(name: str, text: str, indent: int, style: str = "") -> None:
    """A name and what is said of it: on a terminal wrapped at words, further lines indented; else one line."""
    start = f"{name}  {text}"
    lines = textwrap.wrap(start, console().width, subsequent_indent=" " * indent, break_on_hyphens=False)
    shown = Text("\n".join(lines) if console().is_terminal else start)
    shown.stylize(style, 0, len(name))
    console().print(shown, soft_wrap=True)


@dataclass(frozen=True)
class PlannedRow:
    """One Run of a plan."""

    id: str
    run: str
    sealed: bool
    estimated_seconds: float | None  # on the device that was asked for; None: nothing like it was timed there
    in_budget: bool | None = None  # None: there is no budget, or no estimate

    @property
    def estimate(self) -> str:
        if self.sealed:
            return ""
        return "unknown" if self.estimated_seconds is None else duration(self.estimated_seconds)

    @property
    def state(self) -> str:
        if self.sealed:
            return "sealed"
        return "after the budget" if self.in_budget is False else "to train"


@dataclass(frozen=True)
class Workload:
    """One experiment of a plan."""

    method: str
    experiment: str
    runs: int
    left: int
    estimates: Sequence[Sequence[float | None]]  # by kind of device, of those left, in seconds


def print_plan(rows: Sequence[PlannedRow]) -> None:
    """A line for each Run. Plain lines, since rich takes seconds to lay out thousands of rows."""
    table = [("state", "estimate", "run"), *((row.state, row.estimate, row.run) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(2)]
    for state, estimate, run in table:
        print(f"{state:<{widths[0]}}  {estimate:>{widths[1]}}  {run}")


def workload_table(rows: Sequence[Workload], kinds: Sequence[str]) -> Table:
    """For each experiment its runs, those left to train, and their time on each kind of device."""
    headings = ("runs", "left", *map(_short, kinds))
    cells = [
        (row.method, row.experiment, [str(row.runs), str(row.left), *map(time_text, row.estimates)]) for row in rows
    ]
    return _by_experiment(headings, cells)


def _short(kind: str) -> str:
    """A kind of device without what all of them are: "Intel(R) Xeon(R) Processor" is an Intel Xeon."""
    return " ".join(re.sub(r"\((?:R|TM)\)|\b(?:Processor|CPU)\b|@.*", " ", kind).split()) or kind


def coverage_table(rows: Sequence[Coverage]) -> Table:
    """For each experiment its cells and seeds, and what became of them; states that none is in are left out."""
    states = [state for state in STATES if state in ("done", "missing") or any(row.states[state] for row in rows)]
    timed = any(seconds is not None for row in rows for seconds in row.seconds_left)
    headings = ["cells", "seeds", *states, *(["time left"] if timed else [])]
    cells = []
    for row in rows:
        counts = [str(row.states[state] or "") for state in states]
        left = [time_text(row.seconds_left)] if timed else []
        cells.append((row.method, row.experiment, [str(row.cells), row.seeds, *counts, *left]))
    return _by_experiment([heading.replace("interrupted", "inter-\nrupted") for heading in headings], cells)


def _by_experiment(headings: Sequence[str], rows: Sequence[tuple[str, str, Sequence[str]]]) -> Table:
    """Rows of a method, an experiment and cells; methods are headings where there are several."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("experiment", overflow="fold", vertical="bottom")
    for heading in headings:
        table.add_column(heading, justify="right", vertical="bottom")
    several = len({method for method, _, _ in rows if method}) > 1
    last = ""
    for method, experiment, cells in rows:
        inside = several and bool(method)
        if inside and method != last:
            table.add_row(Text(method, "bold"))
        table.add_row(Text(f"  {experiment}" if inside else experiment), *cells)
        last = method
    return table


def calibration_table(rows: Sequence[GradientRatio]) -> Table:
    columns = {"task": "left", "arm": "left", "weight": "left", "strength": "right", "penalty / task": "right"}
    table = _table(columns)
    for row in rows:
        table.add_row(row.task, row.arm, row.weight, f"{row.strength:.3g}", f"{row.ratio:.3g}")
    return table


def _table(columns: dict[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in columns.items():
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    return table


def bench_table(rows: Sequence[Row], show_header: bool) -> Table:
    """The rows of one method, in columns of one width for all."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", show_header=show_header)
    widths = {"measured": 27, "on": 11, "ratio": 5, "quartiles": 11, "ms, ops": 7, "limit": 7, "": 6}  # 80 in all
    for heading, width in widths.items():
        table.add_column(
            heading, justify="right" if heading in ("ratio", "quartiles", "ms, ops") else "left", width=width
        )
    for row in rows:
        kept = "" if row.kept is None else "kept" if row.kept else "MISSED"
        spread = "" if row.milliseconds is None else f"{row.low:.2f}-{row.high:.2f}"
        size = str(row.operations) if row.milliseconds is None else f"{row.milliseconds:.4g}"
        table.add_row(row.what, row.where, f"{row.ratio:.2f}", spread, size, row.limit, kept)
    return table
