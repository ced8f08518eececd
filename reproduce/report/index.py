"""The page over all methods, and the page of the matrix beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.report.matrix import Matrix, matrix, matrix_page
from reproduce.report.method_card import MethodCard
from reproduce.report.render import Page
from reproduce.results.columns import Column
from reproduce.results.evaluate import MethodFindings, count_directions, count_verdicts
from reproduce.results.judge import WORDS, rule


@dataclass(frozen=True)
class MethodRow:
    """What the index says of one method."""

    name: str
    title: str
    idea: str
    counts: dict[str, int]
    directions: str
    claims: int
    runs: int


@dataclass(frozen=True)
class IndexContent:
    """Everything that the index says."""

    methods: tuple[MethodRow, ...]
    used: tuple[str, ...]
    rule: str
    matrix: Matrix | None


def write_index(methods: Sequence[MethodFindings], columns: Sequence[Column], output: Path) -> Path:
    """Write the pages of `index_pages`, and return the path of the index.

    Raises:
        UserError: no usable card, or no permission to write.
    """
    return [page.write(output) for page in index_pages(methods, columns)][-1]


def index_pages(methods: Sequence[MethodFindings], columns: Sequence[Column]) -> list[Page]:
    """The index, last; and before it the page of the cross-method matrix, where that has columns.

    Raises:
        UserError: no usable card.
    """
    rows = tuple(_row(method) for method in methods)
    used = tuple(word for word in WORDS if any(word in row.counts for row in rows))
    experiments = {method.folder.name: {one.name: one.experiment for one in method.findings} for method in methods}
    crossed = matrix(experiments, columns) if columns else None
    index = Page("index", "index", vars(IndexContent(rows, used, rule(), crossed)))
    return [index] if crossed is None else [matrix_page(crossed, columns), index]


def _row(method: MethodFindings) -> MethodRow:
    card = MethodCard(method.folder.path)
    directions = count_directions(method.findings)
    return MethodRow(
        name=method.folder.name,
        title=card.title,
        idea=card.sections["Idea"].split("\n\n")[0],
        counts=count_verdicts(method.findings),
        directions=", ".join(f"{count} {word}" for word, count in directions.items()),
        claims=sum(len(finding.verdicts) for finding in method.findings),
        runs=len({result.id for finding in method.findings for result in finding.results}),
    )
