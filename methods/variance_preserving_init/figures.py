"""Figures of the card: the sample variance over depth, its cure and the price, from formulas, draws and Results."""

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

Array = NDArray[np.float64]

INK, QUIET, HE, CENTRED = "#14181f", "#6b7280", "#ae4301", "#006eca"
STARTS = (0.0, 0.5, 0.9)  # correlations of two samples in the first layer
DEPTH, WIDTH, N_SAMPLES, N_NETWORKS = 50, 128, 32, 8
NORMAL_QUARTERS = 2.0729  # between the 15th and the 85th percentile of a normal law, in standard deviations
GROWTH = math.pi / (math.pi - 1)  # of the mean square gradient, at each layer of centred rows: gain^2 / 2


def shares(correlation: float, depth: int, centred: bool) -> Array:
    """Share of the sample variance in the layers 0 to depth, by the recursion of the card: (depth + 1,)."""
    found = [1 - correlation]
    for _ in range(depth):
        rho = 1 - found[-1]
        rho = (math.sqrt(max(0.0, 1 - rho**2)) + rho * (math.pi - math.acos(rho))) / math.pi
        found.append(1 - (rho - 1 / math.pi) / (1 - 1 / math.pi) if centred else 1 - rho)
    return np.array(found)


def drawn_shares(correlation: float, centred: bool, generator: np.random.Generator) -> Array:
    """The same measured in random networks, (networks, layers): pairs of N_SAMPLES samples of equal mean square."""
    found = np.empty((N_NETWORKS, DEPTH + 1))
    for network in found:
        common, own = generator.standard_normal((1, WIDTH)), generator.standard_normal((N_SAMPLES, WIDTH))
        value = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
        for layer in range(DEPTH + 1):
            network[layer] = value.var(0, ddof=1).mean() / (value**2).mean()
            kernel = generator.standard_normal((WIDTH, WIDTH)) * math.sqrt(2 / WIDTH)
            if centred:
                kernel -= kernel.mean(1, keepdims=True)
                kernel *= math.sqrt(2 * GROWTH) / np.linalg.norm(kernel, axis=1, keepdims=True)
            value = np.maximum(value, 0) @ kernel.T
    return found


def measured_shares(results: list[Any]) -> dict[str, list[Array]]:
    """By arm of `at_the_start`, for each seed: the share at each layer's pre-activation at the start.

    Where a Result keeps no variance over samples, it is that of one normal unit with the recorded percentiles; in a
    wide layer all units have the same.
    """
    arms = at_the_start(results)
    return {label: [_by_layer(result.epochs[0].sites) for result in seeds] for label, seeds in arms.items()}


def at_the_start(results: list[Any]) -> dict[str, list[Any]]:
    """By arm of the deepest task on digits, the Result of each seed: the first evaluation there comes before anything
    has moved."""
    path = Path(__file__).parent / "experiments" / "quick_digits.toml"
    experiment = tomllib.loads(path.read_text("utf-8"))
    task = max(experiment["tasks"].values(), key=lambda task: task["model_options"]["depth"])
    found: dict[str, list[Any]] = {}
    for arm in experiment["arms"].values():
        for result in sorted(results, key=lambda result: result.config.seed):
            config = result.config
            same = (config.task.dataset, config.task.model_options) == (task["dataset"], task["model_options"])
            still = config.recipe.warmup_factor == experiment["recipe"]["warmup_factor"]
            if not same or not still or config.params != {**result.defaults, **arm.get("params", {})}:
                continue
            if config.method == arm.get("method", "vanilla") and result.epochs:
                found.setdefault(arm["label"], []).append(result)
    return found


def decay_and_cure(results: list[Any]) -> Figure:
    figure, axes = _panels(2)
    generator = np.random.default_rng(0)
    for axis, centred, colour, title in (
        (axes[0], False, HE, "He: decays as $9 \\pi^2 / 2 l^2$"),
        (axes[1], True, CENTRED, "centred rows: comes back"),
    ):
        depth = np.arange(DEPTH + 1)
        for start, line in zip(STARTS, ("-", "--", ":"), strict=True):
            axis.plot(depth, shares(start, DEPTH, centred), line, color=colour, label=f"{start:g}")
            drawn = drawn_shares(start, centred, generator)[:, ::5]
            axis.errorbar(depth[::5], drawn.mean(0), 2 * _error(drawn), fmt=".", ms=4, lw=0.8, color=colour)
        axis.set(xlabel="layer", title=title, ylim=(0, 1.05))
        axis.legend(frameon=False, title="correlation at first")
    axes[0].plot(depth[8:], 4.5 * math.pi**2 / depth[8:] ** 2, color=QUIET, lw=0.9)
    axes[0].set_ylabel("variance over samples / mean square")
    return figure


def measured(results: list[Any], colors: Mapping[str, str] | None = None) -> Figure | None:
    found = measured_shares(results)
    shades = [(colors or {}).get(seeds[0].id, INK) for seeds in at_the_start(results).values()]
    if not found:
        return None
    figure, (axis,) = _panels(1)
    for index, (label, seeds) in enumerate(found.items()):
        layers, mean = np.arange(1, len(seeds[0]) + 1), np.mean(seeds, axis=0)
        axis.plot(layers, mean, color=shades[index], lw=1.4, label=label)
        if index == 0:  # networks that start as He's follow the recursion; those of other starts have laws of their own
            theory = shares(1 - min(1.0, float(mean[0])), len(mean) - 1, centred=False)
            axis.plot(layers, theory, color=QUIET, lw=0.9, ls=":", label="He, by the recursion from the first layer on")
        for one in seeds:
            axis.plot(layers, one, ".", color=shades[index], ms=3)
    axis.set(xlabel="layer", ylabel="variance over samples / mean square", ylim=(0, None))
    axis.legend(frameon=False, loc="center right")
    return figure


def price(results: list[Any]) -> Figure:
    figure, (axis,) = _panels(1)
    depth = np.arange(DEPTH + 1)
    axis.plot(depth, np.ones(DEPTH + 1), color=HE, label="He")
    axis.plot(depth, GROWTH**depth, color=CENTRED, label="centred rows")
    axis.set(xlabel="layers below the loss", ylabel="mean square gradient", yscale="log")
    axis.legend(frameon=False)
    return figure


FIGURES: dict[str, tuple[str, Callable[..., Figure | None]]] = {  # a caption, and what draws it
    "decay_and_cure": (
        "Share of variance over samples in random ReLU networks by depth: recursion (lines) and draws of width 128.",
        decay_and_cure,
    ),
    "measured": (
        "In the suite's own networks on digits, before training: the share that varies over images; dots are seeds.",
        measured,
    ),
    "price": (
        "The price: how much larger the mean square of the gradient is, that many layers below the loss.",
        price,
    ),
}


def _by_layer(sites: dict[str, Any]) -> Array:
    """Of the Sites ``layers.<i>.pre``, in the order of their numbers: a Result sorts them as text."""
    before = {int(name.split(".")[1]): site for name, site in sites.items() if name.endswith(".pre")}
    ordered = [before[layer] for layer in sorted(before)]
    return np.array([_variance(site) / site.mean_square for site in ordered])


def _variance(site: Any) -> float:
    if site.sample_variance is not None:
        return float(site.sample_variance)
    return float(((site.unit_quantiles[-1] - site.unit_quantiles[0]) / NORMAL_QUARTERS) ** 2)


def _error(drawn: Array) -> Array:
    return np.asarray(drawn.std(0, ddof=1) / math.sqrt(len(drawn)))


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False).flat)
