"""Figure of the card: what input scale does to a kernel and to an activity penalty, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

STRENGTHS = (0.01, 0.1, 1.0)


def ridge_shrinkage(kind: Literal["kernel", "activity"], strength: float, scale: Any) -> Any:
    """The factor by which an L2 penalty shrinks a least-squares prediction from one input of that scale.

    Minimising ``mean (s x w - y)^2 + strength P`` over w, with x of mean 0 and variance 1: ``s^2 / (s^2 + strength)``
    for the kernel penalty ``P = w^2``, ``1 / (1 + strength)`` for the activity penalty ``P = mean (s x w)^2``.
    """
    if kind == "kernel":
        return scale**2 / (scale**2 + strength)
    return 1 / (1 + strength) + 0 * scale


def input_scale(results: list[Any]) -> Figure:
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    axis = figure.subplots()
    scales = np.geomspace(0.1, 300, 200)
    for strength in STRENGTHS:
        (line,) = axis.plot(scales, ridge_shrinkage("kernel", strength, scales), lw=1.4, label=f"kernel, {strength:g}")
        activity = ridge_shrinkage("activity", strength, scales)
        axis.plot(scales, activity, ls="--", lw=1.4, color=line.get_color(), label=f"activity, {strength:g}")
    axis.set(xscale="log", xlabel="scale of the input", ylabel="shrinkage of the prediction")
    axis.legend(frameon=False, ncols=2, title="penalty, strength")
    return figure


FIGURES: dict[str, tuple[str, Callable[[list[Any]], Figure]]] = {  # a caption, and what draws it
    "input_scale": (
        "How far an L2 penalty shrinks a prediction, by the scale of its input: on weights it fades as inputs grow.",
        input_scale,
    ),
}
