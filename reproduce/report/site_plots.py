"""Figures of what passes the Sites: statistics of layers, and the law of single units, over training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reproduce.report.axes import far_ones, set_reach, step_ticks, write_labels
from reproduce.report.curves import (
    Points,
    ValueOf,
    arm_lines,
    arms_that_ran,
    by_step,
    chosen_results,
    draw_lines,
    end_labels,
    grid_with_names,
    lines_of,
    points,
)
from reproduce.report.fronts import one_for_each_method
from reproduce.report.style import WIDTH, ArmColors, plain
from reproduce.results.evaluate import TaskFinding
from reproduce.results.match import ArmRuns
from reproduce.results.record import QUANTILES, EpochRecord, Result, SiteStatistics

STATISTICS = {"mean_square": "mean square", "norm_dispersion": "norm dispersion", "effective_rank": "effective rank"}
DISTANCE = {"distance_to_normal": "sliced W1 to N(0, I)"}
ROW = 1.4  # inches of a panel
ACROSS = 19  # letters of a panel's title, and no more


def site_statistics(task: TaskFinding, colors: ArmColors) -> Figure | None:
    return _over_training(task, colors, STATISTICS, 4)


def distance_to_normal(task: TaskFinding, colors: ArmColors) -> Figure | None:
    """Nothing where no Result has it: those of before do not."""
    return _over_training(task, colors, DISTANCE, 3)


def _over_training(task: TaskFinding, colors: ArmColors, statistics: Mapping[str, str], count: int) -> Figure | None:
    """A row of panels for each statistic, a panel for each Site."""
    results = [result for arm in arms_that_ran(task) for result in chosen_results(arm)]
    sites = shown_sites(results, count)
    rows = [(label, [arm_lines(task, _statistic(site, name)) for site in sites]) for name, label in statistics.items()]
    rows = [(label, panels) for label, panels in rows if any(panels)]
    if not sites or not rows:
        return None
    last = max(reversed(range(len(sites))), key=lambda place: len(rows[0][1][place]))  # an arm may lack a Site
    labels = end_labels(rows[0][1][last], colors)
    height = ROW if len(rows) > 1 else 2.0
    figure, grid, column = grid_with_names(len(rows), len(sites), height, [one.text for one in labels], last + 1)
    for row, (label, panels) in zip(grid, rows, strict=True):
        for axis, site, lines in zip(row, sites, panels, strict=True):
            draw_lines(axis, lines, colors, "ends")
            axis.set_label(f"{label}, {site}")
            axis.tick_params(labelbottom=row is grid[-1])
        row[0].set_ylabel(label)
    for top, bottom, site in zip(grid[0], grid[-1], sites, strict=True):
        top.set_title(short_name(site))
        step_ticks(bottom, by_step(task), 4)
    write_labels(column, grid[0][last], labels, height - 0.2, below=1.0 if len(rows) > 1 else 0.1)
    return figure


def _statistic(site: str, name: str) -> ValueOf:
    return lambda record: getattr(record.sites[site], name) if site in record.sites else None


def unit_laws(task: TaskFinding, colors: ArmColors) -> Figure | None:
    """One unit of each of three Sites: a band of percentiles for each arm, and for all arms its mean and variance."""
    arms = [
        (arm, result)
        for arm in one_for_each_method(task, 3)
        for result in chosen_results(arm)[:1]
        if any(record.sites for record in result.epochs)
    ]
    sites = shown_sites([result for _, result in arms], 3, role="pre")
    if not sites:
        return None
    moments = [one for one in MOMENTS if any(_law_line(result, sites[-1], one.of, task) for _, result in arms)]
    columns = len(arms) + len(moments)
    figure = Figure(figsize=(WIDTH, 0.6 + ROW * len(sites)), layout="constrained")
    grid = figure.subplots(len(sites), columns, squeeze=False, sharex=True)
    for row, site in zip(grid, sites, strict=True):
        _bands(row[: len(arms)], site, arms, colors, task)
        for axis, moment in zip(row[len(arms) :], moments, strict=True):
            _moment(axis, site, moment, arms, colors, task)
        row[0].set_ylabel(short_name(site))
    titles = [arm.label for arm, _ in arms] + [one.label for one in moments]
    for top, bottom, title in zip(grid[0], grid[-1], titles, strict=True):
        top.set_title(plain(title if len(title) <= ACROSS else f"{title[: ACROSS - 1].rstrip()}…"))
        step_ticks(bottom, by_step(task), 2)
    return figure


def has_moments(task: TaskFinding) -> bool:
    """Whether the mean and the variance of single units are known."""
    first = [record for arm in one_for_each_method(task, 3) for r in chosen_results(arm)[:1] for record in r.epochs]
    return any(unit_moments(site) is not None for record in first for site in record.sites.values())


class Moment(NamedTuple):
    label: str
    of: Callable[[SiteStatistics], float | None]


def _law_line(result: Result, site: str, of: Callable[[SiteStatistics], float | None], task: TaskFinding) -> Points:
    def value_of(record: EpochRecord) -> float | None:
        return of(record.sites[site]) if site in record.sites else None

    return points(result, value_of, by_step(task))


def _bands(
    panels: Sequence[Axes], site: str, arms: Sequence[tuple[ArmRuns, Result]], colors: ArmColors, task: TaskFinding
) -> None:
    """Percentiles of the unit, on one scale for all arms; an arm far beyond the others has its own arrow."""
    extents = {}
    for axis, (arm, result) in zip(panels, arms, strict=True):
        lines = [_law_line(result, site, _quantile(level), task) for level in (0.15, 0.5, 0.85)]
        axis.grid(axis="y")
        axis.set_label(f"{site}, {arm.label}")
        if not all(lines):
            continue
        color, xs = colors.color(arm.name), [x for x, _ in lines[0]]
        low, middle, high = ([value for _, value in line] for line in lines)
        axis.fill_between(xs, low, high, color=color, alpha=0.15, lw=0)
        for ys, width, name in ((middle, 1.5, "median"), (low, 0.8, "15th percentile"), (high, 0.8, "85th percentile")):
            axis.plot(xs, ys, color=color, lw=width, label=name)
        extents[arm.name] = min(low), max(high)
    if not extents:
        return
    far = far_ones(extents, frozenset(extents) if len(extents) > 2 else frozenset())[:1]
    shown = [extent for name, extent in extents.items() if name not in far]
    low_end, high_end = min(low for low, _ in shown), max(high for _, high in shown)
    margin = 0.06 * (high_end - low_end or 1.0)
    for axis, (arm, _) in zip(panels, arms, strict=True):
        beyond = [(max(extents[name], key=abs), colors.color(name)) for name in far if name == arm.name]
        set_reach(axis, [(min(low_end, -margin), high_end)], far=beyond)  # a linear axis: it goes below 0
        axis.tick_params(labelleft=axis is panels[0])
    lows, highs = zip(*(axis.get_ylim() for axis in panels), strict=True)
    for axis in panels:  # one of them may have room for an arrow
        axis.set_ylim(min(lows), max(highs))


def _quantile(level: float) -> Callable[[SiteStatistics], float]:
    return lambda site: site.unit_quantiles[QUANTILES.index(level)]


def _moment(
    axis: Axes,
    site: str,
    moment: Moment,
    arms: Sequence[tuple[ArmRuns, Result]],
    colors: ArmColors,
    task: TaskFinding,
) -> None:
    axis.grid(axis="y")
    axis.set_label(f"{site}, {moment.label}")
    extents = {}
    for arm, result in arms:
        line = _law_line(result, site, moment.of, task)
        if line:
            xs, ys = zip(*line, strict=True)
            axis.plot(xs, ys, color=colors.color(arm.name), ls=colors.dash(arm.name), lw=1.4, label=plain(arm.label))
            extents[arm.name] = min(ys), max(ys)
    if extents:
        set_reach(axis, list(extents.values()))


def unit_moments(site: SiteStatistics) -> tuple[float, float] | None:
    """Mean and variance of the fixed unit, from its histogram; None where none was kept.

    Each value counts as the middle of its bin, and Sheppard's correction takes off what that adds to the variance.
    """
    if site.unit_histogram is None or site.unit_range is None or not np.isfinite(site.unit_range).all():
        return None
    (low, high), counts = site.unit_range, np.array(site.unit_histogram, dtype=float)
    width = (high - low) / len(counts)
    middles = low + (np.arange(len(counts)) + 0.5) * width
    mean = float(np.average(middles, weights=counts))
    variance = float(np.average((middles - mean) ** 2, weights=counts)) - width**2 / 12
    return mean, max(0.0, variance)


def _moment_at(place: int) -> Callable[[SiteStatistics], float | None]:
    def of(site: SiteStatistics) -> float | None:
        moments = unit_moments(site)
        return moments[place] if moments is not None else None

    return of


MOMENTS = (Moment("mean", _moment_at(0)), Moment("variance", _moment_at(1)))


def variance_by_layer(task: TaskFinding, colors: ArmColors) -> Figure | None:
    """What varies of each layer at the end of training, by depth; of networks deep enough to show it."""
    results = [result for arm in arms_that_ran(task) for result in chosen_results(arm)]
    sites = shown_sites(results, DEEPEST, role="pre")
    if len(sites) < SHALLOWEST:
        return None
    panels = [(label, lines_of(task, _by_layer(sites, value_of))) for label, value_of in VARIANCES.items()]
    panels = [(label, lines) for label, lines in panels if lines]
    if not panels:
        return None
    labels = end_labels(panels[0][1], colors)
    figure, (row,), column = grid_with_names(1, len(panels), 2.0, [one.text for one in labels], after=1)
    for axis, (label, lines) in zip(row, panels, strict=True):
        draw_lines(axis, lines, colors, "lines")
        axis.set(ylabel=label, xlabel=f"layer, {short_name(sites[0])} to {short_name(sites[-1])}")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    write_labels(column, row[0], labels, 1.8)
    return figure


def _by_layer(sites: Sequence[str], value_of: Callable[[SiteStatistics], float | None]) -> Callable[[Result], Points]:
    def of(result: Result) -> Points:
        last = next((record.sites for record in reversed(result.epochs) if record.sites), {})
        values = [(float(layer), value_of(last[site])) for layer, site in enumerate(sites, 1) if site in last]
        return [(layer, value) for layer, value in values if value is not None and np.isfinite(value)]

    return of


def _variance(site: SiteStatistics) -> float:
    return max(0.0, site.mean_square - site.mean**2)


def _share_over_samples(site: SiteStatistics) -> float | None:
    if site.sample_variance is None or not site.mean_square > 0:
        return None
    return site.sample_variance / site.mean_square


VARIANCES = {"variance, all units together": _variance, "share over samples": _share_over_samples}
DEEPEST, SHALLOWEST = 60, 4  # layers


# Which Sites.


def shown_sites(results: Sequence[Result], count: int, role: str = "post") -> list[str]:
    """At most ``count`` Sites from first to last, of the role that most methods act on here, else of that role."""
    sites = in_order(results)
    roles = Counter(str(result.config.params["sites"]) for result in results if "sites" in result.config.params)
    wanted = roles.most_common(1)[0][0] if roles else role
    return spread_over([site for site in sites if _role(site) == wanted] or sites, count)


def in_order(results: Sequence[Result]) -> list[str]:
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


def spread_over(names: Sequence[str], count: int) -> list[str]:
    """At most ``count`` names, evenly from first to last."""
    if len(names) <= count:
        return list(names)
    return [names[round(index * (len(names) - 1) / (count - 1))] for index in range(count)]


def short_name(site: str) -> str:
    return plain(site if len(site) <= ACROSS else f"…{site[1 - ACROSS :]}")
