"""A Finding in, figure out: what an experiment may ask to be drawn of each of its tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from reproduce.errors import UserError
from reproduce.report.drawings import Drawing, finding_digest
from reproduce.report.numbers import decimals_of, metric_text, number
from reproduce.report.said import differences_described, seeds_described
from reproduce.report.style import INK, QUIET, WIDTH, ArmColors, legend, look, panels, plain
from reproduce.results.evaluate import ArmRow, TaskFinding
from reproduce.results.match import ArmRuns
from reproduce.results.record import QUANTILES, EpochRecord, Result
from reproduce.results.stats import Estimate

STATISTICS = {"mean_square": "mean square", "norm_dispersion": "norm dispersion", "effective_rank": "effective rank"}


class ExperimentFigure(NamedTuple):
    """What an experiment's file may name in ``figures``."""

    caption: str
    draw: Callable[[TaskFinding, ArmColors], Figure | None]
    describe: Callable[[TaskFinding], str] | None = None  # in numbers; by default, where the lines end


def draw(name: str, task: TaskFinding, colors: ArmColors) -> Figure | None:
    """Draw one figure of an experiment; None where its Results hold nothing to draw.

    Raises:
        UserError: there is no figure of that name.
    """
    if name not in FIGURES:
        raise UserError(f"unknown figure {name!r} in {task.experiment.title!r}: there are {', '.join(FIGURES)}")
    with look():
        return FIGURES[name].draw(task, colors)


def drawing(name: str, task: TaskFinding, colors: ArmColors, caption: str = "") -> Drawing:
    """The figure of that name as part of a page; with a caption of its own, if it needs one. Errors as `draw`."""
    if name not in FIGURES:
        raise UserError(f"unknown figure {name!r} in {task.experiment.title!r}: there are {', '.join(FIGURES)}")
    one, shows = FIGURES[name], [name, *finding_digest(task, colors)]
    description = one.describe(task) if one.describe else ""
    return Drawing(caption or one.caption, shows, lambda: draw(name, task, colors), description)


def seeds(task: TaskFinding, colors: ArmColors) -> Figure | None:
    metrics = [metric for metric in task.metrics if any(row.values for row in task.tables[metric])]
    if not metrics:
        return None
    arms = list(task.runs.arms.values())
    figure, axes = panels(len(metrics), height=0.9 + 0.34 * len(arms), per_row=2, sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        for place, row in enumerate(task.tables[metric]):
            _seed_row(axis, place, row, colors)
            if row.paper is not None:
                axis.plot(row.paper, place, "D", mfc="none", mec=INK, ms=6, mew=1.1, zorder=4)
        axis.set_xlabel(metric_text(metric))
        _rows(axis, len(arms))
    axes[0].set_yticks(range(len(arms)), [plain(arm.label) for arm in arms])
    return figure


def _seed_row(axis: Axes, place: int, row: ArmRow, colors: ArmColors) -> None:
    if row.estimate is None:
        return
    _points(axis, place, list(row.values.values()), row.arm, colors)
    if row.mean is not None:  # no mean where seeds are missing from it
        _bar(axis, place, row.mean, colors.color(row.arm))


def paired_differences(task: TaskFinding, colors: ArmColors) -> Figure | None:
    """Each arm minus the baseline.

    Where one arm lies far beyond all others, the panel shows those, and an arrow with the mean of the one.
    """
    if task.baseline is None:
        return None
    differences = {metric: _differences(task, metric, task.baseline.name) for metric in task.metrics}
    metrics = [metric for metric, rows in differences.items() if any(pairs for _, pairs in rows)]
    if not metrics:
        return None
    others = [arm for arm in task.runs.arms.values() if arm is not task.baseline]
    figure, axes = panels(len(metrics), height=0.9 + 0.34 * len(others), per_row=2, sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        axis.axvline(0, color=QUIET, lw=0.8)
        for place, (row, pairs) in enumerate(differences[metric]):
            _difference_row(axis, place, row, pairs, task.baseline, colors)
        _leave_out_the_farthest(axis, others, differences[metric])
        axis.set_xlabel(f"{metric_text(metric)}, minus {plain(task.baseline.label)}")
        _rows(axis, len(others))
    axes[0].set_yticks(range(len(others)), [plain(arm.label) for arm in others])
    return figure


def _differences(task: TaskFinding, metric: str, baseline: str) -> list[tuple[ArmRow, list[float]]]:
    """The row of every arm but the baseline, and what its seeds, survivors' too, differ by: from the baseline's of the
    same seed where the gap is paired, else from its mean."""
    rows = task.tables[metric]
    over = next(row.values for row in rows if row.arm == baseline)
    mean = float(np.mean(list(over.values()))) if over else 0.0

    def of(row: ArmRow) -> list[float]:
        if row.difference is not None and row.difference.paired:
            return [value - over[seed] for seed, value in row.values.items() if seed in over]
        return [value - mean for value in row.values.values()] if over else []

    return [(row, of(row)) for row in rows if row.arm != baseline]


def _difference_row(
    axis: Axes, place: int, row: ArmRow, pairs: list[float], baseline: ArmRuns, colors: ArmColors
) -> None:
    _points(axis, place, pairs, row.arm, colors)
    if row.difference is not None:
        _bar(axis, place, row.difference.estimate, colors.color(row.arm))
        return
    # No mean where seeds are missing from it.
    diverged = next((arm for arm in (row.runs, baseline) if arm.diverged), None)
    if row.runs.chosen is None:
        reason = "not run"
    else:
        reason = f"seeds of {plain(diverged.label)} diverged" if diverged else "no Results"
    axis.text(
        0.99, place - 0.3, reason, transform=axis.get_yaxis_transform(), ha="right", va="center", color=QUIET, size=7.5
    )


def _points(axis: Axes, place: int, values: list[float], arm: str, colors: ArmColors) -> None:
    marker, color = colors.marker(arm), colors.color(arm)
    axis.plot(values, np.full(len(values), place), marker, color=color, ms=4.5, alpha=0.55, mew=0)


def _leave_out_the_farthest(axis: Axes, arms: list[ArmRuns], rows: list[tuple[ArmRow, list[float]]]) -> None:
    """Limit a panel to the other arms, where all seeds of one lie beyond twice the reach of theirs."""
    pairs = [seeds for _, seeds in rows]
    reaches = [_reach(row, seeds) for row, seeds in rows]
    far = max(range(len(arms)), key=lambda place: min(map(abs, pairs[place]), default=0.0))
    others = [reach for place, reach in enumerate(reaches) if place != far]
    reach = max((abs(end) for ends in others for end in ends), default=0.0)
    if reach == 0 or arms[far].diverged or min(map(abs, pairs[far]), default=0.0) <= 2 * reach:
        return
    low, high = min(low for low, _ in others), max(high for _, high in others)
    margin = 0.08 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    mean = float(np.mean(pairs[far]))
    right, text = mean > 0, number(mean, decimals_of([mean]), sign=True)
    axis.text(
        0.99 if right else 0.01,
        far,
        f"{text} →" if right else f"← {text}",
        transform=axis.get_yaxis_transform(),
        ha="right" if right else "left",
        va="center",
        color=QUIET,
        size=7.5,
    )


def _reach(row: ArmRow, pairs: list[float]) -> tuple[float, float]:
    """From the lowest to the highest that a row draws: seeds, interval and zero."""
    interval = row.difference.estimate.interval if row.difference else None
    ends = [*pairs, 0.0, *((interval.low, interval.high) if interval else ())]
    return min(ends), max(ends)


def _bar(axis: Axes, place: int, estimate: Estimate, color: str) -> None:
    if estimate.interval is not None:
        axis.plot([estimate.interval.low, estimate.interval.high], [place, place], "-", color=color, lw=1.6)
    axis.plot(estimate.mean, place, "|", color=color, ms=13, mew=2.2)


def _rows(axis: Axes, count: int) -> None:
    """A panel whose rows are arms."""
    axis.grid(axis="x")
    axis.set_ylim(count - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def learning_curves(task: TaskFinding, colors: ArmColors) -> Figure | None:
    arms = [arm for arm in task.runs.arms.values() if arm.chosen and arm.chosen.results]
    name = task.runs.metric
    if name is None or all(len(result.epochs) < 2 for arm in arms for result in _chosen(arm)):
        return None
    epochs = [record for arm in arms for result in _chosen(arm) for record in result.epochs]
    split = next((s for s in ("validation", "test") if any(name in getattr(e, s) for e in epochs)), None)
    wanted: list[tuple[str, Callable[[EpochRecord], float | None]]] = []
    if split is not None:
        wanted.append((metric_text(f"{split}.{name}"), lambda e: getattr(e, split).get(name)))
    wanted.append(("training loss, without penalty", lambda e: e.train_loss))
    by_step = task.experiment.recipe.steps is not None
    figure, axes = panels(len(wanted), height=2.7, per_row=2)
    for axis, (label, value_of) in zip(axes, wanted, strict=True):
        for arm in arms:
            lines = [(_line(result, value_of, by_step), result.status) for result in _chosen(arm)]
            _mean_line(axis, lines, colors, arm)
        axis.set_xlabel("optimiser step" if by_step else "epoch")
        axis.set_ylabel(label)
        axis.grid(axis="y")
        _log_if_wide(axis)
    legend(figure, axes[0])
    return figure


def site_statistics(task: TaskFinding, colors: ArmColors) -> Figure | None:
    arms = [arm for arm in task.runs.arms.values() if arm.chosen and arm.chosen.results]
    results = [result for arm in arms for result in _chosen(arm)]
    sites = _shown_sites(results, 4)
    if not sites:
        return None
    by_step = task.experiment.recipe.steps is not None
    figure = Figure(figsize=(WIDTH, 0.6 + 1.5 * len(STATISTICS)), layout="constrained")
    grid = figure.subplots(len(STATISTICS), len(sites), squeeze=False, sharex=True)
    for row, (statistic, label) in zip(grid, STATISTICS.items(), strict=True):
        for axis, site in zip(row, sites, strict=True):
            for arm in arms:
                lines = [
                    (_line(result, _statistic(site, statistic), by_step), result.status) for result in _chosen(arm)
                ]
                _mean_line(axis, lines, colors, arm, every=False)
            axis.set_label(f"{label}, {site}")
            axis.grid(axis="y")
            _log_if_wide(axis)
        row[0].set_ylabel(label)
    for top, bottom, site in zip(grid[0], grid[-1], sites, strict=True):
        top.set_title(site)
        bottom.set_xlabel("optimiser step" if by_step else "epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    legend(figure, max(grid.flat, key=lambda axis: len(axis.get_legend_handles_labels()[1])))
    return figure


def unit_quantiles(task: TaskFinding, colors: ArmColors) -> Figure | None:
    shown = []
    for arm in task.runs.arms.values():
        for result in _chosen(arm)[:1]:
            records = [record for record in result.epochs if record.sites]
            if records:
                shown.append((arm, result, records))
    if not shown:
        return None
    figure, axes = panels(len(shown), height=2.2, per_row=min(3, len(shown)), sharey=True)
    for axis, (arm, result, records) in zip(axes, shown, strict=True):
        site = _last_pre(result)
        steps = [record.step for record in records if site in record.sites]
        table = np.array([record.sites[site].unit_quantiles for record in records if site in record.sites])
        low, middle, high = (table[:, QUANTILES.index(q)] for q in (0.15, 0.5, 0.85))
        color = colors.color(arm.name)
        axis.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
        axis.plot(steps, middle, color=color, lw=1.6, label="median")
        axis.plot(steps, low, color=color, lw=0.8, label="15th percentile")
        axis.plot(steps, high, color=color, lw=0.8, label="85th percentile")
        axis.set_title(f"{plain(arm.label)}: {site}")
        axis.set_xlabel("optimiser step")
        axis.grid(axis="y")
    axes[0].set_ylabel("activation of one unit")
    return figure


FIGURES = {
    "seeds": ExperimentFigure(
        "Every seed as a point, the mean as a bar with its 95 % interval; a diamond is the paper's number.",
        seeds,
        seeds_described,
    ),
    "paired_differences": ExperimentFigure(
        "Each arm minus the baseline: a point for every seed, a bar for the gap between the means, its 95 % interval.",
        paired_differences,
        differences_described,
    ),
    "learning_curves": ExperimentFigure(
        "The metric and the training loss on the way: a line for the mean of seeds, thin lines for each.",
        learning_curves,
    ),
    "site_statistics": ExperimentFigure(
        "Mean square, norm dispersion and effective rank at Sites from first to last, over training; points end seeds.",
        site_statistics,
    ),
    "unit_quantiles": ExperimentFigure(
        "The 15th, 50th and 85th percentiles of one unit of the last Site, over training; first seed.",
        unit_quantiles,
    ),
}


def _chosen(arm: ArmRuns) -> list[Result]:
    return list(arm.chosen.results.values()) if arm.chosen else []


def _line(result: Result, value_of: Callable[[EpochRecord], float | None], by_step: bool) -> list[tuple[float, float]]:
    points = []
    for record in result.epochs:
        value = value_of(record)
        if value is not None and np.isfinite(value):
            points.append((float(record.step if by_step else record.epoch), value))
    return points


def _statistic(site: str, name: str) -> Callable[[EpochRecord], float | None]:
    return lambda record: getattr(record.sites[site], name) if site in record.sites else None


def _mean_line(
    axis: Axes,
    lines: Sequence[tuple[list[tuple[float, float]], str]],
    colors: ArmColors,
    arm: ArmRuns,
    every: bool = True,
) -> None:
    """A strong line for the mean, as far as every seed goes; seeds thin beside it (``every``) or as points at their
    ends, with a cross where one diverged.
    """
    color = colors.color(arm.name)
    lines = [(line, status) for line, status in lines if line]
    if not lines:
        return
    for line, status in lines:
        if every and len(lines) > 1:
            axis.plot(*zip(*line, strict=True), color=color, lw=0.6, alpha=0.45)
        if status == "diverged":
            axis.plot(*line[-1], "x", color=color, ms=6, mew=1.6)
        elif not every:
            axis.plot(*line[-1], ".", color=color, ms=4, alpha=0.7, mew=0)
    tables = [dict(line) for line, _ in lines]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    means = [float(np.mean([table[x] for table in tables])) for x in shared]
    dash = colors.dash(arm.name)
    alone = colors.marker(arm.name) if len(shared) == 1 else None  # a line through one point is invisible
    axis.plot(shared, means, color=color, lw=1.7, ls=dash, marker=alone, ms=4.5, label=plain(arm.label))


def _log_if_wide(axis: Axes, ratio: float = 6) -> None:
    """A logarithmic axis, with plain numbers at 1, 2 and 5, where the values span more than ``ratio``."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.lines] or [np.ones(1)])
    if values.min() > 0 and values.max() / values.min() > ratio:
        axis.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if values.max() / values.min() < 300 else (1.0,)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())


def _shown_sites(results: Sequence[Result], count: int) -> list[str]:
    """At most ``count`` Sites from first to last, of the role that most methods act on here."""
    sites = _in_order(results)
    roles = Counter(str(result.config.params["sites"]) for result in results if "sites" in result.config.params)
    role = roles.most_common(1)[0][0] if roles else "post"
    return _spread([site for site in sites if _role(site) == role] or sites, count)


def _in_order(results: Sequence[Result]) -> list[str]:
    """All Sites from input to output: as a Result keeps the order, else, of older ones, as the names suggest it."""
    sites = {site for result in results for record in result.epochs for site in record.sites}
    for result in results:
        if result.site_order is not None and sites <= set(result.site_order):
            return [site for site in result.site_order if site in sites]
    return sorted(sites, key=_depth)


def _role(site: str) -> str:
    return site.rpartition(".")[2].partition("_")[0]


def _depth(site: str) -> tuple[bool, list[str], str, int]:
    """Where a name puts a Site: layer 10 after 9, `pre` before `post`, one of the model itself after all layers."""
    *layers, last = site.split(".")
    roles = ("pre", "post", "dropped")
    place = roles.index(_role(site)) if _role(site) in roles else len(roles)
    return not layers, [part.zfill(4) for part in layers], last.partition("_")[2].zfill(4), place


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most ``count`` names, evenly from first to last."""
    if len(names) <= count:
        return list(names)
    return [names[round(index * (len(names) - 1) / (count - 1))] for index in range(count)]


def _last_pre(result: Result) -> str:
    """The last Site before an activation, or the last of all."""
    ordered = _in_order([result])
    return next((site for site in reversed(ordered) if _role(site) == "pre"), ordered[-1])
