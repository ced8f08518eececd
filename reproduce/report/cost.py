"""What arms cost and what they gain: time per step against the gap to the baseline, in each column of the matrix."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from reproduce.report.drawings import Drawing
from reproduce.report.evidence import link_of_column
from reproduce.report.numbers import decimals_of, metric_name, metric_text, number, with_interval
from reproduce.report.reach import ends_of, in_reach
from reproduce.report.style import ARMS, INK, QUIET, panels, plain
from reproduce.report.tables import TextTable
from reproduce.results.columns import Column
from reproduce.results.match import ArmRuns, higher_is_better
from reproduce.results.record import Result, device_kind
from reproduce.results.stats import Estimate, Interval

BETTER, WORSE = ARMS[1], ARMS[2]
RATIOS = (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)  # where an axis of ratios may have ticks
HEIGHT, LINE, FRAME = 2.3, 0.17, 0.55  # inches of a panel, of a name in it, and of what stands around its axes
SIGN = 0.0105  # of the axis, how wide a sign of a name is
CAPTION = (
    "Improvement over the baseline on the test set, with its 95 % interval, against the time of a training step "
    "relative to the baseline's. Above the line is better. Named are the arms that the seeds tell from the baseline; "
    "an arrow is an arm far beyond."
)


@dataclass(frozen=True)
class CostPoint:
    """One arm in one column; both numbers are known."""

    label: str
    method: str
    ratio: float  # its time per step over the baseline's, on the same kind of device
    gain: Estimate  # how much better than the baseline
    significant: bool
    evidence: str  # the address of its runs


@dataclass(frozen=True)
class CostRow:
    """The same as text."""

    label: str
    method: str
    ratio: str
    gain: str
    significant: bool
    evidence: str


@dataclass(frozen=True)
class CostPanel:
    """One column."""

    name: str
    metric: str
    baseline: str
    points: tuple[CostPoint, ...]  # the cheapest first

    @property
    def heading(self) -> str:
        return f"{self.name}: {metric_text(self.metric)}"

    @property
    def decimals(self) -> int:
        return decimals_of(point.gain.mean for point in self.points)

    @property
    def rows(self) -> list[CostRow]:
        return [
            CostRow(
                label=point.label,
                method=point.method,
                ratio=f"{number(point.ratio, 2)} ×",
                gain=with_interval(point.gain, self.decimals, sign=True),
                significant=point.significant,
                evidence=point.evidence,
            )
            for point in self.points
        ]

    @property
    def table(self) -> TextTable:
        headings = ("Arm", "Method", f"Time per step over {self.baseline}", "Improvement [95 %]")
        rows = [
            (row.label, row.method, row.ratio, f"**{row.gain}**" if row.significant else row.gain) for row in self.rows
        ]
        return TextTable(headings, tuple(rows))

    @property
    def description(self) -> str:
        """In numbers, for who does not see the panel."""
        low, high = (number(point.ratio, 2) for point in (self.points[0], self.points[-1]))
        text = f"{self.heading}: {len(self.points)} arms take {low} to {high} times {self.baseline}'s time per step."
        named = [
            f"{point.label} {with_interval(point.gain, self.decimals, sign=True)} at {number(point.ratio, 2)} times"
            for point in self.points
            if point.significant
        ]
        return f"{text} Told from it: {'; '.join(named) or 'none'}."


@dataclass(frozen=True)
class Cost:
    """The figure, the numbers behind it, and how far its timings can be trusted."""

    panels: tuple[CostPanel, ...]
    drawing: Drawing
    note: str


def cost(columns: Sequence[Column]) -> Cost | None:
    """Of the columns in which some arm has both numbers; None without any."""
    found = tuple(panel for panel in map(_panel, columns) if panel.points)
    if not found:
        return None
    shows = [[repr(panel) for panel in found]]
    description = " ".join(panel.description for panel in found)
    return Cost(found, Drawing(CAPTION, shows, lambda: _figure(found), description), _note(columns))


def _panel(column: Column) -> CostPanel:
    points = []
    for arm, method in column.methods.items():
        row = column.rows[arm]
        ratio = time_ratio(row.runs, column.baseline)
        if ratio is not None and row.difference is not None:
            gain = _improvement(row.difference.estimate, column.metric)
            runs = link_of_column(column, arm)
            points.append(CostPoint(row.label, method, ratio, gain, row.significant, runs))
    points.sort(key=lambda point: (point.ratio, point.label))
    return CostPanel(column.task.name, column.metric, column.baseline.label, tuple(points))


def time_ratio(arm: ArmRuns, over: ArmRuns) -> float | None:
    """The median time per step of one arm's runs over that of another's, where both ran on one kind of device.

    Of several kinds, the one on which more of the arm's runs were made.
    """
    ours, theirs = _times(arm), _times(over)
    shared = sorted(ours.keys() & theirs.keys(), key=lambda kind: (-len(ours[kind]), kind))
    return statistics.median(ours[shared[0]]) / statistics.median(theirs[shared[0]]) if shared else None


def _times(arm: ArmRuns) -> dict[tuple[str, ...], list[float]]:
    """Seconds per step of the runs that completed, by device, threads, precision, and how steps ran."""
    found: dict[tuple[str, ...], list[float]] = {}
    for result in arm.chosen.completed.values() if arm.chosen else ():
        one = result.environment
        kind = (device_kind(one.device), str(one.threads), one.precision, one.mode or "eager")
        seconds = _seconds_per_step(result)
        if seconds > 0:
            found.setdefault(kind, []).append(seconds)
    return found


def _seconds_per_step(result: Result) -> float:
    """The median over its evaluations: the first one has what happens once."""
    measured = [epoch.seconds_per_step for epoch in result.epochs if math.isfinite(epoch.seconds_per_step)]
    return statistics.median(measured) if measured else 0.0


def _improvement(gap: Estimate, metric: str) -> Estimate:
    """The gap with the sign of what is better."""
    if higher_is_better(metric):
        return gap
    turned = None if gap.interval is None else Interval(-gap.interval.high, -gap.interval.low)
    return Estimate(-gap.mean, gap.n, gap.deviation, turned)


def _note(columns: Sequence[Column]) -> str:
    """Whether the timings were taken on machines that had other work, as far as Results say."""
    results = {r.id: r for c in columns for arm in c.task.runs.arms.values() if arm.chosen for r in _completed(arm)}
    at_once = [result.environment.runs_on_device for result in results.values()]
    most = max((count for count in at_once if count is not None), default=1)
    unknown = sum(count is None for count in at_once)
    parts = []
    if most > 1:
        shared = sum(count is not None and count > 1 for count in at_once)
        parts.append(f"{shared} of these {len(results)} runs shared their device, with up to {most} at once")
    if unknown:
        which = "of these runs" if unknown == len(results) else f"of {unknown} of these {len(results)} runs"
        parts.append(f"{which[0].upper()}{which[1:]} it is not recorded whether others ran on the same machine")
    if not parts:
        return "Each of these runs had its device for itself."
    return f"{'. '.join(parts)}: differences of a few percent in time say nothing."


def _completed(arm: ArmRuns) -> list[Result]:
    return list(arm.chosen.completed.values()) if arm.chosen else []


# How it is drawn.


def _figure(found: Sequence[CostPanel]) -> Figure:
    most = max(sum(point.significant for point in panel.points) for panel in found)
    height = max(HEIGHT, FRAME + LINE * (most + 1))
    figure, axes = panels(len(found), height, per_row=1)
    for axis, panel in zip(axes, found, strict=True):
        _draw(axis, panel, LINE / (height - FRAME))
    axes[-1].set_xlabel("time per step, relative to the baseline")
    return figure


def _draw(axis: Axes, panel: CostPanel, line: float) -> None:
    """One panel; a name takes that share of its height."""
    axis.set_title(plain(panel.heading))
    axis.set_ylabel(f"improvement in {metric_name(panel.metric).partition(' ')[2]}")
    axis.axhline(0, color=QUIET, lw=0.8)
    axis.set_xscale("log")
    ratios = [1.0, *(point.ratio for point in panel.points)]
    left, right = min(ratios) / 1.08, max(ratios) * 1.08
    right *= (right / left) ** 0.25  # room for names
    axis.set_xlim(left, right)
    axis.xaxis.set_major_locator(FixedLocator([ratio for ratio in RATIOS if left <= ratio <= right]))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    low, high = _limits(panel)
    axis.set_ylim(low, high)
    for point in sorted(panel.points, key=lambda one: one.significant):  # what stands out lies on top
        _point(axis, point, low, high)
    _name(axis, panel, line * (high - low))


def _limits(panel: CostPanel) -> tuple[float, float]:
    """Of all intervals but those far beyond the others."""
    ends = in_reach(point.gain for point in panel.points)
    low, high = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin


def _point(axis: Axes, point: CostPoint, low: float, high: float) -> None:
    color = (BETTER if point.gain.mean > 0 else WORSE) if point.significant else QUIET
    place = _inside(point.gain.mean, low, high)
    if place != point.gain.mean:
        axis.plot(point.ratio, place, "^" if point.gain.mean > high else "v", color=color, ms=6)
        return
    axis.plot([point.ratio] * 2, ends_of(point.gain), color=color, lw=1.6 if point.significant else 0.6)
    axis.plot(point.ratio, place, "o", color=color, ms=5 if point.significant else 3.5)


def _inside(value: float, low: float, high: float) -> float:
    """The value, or a place at the edge where it lies beyond."""
    edge = 0.05 * (high - low)
    return low + edge if value < low else high - edge if value > high else value


def _name(axis: Axes, panel: CostPanel, apart: float) -> None:
    """Names of what stands out: beside it where each finds room, else in a column at the right with lines to them."""
    low, high = axis.get_ylim()
    named = sorted((p for p in panel.points if p.significant), key=lambda p: _inside(p.gain.mean, low, high))
    texts = [_said(point, panel, low, high) for point in named]
    beside = all(_has_room(axis, point, text, panel, apart) for point, text in zip(named, texts, strict=True))
    places = pushed_apart([_inside(point.gain.mean, low, high) for point in named], apart, high - apart / 2)
    right = axis.get_xlim()[1]
    line = {"arrowstyle": "-", "color": QUIET, "lw": 0.5, "shrinkA": 2, "shrinkB": 3}
    for point, text, place in zip(named, texts, places, strict=True):
        at = point.ratio, _inside(point.gain.mean, low, high)
        if beside:
            axis.annotate(text, at, (7, 0), textcoords="offset points", va="center", color=INK, size=7.5)
        else:
            axis.annotate(text, at, (right, place), ha="right", va="center", color=INK, size=7.5, arrowprops=line)


def _said(point: CostPoint, panel: CostPanel, low: float, high: float) -> str:
    """Its name, with the number that an arrow stands for."""
    far = _inside(point.gain.mean, low, high) != point.gain.mean
    return plain(point.label) + (f" ({number(point.gain.mean, panel.decimals, sign=True)})" if far else "")


def _has_room(axis: Axes, point: CostPoint, text: str, panel: CostPanel, apart: float) -> bool:
    """Whether nothing else lies to the right of a point, where its name would stand."""
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    end = point.ratio * (right / left) ** (0.03 + SIGN * len(text))
    level = _inside(point.gain.mean, low, high)
    others = [other for other in panel.points if other is not point and point.ratio <= other.ratio <= end]
    return end <= right and not any(_touches(other, level, apart / 2, low, high) for other in others)


def _touches(point: CostPoint, level: float, reach: float, low: float, high: float) -> bool:
    bottom, top = (_inside(end, low, high) for end in ends_of(point.gain))
    return bottom - reach <= level <= top + reach


def pushed_apart(wanted: Sequence[float], apart: float, most: float) -> list[float]:
    """Places in the same rising order, each as near to what it wants as the distance between them and the top allow."""
    places: list[float] = []
    for one in wanted:
        places.append(max(one, places[-1] + apart) if places else one)
    for index in reversed(range(len(places))):
        places[index] = min(places[index], most - apart * (len(places) - 1 - index))
    return places
