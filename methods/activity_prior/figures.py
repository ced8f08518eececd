"""Figures of the two-unit experiments: histograms over the laws that were wanted, and the distance over training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK, QUIET = "#14181f", "#6b7280"
WIDTH = 0.2  # of a bin of the regression task, which counts outputs from 0 on

Numbers = NDArray[np.floating[Any]]


def histograms(results: list[Any], colors: Mapping[str, str] | None = None) -> Figure | None:
    groups = _groups(results)
    if not groups:
        return None
    figure = Figure(figsize=(7.2, 2.4 * len(groups)), layout="constrained")
    grid = figure.subplots(len(groups), 2, squeeze=False)
    for row, (dataset, arms) in zip(grid, groups.items(), strict=True):
        for output, axes in enumerate(row):
            for label, members in arms.items():
                heights = np.mean([_bins(result.epochs[-1].test, output) for result in members], axis=0) / WIDTH
                axes.stairs(
                    heights, np.arange(len(heights) + 1) * WIDTH, color=_color(members, colors), lw=1.3, label=label
                )
            prior = next((law for members in arms.values() for law in _laws(members[0])[output : output + 1]), None)
            edges = np.arange(len(heights) + 1) * WIDTH
            if prior is not None:
                axes.stairs(_masses(prior, edges) / WIDTH, edges, fill=True, color=QUIET, alpha=0.3)
            axes.set(title=f"{dataset}: output {output + 1}", xlabel="output")
        row[0].set_ylabel("density")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def distance(results: list[Any], colors: Mapping[str, str] | None = None) -> Figure | None:
    groups = _groups(results)
    if not groups:
        return None
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (dataset, arms) in zip(panels, groups.items(), strict=True):
        for label, members in arms.items():
            for index, result in enumerate(members):
                points = [(record.step, record.test["histogram_distance"]) for record in result.epochs]
                axes.plot(
                    *zip(*points, strict=True),
                    color=_color(members, colors),
                    lw=1.1,
                    label=label if index == 0 else None,
                )
        axes.set(title=dataset, xlabel="optimiser step", yscale="log")
    panels[0].set_ylabel("distance")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


FIGURES: dict[str, tuple[str, Callable[..., Figure | None]]] = {  # a caption, and what draws it
    "histograms": (
        "Histograms of both outputs on test images (mean over seeds), and the laws that they were to follow (grey).",
        histograms,
    ),
    "distance": (
        "Wasserstein distance between the histograms of the outputs and their laws on test images, over training.",
        distance,
    ),
}


def _groups(results: list[Any]) -> dict[str, dict[str, list[Any]]]:
    """Complete Results of tasks that count their outputs, by dataset and by what was trained how."""
    groups: dict[str, dict[str, list[Any]]] = {}
    for result in results:
        if result.status == "completed" and "output_0_bin_0" in result.epochs[-1].test:
            arms = groups.setdefault(result.config.task.dataset, {})
            arms.setdefault(_label(result), []).append(result)
    return {dataset: dict(sorted(arms.items())) for dataset, arms in sorted(groups.items())}


def _color(members: Sequence[Any], colors: Mapping[str, str] | None) -> str:
    """That of the arm on the whole page."""
    return (colors or {}).get(members[0].id, INK)


def _follows_laws(result: Any) -> bool:
    return result.config.params.get("mode", "prior") == "prior"


def _label(result: Any) -> str:
    params, batch = result.config.params, result.config.recipe.batch_size
    if not _follows_laws(result):
        return f"L2 after batch normalization, batch {batch}"
    if not params.get("prior"):
        return f"squared error alone, batch {batch}"
    memory = f", memory {params['memory']}" if params.get("memory") else ""
    return f"{params['distance']}, batch {batch}{memory}"


def _bins(metrics: dict[str, float], output: int) -> Numbers:
    """Shares of one output in its bins, in order."""
    found = {
        int(match[1]): value
        for name, value in metrics.items()
        if (match := re.match(rf"output_{output}_bin_(\d+)$", name))
    }
    return np.array([found[place] for place in sorted(found)])


def _laws(result: Any) -> Sequence[dict[str, Any]]:
    """Those that the outputs were to follow. L2 after batch normalization has one among its parameters, unused."""
    prior = (result.config.params.get("prior") or ()) if _follows_laws(result) else ()
    return prior if isinstance(prior, list | tuple) else (prior, prior)


def _masses(law: dict[str, Any], edges: Numbers) -> Numbers:
    """Probability of each bin under an exponential law or a histogram; what lies above is in the last bin."""
    if law["kind"] == "exponential":
        cumulated = 1 - np.exp(-law["rate"] * edges)
    elif law["kind"] == "histogram":
        shares = np.cumsum([0.0, *law["counts"]]) / np.sum(law["counts"])
        cumulated = np.interp(edges, law["edges"], shares)
    else:
        raise ValueError(f"the figure knows exponential laws and histograms, found {law['kind']!r}")
    cumulated[-1] = 1
    return np.diff(cumulated)
