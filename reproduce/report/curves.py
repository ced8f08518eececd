"""Lines of arms over training: those in front in color with their names at the ends, the others thin and grey."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduce.report.axes import (
    EndLabel,
    Extent,
    far_ones,
    label_width,
    set_reach,
    step_ticks,
    write_labels,
)
from reproduce.report.fronts import front
from reproduce.report.numbers import metric_text
from reproduce.report.style import QUIET, WIDTH, ArmColors, plain
from reproduce.results.evaluate import TaskFinding
from reproduce.results.match import ArmRuns
from reproduce.results.record import EpochRecord, Result

HEIGHT = 2.6  # inches of a panel of curves
SLACK = 0.25  # of what the means span: as far as single seeds may reach beyond, where there are many lines
BESIDE = 0.45  # inches beside a panel for its ticks and their label
ValueOf = Callable[[EpochRecord], float | None]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class ArmLine:
    """One arm over training: the mean, as far as every seed goes, and its seeds."""

    arm: ArmRuns
    mean: Points
    seeds: tuple[tuple[Points, bool], ...]  # and whether it diverged
    in_front: bool

    @property
    def extent(self) -> Extent:
        """From the lowest to the highest of what is drawn strong."""
        values = [value for _, value in self.mean] or [line[-1][1] for line, _ in self.seeds]
        return min(values), max(values)

    @property
    def end(self) -> float:
        return self.mean[-1][1] if self.mean else self.seeds[0][0][-1][1]


def by_step(task: TaskFinding) -> bool:
    """Whether training is counted in steps."""
    return task.experiment.recipe.steps is not None


def arms_that_ran(task: TaskFinding) -> list[ArmRuns]:
    return [arm for arm in task.runs.arms.values() if arm.chosen and arm.chosen.results]


def chosen_results(arm: ArmRuns) -> list[Result]:
    return list(arm.chosen.results.values()) if arm.chosen else []


def arm_lines(task: TaskFinding, value_of: ValueOf) -> list[ArmLine]:
    """A line over training for every arm that has the value at some evaluation."""
    return lines_of(task, lambda result: points(result, value_of, by_step(task)))


def lines_of(task: TaskFinding, points_of: Callable[[Result], Points]) -> list[ArmLine]:
    """A line for every arm whose Results have points; those that are not in front come first."""
    in_front, found = front(task), []
    for arm in arms_that_ran(task):
        seeds = [(points_of(result), result.status == "diverged") for result in chosen_results(arm)]
        seeds = [(line, diverged) for line, diverged in seeds if line]
        if seeds:
            tables = [dict(line) for line, _ in seeds]
            shared = sorted(set.intersection(*(set(table) for table in tables)))
            mean = [(x, float(np.mean([table[x] for table in tables]))) for x in shared]
            found.append(ArmLine(arm, mean, tuple(seeds), arm.name in in_front))
    return sorted(found, key=lambda line: line.in_front)


def points(result: Result, value_of: ValueOf, steps: bool) -> Points:
    """The finite values of a Result over its evaluations."""
    values = [(float(record.step if steps else record.epoch), value_of(record)) for record in result.epochs]
    return [(x, value) for x, value in values if value is not None and np.isfinite(value)]


def draw_lines(axis: Axes, lines: Sequence[ArmLine], colors: ArmColors, seeds: str) -> None:
    """Draw the lines of a panel, and limit it so that what lies far beyond the others does not flatten them.

    Args:
        seeds: "lines" for a thin line for each seed in front, "ends" for a bar over where they end.
    """
    axis.grid(axis="y")
    if not lines:
        return
    for line in lines:
        _draw(axis, line, colors, seeds)
    if seeds == "ends":
        _bars(axis, [line for line in lines if line.in_front], colors)
    extents = {line.arm.name: line.extent for line in lines}
    diverged = frozenset(line.arm.name for line in lines if any(bad for _, bad in line.seeds))
    far = far_ones(extents, diverged)
    near = [line for line in lines if line.arm.name not in far]
    if seeds == "lines":
        values = [value for line in near for seed, _ in line.seeds for _, value in seed]
    else:
        values = [seed[-1][1] for line in near if line.in_front for seed, _ in line.seeds]
    middle = sum(near[0].extent) / 2
    beyond = [
        (max(line.extent, key=lambda end: abs(end - middle)), _color(line, colors))
        for line in lines
        if line not in near
    ]
    slack = SLACK if len(lines) > 2 else math.inf
    set_reach(axis, [line.extent for line in near], values, slack, beyond)


def _color(line: ArmLine, colors: ArmColors) -> str:
    return colors.color(line.arm.name) if line.in_front else QUIET


def _draw(axis: Axes, line: ArmLine, colors: ArmColors, seeds: str) -> None:
    color, name = _color(line, colors), line.arm.name
    for seed, diverged in line.seeds:
        if seeds == "lines" and line.in_front and len(line.seeds) > 1:
            axis.plot(*zip(*seed, strict=True), color=color, lw=0.5, alpha=0.3)
        if diverged:
            axis.plot(*seed[-1], "x", color=color, ms=6, mew=1.6)
    strong = {"lw": 1.6, "ls": colors.dash(name)} if line.in_front else {"lw": 0.7, "alpha": 0.7}
    alone = colors.marker(name) if len(line.mean) == 1 else None  # a line through one point is invisible
    xs, ys = [x for x, _ in line.mean], [y for _, y in line.mean]
    axis.plot(xs, ys, color=color, marker=alone, ms=4.5, label=plain(line.arm.label), **strong)


def _bars(axis: Axes, lines: Sequence[ArmLine], colors: ArmColors) -> None:
    """Side by side behind the end of training, for each arm from its lowest seed to its highest."""
    everywhere = [x for line in lines for seed, _ in line.seeds for x, _ in seed]
    if not everywhere:
        return
    first, last = min(everywhere), max(everywhere)
    step = 0.035 * ((last - first) or 1.0)
    for place, line in enumerate(lines, 1):
        ends = [seed[-1][1] for seed, _ in line.seeds]
        if len(ends) > 1:
            color = colors.color(line.arm.name)
            axis.plot([last + place * step] * 2, [min(ends), max(ends)], color=color, lw=1.6, alpha=0.7)


def end_labels(lines: Sequence[ArmLine], colors: ArmColors) -> list[EndLabel]:
    """The names of the lines in front."""
    return [
        EndLabel(line.arm.label, line.end, colors.color(line.arm.name), colors.dash(line.arm.name))
        for line in lines
        if line.in_front
    ]


def grid_with_names(rows: int, columns: int, height: float, names: Sequence[str], after: int) -> tuple[
    Figure, list[list[Axes]], Axes
]:  # fmt: skip
    """Panels in rows and columns, and an empty one for names after so many of the first row's."""
    room = label_width(names)
    figure = Figure(figsize=(WIDTH, rows * height + 0.5), layout="constrained")
    own = (WIDTH - room) / columns - BESIDE
    ratios = [own] * after + [room] + [own] * (columns - after)
    places = figure.add_gridspec(rows, columns + 1, width_ratios=ratios)
    grid: list[list[Axes]] = []
    for row in range(rows):
        across = [column for column in range(columns + 1) if column != after]
        above = grid[0] if grid else [None] * columns
        grid.append([figure.add_subplot(places[row, c], sharex=top) for c, top in zip(across, above, strict=True)])
    return figure, grid, figure.add_subplot(places[0, after])


def learning_curves(task: TaskFinding, colors: ArmColors) -> Figure | None:
    """The task's metric and the training loss, panel by panel."""
    arms, name = arms_that_ran(task), task.runs.metric
    if name is None or all(len(result.epochs) < 2 for arm in arms for result in chosen_results(arm)):
        return None
    records = [record for arm in arms for result in chosen_results(arm) for record in result.epochs]
    split = next((s for s in ("validation", "test") if any(name in getattr(e, s) for e in records)), None)
    wanted: list[tuple[str, ValueOf]] = []
    if split is not None:
        wanted.append((f"{split}.{name}", lambda e: getattr(e, split).get(name)))
    wanted.append(("training loss, without penalty", lambda e: e.train_loss))
    panels = [(metric, arm_lines(task, value_of)) for metric, value_of in wanted]
    panels = [(metric, lines) for metric, lines in panels if lines]
    if not panels:
        return None
    labels = end_labels(panels[0][1], colors)
    figure, (row,), column = grid_with_names(1, len(panels), HEIGHT - 0.5, [label.text for label in labels], after=1)
    for axis, (metric, lines) in zip(row, panels, strict=True):
        draw_lines(axis, lines, colors, "lines")
        axis.set_ylabel(metric_text(metric) if "." in metric else metric)
        step_ticks(axis, by_step(task))
    write_labels(column, row[0], labels, HEIGHT - 0.7)
    return figure
