"""What a method's page says of one experiment: its claims, its tables task by task, its figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.schema import Experiment
from reproduce.report import evidence, figures, over_tasks, style, tables
from reproduce.report.counts import NOT_RUN, WHOSE, Tally, tallies
from reproduce.report.drawings import Drawing
from reproduce.report.numbers import NOTHING, metric_text
from reproduce.report.provenance import protocol
from reproduce.report.seed_plots import seed_plots
from reproduce.report.sentences import (
    best_arm_sentence,
    claims_sentences,
    correlation_sentence,
    sampling_sentence,
    waiting_sentence,
)
from reproduce.report.style import ArmColors
from reproduce.report.tables import ClaimText, RowText, TextTable
from reproduce.results.evaluate import Finding, TaskFinding

IN_FRONT = ("seeds", "paired_differences")  # figures of what was found; the others, of how training went, are folded


@dataclass(frozen=True)
class PageRow:
    """One arm under one metric: its texts, its seeds as a plot, its color, and where its runs stand."""

    text: RowText
    seed_plot: Markup
    color: str
    ran: bool
    evidence: str


@dataclass(frozen=True)
class MetricPart:
    """The rows of one metric, as HTML shows them."""

    metric: str
    gap: str
    rows: tuple[PageRow, ...]

    @property
    def has_paper(self) -> bool:
        return any(row.text.paper != NOTHING for row in self.rows)

    @property
    def has_difference(self) -> bool:
        return any(row.text.difference != NOTHING for row in self.rows)

    @property
    def has_p_value(self) -> bool:
        return any(row.text.p_value != NOTHING for row in self.rows)


@dataclass(frozen=True)
class TaskPart:
    """One task of which something ran."""

    name: str
    notes: tuple[str, ...]
    data: DatasetCard
    sentence: str
    correlation: str
    sampling: str
    metrics: tuple[MetricPart, ...]
    tables: tuple[tuple[str, TextTable], ...]  # the same for Markdown, by metric
    beside: TextTable | None
    drawings: tuple[Drawing, ...]
    folded: tuple[Drawing, ...]


@dataclass(frozen=True)
class OverTasksPart:
    """What stands over the tasks, where they are many."""

    metric: str
    labels: tuple[str, ...]
    rows: tuple[over_tasks.ProblemRow, ...]
    table: TextTable
    sentence: str
    drawings: tuple[Drawing, ...]


@dataclass(frozen=True)
class ClaimRow:
    """One claim, and where the runs stand that it was judged by."""

    text: ClaimText
    evidence: str


@dataclass(frozen=True)
class ClaimsPart:
    """The claims of one origin; the papers' and ours are families of their own."""

    whose: str
    rows: tuple[ClaimRow, ...]
    table: TextTable

    @property
    def has_p_value(self) -> bool:
        return any(row.text.p_value != NOTHING for row in self.rows)

    @property
    def judged(self) -> bool:
        return any(row.text.kind != NOT_RUN for row in self.rows)


@dataclass(frozen=True)
class ExperimentPart:
    """One experiment."""

    name: str
    experiment: Experiment
    tasks: tuple[TaskPart, ...]
    waiting: str
    over_tasks: OverTasksPart | None
    claims: tuple[ClaimsPart, ...]
    conclusion: str
    tallies: tuple[Tally, ...]
    runs: int
    planned: int
    protocol: list[tuple[str, str]]

    def all_drawings(self) -> Iterator[Drawing]:
        yield from self.over_tasks.drawings if self.over_tasks else ()
        for task in self.tasks:
            yield from task.drawings
            yield from task.folded


def experiment_part(method: str, finding: Finding, colors: ArmColors) -> ExperimentPart:
    """Everything that the page of ``method`` says of an experiment."""
    return ExperimentPart(
        name=finding.name,
        experiment=finding.experiment,
        tasks=tuple(_task(method, finding, task, colors) for task in finding.tasks.values() if task.runs.results),
        waiting=waiting_sentence(finding),
        over_tasks=_over_tasks(finding, colors),
        claims=_claims(method, finding),
        conclusion=claims_sentences(finding),
        tallies=tallies([finding]),
        runs=finding.n_done,
        planned=finding.n_planned,
        protocol=protocol(finding.experiment),
    )


def _claims(method: str, finding: Finding) -> tuple[ClaimsPart, ...]:
    """The papers' claims, then ours; without those that there are none of."""
    texts = tables.claim_texts(finding)
    parts = []
    for by_us, whose in WHOSE.items():
        of_one = [text for text in texts if text.by_us == by_us]
        rows = tuple(
            ClaimRow(
                text,
                evidence.link(method, finding, finding.tasks[text.task], text.arm) if text.ours != NOTHING else "",
            )
            for text in of_one
        )
        parts += [ClaimsPart(whose, rows, tables.claims_table(of_one))] if rows else []
    return tuple(parts)


def _task(method: str, finding: Finding, task: TaskFinding, colors: ArmColors) -> TaskPart:
    drawn = {name: figures.drawing(name, task, colors) for name in finding.experiment.figures}
    return TaskPart(
        name=task.name,
        notes=task.runs.notes,
        data=(card := finding.datasets[finding.experiment.tasks[task.name].dataset]),
        sentence=best_arm_sentence(task),
        correlation=correlation_sentence(task),
        sampling=sampling_sentence(task, card),
        metrics=tuple(_metric(method, finding, task, metric, colors) for metric in task.metrics),
        tables=tuple((metric_text(metric), tables.of_metric(task, metric)) for metric in task.metrics),
        beside=tables.side_by_side(task),
        drawings=tuple(one for name, one in drawn.items() if name in IN_FRONT),
        folded=tuple(one for name, one in drawn.items() if name not in IN_FRONT),
    )


def _metric(method: str, finding: Finding, task: TaskFinding, metric: str, colors: ArmColors) -> MetricPart:
    rows = task.tables[metric]
    variables = [style.variable_alone(colors.color(row.arm)) for row in rows]
    columns = zip(rows, tables.row_texts(rows), seed_plots(rows, variables), variables, strict=True)
    shown = tuple(
        PageRow(text, plot, color, row.ran, evidence.link(method, finding, task, row.arm) if row.ran else "")
        for row, text, plot, color in columns
    )
    return MetricPart(metric_text(metric), tables.difference_heading(task), shown)


def _over_tasks(finding: Finding, colors: ArmColors) -> OverTasksPart | None:
    over = finding.over_tasks
    if over is None:
        return None
    places = {arm: colors.places[arm] for arm in over.labels}
    profile = Drawing(
        over_tasks.PROFILE_CAPTION,
        ["profile", repr(over), places],
        lambda: over_tasks.performance_profile(over, colors),
    )
    return OverTasksPart(
        metric=metric_text(over.metric),
        labels=tuple(over.labels.values()),
        rows=tuple(over_tasks.rows(over)),
        table=over_tasks.table(over),
        sentence=over_tasks.sentence(over),
        drawings=(profile,),
    )
