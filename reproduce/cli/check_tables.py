"""What `check` prints of each of its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:  # it knows torch
    from reproduce.bench.check import Findings


def tables_of(part: str, found: Findings) -> list[Table | str]:
    """A part of a check: its table where it has one, and one line of what was done and what was left out."""
    tables: dict[str, Callable[[Findings], Table]] = {
        "facts": _facts,
        "step times": _step_times,
        "side by side": _side_by_side,
    }
    shown: list[Table | str] = [f"\n[bold]{part}[/bold]{_count(part, found)}"]
    if part in tables:
        shown.append(tables[part](found))
    return shown + [f"[dim]{remark}[/dim]" for remark in found.remarks if remark.startswith(part)]


def _count(part: str, found: Findings) -> str:
    done, refused = found.counts[part], found.counts[f"{part}, refused"]
    if not done:
        return ""
    of_refused = f", {refused} pairs refused by the method" if refused else ""
    return f": {done} done{of_refused}"


def _facts(found: Findings) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    bandwidth = {} if found.bandwidth is None else {"a copy moves": f"{found.bandwidth / 1e9:.0f} GB/s"}
    for name, value in {**found.versions, **found.facts, **bandwidth}.items():
        table.add_row(name, value)
    return table


def _step_times(found: Findings) -> Table:
    """Beside each time its floor: what moving its bytes takes; and its operations, each of which is started."""
    headings = ("network", "method", "precision", "mode", "ms", "floor ms", "operations")
    table = _table(headings, right=("ms", "floor ms", "operations"))
    for step in found.steps:
        floor = "" if found.bandwidth is None else f"{1e3 * step.floor(found.bandwidth):.3g}"
        method = step.method if step.variant == "defaults" else f"{step.method} {step.variant}"
        row = (step.workload, method, step.precision, step.mode, f"{1e3 * step.seconds:.4g}", floor)
        table.add_row(*row, str(step.operations))
    return table


def _side_by_side(found: Findings) -> Table:
    headings = ("network", "at once", "ms a step of a run", "GiB", "advice")
    table = _table(headings, right=("at once", "ms a step of a run", "GiB"))
    for row in found.side_by_side:
        memory = "" if row.memory is None else f"{row.memory / 2**30:.1f}"
        best = found.recommended.get(row.workload) == row.at_once
        advice = f"--jobs {row.at_once}" if best else ""
        table.add_row(row.workload, str(row.at_once), f"{1e3 * row.seconds:.4g}", memory, advice)
    return table


def _table(headings: tuple[str, ...], right: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=True)
    return table
