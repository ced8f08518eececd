"""Figures of VCL's card: what the loss prefers, computed from formulas, and laws of units, computed from Results."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[Any]

INK, QUIET = "#14181f", "#6b7280"
N = 5  # sample size of the authors' code
WITHIN = np.diag([9.0, 0.25])  # covariance within a class of the two-class example
BETWEEN = np.array([3.0, 1.5])  # difference of its class means


def expected_loss(sample_size: int | Array, excess_kurtosis: float | Array) -> Any:
    """``E[(1 - s^2/sigma^2)^2] = 2/(n-1) + kappa/n``, s^2 the unbiased variance of n independent samples."""
    return 2 / (sample_size - 1) + excess_kurtosis / sample_size


def mixture_kurtosis(separation: float | Array, prior: float) -> Any:
    """Excess kurtosis ``p q (1 - 6 p q) d^4 / (1 + p q d^2)^2`` of two normal laws of unit variance, d apart."""
    spread = prior * (1 - prior)
    return spread * (1 - 6 * spread) * separation**4 / (1 + spread * separation**2) ** 2


def projected_separation(angle: Array, within: Array, between: Array) -> Array:
    """How far apart two normal classes are on a line, in standard deviations within them; angles (k,) to (k,)."""
    directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.abs(directions @ between) / np.sqrt(((directions @ within) * directions).sum(1))


def few_modes(
    snapshots: tuple[int, ...], sample_size: int = N, beta: float = 1.0, count: int = 2000, rate: float = 0.02
) -> dict[int, Array]:
    """Values of one unit, normal at first, after so many steps of gradient descent on VCL alone.

    Each step cuts all values into disjoint samples at random and adds up the losses; the step is no longer
    than 10 * rate, since the gradient has no bound where a sample's variance is small.
    """
    values = stats.norm.ppf((np.arange(count) + 0.5) / count)
    generator = np.random.Generator(np.random.PCG64(0))
    kept = {}
    for step in range(max(snapshots) + 1):
        if step in snapshots:
            kept[step] = values.copy()
        order = generator.permutation(count)
        samples = values[order].reshape(2, sample_size, -1)
        centred = samples - samples.mean(1, keepdims=True)
        first, second = (centred**2).sum(1) / (sample_size - 1)
        gap = 1 - first / (second + beta)
        slopes = np.stack([-2 * gap / (second + beta), 2 * gap * first / (second + beta) ** 2])
        gradient = np.empty(count)
        gradient[order] = (slopes[:, None] * 2 * centred / (sample_size - 1)).reshape(-1)
        values = values - rate * gradient * min(1.0, 10 / float(np.linalg.norm(gradient)))
    return kept


def closed_form(results: list[Any]) -> Figure:
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    axis = figure.subplots()
    generator = np.random.Generator(np.random.PCG64(0))
    sizes = np.arange(2, 21)
    laws: tuple[tuple[str, float, Callable[..., Any]], ...] = (
        ("Laplace", 3.0, lambda shape: generator.laplace(size=shape) / math.sqrt(2)),
        ("normal", 0.0, generator.standard_normal),
        ("uniform", -1.2, lambda shape: generator.uniform(-1, 1, shape) * math.sqrt(3)),
        ("two points", -2.0, lambda shape: generator.integers(0, 2, shape) * 2.0 - 1),
    )
    for label, kurtosis, draw in laws:
        (line,) = axis.plot(sizes, expected_loss(sizes, kurtosis), lw=1.4, label=f"{label}, kurtosis {kurtosis:g}")
        for size in (3, 5, 10, 20):
            losses = (1 - draw((20_000, size)).var(1, ddof=1)) ** 2
            axis.plot(size, losses.mean(), "o", ms=3.5, color=line.get_color())
    axis.set(xlabel="sample size, n", ylabel="expected loss", yscale="log", xticks=(3, 5, 10, 20))
    axis.legend(frameon=False)
    return figure


def mixtures(results: list[Any]) -> Figure:
    figure, (left, right) = _panels(2)
    distance = np.linspace(0, 8, 161)
    angle = np.linspace(0, math.pi, 361)
    for prior in (0.5, 0.3, (1 - 1 / math.sqrt(3)) / 2, 0.1, 0.05):
        label = f"{100 * prior:.0f} %"
        left.plot(distance, expected_loss(N, mixture_kurtosis(distance, prior)), lw=1.4, label=label)
        projected = projected_separation(angle, WITHIN, BETWEEN)
        right.plot(np.degrees(angle), expected_loss(N, mixture_kurtosis(projected, prior)), lw=1.4)
    discriminant = np.linalg.solve(WITHIN, BETWEEN)
    for name, (x, y), dashes in (("LDA", discriminant, "--"), ("class means", BETWEEN, ":")):
        right.axvline(math.degrees(math.atan2(y, x)), color=QUIET, lw=0.9, ls=dashes, label=name)
    left.set(xlabel="distance of the means / standard deviation", ylabel="expected loss")
    right.set(xlabel="direction of the projection, degrees")
    left.legend(frameon=False, title="prior of the rarer")
    right.legend(frameon=False)
    return figure


def modes(results: list[Any]) -> Figure:
    snapshots = (0, 300, 1000, 4000)
    figure, axes = _panels(len(snapshots))
    for axis, (step, values) in zip(axes, few_modes(snapshots).items(), strict=True):
        axis.hist(values, bins=60, range=(-3, 3), density=True)
        axis.text(
            0.5, 0.97, f"$\\kappa$ = {stats.kurtosis(values):.2f}", transform=axis.transAxes, ha="center", va="top"
        )
        axis.margins(y=0.15)
        axis.set(xlabel="value", title=f"step {step}")
    axes[0].set_ylabel("density")
    return figure


def reference_log(results: list[Any], colors: Mapping[str, str] | None = None) -> Figure | None:
    path = Path(__file__).parent / "experiments" / "reference_log.toml"
    experiment = tomllib.loads(path.read_text("utf-8"))
    (task,) = experiment["tasks"].values()
    ours = [
        result
        for result in results
        if result.config.method == "vcl"
        and result.config.task.dataset == task["dataset"]
        and result.config.task.model_options == task["model_options"]
    ]
    if not ours:
        return None
    figure, (axis,) = _panels(1)
    for result in ours:
        axis.plot(
            [e.epoch for e in result.epochs],
            [e.test["error"] for e in result.epochs],
            color=_color(result, colors),
            lw=0.8,
            alpha=0.7,
        )
    for claim in experiment["claims"]:
        if claim.get("value") is not None and "over" not in claim:
            epoch = int(claim["metric"].partition("@")[2] or experiment["recipe"]["epochs"])
            axis.plot(epoch, claim["value"], "D", mfc="none", mec="black", ms=5)
    axis.set(xlabel="epoch", ylabel="test error, percent", yscale="log")
    return figure


def laws_by_arm(results: list[Any]) -> dict[str, list[Any]]:
    """Results whose last evaluation has the histograms of units, by method and strength; vanilla first."""
    path = Path(__file__).parent / "experiments" / "reduced_pre_activations.toml"
    experiment = tomllib.loads(path.read_text("utf-8"))
    (task,) = experiment["tasks"].values()
    found: dict[str, list[Any]] = {}
    for arm in experiment["arms"].values():
        for result in sorted(results, key=lambda result: result.config.seed):
            config = result.config
            same_task = (config.task.dataset, config.task.model_options) == (task["dataset"], task["model_options"])
            wanted = {**result.defaults, **arm.get("params", {})}
            if same_task and config.method == arm.get("method", "vanilla") and config.params == wanted and result.final:
                found.setdefault(arm["label"], []).append(result)
    return found


def pre_activations(results: list[Any], colors: Mapping[str, str] | None = None) -> Figure | None:
    arms = laws_by_arm(results)
    if not arms:
        return None
    figure, axes = _panels(len(arms))
    for axis, (label, found) in zip(axes, arms.items(), strict=False):
        for result in found:
            site = [site for name, site in result.epochs[-1].sites.items() if "pre" in name][-1]
            low, high = site.unit_range
            counts = np.array(site.unit_histogram, dtype=float)
            middles = low + (np.arange(len(counts)) + 0.5) * (high - low) / len(counts)
            mean = np.average(middles, weights=counts)
            std = math.sqrt(np.average((middles - mean) ** 2, weights=counts))
            width = (high - low) / len(counts) / std
            axis.step(
                (middles - mean) / std, counts / counts.sum() / width, where="mid", color=_color(result, colors), lw=0.9
            )
        axis.set(title=label, xlabel="standard deviations", xlim=(-4, 4))
    axes[0].set_ylabel("density")
    return figure


def kurtosis_by_layer(results: list[Any], colors: Mapping[str, str] | None = None) -> Figure | None:
    arms = laws_by_arm(results)
    if not arms:
        return None
    figure, (axis,) = _panels(1)
    for label, found in arms.items():
        rows = [[s.excess_kurtosis for n, s in result.epochs[-1].sites.items() if "pre" in n] for result in found]
        layers = np.arange(1, len(rows[0]) + 1)
        axis.plot(layers, np.mean(rows, axis=0), color=_color(found[0], colors), label=label)
        for row in rows:
            axis.plot(layers, row, ".", color=_color(found[0], colors), ms=4)
        axis.set_xticks(layers)
    axis.axhline(0, color=QUIET, lw=0.6)
    axis.set(xlabel="layer", ylabel="excess kurtosis before the activation")
    axis.legend(frameon=False)
    return figure


FIGURES: dict[str, tuple[str, Callable[..., Figure | None]]] = {  # a caption, and what draws it
    "closed_form": (
        "The expected loss with the true variance falls with the sample size and with the kurtosis (points: draws).",
        closed_form,
    ),
    "mixtures": (
        "Two normal classes on a line: separated where the rarer is above 21 percent, joined below; n = 5.",
        mixtures,
    ),
    "modes": (
        "Values of one unit under gradient descent on the loss alone: a normal law falls into two modes.",
        modes,
    ),
    "pre_activations": (
        "In a network: one unit of the last hidden layer before its activation, standardised; a line for each seed.",
        pre_activations,
    ),
    "kurtosis_by_layer": (
        "In a network: the excess kurtosis that enters the closed form, mean over units, by layer; points are seeds.",
        kurtosis_by_layer,
    ),
    "reference_log": (
        "Our test error over the epochs of the reference network, "
        "and the errors that its authors' log states (points).",
        reference_log,
    ),
}


def _color(result: Any, colors: Mapping[str, str] | None) -> str:
    """That of the Result's arm on the whole page."""
    return (colors or {}).get(result.id, INK)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    across = min(count, 4 if count == 4 else 3)
    rows = -(-count // across)
    figure = Figure(figsize=(7.2, 2.7 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, across, squeeze=False).flat)
