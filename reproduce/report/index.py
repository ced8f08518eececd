"""The page over all methods, and the page of the matrix beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.report.answer import answer, listed
from reproduce.report.cost import Cost, cost
from reproduce.report.counts import NOT_RUN, WHOSE, Tally, kind_of, only_alone, points, tally, total
from reproduce.report.first_screen import first_sentence
from reproduce.report.glossary import GLOSSARY
from reproduce.report.matrix import Matrix, matrix, matrix_page
from reproduce.report.method_card import MethodCard
from reproduce.report.overview import Overview, overview
from reproduce.report.provenance import machines, unreadable
from reproduce.report.render import Page
from reproduce.results.columns import Column
from reproduce.results.evaluate import MethodFindings
from reproduce.results.judge import rule
from reproduce.results.record import Result


@dataclass(frozen=True)
class MethodRow:
    """What the index says of one method."""

    name: str
    title: str
    idea: str  # its first sentence
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

    answer: str
    overview: Overview
    claims_say: str  # what a claim is, and what its verdict shows
    facts: tuple[tuple[str, str], ...]
    methods: tuple[MethodRow, ...]
    claims: tuple[ClaimsTable, ...]
    unreadable_files: tuple[str, ...]
    rule: str
    glossary: tuple[tuple[str, str], ...]
    matrix: Matrix | None
    cost: Cost | None
    data: str


def write_index(
    methods: Sequence[MethodFindings], columns: Sequence[Column], output: Path, problems: Sequence[str] = ()
) -> Path:
    """Write the pages of `index_pages`, and return the path of the index.

    Raises:
        UserError: no usable card, or no permission to write.
    """
    return [page.write(output) for page in index_pages(methods, columns, problems)][-1]


def index_pages(
    methods: Sequence[MethodFindings], columns: Sequence[Column], problems: Sequence[str] = (), data: str = ""
) -> list[Page]:
    """The index, last; and before it the page of the cross-method matrix, where that has columns.

    Args:
        problems: one line for each Result file that could not be read.
        data: the address of the folder with the data behind the pages, where there is one.

    Raises:
        UserError: no usable card.
    """
    rows, methods = zip(*sorted(((_row(method), method) for method in methods), key=_by_title), strict=True)
    both = (_claims(methods, rows, ours) for ours in WHOSE)
    lines = unreadable(problems)
    experiments = {method.folder.name: {one.name: one.experiment for one in method.findings} for method in methods}
    crossed = matrix(experiments, columns, lines) if columns else None
    compared = [column for column in columns if any(row.difference is not None for row in column.rows.values())]
    waiting = [column.task.name for column in columns if column not in compared]
    facts = _facts(methods, columns)
    content = IndexContent(
        answer=answer(methods, columns),
        overview=overview(
            {row.name: row.title for row in rows},
            {method.folder.name: tally(method.findings, ours=False) for method in methods},
            compared,
        ),
        claims_say=counted_sentences(methods),
        facts=(*facts, ("Not run yet", listed(waiting))) if waiting else facts,
        methods=rows,
        claims=tuple(table for table in both if table.rows),
        unreadable_files=lines,
        rule=rule(),
        glossary=GLOSSARY,
        matrix=crossed,
        cost=(costs := cost(columns)),
        data=data,
    )
    index = Page("index", "index", vars(content), (costs.drawing,) if costs else ())
    return [index] if crossed is None else [matrix_page(crossed, columns), index]


def counted_sentences(methods: Sequence[MethodFindings]) -> str:
    """What is counted as a published claim, and how many of those that point one way do so among others too."""
    verdicts = [
        verdict
        for method in methods
        for finding in method.findings
        for verdict in finding.verdicts
        if not verdict.claim.ours
    ]
    if not verdicts:
        return ""
    places = len({verdict.claim.source for verdict in verdicts})
    said = (
        f"A claim is one number, or one gap between two, of one experiment: {len(verdicts)} claims are fewer "
        f"statements, from {places} place{'s' if places != 1 else ''} in the papers, since a statement that is tested "
        "on two networks or at two scales, or whose number two papers print, counts in each."
    )
    one_way = [verdict for verdict in verdicts if kind_of(verdict) != NOT_RUN and points(verdict)]
    if one_way:
        alone = sum(map(only_alone, one_way))
        said += (
            f" A verdict is of its claim alone: of {len(one_way)} gap{'s' if len(one_way) != 1 else ''} whose interval "
            f"excludes zero, {alone or 'none'} {'have' if alone > 1 else 'has'} an adjusted p above 0.05."
        )
    return said


def _claims(methods: Sequence[MethodFindings], rows: Sequence[MethodRow], ours: bool) -> ClaimsTable:
    counted = [(method, row, tally(method.findings, ours)) for method, row in zip(methods, rows, strict=True)]
    some = [one for one in counted if one[2].claims]
    return ClaimsTable(
        rows=tuple((row, one) for _, row, one in some),
        total=total((one for _, _, one in some), ours),
        runs=len(_runs(method for method, _, _ in some)),
    )


def _runs(methods: Iterable[MethodFindings]) -> dict[str, Result]:
    """Every Result that counts, once."""
    return {result.id: result for method in methods for finding in method.findings for result in finding.results}


def _by_title(pair: tuple[MethodRow, MethodFindings]) -> tuple[str, str]:
    return pair[0].title.casefold(), pair[0].name


def _row(method: MethodFindings) -> MethodRow:
    card = MethodCard(method.folder.path)
    return MethodRow(
        name=method.folder.name,
        title=card.title,
        idea=first_sentence(card.sections["Idea"]),
        runs=len(_runs([method])),
    )


def _facts(methods: Sequence[MethodFindings], columns: Sequence[Column]) -> tuple[tuple[str, str], ...]:
    """How many runs there are, of when, made on what, and how many seeds stand behind a mark."""
    runs = _runs(methods) | {result.id: result for column in columns for result in column.task.runs.results}
    if not runs:
        return (("Runs", "none yet"),)
    newest = max(result.environment.finished for result in runs.values())
    facts = [
        ("Runs", f"{len(runs)} that count, each with its sealed Result"),
        ("Newest Result", newest.partition("T")[0]),
        ("Machines", machines(runs.values())),
    ]
    seeds = _seeds(columns)
    return (*facts, ("Seeds (n)", seeds)) if seeds else tuple(facts)


def _seeds(columns: Sequence[Column]) -> str:
    """Seeds an arm and of the baseline, columns that have the same together."""
    texts: dict[str, list[str]] = {}
    for column in columns:
        counts = {arm: row.n for arm, row in column.rows.items() if row.ran}
        baseline = counts.pop(column.baseline.name, 0)
        if counts:
            low, high = min(counts.values()), max(counts.values())
            arms = f"{low}" if low == high else f"{low} to {high}"
            text = f"{arms} an arm, {baseline} of “{column.baseline.label}”"
            texts.setdefault(text, []).append(column.task.name)
    return "; ".join(f"{listed(list(dict.fromkeys(names)))}: {text}" for text, names in texts.items())
