"""The page over all methods, and the page of the matrix beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.report.counts import WHOSE, Tally, tally, total
from reproduce.report.matrix import Matrix, matrix, matrix_page
from reproduce.report.method_card import MethodCard
from reproduce.report.provenance import unreadable
from reproduce.report.render import Page
from reproduce.results.columns import Column
from reproduce.results.evaluate import MethodFindings
from reproduce.results.judge import rule


@dataclass(frozen=True)
class MethodRow:
    """What the index says of one method."""

    name: str
    title: str
    idea: str
    runs: int


@dataclass(frozen=True)
class ClaimsTable:
    """Claims of one origin: a tally for each method that has any, and their sum."""

    rows: tuple[tuple[MethodRow, Tally], ...]
    total: Tally
    runs: int  # of these methods, each counted once: a baseline's stand on many pages


@dataclass(frozen=True)
class IndexContent:
    """Everything that the index says."""

    methods: tuple[MethodRow, ...]
    runs: int
    claims: tuple[ClaimsTable, ...]
    unreadable_files: tuple[str, ...]
    rule: str
    matrix: Matrix | None


def write_index(
    methods: Sequence[MethodFindings], columns: Sequence[Column], output: Path, problems: Sequence[str] = ()
) -> Path:
    """Write the pages of `index_pages`, and return the path of the index.

    Raises:
        UserError: no usable card, or no permission to write.
    """
    return [page.write(output) for page in index_pages(methods, columns, problems)][-1]


def index_pages(
    methods: Sequence[MethodFindings], columns: Sequence[Column], problems: Sequence[str] = ()
) -> list[Page]:
    """The index, last; and before it the page of the cross-method matrix, where that has columns.

    Args:
        problems: one line for each Result file that could not be read.

    Raises:
        UserError: no usable card.
    """
    rows = tuple(_row(method) for method in methods)
    both = (_claims(methods, rows, ours) for ours in WHOSE)
    lines = unreadable(problems)
    experiments = {method.folder.name: {one.name: one.experiment for one in method.findings} for method in methods}
    crossed = matrix(experiments, columns, lines) if columns else None
    content = IndexContent(
        methods=rows,
        runs=_n_runs(methods),
        claims=tuple(table for table in both if table.rows),
        unreadable_files=lines,
        rule=rule(),
        matrix=crossed,
    )
    index = Page("index", "index", vars(content))
    return [index] if crossed is None else [matrix_page(crossed, columns), index]


def _claims(methods: Sequence[MethodFindings], rows: Sequence[MethodRow], ours: bool) -> ClaimsTable:
    counted = [(method, row, tally(method.findings, ours)) for method, row in zip(methods, rows, strict=True)]
    some = [one for one in counted if one[2].claims]
    return ClaimsTable(
        rows=tuple((row, one) for _, row, one in some),
        total=total((one for _, _, one in some), ours),
        runs=_n_runs(method for method, _, _ in some),
    )


def _n_runs(methods: Iterable[MethodFindings]) -> int:
    return len({result.id for method in methods for finding in method.findings for result in finding.results})


def _row(method: MethodFindings) -> MethodRow:
    card = MethodCard(method.folder.path)
    return MethodRow(
        name=method.folder.name,
        title=card.title,
        idea=card.sections["Idea"].split("\n\n")[0],
        runs=_n_runs([method]),
    )
