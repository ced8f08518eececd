"""The cross-method matrix: every method on the same tasks under one budget, its coefficient chosen by one rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reproduce.experiment.dataset_card import DatasetCard
from reproduce.report import figures, tables
from reproduce.report.drawings import Drawing
from reproduce.report.evidence import link_of_column
from reproduce.report.numbers import (
    NOTHING,
    decimals_of,
    metric_name,
    metric_text,
    number,
    p_equals,
    with_unit,
)
from reproduce.report.provenance import protocol
from reproduce.report.render import Page
from reproduce.report.sentences import best_of, complete_means, extreme, sampling_sentence
from reproduce.report.style import ArmColors
from reproduce.report.tables import TextTable
from reproduce.results.chance import expected_best
from reproduce.results.columns import Column, Experiments
from reproduce.results.evaluate import ArmRow
from reproduce.results.match import ArmRuns, higher_is_better
from reproduce.results.stats import CONFIDENCE, SIGNIFICANCE

CAPTION = (
    "Each arm minus the baseline, on test and validation, the best on the test set first: points are "
    "seeds, bars are means with their 95 % intervals, colours are methods; an arrow is the mean of an arm far beyond."
)


@dataclass(frozen=True)
class MatrixCell:
    """What one arm has in one column, as texts."""

    ran: bool
    mean: str
    gap: str
    p: str
    significant: bool
    n: str
    chosen: str
    note: str
    evidence: str  # the address of its runs; "" without any


@dataclass(frozen=True)
class MatrixRow:
    """One arm of one method; None where it is not in a column."""

    method: str
    label: str
    cells: tuple[MatrixCell | None, ...]


@dataclass(frozen=True)
class ColumnPart:
    """What the pages say of one column."""

    key: str
    name: str
    title: str
    question: str
    metric: str
    gap: str
    sentence: str
    caveat: str
    notes: tuple[str, ...]
    data: DatasetCard
    sampling: str
    table: TextTable
    drawing: Drawing | None
    deviations: tuple[str, ...]
    protocol: list[tuple[str, str]]


@dataclass(frozen=True)
class Matrix:
    """Everything that the page says."""

    columns: tuple[ColumnPart, ...]
    rows: tuple[MatrixRow, ...]
    overview: TextTable
    runs: int
    planned: int
    arms: int
    present: tuple[str, ...]
    absent: tuple[str, ...]
    evidence: tuple[str, ...]  # methods with a page of the runs behind these means
    choosing: tuple[int, ...]  # how many further seeds choose coefficients, column by column where that differs
    unreadable_files: tuple[str, ...] = ()
    confidence: str = f"{CONFIDENCE:.0%}".replace("%", " %")
    level: float = SIGNIFICANCE


def matrix(methods: Mapping[str, Experiments], columns: Sequence[Column], unreadable: tuple[str, ...] = ()) -> Matrix:
    """What the columns of all methods come to."""
    rows = matrix_rows(columns)
    headings = ("Arm", "Method", *(f"{column.task.name}: {metric_text(column.metric)}" for column in columns))
    texts = tuple((row.label, row.method, *map(cell_text, row.cells)) for row in rows)
    return Matrix(
        columns=tuple(_column(column) for column in columns),
        rows=tuple(rows),
        overview=TextTable(headings, texts),
        runs=sum(column.task.runs.done for column in columns),
        planned=sum(column.task.runs.planned for column in columns),
        arms=len(_labels(columns)),
        present=tuple(sorted({name for column in columns for name in column.methods.values()})),
        absent=_absent(methods, columns),
        evidence=tuple(sorted({column.place(arm)[0] for column in columns for arm in _ran(column)})),
        choosing=tuple(sorted({len(column.experiment.choosing_seeds) for column in columns} - {0})),
        unreadable_files=unreadable,
    )


def matrix_page(content: Matrix, columns: Iterable[Column]) -> Page:
    """The page of the matrix."""
    drawings = tuple(part.drawing for part in content.columns if part.drawing is not None)
    csv = tables.comma_separated((column.file, column.task) for column in columns)
    return Page("matrix", "matrix", vars(content), drawings, csv)


def _ran(column: Column) -> list[str]:
    """Arms with runs behind them."""
    return [arm for arm in column.rows if link_of_column(column, arm)]


def _labels(columns: Sequence[Column]) -> list[tuple[str, str]]:
    """Method and label of every arm but the baseline, each once."""
    labels = [(method, column.rows[arm].label) for column in columns for arm, method in column.methods.items()]
    return list(dict.fromkeys(labels))


def _absent(methods: Mapping[str, Experiments], columns: Sequence[Column]) -> tuple[str, ...]:
    """Which methods a column is without, in words."""
    files = dict.fromkeys(column.file for column in columns)
    missing = {file: [name for name, experiments in methods.items() if file not in experiments] for file in files}
    return tuple(f"{file} is without {', '.join(names)}" for file, names in missing.items() if names)


def _column(column: Column) -> ColumnPart:
    experiment = column.experiment
    key = f"{column.file}-{column.task.name}".replace("_", "-")
    return ColumnPart(
        key=key,
        name=column.task.name,
        title=experiment.title,
        question=experiment.question,
        metric=metric_text(column.metric),
        gap=f"minus {column.baseline.label}",
        sentence=sentence(column),
        caveat=experiment.caveat,
        notes=column.task.runs.notes,
        data=(card := column.finding.datasets[experiment.tasks[column.task.name].dataset]),
        sampling=sampling_sentence(column.task, card),
        table=_table(column),
        drawing=differences(column),
        deviations=experiment.deviations,
        protocol=protocol(experiment),
    )


def _table(column: Column) -> TextTable:
    """The column as a table of its own, without the rule that is said once."""
    table = tables.of_metric(column.task, column.metric)
    if "Note" not in table.columns:
        return table
    place = table.columns.index("Note")
    notes = [_note(row) for row in column.rows.values()]
    rows = zip(table.rows, notes, strict=True)
    return replace(table, rows=tuple((*row[:place], note, *row[place + 1 :]) for row, note in rows))


def matrix_rows(columns: Sequence[Column]) -> list[MatrixRow]:
    """One row for each arm: the arms of one method with the same label are one, whatever the column."""
    baselines = dict.fromkeys(column.baseline.label for column in columns)
    keys = [("", label) for label in baselines]
    keys += sorted(_labels(columns), key=lambda key: key[0])
    rows = []
    for method, label in keys:
        cells = []
        for column in columns:
            named = [r for r in column.rows.values() if (column.methods.get(r.arm, ""), r.label) == (method, label)]
            cells.append(_cell(column, named[0]) if named else None)
        rows.append(MatrixRow(method, label, tuple(cells)))
    return rows


def _cell(column: Column, row: ArmRow) -> MatrixCell:
    decimals = tables.decimals_of_rows(column.rows.values())
    ran = row.runs.chosen is not None
    return MatrixCell(
        ran=ran,
        mean=f"({number(row.survivors.mean, decimals)})"
        if row.survivors
        else number(row.mean.mean if row.mean else None, decimals),
        gap="" if row.runs is column.baseline else tables.difference_text(row, decimals),
        p="" if row.p_holm is None else p_equals(row.p_holm),
        significant=row.significant,
        n=f"n = {row.n}" + ("" if row.n == row.planned else f" of {row.planned}") if ran else "",
        chosen=chosen(row.runs),
        note=_note(row),
        evidence=link_of_column(column, row.arm),
    )


def chosen(arm: ArmRuns) -> str:
    """The coefficient that counts, and whether its grid ends there: the best one may then lie outside."""
    parts = []
    for name, value in arm.chosen_grid.items():
        end = arm.end_of_grid(name)
        parts.append(f"at {value:g}" + (f", {end}" if end else ""))
    return "; ".join(parts)


def _note(row: ArmRow) -> str:
    """What is unusual: the rule by which coefficients are chosen is said once for the whole page."""
    usual = "" if row.runs.chosen_on_test else f"chosen: {row.runs.chosen_by}"
    return "; ".join(note for note in row.notes if note != usual)


def cell_text(cell: MatrixCell | None) -> str:
    """A cell of a pipe table."""
    if cell is None:
        return NOTHING
    if not cell.ran:
        return cell.note
    strong = "**" if cell.significant else ""
    return cell.mean + (f"; {strong}{cell.gap}{strong}" if cell.gap else "")


def sentence(column: Column) -> str:
    """Which arms the seeds tell from the baseline, how many intervals exclude zero, and which mean is best."""
    baseline, metric, rows = column.baseline, column.metric, column.rows
    means = complete_means(list(rows.values()))
    if not means:
        return "Nothing has run yet."
    best, mean = best_of(means, metric)
    decimals = decimals_of(mean for _, mean in means)
    name, reached = metric_name(metric), with_unit(mean, metric, decimals)
    over = rows[baseline.name].mean
    sentences = [f"“{best.label}” has the {extreme(metric)} mean {name}, {reached}"]
    if len(means) == 1:
        sentences = [f"“{best.label}” is alone so far, with a mean {name} of {reached}"]
    elif best.arm != baseline.name and over is not None:
        sentences[0] += f"; “{baseline.label}” has {number(over.mean, decimals)}"
    tested = [row for row, _ in means if row.p_holm is not None]
    if tested:
        sentences += _tested(tested, baseline)
    elif len(means) > 1:
        sentences.append("No arm shares two seeds with the baseline, so nothing is told apart")
    diverged = [row.label for row in rows.values() if row.diverged]
    if diverged:
        sentences.append(f"Seeds diverged: {', '.join(f'“{label}”' for label in diverged)}")
    return ". ".join(sentences) + "."


def _tested(rows: Sequence[ArmRow], baseline: ArmRuns) -> list[str]:
    """What the tests against the baseline say of these arms."""
    gaps = [(row, row.difference.estimate) for row in rows if row.difference is not None]
    significant = [(row.label, gap.mean) for row, gap in gaps if row.significant]
    sentences = [
        f"Of {len(rows)} arms the seeds tell {len(significant) or 'not one'} from “{baseline.label}” after Holm's "
        f"adjustment (p < {SIGNIFICANCE})"
    ]
    groups = {side: _names(significant, sign) for side, sign in (("Below", -1), ("Above", 1))}
    sentences += [f"{side} it: {names}" for side, names in groups.items() if names]
    without_zero = sum(gap.interval is not None and not gap.interval.contains(0.0) for _, gap in gaps)
    chance = (1 - CONFIDENCE) * len(rows)
    sentences.append(f"{without_zero} of the {len(rows)} intervals exclude zero, where chance alone gives {chance:.1f}")
    spreads = [math.sqrt(gap.run / 2 / gap.n) for _, gap in gaps if gap.run is not None]
    if len(spreads) > 1:
        reach = expected_best(len(spreads)) * float(np.median(spreads))
        reached = number(reach, decimals_of([reach]))
        sentences.append(f"The best mean of so many arms that do not differ lies {reached} off by chance alone")
    return sentences


def _names(gaps: Sequence[tuple[str, float]], sign: int) -> str:
    """Labels of those on one side, the farthest first."""
    side = sorted(((label, gap) for label, gap in gaps if gap * sign > 0), key=lambda pair: -abs(pair[1]))
    return ", ".join(f"“{label}”" for label, _ in side)


def differences(column: Column) -> Drawing | None:
    """A forest plot of the arms that ran, best first; arms of one method share a color."""
    if column.task.runs.metric is None:
        return None  # nothing has run
    sign = -1.0 if higher_is_better(column.metric) else 1.0
    gaps = {arm: row.difference.estimate.mean if row.difference else None for arm, row in column.rows.items()}
    ran = [arm for arm in column.task.runs.arms.values() if arm is not column.baseline and arm.chosen is not None]
    ran.sort(key=lambda arm: (gaps[arm.name] is None, sign * (gaps[arm.name] or 0.0), arm.name))
    names = [column.baseline.name, *(arm.name for arm in ran)]
    places = {name: place for place, name in enumerate(dict.fromkeys(column.methods.values()), start=1)}
    colors = ArmColors({column.baseline.name: 0} | {arm: places[method] for arm, method in column.methods.items()})
    return figures.drawing("paired_differences", column.task.with_arms(names), colors, CAPTION)
