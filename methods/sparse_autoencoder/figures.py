"""Figures of sparse codes, from Results alone: what is lost against how many units are active."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

INK, QUIET = "#14181f", "#6b7280"
WIDTH = 7.2
HARD, NO_CODE = "hard code", "no code"
PLACES = ((5, 3), (5, -9), (-19, -9), (-15, 5))  # of a point's name, in points from it: families lie close together
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

Arms = dict[tuple[str, float, str], list[Any]]  # family, what orders it, what its point is called: Results by seed


def family(result: Any) -> tuple[str, float, str]:
    """What an arm belongs to, a number that orders it there, and a short name of its point.

    Without a penalty and without k, a code is hard: as many units as it has. Otherwise the family is the price or k,
    with the decoder and the width of the code.
    """
    options, params = result.config.task.model_options, result.config.params
    width = options.get("d_sae")
    if width is None:
        return NO_CODE, 0.0, result.config.task.model
    if options.get("activation") == "topk":
        alpha = f", α {options['alpha']:g}" if options.get("alpha", 1.0) != 1.0 else ""
        return f"k-sparse, {width} units{alpha}", float(options["k"]), f"k {options['k']}"
    strength = params.get("l1_coefficient", 0.0)
    if not strength and params.get("kl_coefficient"):
        price = float(params["kl_coefficient"])
        return f"KL, {width} units, density {params['target_density']:g}", price, f"{price:.2g}"
    if not strength and params.get("strength"):  # another method's price of activity
        price = float(params["strength"])
        return f"{result.config.method.replace('_', ' ')}, {width} units", price, f"{price:.2g}"
    if not strength:
        return HARD, float(width), f"{width} units"
    kind = "unit-norm decoder" if options.get("decoder") == "unit_norm" else "free decoder"
    if params.get("norm_weighted"):
        kind = "weighted by norms"
    if params.get("reduction") == "batch_sum":
        kind += ", batch sum"
    if result.config.task.reconstruction == "pixel_mean":
        kind += ", pixel mean"
    if params.get("resample_every"):
        kind += ", resampling"
    return f"L1, {width} units, {kind}", float(strength), f"{strength:g}"


def arms_of(results: Sequence[Any], kind: str, metric: str) -> dict[tuple[Any, ...], Arms]:
    """Completed Results of one kind of task that measured ``metric`` and ``l0``, by problem and by arm.

    Tasks that differ only in the model, or in how its loss is scaled, are one problem.
    """
    found: dict[tuple[Any, ...], Arms] = {}
    for result in results:
        task = result.config.task
        if task.kind == kind and result.final is not None and {metric, "l0"} <= set(result.final.test):
            problem = (task.dataset, task.classifier_iterations or 0, task.train_examples or 0)
            found.setdefault(problem, {}).setdefault(family(result), []).append(result)
    return {problem: dict(sorted(arms.items(), key=_order)) for problem, arms in sorted(found.items())}


def _order(arm: tuple[tuple[str, float, str], Any]) -> tuple[Any, ...]:
    """By family, 800 units before 1600, and by price."""
    name, strength, _ = arm[0]
    return re.sub(r"\d+", lambda digits: digits[0].zfill(6), name), strength


def frontier(results: list[Any]) -> Figure | None:
    problems = arms_of(results, "autoencoding", "fvu")
    coded = {problem: arms for problem, arms in problems.items() if any(name != NO_CODE for name, *_ in arms)}
    return _against_l0(coded, {"fvu": "fraction of variance unexplained"})


def classified(results: list[Any]) -> Figure | None:
    """Beside the errors that the paper prints of k-sparse codes, whose k is the number of active units."""
    problems = arms_of(results, "autoencoding", "classifier_error")
    problems = {
        problem: {arm: members for arm, members in arms.items() if arm[0] != NO_CODE}
        for problem, arms in problems.items()
    }
    problems = {problem: arms for problem, arms in problems.items() if arms}
    figure = _against_l0(problems, {"classifier_error": "test error of the classifier, %"})
    for part in figure.subfigs if figure is not None else ():
        (axis,) = part.axes
        active, errors = printed_errors()
        axis.plot(active, errors, "D", color=INK, mfc="none", ms=6, mew=1.1)
        part.axes[0].annotate("paper", (active[0], errors[0]), (6, -9), textcoords="offset points", size=7)
    return figure


def printed_errors() -> tuple[list[float], list[float]]:
    """k, and the paper's error in percent, of every k-sparse code in the experiment's file."""
    path = Path(__file__).parent / "experiments" / "table1_ksparse.toml"
    experiment = tomllib.loads(path.read_text("utf-8"))
    cells = {arm: value for row in experiment["published"]["rows"] for arm, value in row["cells"].items()}
    options = {arm: given.get("model_options", {}) for arm, given in experiment["arms"].items()}
    found = sorted((float(options[arm]["k"]), value) for arm, value in cells.items() if "k" in options[arm])
    return [k for k, _ in found], [error for _, error in found]


def density(results: list[Any]) -> Figure | None:
    labels = {"dead_fraction": "share of units that never fire", "firing_rate": "mean firing rate of the others"}
    problems = arms_of(results, "autoencoding", "dead_fraction")
    wide = {
        problem: {arm: members for arm, members in arms.items() if arm[0] not in (NO_CODE, HARD)}
        for problem, arms in problems.items()
    }
    return _against_l0({problem: arms for problem, arms in wide.items() if arms}, labels)


def measured(result: Any, metric: str) -> float:
    """A metric of the test images; the firing rate of a unit that fires at all follows from two others."""
    test = result.final.test
    if metric != "firing_rate":
        return float(test[metric])
    firing = result.config.task.model_options["d_sae"] * (1 - test["dead_fraction"])
    return float(test["l0"] / firing) if firing else 0.0


def splice(results: list[Any]) -> Figure | None:
    labels = {"fvu": "fraction of variance unexplained", "ce_loss_increase": "increase of cross-entropy, nats"}
    return _against_l0(arms_of(results, "activation_autoencoding", "ce_loss_increase"), labels)


def code_layer(results: list[Any]) -> Figure | None:
    return _against_l0(arms_of(results, "code_language_modeling", "perplexity"), {"perplexity": "test perplexity"})


FIGURES: dict[str, tuple[str, Callable[[list[Any]], Figure | None]]] = {  # a caption, and what draws it
    "frontier": (
        "Unexplained variance against active units on test images: a point per arm, a dot per seed; lines join prices.",
        frontier,
    ),
    "classified": (
        "Test error of a linear classifier on codes, by active units. Diamonds: the paper's Table 1, at their k.",
        classified,
    ),
    "density": (
        "How dense features are: units of the code that never fire on test images, and how often the others do.",
        density,
    ),
    "splice": (
        "What a spliced code loses against its active units: variance, and cross-entropy of the language model.",
        splice,
    ),
    "code_layer": (
        "Perplexity against active units of a code layer inside a language model: one point per arm, a dot per seed.",
        code_layer,
    ),
}


def _against_l0(problems: Mapping[tuple[Any, ...], Arms], labels: Mapping[str, str]) -> Figure | None:
    """A row for each problem, a panel for each metric, one legend for each row."""
    if not problems:
        return None
    figure = Figure(figsize=(WIDTH, 4.2 * len(problems)), layout="constrained")
    parts = figure.subfigures(len(problems), 1, squeeze=False)[:, 0]
    for part, (problem, arms) in zip(parts, problems.items(), strict=True):
        panels = part.subplots(1, len(labels), squeeze=False)[0]
        for axis, (metric, label) in zip(panels, labels.items(), strict=True):
            _panel(axis, arms, metric)
            axis.set(xlabel="active units, L0", ylabel=label)
        panels[0].set_title(_title(problem))
        handles, names = panels[0].get_legend_handles_labels()
        part.legend(handles, names, loc="outside lower center", ncols=2)
    return figure


def _title(problem: tuple[Any, ...]) -> str:
    dataset, iterations, _ = problem
    return dataset + (f", codes for a classifier of {iterations} iterations" if iterations else "")


def _panel(axis: Axes, arms: Arms, metric: str) -> None:
    families = list(dict.fromkeys(name for name, _, _ in arms))
    families = [name for name in (HARD,) if name in families] + [name for name in families if name != HARD]
    for index, name in enumerate(families):
        hard = name == HARD
        shade = QUIET if hard else f"C{(index - (HARD in families)) % 7}"
        place = PLACES[index % len(PLACES)]
        points = []
        for (owner, _, called), members in arms.items():
            if owner != name:
                continue
            seeds = np.array([[result.final.test["l0"], measured(result, metric)] for result in members])
            axis.plot(*seeds.T, ".", color=shade, ms=3, alpha=0.6, mew=0)
            x, y = seeds.mean(0)
            points.append((x, y))
            axis.annotate(called, (x, y), xytext=place, textcoords="offset points", color=shade, size=7)
        marker = "|" if hard else MARKERS[index % len(MARKERS)]
        (line,) = axis.plot(*zip(*sorted(points), strict=True), color=shade, lw=1.0, label=name)
        line.set(linestyle="--" if hard else "-", marker=marker, markersize=7 if hard else 5)
    active = np.concatenate([line.get_xdata() for line in axis.lines])
    if active.min() >= 1 and active.max() > 20 * active.min():
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.1, y=0.1)
    axis.grid()
