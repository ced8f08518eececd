"""What is computed once draws the same, and nothing of a figure that changed is kept."""

from contextlib import nullcontext

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.text import Text

from reproduce.report import style, svg


def plain_lines():
    figure, axes = style.panels(3, 2.0, per_row=2)
    for place, axis in enumerate(axes):
        axis.plot([0, 1, 2], [1, 10**place, 3], "o-", label="an arm")
        axis.set(xlabel="epoch", ylabel="test error", title=f"panel {place}")
    style.legend(figure, axes[0])
    return figure


def log_and_offset():
    figure = Figure(figsize=(5, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.loglog([1, 1e4], [1e-3, 1e5])
    right.plot([1e9, 1e9 + 2], [1e-9, 3e-9])  # numbers that stand beside their axis in part
    return figure


def shared_and_aligned():
    figure = Figure(figsize=(5, 4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row")
    for place, axis in enumerate(grid.flat):
        axis.bar(["a", "long name", "b"], [1, 20 * place, 3])
        axis.set_ylabel("one\ntwo", linespacing=1.4)
        axis.tick_params(axis="x", rotation=30)
    figure.align_ylabels()
    return figure


def equal_aspect_and_mathematics():
    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1])
    axis.set(aspect="equal", title="$\\frac{a}{b}$ and \\$5", xlabel="rotated")
    axis.text(0.5, 0.5, "many words that are broken at the edge of what is drawn " * 3, wrap=True, rotation=20)
    return figure


def markers():
    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    for place, marker in enumerate(("o", "^", "x", (5, 1), "$a$")):
        axis.errorbar(
            [0, 1, 2], [place, place + 1, 1], 0.3, marker=marker, fillstyle="left", capsize=2, label=str(marker)
        )
    axis.tick_params(direction="inout", length=6, top=True, right=True, labelright=True)
    axis.minorticks_on()
    axis.legend()
    return figure


FIGURES = [markers, plain_lines, log_and_offset, shared_and_aligned, equal_aspect_and_mathematics]


@pytest.mark.parametrize("build", FIGURES)
def test_a_figure_is_the_same_to_the_last_sign(build, monkeypatch):
    def drawn():
        with style.look():
            return style.svg(build(), "a figure")

    once = [drawn(), drawn()]
    monkeypatch.setattr(svg, "computed_once", nullcontext)
    assert once == [drawn(), drawn()]


def test_a_changed_figure_is_laid_out_anew():
    with style.look():
        figure = plain_lines()
        first = style.svg(figure, "a figure")
        axis = figure.axes[0]
        axis.set(ylim=(0, 5e7), title="another title", xlabel="longer than before")
        changed = style.svg(figure, "a figure")
        fresh = plain_lines()
        fresh.axes[0].set(ylim=(0, 5e7), title="another title", xlabel="longer than before")
        assert first != changed == style.svg(fresh, "a figure")


def test_ticks_are_searched_for_once_for_each_state(monkeypatch):
    searched = []
    search = Axis._update_ticks
    monkeypatch.setattr(Axis, "_update_ticks", lambda axis: searched.append(axis) or search(axis))
    with style.look():
        figure = plain_lines()
        style.svg(figure, "a figure")
    shown = [axis for panel in figure.axes if panel.get_visible() for axis in (panel.xaxis, panel.yaxis)]
    times = [sum(one is axis for one in searched) for axis in shown]
    assert np.max(times) <= 4  # before, between and after the two rounds of the layout


def test_matplotlib_is_as_before_also_after_an_error():
    before = Axis._update_ticks, Axis._get_ticklabel_bboxes, Text._get_layout, MarkerStyle._set_marker
    figure = Figure(figsize=(2, 1))
    figure.subplots().bar([1], [2], hatch="/")
    with pytest.raises(NotImplementedError):
        style.svg(figure, "a figure that cannot be drawn")
    assert (Axis._update_ticks, Axis._get_ticklabel_bboxes) == before[:2]
    assert (Text._get_layout, MarkerStyle._set_marker) == before[2:]
