"""Figures of the card, computed from the formulas alone: no Results and no torch enter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, QUIET, FILTERS, INPUTS = "#14181f", "#6b7280", "#006eca", "#ae4301"
SHAPES = ((10, 640), (64, 576), (64, 288), (64, 64), (128, 32), (256, 64))  # (filters, inputs) of usual kernels
N_STARTS = 60

Matrix = NDArray[np.float64]


def flat_side(results: list[Any]) -> Figure:
    kernel = np.random.default_rng(0).standard_normal((32, 288)) / np.sqrt(288)
    values = np.linalg.svd(kernel, compute_uv=False)
    scale = np.linspace(0, 1.8, 181) / values[0]
    squares = (scale[:, None] * values) ** 2
    filters = np.abs(squares - 1).max(1)
    inputs = np.maximum(filters, 1)  # 256 more eigenvalues of the Gram matrix are 0
    figure, (left, right) = _two_panels()
    for value, colour, line, label in (
        (filters, FILTERS, "-", "Gram matrix of filters"),
        (inputs, INPUTS, "--", "Gram matrix of inputs"),
    ):
        left.plot(squares[:, 0], value, line, color=colour, label=label, lw=1.5)
        right.plot(squares[:, 0], np.gradient(value, scale * values[0]), line, color=colour, lw=1.5)
    for axes in (left, right):
        axes.axvline(2, color=QUIET, lw=0.8, ls=":")
        axes.set_xlabel("largest squared singular value")
    left.set_ylabel("spectral norm of G - I")
    right.set_ylabel("slope in the kernel's scale")
    left.legend(loc="upper left")
    return figure


def power_steps(results: list[Any]) -> Figure:
    generator = np.random.default_rng(0)
    figure, (left, right) = _two_panels()
    for axes, law in ((left, "normal"), (right, "uniform on [0, 1)")):
        for offset, (n_steps, colour) in enumerate(((1, INPUTS), (2, FILTERS), (8, INK))):
            found = [_found(shape, n_steps, law == "normal", generator) for shape in SHAPES]
            place = np.arange(len(SHAPES)) + 0.2 * (offset - 1)
            mean = np.array([ratios.mean() for ratios in found])
            low, high = (np.array([one(ratios) for ratios in found]) for one in (np.min, np.max))
            steps = "1 step" if n_steps == 1 else f"{n_steps} steps"
            axes.errorbar(place, mean, (mean - low, high - mean), fmt="o", ms=3.5, lw=1, color=colour, label=steps)
        axes.set_xticks(range(len(SHAPES)), [f"{m}x{n}" for m, n in SHAPES], rotation=30)
        axes.set(ylim=(0, 1.05), xlabel=f"kernel; start {law}")
    left.set_ylabel("found / spectral norm")
    left.legend(loc="lower left", ncols=3, handletextpad=0.2, columnspacing=0.8)
    return figure


FIGURES: dict[str, tuple[str, Callable[[list[Any]], Figure]]] = {  # a caption, and what draws it
    "flat_side": (
        "SRIP of a scaled 32x288 kernel: the inputs' side is flat while all squared singular values are below 2.",
        flat_side,
    ),
    "power_steps": (
        "What power steps find of the spectral norm on random kernels (points: means over 60 starts; bars: ranges).",
        power_steps,
    ),
}


def _found(shape: tuple[int, int], n_steps: int, is_normal: bool, generator: np.random.Generator) -> Matrix:
    """Estimates over the exact norm, from N_STARTS starts, for a kernel of variance 1 / inputs and its smaller side."""
    kernel = generator.standard_normal(shape) / np.sqrt(shape[1])
    if shape[0] > shape[1]:
        kernel = kernel.T
    deviation = kernel @ kernel.T - np.eye(len(kernel))
    size = (len(kernel), N_STARTS)
    vectors = generator.standard_normal(size) if is_normal else generator.random(size)
    for _ in range(n_steps):
        vectors = deviation @ vectors
        vectors /= np.linalg.norm(vectors, axis=0)
    return np.linalg.norm(deviation @ vectors, axis=0) / np.linalg.norm(deviation, 2)


def _two_panels() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)
