"""The page of a method: what was asked, what was found, how sure. HTML, Markdown and CSV from one content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from reproduce.experiment.files import COLUMN
from reproduce.report import style, tables
from reproduce.report.drawings import Drawing
from reproduce.report.evidence import Address, beside_pages, evidence_page, page_name
from reproduce.report.experiment_part import ExperimentPart, experiment_part
from reproduce.report.first_screen import FirstScreen, first_screen
from reproduce.report.matrix import MatrixRow, cell_text, matrix_rows
from reproduce.report.method_card import MethodCard
from reproduce.report.numbers import metric_text
from reproduce.report.own_figures import colors_of_results, own_drawings
from reproduce.report.provenance import DeviationsPart, deviations, provenance, unreadable
from reproduce.report.render import Page
from reproduce.report.waiting import Timing, WaitingRow, waiting_rows, waiting_table
from reproduce.results.columns import Column
from reproduce.results.evaluate import Finding, MethodFindings
from reproduce.results.judge import rule

FIRST = ("Idea", "Mathematics")  # sections of a card in the order of the page; the others follow as the card has them
ELSEWHERE = (*FIRST, "Deviations", "Citation")


@dataclass(frozen=True)
class MatrixPart:
    """The method's row of the matrix, and the details behind it."""

    headings: tuple[str, ...]
    baselines: tuple[str, ...]
    rows: tuple[MatrixRow, ...]
    details: tuple[ExperimentPart, ...]
    table: tables.TextTable


@dataclass(frozen=True)
class PageContent:
    """Everything that a page says."""

    name: str
    card: MethodCard
    unreadable_files: tuple[str, ...]
    first: FirstScreen
    alone: bool
    evidence: str
    rule: str
    groups: tuple[tuple[str, tuple[ExperimentPart, ...]], ...]  # those that ran, the paper's and our own
    with_claims: tuple[ExperimentPart, ...]  # those with claims, what ran first
    matrix: MatrixPart | None
    waiting: tuple[WaitingRow, ...]
    waiting_table: tables.TextTable
    deviations: tuple[DeviationsPart, ...]
    drawings: tuple[Drawing, ...]
    provenance: dict[str, list[str]]
    runs: int

    @property
    def ran(self) -> tuple[ExperimentPart, ...]:
        return tuple(chain.from_iterable(parts for _, parts in self.groups))

    @property
    def other_sections(self) -> dict[str, str]:
        return {name: text for name, text in self.card.sections.items() if name not in ELSEWHERE}

    def all_drawings(self) -> Iterator[Drawing]:
        for one in (*self.ran, *(self.matrix.details if self.matrix else ())):
            yield from one.all_drawings()
        yield from self.drawings


def write_page(method: MethodFindings, problems: Sequence[str], output: Path, address: Address = beside_pages) -> Path:
    """Write `<output>/<method's name>.html`, `.md` and `.csv` with the page of evidence behind them, and return the
    path of the first; see `method_pages`.

    Raises:
        UserError: also, no permission to write.
    """
    page, *others = method_pages(method, problems, address)
    for other in others:
        other.write(output)
    return page.write(output)


def method_pages(
    method: MethodFindings,
    problems: Sequence[str],
    address: Address = beside_pages,
    timing: Timing | None = None,
    alone: bool = True,
) -> list[Page]:
    """The page of a method, its figures not yet drawn, and the page of its evidence where something has run.

    Args:
        problems: one line for each Result file that could not be read.
        address: where a Result lies, as seen from the pages.
        timing: how long trainings take; without it, hours are unknown.
        alone: whether neither index nor matrix is written beside it.

    Raises:
        UserError: no usable card, or an unknown figure.
    """
    card = MethodCard(method.folder.path)
    content = _content(method, card, unreadable(problems), timing, alone)
    tasks = [(finding.name, task) for finding in _in_order(method) for task in finding.tasks.values()]
    shown = {**vars(content), "ran": content.ran, "other_sections": content.other_sections}
    page = Page(method.folder.name, "page", shown, tuple(content.all_drawings()), tables.comma_separated(tasks))
    return [page, evidence_page(method, card.title, address)] if content.evidence else [page]


def _in_order(method: MethodFindings) -> list[Finding]:
    """What ran comes first."""
    return sorted(method.findings, key=lambda finding: not finding.ran)


def _content(
    method: MethodFindings, card: MethodCard, problems: tuple[str, ...], timing: Timing | None, alone: bool
) -> PageContent:
    name, findings = method.folder.name, _in_order(method)
    colors = style.arm_colors(finding.experiment for finding in findings)
    columns = [finding for finding in findings if finding.name.startswith(COLUMN)]
    others = [finding for finding in findings if finding not in columns]
    results = [result for finding in findings for result in finding.results]
    superseded = [result for finding in findings for result in finding.superseded]
    parts = {finding.name: experiment_part(name, finding, colors) for finding in findings}
    ran = [finding for finding in others if finding.ran]
    waiting = waiting_rows(name, (*others, *columns), timing)
    return PageContent(
        name=name,
        card=card,
        unreadable_files=problems,
        first=first_screen(method, card, others, columns, problems),
        alone=alone,
        evidence=f"{page_name(name)}.html" if results else "",
        rule=rule(),
        groups=tuple(
            (title, group)
            for title, is_paper in (("The paper's experiments", True), ("Our own experiments", False))
            if (group := tuple(parts[one.name] for one in ran if _is_of_paper(one) == is_paper))
        ),
        with_claims=tuple(parts[finding.name] for finding in (*others, *columns) if finding.verdicts),
        matrix=_matrix(name, [finding for finding in columns if finding.ran], parts),
        waiting=waiting,
        waiting_table=waiting_table(waiting),
        deviations=deviations(findings),
        drawings=own_drawings(method.folder, results, colors_of_results(findings, colors)),
        provenance=provenance(results, superseded, problems),
        runs=len({result.id for result in results}),
    )


def _is_of_paper(finding: Finding) -> bool:
    """Whether it asks what a paper claims."""
    return any(not claim.ours for claim in finding.experiment.claims) or not finding.experiment.source.startswith(
        "ours"
    )


def _matrix(method: str, findings: Sequence[Finding], parts: dict[str, ExperimentPart]) -> MatrixPart | None:
    """None where nothing has run of it."""
    columns = [
        Column(finding, task, {arm: method for arm in task.runs.arms if arm != finding.experiment.baseline}, method)
        for finding in findings
        for task in finding.tasks.values()
    ]
    if not columns:
        return None
    rows = tuple(matrix_rows(columns))
    headings = tuple(f"{column.task.name}: {metric_text(column.metric)}" for column in columns)
    texts = tuple((row.label, *map(cell_text, row.cells)) for row in rows)
    return MatrixPart(
        headings=headings,
        baselines=tuple(column.baseline.label for column in columns),
        rows=rows,
        details=tuple(parts[finding.name] for finding in findings),
        table=tables.TextTable(("Arm", *headings), texts),
    )
