"""The page over all methods, and the page of the matrix beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.report.matrix import Matrix, matrix, write_matrix
from reproduce.report.method_card import MethodCard
from reproduce.report.render import write_template
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
    """Write `<output>/index.html` and `index.md`, and return the path of the first.

    Where there are columns of the cross-method matrix, its page and `matrix.csv` too.

    Raises:
        UserError: no usable card, or no permission to write.
    """
    rows = tuple(_row(method) for method in methods)
    used = tuple(word for word in WORDS if any(word in row.counts for row in rows))
    experiments = {method.folder.name: {one.name: one.experiment for one in method.findings} for method in methods}
    crossed = matrix(experiments, columns) if columns else None
    if crossed is not None:
        write_matrix(crossed, columns, output / "matrix.html")
    path = output / "index.html"
    write_template(path, "index", vars(IndexContent(rows, used, rule(), crossed)))
    return path


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
