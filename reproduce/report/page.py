"""The page of a method: what was asked, what was found, how sure. HTML, Markdown and CSV from one content."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Experiment
from reproduce.report import figures, over_tasks, style, tables
from reproduce.report.counts import Tally, tallies
from reproduce.report.drawings import Drawing, own_figures_digest
from reproduce.report.method_card import MethodCard
from reproduce.report.numbers import NOTHING, metric_text
from reproduce.report.provenance import protocol, provenance, unreadable
from reproduce.report.render import Page
from reproduce.report.seed_plots import seed_plots
from reproduce.report.sentences import best_arm_sentence, claims_sentences, waiting_sentence
from reproduce.report.style import ArmColors
from reproduce.report.tables import ClaimText, RowText, TextTable
from reproduce.results.evaluate import Finding, MethodFindings, TaskFinding
from reproduce.results.judge import rule
from reproduce.results.record import Result


@dataclass(frozen=True)
class PageRow:
    """One arm under one metric: its texts, its seeds as a plot, and its color."""

    text: RowText
    seed_plot: Markup
    color: str
    ran: bool


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
    metrics: tuple[MetricPart, ...]
    tables: tuple[tuple[str, TextTable], ...]  # the same for Markdown, by metric
    beside: TextTable | None
    drawings: tuple[Drawing, ...]


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
class ExperimentPart:
    """One experiment."""

    name: str
    experiment: Experiment
    tasks: tuple[TaskPart, ...]
    waiting: str
    over_tasks: OverTasksPart | None
    claims: tuple[ClaimText, ...]
    claims_table: TextTable
    conclusion: str
    tallies: tuple[Tally, ...]
    runs: int
    planned: int
    protocol: list[tuple[str, str]]


@dataclass(frozen=True)
class PageContent:
    """Everything that a page says."""

    name: str
    card: MethodCard
    unreadable_files: tuple[str, ...]
    tallies: tuple[Tally, ...]
    rule: str
    experiments: tuple[ExperimentPart, ...]
    drawings: tuple[Drawing, ...]
    provenance: dict[str, list[str]]
    runs: int

    def all_drawings(self) -> Iterator[Drawing]:
        for one in self.experiments:
            yield from one.over_tasks.drawings if one.over_tasks else ()
            for task in one.tasks:
                yield from task.drawings
        yield from self.drawings


def write_page(method: MethodFindings, problems: Sequence[str], output: Path) -> Path:
    """Write `<output>/<method's name>.html`, `.md` and `.csv`, and return the path of the first; see `method_page`.

    Raises:
        UserError: also, no permission to write.
    """
    return method_page(method, problems).write(output)


def method_page(method: MethodFindings, problems: Sequence[str]) -> Page:
    """The page of a method, its figures not yet drawn.

    Args:
        problems: one line for each Result file that could not be read.

    Raises:
        UserError: no usable card, or an unknown figure.
    """
    card = MethodCard(method.folder.path)
    findings = sorted(method.findings, key=lambda finding: not finding.results)  # what ran comes first
    colors = style.arm_colors(finding.experiment for finding in findings)
    results = [result for finding in findings for result in finding.results]
    superseded = [result for finding in findings for result in finding.superseded]
    content = PageContent(
        name=method.folder.name,
        card=card,
        unreadable_files=unreadable(problems),
        tallies=tallies(findings),
        rule=rule(),
        experiments=tuple(_experiment(finding, colors) for finding in findings),
        drawings=_own_drawings(method.folder, results),
        provenance=provenance(results, superseded, unreadable(problems)),
        runs=len({result.id for result in results}),
    )
    tasks = [(finding.name, task) for finding in findings for task in finding.tasks.values()]
    csv = tables.comma_separated(tasks)
    return Page(method.folder.name, "page", vars(content), tuple(content.all_drawings()), csv)


def _experiment(finding: Finding, colors: ArmColors) -> ExperimentPart:
    claims = tuple(tables.claim_texts(finding))
    return ExperimentPart(
        name=finding.name,
        experiment=finding.experiment,
        tasks=tuple(_task(finding, task, colors) for task in finding.tasks.values() if task.runs.results),
        waiting=waiting_sentence(finding),
        over_tasks=_over_tasks(finding, colors),
        claims=claims,
        claims_table=tables.claims_table(claims),
        conclusion=claims_sentences(finding),
        tallies=tallies([finding]),
        runs=finding.n_runs,
        planned=finding.n_planned,
        protocol=protocol(finding.experiment),
    )


def _task(finding: Finding, task: TaskFinding, colors: ArmColors) -> TaskPart:
    return TaskPart(
        name=task.name,
        notes=task.runs.notes,
        data=finding.datasets[finding.experiment.tasks[task.name].dataset],
        sentence=best_arm_sentence(task),
        metrics=tuple(_metric(task, metric, colors) for metric in task.metrics),
        tables=tuple((metric_text(metric), tables.of_metric(task, metric)) for metric in task.metrics),
        beside=tables.side_by_side(task),
        drawings=tuple(figures.drawing(name, task, colors) for name in finding.experiment.figures),
    )


def _metric(task: TaskFinding, metric: str, colors: ArmColors) -> MetricPart:
    rows = task.tables[metric]
    variables = [style.variable_alone(colors.color(row.arm)) for row in rows]
    columns = zip(rows, tables.row_texts(rows), seed_plots(rows, variables), variables, strict=True)
    shown = tuple(PageRow(text, plot, color, row.ran) for row, text, plot, color in columns)
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


def _own_drawings(folder: MethodFolder, results: list[Result]) -> tuple[Drawing, ...]:
    """The figures that a method folder draws itself: its `FIGURES` give a caption and a function for each name."""
    path = folder.path / "figures.py"
    if not path.exists():
        return ()
    spec = importlib.util.spec_from_file_location(f"methods.{folder.name}.figures", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own: Mapping[str, tuple[str, Callable[[list[Result]], Figure]]] | None = getattr(module, "FIGURES", None)
    if own is None:
        raise UserError(f"{path}: defines no FIGURES")
    shows = own_figures_digest(folder.path, results)
    return tuple(
        Drawing(caption, [name, *shows], functools.partial(draw, results)) for name, (caption, draw) in own.items()
    )
