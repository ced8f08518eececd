"""Which method to use, from the evidence alone: what each charges for, and what the columns tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.report.counts import LABELS, tallies
from reproduce.report.gaps import heading
from reproduce.report.method_card import MethodCard
from reproduce.report.numbers import NOTHING, number
from reproduce.report.tables import TextTable, decimals_of_rows
from reproduce.results.columns import Column
from reproduce.results.evaluate import ArmRow, MethodFindings
from reproduce.results.match import higher_is_better

NO_DIFFERENCE = "no difference told"


@dataclass(frozen=True)
class Choice:
    """A row for each method, those that a column tells to be better first and those told to be worse last."""

    table: TextTable
    advice: str


def choice(methods: Sequence[MethodFindings], columns: Sequence[Column]) -> Choice:
    """The decision table over these methods.

    Raises:
        UserError: no usable card.
    """
    headings = ("Method", "What it does", *(f"[{heading(column)}](matrix.md)" for column in columns), "Claims judged")
    ranked = sorted(methods, key=lambda method: (-_balance(method, columns), method.folder.name))
    rows = tuple(_row(method, columns) for method in ranked if not _is_baseline(method, columns))
    return Choice(TextTable(headings, rows), advice(columns))


def advice(columns: Sequence[Column]) -> str:
    """One sentence for each column: what to try there first, what to leave, and of how many nothing can be told."""
    return " ".join(filter(None, map(_advice, columns)))


def _advice(column: Column) -> str:
    tested = [row for row in column.rows.values() if row.p_holm is not None]
    if not tested:
        return ""
    better, worse = (_named(column, tested, side) for side in (True, False))
    rest = sum(not row.significant for row in tested)
    first = f"try {better} first" if better else "no arm is told to be better than the baseline"
    leave = f", leave {worse}" if worse else ""
    left = f", and no difference is told of the other {rest}" if rest else ""
    return f"On {column.task.name}, {first}{leave}{left}."


def _named(column: Column, rows: Sequence[ArmRow], better: bool) -> str:
    return " and ".join(f"“{row.label}”" for row in rows if _is_told(column, row, better))


def _is_told(column: Column, row: ArmRow, better: bool) -> bool:
    if not row.significant or row.difference is None:
        return False
    return (row.difference.estimate.mean > 0) == (higher_is_better(column.metric) == better)


def _row(method: MethodFindings, columns: Sequence[Column]) -> tuple[str, ...]:
    card = MethodCard(method.folder.path)
    idea = card.sections["Idea"].partition("\n\n")[0].replace("\n", " ")
    told = (_told(column, _rows_of(column, method)) for column in columns)
    return (f"[{card.title}]({method.folder.name}.md)", idea, *told, _judged(method))


def _rows_of(column: Column, method: MethodFindings) -> list[ArmRow]:
    return [column.rows[arm] for arm, owner in column.methods.items() if owner == method.folder.name]


def _told(column: Column, rows: Sequence[ArmRow]) -> str:
    """Like `better: −0.33` or `no difference told (2 arms)`."""
    compared = [row for row in rows if row.difference is not None]
    if not compared:
        return "not run" if rows else NOTHING
    decimals = decimals_of_rows(column.rows.values())
    parts = [
        f"**{word}**: {number(row.difference.estimate.mean, decimals, sign=True)} ({row.label})"
        for word, better in (("better", True), ("worse", False))
        for row in compared
        if row.difference is not None and _is_told(column, row, better)
    ]
    rest = len(compared) - len(parts)
    if rest:
        arms = f" ({rest} arms)" if rest > 1 else ""
        parts.append(f"{NO_DIFFERENCE}{arms}")
    return "; ".join(parts)


def _judged(method: MethodFindings) -> str:
    """Like `the papers': 2 undecided; ours: 2 opposite`."""
    parts = []
    for one in tallies(method.findings):
        kinds = {kind: count for kind, count in one.kinds.items() if kind != "not run"}
        if kinds:
            listed = ", ".join(
                f"{count} {'a value' if kind == 'reduced scale' else kind}" for kind, count in kinds.items()
            )
            small = " at reduced scale" if kinds.keys() <= LABELS.keys() else ""
            parts.append(f"{'ours' if one.ours else 'the papers’'}{small}: {listed}")
    return "; ".join(parts) or NOTHING


def _balance(method: MethodFindings, columns: Sequence[Column]) -> int:
    """Arms told to be better, less those told to be worse."""
    return sum(
        _is_told(column, row, True) - _is_told(column, row, False)
        for column in columns
        for row in _rows_of(column, method)
    )


def _is_baseline(method: MethodFindings, columns: Sequence[Column]) -> bool:
    return any(column.baseline.arm.method == method.folder.name for column in columns)
