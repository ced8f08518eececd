"""How figures look: arms' colors, matplotlib's settings, panels, and SVG that follows the page's colors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from reproduce.experiment.schema import Experiment
from reproduce.report.svg import inline_svg

# Colors that stand for a CSS variable: the page gives each a light and a dark value; alone, the file shows these.
INK, QUIET, RULE = "#14181f", "#6b7280", "#d5d9e0"
ARMS = ("#575c68", "#006eca", "#ae4301", "#00856a", "#ab4791", "#a87d07", "#3694c2", "#7a1f3d")
DASHES = ("-", "--", ":", "-.")  # arms beyond the eighth repeat the colors
MARKERS = ("o", "s", "^", "v")
VARIABLES = {INK: "--ink", "#000000": "--ink", QUIET: "--quiet", RULE: "--rule"} | {
    color: f"--arm-{index}" for index, color in enumerate(ARMS)
}
MOST = 60  # characters of a label
WIDTH = 7.2  # inches; the page's text column


@dataclass(frozen=True)
class ArmColors:
    """One color for every arm of a page, the same in every figure; arms beyond the eighth differ by dash and marker."""

    places: Mapping[str, int]  # arms of the same place look alike

    def color(self, arm: str) -> str:
        """An arm's color; as a CSS value it is `variable(color)`."""
        return ARMS[self.places[arm] % len(ARMS)]

    def dash(self, arm: str) -> str:
        return DASHES[self.places[arm] // len(ARMS) % len(DASHES)]

    def marker(self, arm: str) -> str:
        return MARKERS[self.places[arm] // len(ARMS) % len(MARKERS)]


def arm_colors(experiments: Iterable[Experiment]) -> ArmColors:
    """Colors for the arms of a page, in the order in which they first appear, a baseline's first of all.

    Arms of one experiment have different hues while there are hues left: it is there that they are compared. Of those
    that are free, an arm gets the one that the fewest have.
    """
    experiments = list(experiments)
    places: dict[str, int] = {}
    uses = [0] * len(ARMS)

    def place(arm: str, beside: Iterable[str]) -> None:
        taken = {places[other] % len(ARMS) for other in beside if other in places}
        hue = min(range(len(ARMS)), key=lambda hue: (hue in taken, uses[hue], hue))
        places[arm] = hue + uses[hue] * len(ARMS)
        uses[hue] += 1

    baselines = dict.fromkeys(one.baseline for one in experiments if one.baseline is not None)
    for arm in dict.fromkeys([*baselines, *(name for one in experiments for name in one.arms)]):
        if arm not in places:
            place(arm, {other for one in experiments if arm in one.arms for other in one.arms})
    return ArmColors(places)


def variable(color: str) -> str:
    """The CSS variable that a color stands for, with the color where no page defines it."""
    return f"var({VARIABLES[color]}, {color})"


def variable_alone(color: str) -> str:
    """The same for where a page defines it."""
    return f"var({VARIABLES[color]})"


STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: layouts are the same on every machine
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


_looks: list[bool] = []  # that are on


@contextmanager
def look() -> Iterator[None]:
    """Matplotlib's defaults with `STYLE` over them, whatever a reader's own settings say."""
    if _looks:  # inside another one: it takes milliseconds
        yield
        return
    with matplotlib.rc_context(), warnings.catch_warnings():
        # The font only measures what the reader's fonts then draw.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        _looks.append(True)
        try:
            yield
        finally:
            _looks.pop()


def plain(label: str) -> str:
    """A label as matplotlib shows it to the letter: without mathematics, cut where it would leave no room to draw."""
    cut = label if len(label) <= MOST else f"{label[: MOST - 1].rstrip()}…"
    return cut.replace("$", r"\$")


def svg(figure: Figure, description: str) -> str:
    """The figure as an inline SVG element, the same bytes every time, in the page's colors.

    Args:
        description: what a reader who does not see the figure is told.
    """
    with look():
        return inline_svg(figure, description, lambda color: variable(color) if color in VARIABLES else color)


def panels(count: int, height: float, per_row: int, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels, ``per_row`` in a row, ``height`` inches each; layout is computed once."""
    columns = min(per_row, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, rows * height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    return figure, panels[:count]


def legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        needed = 0.062 * max(map(len, labels)) + 0.5  # inches for the longest label at this size, with its line
        columns = max(1, min(len(labels), int(WIDTH / needed)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=1.6)
