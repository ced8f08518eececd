"""What commands print: the one console, and tables for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # both know torch, and `list` prints too
    from reproduce.bench.timing import Row
    from reproduce.training.calibrate import GradientRatio


@cache
def console() -> Console:
    """The terminal, or the file or pipe in its place."""
    return Console()


def print_line(text: str) -> None:
    """One line as it stands, with rich's markup, however wide the terminal is."""
    console().print(text, highlight=False, soft_wrap=True)


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
        return "unknown" if self.estimated_seconds is None else f"{self.estimated_seconds:.0f} s"

    @property
    def state(self) -> str:
        if self.sealed:
            return "sealed"
        return "after the budget" if self.in_budget is False else "to train"


def print_plan(rows: Sequence[PlannedRow]) -> None:
    """A line for each Run. Plain lines, since rich takes seconds to lay out thousands of rows."""
    table = [("run", "state", "estimate"), *((row.run, row.state, row.estimate) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    for run, state, estimate in table:
        print(f"{run:<{widths[0]}}  {state:<{widths[1]}}  {estimate:>{widths[2]}}".rstrip())


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
