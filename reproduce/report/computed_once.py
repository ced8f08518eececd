"""What matplotlib computes again and again while it lays out and draws a figure, computed once for each state.

It finds the ticks of an axis, and the boxes of their labels, for each of its spines, labels and titles anew, twenty
times in all; it lays out the same few texts as often, and copies each part of a marker for every tick. What it draws is
the same to the last bit: what is kept follows from what it is kept under. The methods are matplotlib's own and not
public, so that a test compares figures drawn with and without this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from matplotlib import axis, markers, text

MOST = 20_000  # layouts of texts that are kept

Axis: Any = axis.Axis
Text: Any = text.Text
MarkerStyle: Any = markers.MarkerStyle
_PRIVATE = [
    (Axis, "_update_ticks"),
    (Axis, "_get_ticklabel_bboxes"),
    (Text, "_get_layout"),
    (MarkerStyle, "_set_marker"),
]
_layouts: dict[tuple[Any, ...], Any] = {}


@contextmanager
def computed_once() -> Iterator[None]:
    """While a figure is drawn that nobody changes meanwhile; in one renderer's measure of texts, under one style."""
    if not all(hasattr(kind, name) for kind, name in _PRIVATE):  # a matplotlib that is laid out otherwise
        yield
        return
    ticks: dict[Any, tuple[Any, Any]] = {}
    boxes: dict[Any, tuple[Any, Any]] = {}
    found_ticks, found_boxes = Axis._update_ticks, Axis._get_ticklabel_bboxes
    laid_out, made_marker = Text._get_layout, MarkerStyle._set_marker

    def update_ticks(axis: Any) -> Any:
        state = _state(axis)
        known = ticks.get(axis)
        if known is None or known[0] != state:
            known = ticks[axis] = state, found_ticks(axis)
            boxes.pop(axis, None)
        return list(known[1])

    def ticklabel_boxes(axis: Any, shown: Any, renderer: Any) -> Any:
        state = _state(axis), *map(id, shown)
        known = boxes.get(axis)
        if known is None or known[0] != state:
            known = boxes[axis] = state, found_boxes(axis, shown, renderer)
        return tuple([box.frozen() for box in side] for side in known[1])

    def layout(text: Any, renderer: Any) -> Any:
        if text.get_wrap():  # at the edges of the figure
            return laid_out(text, renderer)
        state = _look(text)
        if state not in _layouts:
            if len(_layouts) >= MOST:
                _layouts.clear()
            _layouts[state] = laid_out(text, renderer)
        return _layouts[state]

    def set_marker(style: Any, marker: Any) -> None:
        if isinstance(marker, MarkerStyle):  # a tick's, of another tick: none of its parts is ever changed in place
            style.__dict__ = dict(marker.__dict__)
            style._marker_function = MethodType(marker._marker_function.__func__, style)
        else:
            made_marker(style, marker)

    _put(update_ticks, ticklabel_boxes, layout, set_marker)
    try:
        yield
    finally:
        _put(found_ticks, found_boxes, laid_out, made_marker)


def _put(update_ticks: Any, ticklabel_boxes: Any, layout: Any, set_marker: Any) -> None:
    Axis._update_ticks, Axis._get_ticklabel_bboxes = update_ticks, ticklabel_boxes
    Text._get_layout, MarkerStyle._set_marker = layout, set_marker


def _state(axis: Any) -> tuple[Any, ...]:
    """What ticks follow from, and where their labels stand: the limits, and where the panel is."""
    return (*axis.axes.bbox.bounds, *axis.axes.viewLim.bounds)


def _look(text: Any) -> tuple[Any, ...]:
    """What the layout of a text follows from; where it stands is no part of it."""
    return (
        text.get_text(),
        hash(text.get_fontproperties()),
        text.get_rotation(),
        text.get_rotation_mode(),
        text.get_horizontalalignment(),
        text.get_verticalalignment(),
        text._get_multialignment(),
        text._linespacing,
        text.get_parse_math(),
        text.get_usetex(),
        text.get_figure(root=True).dpi,
    )
