"""Figures of PER's card, computed from the formulas and from what Results say of our own layers, without torch."""

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

INK, QUIET, PER, HUBER, PSEUDO_HUBER = "#14181f", "#6b7280", "#006eca", "#ae4301", "#00856a"
OURS = HUBER
WIDTHS = {"mlp": "width", "lstm": "hidden"}  # the option that is the width of every layer, by model
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
N_SLICES = 256


def loss_and_gradient(results: list[Any]) -> Figure:
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
    points: list[tuple[int, float, int, dict[str, Any]]] = [
        (width, 1.0, repetitions, {"fmt": "o", "ms": 3.5, "color": INK})
        for width, repetitions in ((2, 40), (8, 40), (64, 40), (650, 20), (4096, 6), (16384, 4))
    ]
    points += [
        (width, mean_square, 10, {"fmt": "s", "ms": 4.5, "mfc": "none", "color": OURS})
        for width, mean_square in measured_layers(results)
    ]
    for width, mean_square, repetitions, style in points:
        noise, cosine = drawn(width, repetitions, generator, mean_square)
        for axes, sample in ((left, noise), (right, cosine)):
            axes.errorbar(width, sample.mean(), sample.std(ddof=1), lw=1, capsize=2, **style)
    for axes in (left, right):
        axes.set(xlabel="width of the layer, d", xscale="log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    left.set(ylabel="noise / signal of the gradient", yscale="log")
    right.set(ylabel="cosine to the exact gradient", ylim=(0, 1.03))
    return figure


FIGURES: dict[str, tuple[str, Callable[[list[Any]], Figure]]] = {  # a caption, and what draws it
    "loss_and_gradient": (
        "PER in one dimension beside the Huber and pseudo-Huber losses: each less its minimum, and its gradient.",
        loss_and_gradient,
    ),
    "slice_noise": (
        "256 slices against the exact gradient: theory and dots at mean square 1, squares at that of our own layers.",
        slice_noise,
    ),
}


def measured_layers(results: list[Any]) -> list[tuple[int, float]]:
    """Width and mean square of every layer trained with 256 slices, at the end and averaged over seeds, sorted.

    A layer of zeros is left out: its gradient has neither signal nor noise.
    """
    found: dict[tuple[str, int, str, str], list[float]] = {}
    for result in results:
        config = result.config
        width = config.task.model_options.get(WIDTHS.get(config.task.model, ""))
        slices = config.params.get("n_slices") if config.params.get("mode") == "sliced" else None
        if config.method != "per" or slices != N_SLICES or width is None or result.status != "completed":
            continue
        setting = f"{config.params.get('strength')} {config.params.get('reduction')}"
        for name, statistics in result.epochs[-1].sites.items():
            if name.endswith(".post") and statistics.mean_square > 0:
                key = (config.task.dataset, int(width), setting, name)
                found.setdefault(key, []).append(statistics.mean_square)
    return [(key[1], math.fsum(values) / len(values)) for key, values in sorted(found.items())]


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


def drawn(
    dimension: int, repetitions: int, generator: np.random.Generator, mean_square: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Noise over signal, and cosine to the expectation, of independently drawn sliced gradients."""
    noise, cosine = [], []
    _, signal = _moments(dimension, mean_square)
    length = math.sqrt(dimension * mean_square)
    for _ in range(repetitions):
        directions = generator.standard_normal((N_SLICES, dimension), dtype=np.float32)
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        gradient = erf(length * math.sqrt(0.5) * directions[:, 0]) @ directions / N_SLICES  # at h = (length, 0, ...)
        size = np.linalg.norm(gradient)
        cosine.append(gradient[0] / size)
        noise.append(math.sqrt(size**2 - 2 * gradient[0] * signal + signal**2) / signal)
    return np.array(noise), np.array(cosine)


def _two_panels() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    return figure, (left, right)
