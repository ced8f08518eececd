"""What stands first for whoever browses the folder of pages: the answer in a sentence, a figure and a table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.report.answer import answer
from reproduce.report.block import BEGIN, CHOICE, END, marks
from reproduce.report.choice import choice
from reproduce.report.counts import NOT_RUN, Tally, tally, total
from reproduce.report.drawings import Drawing
from reproduce.report.gaps import alone, gaps_drawing, heading
from reproduce.report.method_card import MethodCard
from reproduce.report.numbers import NOTHING, number
from reproduce.report.render import filled
from reproduce.report.tables import TextTable, decimals_of_rows
from reproduce.results.columns import Column
from reproduce.results.evaluate import ArmRow, MethodFindings
from reproduce.results.match import higher_is_better
from reproduce.results.stats import SIGNIFICANCE

FIGURES = {"answer.svg": False, "answer-dark.svg": True}  # whether it is for the night
REDUCED = "at reduced scale"


@dataclass(frozen=True)
class Front:
    """The page ``README.md`` of the folder of pages, with its figure."""

    content: dict[str, object]
    drawings: tuple[Drawing, ...]  # one at most

    def texts(self) -> dict[str, str]:
        """What is to be written, by the names of files: the page, and its figure, which is drawn by then."""
        figure = "".join(drawing.svg for drawing in self.drawings)
        figures = {name: alone(figure, dark) for name, dark in FIGURES.items()} if figure else {}
        return {**figures, "README.md": filled("front.md.j2", {**self.content, "has_figure": bool(figure)})}


def front(methods: Sequence[MethodFindings], columns: Sequence[Column], matrix: TextTable | None) -> Front:
    """The page over these methods.

    Args:
        matrix: the table of all arms in all columns, where there is one.

    Raises:
        UserError: no usable card.
    """
    columns = [column for column in columns if any(row.difference is not None for row in column.rows.values())]
    drawings = (gaps_drawing(columns),) if columns else ()
    chosen = choice(methods, columns)
    content: dict[str, object] = {
        "begin": BEGIN,
        "end": END,
        "answer": answer(methods, columns).replace("<", "&lt;"),
        "table": _as_text(answer_table(methods, columns)),
        "choice_marks": marks(CHOICE),
        "choice": _as_text(chosen.table),
        "advice": chosen.advice.replace("<", "&lt;"),
        "matrix": _as_text(_linked(matrix, {method.folder.name for method in methods})) if matrix else None,
        "description": " ".join(drawing.description for drawing in drawings),
        "legend": _legend(columns),
        "pages": [(method.folder.name, MethodCard(method.folder.path).title) for method in methods],
        "level": SIGNIFICANCE,
    }
    return Front(content, drawings)


def _legend(columns: Sequence[Column]) -> str:
    """How the table's gaps are to be read; "" where it has none."""
    if not columns:
        return ""
    baselines = " or ".join(f"“{label}”" for label in dict.fromkeys(column.baseline.label for column in columns))
    better = {"higher" if higher_is_better(column.metric) else "lower" for column in columns}
    sides = f" {better.pop().capitalize()} is better." if len(better) == 1 else ""
    caveat = " * Read it with the caveat above." if any(column.experiment.caveat for column in columns) else ""
    return (
        f"Under one budget, minus {baselines}: the mean gap of a method's arm, or the range of several; bold where the "
        f"seeds tell one from zero (p < {SIGNIFICANCE}, Holm's adjustment over the column).{sides}{caveat}"
    )


def answer_table(methods: Sequence[MethodFindings], columns: Sequence[Column]) -> TextTable:
    """A row for each method: what became of its papers' claims, and the gaps of its arms in each column."""
    counted = {method.folder.name: _outcomes(tally(method.findings, ours=False)) for method in methods}
    every = _outcomes(total((tally(method.findings, ours=False) for method in methods), ours=False))
    outcomes = [name for name, count in every.items() if count or name in ("reproduced", REDUCED, NOT_RUN)]
    headings = ("Method", *(f"Claims {name}" if place == 0 else name for place, name in enumerate(outcomes)))
    rows = [
        (
            f"[{_short(MethodCard(method.folder.path).title)}]({method.folder.name}.md)",
            *(str(counted[method.folder.name][name] or NOTHING) for name in outcomes),
            *(_gaps(column, method.folder.name) for column in columns),
        )
        for method in methods
        if any(counted[method.folder.name].values()) or method.folder.name in _in_columns(columns)
    ]
    rows.append(("All", *(str(every[name]) for name in outcomes), *map(_told, columns)))
    return TextTable((*headings, *map(heading, columns)), tuple(rows))


def _as_text(table: TextTable) -> TextTable:
    """A table in which no label is HTML, or ends the block."""
    return TextTable(table.columns, tuple(tuple(text.replace("<", "&lt;") for text in row) for row in table.rows))


def _short(title: str) -> str:
    """A title without what it adds after a comma or a colon."""
    return re.split(r"[,:](?![^(]*\))", title)[0]


def _in_columns(columns: Sequence[Column]) -> set[str]:
    return {method for column in columns for method in column.methods.values()}


def _outcomes(counted: Tally) -> dict[str, int]:
    """The verdicts at paper scale one by one, those at reduced scale together, and what was not run."""
    kinds = ("reproduced", "partly", "not reproduced", "inconclusive")
    found = {kind: counted.kinds.get(kind, 0) for kind in kinds}
    return {**found, REDUCED: counted.judged - sum(found.values()), NOT_RUN: counted.waiting}


def _gaps(column: Column, method: str) -> str:
    """The mean gap of the method's only arm, or the range of several; bold where the seeds tell one from zero."""
    rows = [column.rows[arm] for arm, of in column.methods.items() if of == method]
    gaps = [(row.difference.estimate.mean, row) for row in rows if row.difference is not None]
    if not gaps:
        return NOTHING
    decimals = decimals_of_rows(column.rows.values())
    low, high = min(gap for gap, _ in gaps), max(gap for gap, _ in gaps)
    text = number(low, decimals, sign=True)
    if len(gaps) > 1:
        text += f" to {number(high, decimals, sign=True)}"
    told = _n_told(rows)
    if not told:
        return text
    return f"**{text}**" + (f" ({told} of {len(gaps)} told)" if len(gaps) > 1 else "")


def _told(column: Column) -> str:
    tested = [row for row in column.rows.values() if row.p_holm is not None]
    return f"{_n_told(tested)} of {len(tested)} arms told apart" if tested else NOTHING


def _n_told(rows: Sequence[ArmRow]) -> int:
    return sum(row.significant for row in rows)


def _linked(matrix: TextTable, names: set[str]) -> TextTable:
    """The matrix with each method's name as a link to its page."""
    place = matrix.columns.index("Method")
    rows = tuple(
        tuple(f"[{text}]({text}.md)" if at == place and text in names else text for at, text in enumerate(row))
        for row in matrix.rows
    )
    return TextTable(matrix.columns, rows)
