"""Axes that lines share: how far they go, which ticks they have, and where names stand at the ends of lines."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from reproduce.report.numbers import MINUS, with_power
from reproduce.report.said import short
from reproduce.report.style import plain

WIDE = 6.0  # values that span more than this ratio are drawn on a logarithmic axis
FAR = 1.0  # what reaches beyond the others by more than so many times their own span is left to an arrow
MOST_FAR = 0.25  # of the lines may be left out so, at most; diverged ones beside them
SIZE = 8.0  # points of names and numbers inside panels
TICKS = 5  # at most, on the axis of values

Extent = tuple[float, float]


# How far.


def is_wide(extents: Sequence[Extent]) -> bool:
    low, high = min(low for low, _ in extents), max(high for _, high in extents)
    return low > 0 and high / low > WIDE


def far_ones(extents: Mapping[str, Extent], diverged: frozenset[str] = frozenset()) -> list[str]:
    """The lines that would flatten the others, farthest first: as many as may be, and all of them far beyond the rest.

    Args:
        diverged: lines that may be left out whatever their number.
    """
    if len(extents) < 3:
        return []
    scaled = math.log if is_wide(list(extents.values())) else float
    ends = {name: (scaled(low), scaled(high)) for name, (low, high) in extents.items()}
    middle = statistics.median((low + high) / 2 for low, high in ends.values())
    ordered = sorted(ends, key=lambda name: -max(middle - ends[name][0], ends[name][1] - middle))
    for count in range(len(ordered) - 2, 0, -1):
        far, near = ordered[:count], ordered[count:]
        low, high = min(ends[name][0] for name in near), max(ends[name][1] for name in near)
        are_few = sum(name not in diverged for name in far) <= MOST_FAR * len(ends)
        beyond = min(max(low - ends[name][0], ends[name][1] - high) for name in far)
        if are_few and high > low and beyond > FAR * (high - low):
            return far
    return []


def set_reach(
    axis: Axes,
    extents: Sequence[Extent],
    seeds: Sequence[float] = (),
    slack: float = 0.0,
    far: Sequence[tuple[float, str]] = (),
) -> None:
    """Limit an axis of values to these extents, and to seeds a little beyond; choose its scale and ticks.

    Args:
        slack: how far beyond, in what the extents span.
        far: what lies beyond, and in which color: each gets an arrow with its value, and room for it.
    """
    low, high = min(low for low, _ in extents), max(high for _, high in extents)
    above, below = (0.06 + 0.13 * sum(value > high if up else value < low for value, _ in far) for up in (True, False))
    if is_wide(extents):
        axis.set_yscale("log")
        room = slack * math.log(high / low)
        near = [value for value in seeds if value > 0 and math.log(low / value) <= room >= math.log(value / high)]
        low, high = min([low, *near]), max([high, *near])
        ratio = high / low
        low, high = low / ratio**below, high * ratio**above
        axis.set_ylim(low, high)
        axis.yaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        axis.yaxis.set_minor_locator(NullLocator())
    else:
        span = (high - low) or abs(high) or 1.0
        near = [value for value in seeds if low - slack * span <= value <= high + slack * span]
        low, high = min([low, *near]), max([high, *near])
        span = max(span, high - low)
        axis.set_ylim(low - below * span, high + above * span)
        axis.yaxis.set_major_locator(MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))
    _mark(axis, far)


def log_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """At most so many round numbers between the two: 1, 2 and 5, or 1 and 3, or powers of ten, as many as fit."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    powers = range(first, last + 1)
    choices = [[m * 10.0**power for power in powers for m in subs] for subs in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3))]
    choices += [[10.0**power for power in powers[::step]] for step in (1, 2, 3, 5, 10)]
    inside = [[tick for tick in choice if low <= tick <= high] for choice in choices]
    return next((ticks for ticks in inside if len(ticks) <= count), inside[-1][:count])


def tick_text(value: float) -> str:
    """As people write it: 0.002, 60,000, 3·10⁻⁶."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return with_power(value, 3)
    return f"{value:,.6g}".replace("-", MINUS) if abs(value) >= 10_000 else f"{value:.6g}".replace("-", MINUS)


def step_ticks(axis: Axes, by_step: bool, count: int = 5) -> None:
    """The axis of training: whole numbers, few enough to be read."""
    axis.set_xlabel("optimiser step" if by_step else "epoch")
    axis.xaxis.set_major_locator(MaxNLocator(count, integer=True, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick_text(value)))


def _mark(axis: Axes, values: Sequence[tuple[float, str]]) -> None:
    low, high = axis.get_ylim()
    for up in (True, False):
        beyond = [(value, color) for value, color in values if (value > high if up else value < low)]
        for place, (value, color) in enumerate(beyond):
            axis.annotate(
                f"{'↑' if up else '↓'} {short(value)}",
                (0, 1 if up else 0),
                (3, (-1 if up else 1) * (1 + place * SIZE * 1.3)),
                xycoords="axes fraction",
                textcoords="offset points",
                va="top" if up else "bottom",
                color=color,
                size=SIZE,
            ).set_in_layout(False)


# Names at the ends of lines.


@dataclass(frozen=True)
class EndLabel:
    """The name of a line, to stand where it ends."""

    text: str
    value: float
    color: str
    dash: str


LINE = SIZE * 1.28 / 72  # inches from one line of text to the next
LETTER = 0.062  # inches that a letter of this size takes, about
ACROSS = 26  # letters; longer names go on in a second line
LEADER = 0.32  # inches from a line's end to its name


def label_width(labels: Sequence[str]) -> float:
    """Inches that the column of names takes."""
    letters = max((len(line) for label in labels for line in _lines(label)), default=0)
    return LEADER + 0.05 + LETTER * letters


def _lines(label: str) -> list[str]:
    lines = textwrap.wrap(label, ACROSS) or [label]
    return [*lines[:1], f"{lines[1][: ACROSS - 1]}…"] if len(lines) > 2 else lines


def write_labels(column: Axes, beside: Axes, labels: Sequence[EndLabel], height: float, below: float = 0.0) -> None:
    """Write names into an empty panel, each as near as can be to where its line ends in the panel beside it.

    Args:
        height: of the panel in inches, about.
        below: how far names may go on below the panel, in heights.
    """
    column.axis("off")
    column.set(xlim=(0, 1), ylim=(0, 1))
    if not labels:
        return
    low, high = beside.get_ylim()
    log = beside.get_yscale() == "log"

    def share(value: float) -> float:
        if value <= low or value >= high:
            return float(value >= high)
        return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)

    ends = [share(label.value) for label in labels]
    heights = [(len(_lines(label.text)) * LINE + 0.03) / height for label in labels]
    places = spread(ends, heights, -below, 1.0)
    width = label_width([label.text for label in labels])
    for label, end, place in zip(labels, ends, places, strict=True):
        start = LEADER / width
        column.plot(
            [0.0, start * 0.35, start * 0.85], [end, place, place], color=label.color, ls=label.dash, lw=1.0,
            clip_on=False,
        )  # fmt: skip
        text = "\n".join(plain(line) for line in _lines(label.text))
        column.text(start, place, text, color=label.color, size=SIZE, va="center", linespacing=1.1).set_in_layout(False)


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Middles of boxes that do not overlap, each near where it is wanted, inside the two ends if they fit.

    Boxes that would overlap form a block around the mean of what they want, and blocks that meet become one.
    """
    order = sorted(range(len(wanted)), key=lambda place: wanted[place])
    blocks: list[tuple[float, float, list[int]]] = []  # bottom, height, boxes

    def bottom(boxes: list[int]) -> float:
        total, offset, sum_of_bottoms = sum(heights[box] for box in boxes), 0.0, 0.0
        for box in boxes:
            sum_of_bottoms += wanted[box] - heights[box] / 2 - offset
            offset += heights[box]
        return max(low, min(sum_of_bottoms / len(boxes), high - total))

    for box in order:
        boxes = [box]
        while blocks and blocks[-1][0] + blocks[-1][1] > bottom(boxes):
            boxes = blocks.pop()[2] + boxes
        blocks.append((bottom(boxes), sum(heights[one] for one in boxes), boxes))
    middles = [0.0] * len(wanted)
    for start, _, boxes in blocks:
        for box in boxes:
            middles[box] = start + heights[box] / 2
            start += heights[box]
    return middles
