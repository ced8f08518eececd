"""Figures of PER's card, computed from the formulas alone: no Results and no torch enter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from scipy.special import erf

INK, QUIET, PER, HUBER, PSEUDO_HUBER = "#14181f", "#6b7280", "#0069b4", "#c8500a", "#00856a"
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
N_SLICES = 256


def loss_and_gradient(results: list[Any]) -> Figure:
    """PER in one dimension beside the Huber and pseudo-Huber losses: each less its minimum, and its gradient."""
    x = np.linspace(-3.5, 3.5, 351)
    curves = (
        (
            "PER",
            PER,
            "-",
            x * erf(x / math.sqrt(2)) + SQRT_2_OVER_PI * (np.exp(-(x**2) / 2) - 1),
            erf(x / math.sqrt(2)),
        ),
        ("Huber", HUBER, "--", np.where(np.abs(x) > 1, np.abs(x) - 0.5, x**2 / 2), np.clip(x, -1, 1)),
        ("pseudo-Huber", PSEUDO_HUBER, "-.", np.sqrt(1 + x**2) - 1, x / np.sqrt(1 + x**2)),
    )
    figure, (left, right) = _two_panels()
    for label, colour, line, loss, gradient in curves:
        left.plot(x, loss, line, color=colour, label=label, lw=1.4)
        right.plot(x, gradient, line, color=colour, lw=1.4)
    left.set(xlabel="activation", ylabel="loss less its minimum")
    right.set(xlabel="activation", ylabel="gradient")
    left.legend(frameon=False, loc="upper center")
    return figure


def slice_noise(results: list[Any]) -> Figure:
    """How far the gradient of 256 slices is from its expectation, at unit mean square (line: theory; points: draws)."""
    figure, (left, right) = _two_panels()
    widths = np.unique(np.geomspace(2, 1e5, 60).round().astype(int))
    ratio = np.array([noise_to_signal(int(width), N_SLICES) for width in widths])
    left.plot(widths, ratio, color=PER, lw=1.4)
    right.plot(widths, 1 / np.sqrt(1 + ratio**2), color=PER, lw=1.4)
    left.axhline(1, color=QUIET, lw=0.8, ls=":")
    left.annotate(
        "as much noise as signal", (1e5, 1), (0, -3), textcoords="offset points", color=QUIET, ha="right", va="top"
    )
    generator = np.random.default_rng(0)
    for width, repetitions in ((2, 40), (8, 40), (64, 40), (650, 20), (4096, 6), (16384, 4)):
        noise, cosine = _drawn(width, repetitions, generator)
        for axes, sample in ((left, noise), (right, cosine)):
            axes.errorbar(width, sample.mean(), sample.std(ddof=1), fmt="o", ms=3.5, color=INK, lw=1, capsize=2)
    for axes in (left, right):
        axes.set(xlabel="width of the layer, d", xscale="log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    left.set(ylabel="noise / signal of the gradient", yscale="log")
    right.set(ylabel="cosine to the exact gradient", ylim=(0, 1.03))
    return figure


FIGURES: dict[str, Callable[[list[Any]], Figure]] = {
    "loss_and_gradient": loss_and_gradient,
    "slice_noise": slice_noise,
}


def noise_to_signal(dimension: int, n_slices: int, mean_square: float = 1.0) -> float:
    """Root mean square error of the sliced gradient over the length of its expectation, for one sample.

    ``sqrt((E erf(p/sqrt2)^2 / |g|^2 - 1) / slices)`` with ``p = <theta, h>``, ``g = E erf(p/sqrt2) theta`` and
    ``|h|^2 = d mean_square``, by quadrature over the angle between theta and the plane normal to h; d >= 2.
    """
    energy, signal = _moments(dimension, mean_square)
    return math.sqrt((energy / signal**2 - 1) / n_slices)


def _moments(dimension: int, mean_square: float) -> tuple[float, float]:
    """``E erf(p/sqrt2)^2`` and ``|g|``."""
    reach = min(math.pi / 2, 12 / math.sqrt(dimension))
    angle = (np.arange(2000) + 0.5) / 1000 * reach - reach
    weight = np.exp((dimension - 2) * np.log(np.cos(angle)))
    slope = erf(math.sqrt(dimension * mean_square / 2) * np.sin(angle))
    energy, signal = (weight * slope**2).sum(), (weight * slope * np.sin(angle)).sum()
    return float(energy / weight.sum()), float(signal / weight.sum())


def _drawn(dimension: int, repetitions: int, generator: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Noise over signal, and cosine to the expectation, of independently drawn sliced gradients."""
    noise, cosine = [], []
    _, signal = _moments(dimension, 1.0)
    for _ in range(repetitions):
        directions = generator.standard_normal((N_SLICES, dimension), dtype=np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        gradient = erf(math.sqrt(dimension / 2) * directions[:, 0]) @ directions / N_SLICES  # at h = sqrt(d) e_1
        length = np.linalg.norm(gradient)
        cosine.append(gradient[0] / length)
        noise.append(math.sqrt(length**2 - 2 * gradient[0] * signal + signal**2) / signal)
    return np.array(noise), np.array(cosine)


def _two_panels() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)
