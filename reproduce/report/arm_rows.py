"""Figures of an experiment whose rows are arms: every seed, and its difference to the baseline."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduce.report.numbers import decimals_of, metric_text, number
from reproduce.report.style import INK, QUIET, ArmColors, panels, plain
from reproduce.results.evaluate import ArmRow, TaskFinding
from reproduce.results.match import ArmRuns
from reproduce.results.stats import Estimate


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
            _printed_gap(axis, place, task, row)
        _leave_out_the_farthest(axis, others, differences[metric])
        axis.set_xlabel(f"{metric_text(metric)}, minus {plain(task.baseline.label)}")
        _rows(axis, len(others))
    axes[0].set_yticks(range(len(others)), [plain(arm.label) for arm in others])
    return figure


def _printed_gap(axis: Axes, place: int, task: TaskFinding, row: ArmRow) -> None:
    """The paper's gap to the baseline as a diamond, where a claim states it."""
    for claim in task.experiment.claims:
        same = (claim.task, claim.arm, claim.over, claim.metric) == (
            task.name,
            row.arm,
            task.experiment.baseline,
            row.metric,
        )
        if same and claim.value is not None:
            axis.plot(claim.value, place, "D", mfc="none", mec=INK, ms=6, mew=1.1, zorder=4)


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
