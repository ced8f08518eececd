"""Records in, figure out: drawn with matplotlib, written as SVG that follows the page's colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from reproduce.records import QUANTILES, EpochRecord, Result
from reproduce.report.match import ArmRuns, TaskRuns
from reproduce.report.tables import metric_text, metrics_of, published
from reproduce.spec import Experiment, SpecError

# Colours that stand for a CSS variable: the page gives each a light and a dark value; alone, the file shows these.
INK, QUIET, RULE = "#14181f", "#6b7280", "#d5d9e0"
ARMS = ("#5b6271", "#0069b4", "#c8500a", "#00856a", "#a8478f", "#967000", "#3f9bc9", "#7a1f3d")
DASHES = ("-", "--", ":", "-.")  # arms beyond the eighth repeat the colours
MARKERS = ("o", "s", "^", "v")
VARIABLES = {INK: "--ink", "#000000": "--ink", QUIET: "--quiet", RULE: "--rule"} | {
    colour: f"--arm-{index}" for index, colour in enumerate(ARMS)
}
WIDTH = 7.2  # inches; the page's text column

Look = Mapping[str, int]  # an arm's place in the order in which arms first appear on a page
Draw = Callable[[TaskRuns, Look], Figure | None]


def looks(experiments: Sequence[Experiment]) -> dict[str, int]:
    """Give every arm of a page one colour, the same in every figure."""
    names = dict.fromkeys(name for experiment in experiments for name in experiment.arms)
    return {name: index for index, name in enumerate(names)}


def colour(look: Look, arm: str) -> str:
    """An arm's colour; as a CSS value it is `variable(colour(...))`."""
    return ARMS[look[arm] % len(ARMS)]


def variable(shade: str) -> str:
    """The CSS variable that a colour stands for, with the colour where no page defines it."""
    return f"var({VARIABLES[shade]}, {shade})"


def draw(name: str, task: TaskRuns, look: Look) -> Figure | None:
    """Draw one figure of an experiment; None where its Results hold nothing to draw.

    Raises:
        SpecError: there is no figure of that name.
    """
    if name not in FIGURES:
        raise SpecError(f"unknown figure {name!r} in {task.experiment.title!r}: there are {', '.join(FIGURES)}")
    with matplotlib.rc_context(STYLE):
        return FIGURES[name](task, look)


def seeds(task: TaskRuns, look: Look) -> Figure | None:
    """Every seed as a point, the mean as a bar with its 95 % interval; a diamond is the paper's number."""
    metrics = [m for m in metrics_of(task) if any(arm.values(m) for arm in task.arms.values())]
    if not metrics:
        return None
    arms = list(task.arms.values())
    figure, axes = _panels(len(metrics), height=0.9 + 0.34 * len(arms), across=2, sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        for place, arm in enumerate(arms):
            _seed_row(axis, place, arm, metric, look)
            claim = published(task, arm.name, metric)
            if claim is not None and claim.value is not None:
                axis.plot(claim.value, place, "D", mfc="none", mec=INK, ms=6, mew=1.1, zorder=4)
        axis.set_xlabel(metric_text(metric))
        axis.grid(axis="x")
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(arms)), [arm.label for arm in arms])
    return figure


def _seed_row(axis: Axes, place: int, arm: ArmRuns, metric: str, look: Look) -> None:
    values = list(arm.values(metric).values())
    shade, marker = colour(look, arm.name), MARKERS[look[arm.name] // len(ARMS) % len(MARKERS)]
    estimate = arm.estimate(metric)
    if estimate is None:
        return
    axis.plot(values, np.full(len(values), place), marker, color=shade, ms=4.5, alpha=0.55, mew=0)
    if arm.diverged:
        return  # no mean where seeds are missing from it
    if estimate.interval is not None:
        axis.plot([estimate.interval.low, estimate.interval.high], [place, place], "-", color=shade, lw=1.6)
    axis.plot(estimate.mean, place, "|", color=shade, ms=13, mew=2.2)


def learning_curves(task: TaskRuns, look: Look) -> Figure | None:
    """The metric and the training loss on the way: a line for the mean of seeds, thin lines for each."""
    arms = [arm for arm in task.arms.values() if arm.chosen and arm.chosen.results]
    if not arms or task.metric is None:
        return None
    name = task.metric
    epochs = [record for arm in arms for result in _chosen(arm) for record in result.epochs]
    split = next((s for s in ("validation", "test") if any(name in getattr(e, s) for e in epochs)), None)
    wanted: list[tuple[str, Callable[[EpochRecord], float | None]]] = []
    if split is not None:
        wanted.append((metric_text(f"{split}.{name}"), lambda e: getattr(e, split).get(name)))
    wanted.append(("training loss, without penalty", lambda e: e.train_loss))
    by_step = task.experiment.recipe.steps is not None
    figure, axes = _panels(len(wanted), height=2.7, across=2)
    for axis, (label, value_of) in zip(axes, wanted, strict=True):
        for arm in arms:
            lines = [(_line(result, value_of, by_step), result.status) for result in _chosen(arm)]
            _mean_line(axis, lines, look, arm)
        axis.set_xlabel("optimiser step" if by_step else "epoch")
        axis.set_ylabel(label)
        axis.grid(axis="y")
        _log_if_wide(axis)
    _legend(figure, axes[0])
    return figure


def site_statistics(task: TaskRuns, look: Look) -> Figure | None:
    """Mean square of the activations at each Site, over training."""
    arms = [arm for arm in task.arms.values() if arm.chosen and arm.chosen.results]
    sites = list(dict.fromkeys(s for arm in arms for result in _chosen(arm) for e in result.epochs for s in e.sites))
    if not sites:
        return None
    kept = _spread(sites, 6)
    by_step = task.experiment.recipe.steps is not None
    across = 2 if len(kept) in (2, 4) else 3
    figure, axes = _panels(len(kept), height=1.9, across=across)
    for place, (axis, site) in enumerate(zip(axes, kept, strict=True)):
        for arm in arms:
            lines = [(_line(result, _mean_square(site), by_step), result.status) for result in _chosen(arm)]
            _mean_line(axis, lines, look, arm)
        axis.set_title(site)
        axis.grid(axis="y")
        _log_if_wide(axis)
        if place % across == 0:
            axis.set_ylabel("mean square")
        if place >= len(kept) - across:
            axis.set_xlabel("optimiser step" if by_step else "epoch")
    _legend(figure, axes[0])
    return figure


def unit_quantiles(task: TaskRuns, look: Look) -> Figure | None:
    """The 15th, 50th and 85th percentiles of one unit of the last Site, over training; first seed."""
    panels = []
    for arm in task.arms.values():
        for result in _chosen(arm)[:1]:
            records = [record for record in result.epochs if record.sites]
            if records:
                panels.append((arm, records))
    if not panels:
        return None
    figure, axes = _panels(len(panels), height=2.2, across=min(3, len(panels)), sharey=True)
    for axis, (arm, records) in zip(axes, panels, strict=True):
        site = _last_pre(list(records[-1].sites))
        steps = [record.step for record in records if site in record.sites]
        table = np.array([record.sites[site].unit_quantiles for record in records if site in record.sites])
        low, middle, high = (table[:, QUANTILES.index(q)] for q in (0.15, 0.5, 0.85))
        shade = colour(look, arm.name)
        axis.fill_between(steps, low, high, color=shade, alpha=0.15, lw=0)
        axis.plot(steps, middle, color=shade, lw=1.6)
        axis.plot(steps, low, color=shade, lw=0.8)
        axis.plot(steps, high, color=shade, lw=0.8)
        axis.set_title(f"{arm.label}: {site}")
        axis.set_xlabel("optimiser step")
        axis.grid(axis="y")
    axes[0].set_ylabel("activation of one unit")
    return figure


FIGURES: dict[str, Draw] = {
    "seeds": seeds,
    "learning_curves": learning_curves,
    "site_statistics": site_statistics,
    "unit_quantiles": unit_quantiles,
}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titleweight": "regular",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.prop_cycle": cycler(color=ARMS[1:]),  # for the figures that methods draw
    "figure.facecolor": "none",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
}


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an inline SVG element, the same bytes every time, in the page's colours.

    Args:
        name: unique on the page; ids inside the SVG are salted with it.
        description: what a reader who does not see the figure is told.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.S)
    text = re.sub(r"font-family: [^;\"]*sans-serif", "font-family: var(--sans, sans-serif)", text)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
    for shade in VARIABLES:
        text = text.replace(shade, variable(shade))
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _panels(count: int, height: float, across: int, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, ``across`` in a row, ``height`` inches each; layout is computed once."""
    columns = min(across, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    return figure, panels[:count]


def _chosen(arm: ArmRuns) -> list[Result]:
    return list(arm.chosen.results.values()) if arm.chosen else []


def _line(result: Result, value_of: Callable[[EpochRecord], float | None], by_step: bool) -> list[tuple[float, float]]:
    points = []
    for record in result.epochs:
        value = value_of(record)
        if value is not None and np.isfinite(value):
            points.append((float(record.step if by_step else record.epoch), value))
    return points


def _mean_square(site: str) -> Callable[[EpochRecord], float | None]:
    return lambda record: record.sites[site].mean_square if site in record.sites else None


def _mean_line(axis: Axes, lines: Sequence[tuple[list[tuple[float, float]], str]], look: Look, arm: ArmRuns) -> None:
    """Thin lines for seeds, with a cross where one diverged; a strong one for the mean, as far as every seed goes."""
    shade = colour(look, arm.name)
    lines = [(line, status) for line, status in lines if line]
    if not lines:
        return
    for line, status in lines:
        if len(lines) > 1:
            axis.plot(*zip(*line, strict=True), color=shade, lw=0.6, alpha=0.45)
        if status == "diverged":
            axis.plot(*line[-1], "x", color=shade, ms=6, mew=1.6)
    tables = [dict(line) for line, _ in lines]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    means = [float(np.mean([table[x] for table in tables])) for x in shared]
    dash = DASHES[look[arm.name] // len(ARMS) % len(DASHES)]
    axis.plot(shared, means, color=shade, lw=1.7, ls=dash, label=arm.label)


def _log_if_wide(axis: Axes, ratio: float = 6) -> None:
    """A logarithmic axis, with plain numbers at 1, 2 and 5, where the values span more than ``ratio``."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.lines] or [np.ones(1)])
    if values.min() > 0 and values.max() / values.min() > ratio:
        axis.set_yscale("log")
        subs = (1.0, 2.0, 5.0) if values.max() / values.min() < 300 else (1.0,)
        axis.yaxis.set_major_locator(LogLocator(subs=subs))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        needed = 0.062 * max(map(len, labels)) + 0.5  # inches for the longest label at this size, with its line
        columns = max(1, min(len(labels), int(WIDTH / needed)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """At most ``count`` names, evenly from first to last."""
    if len(names) <= count:
        return list(names)
    return [names[round(index * (len(names) - 1) / (count - 1))] for index in range(count)]


def _last_pre(sites: Sequence[str]) -> str:
    """The last Site before an activation, or the last of all."""
    return next((site for site in reversed(sites) if "pre" in site.split(".")), sites[-1])
