"""A Finding in, figure out: what an experiment may ask to be drawn of each of its tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from reproduce.errors import UserError
from reproduce.report.arm_rows import paired_differences, seeds
from reproduce.report.curves import learning_curves
from reproduce.report.drawings import Drawing, finding_digest
from reproduce.report.fronts import front
from reproduce.report.kernel_plots import kernel_deviation, kernel_spectra
from reproduce.report.said import differences_described, seeds_described
from reproduce.report.site_plots import distance_to_normal, has_moments, site_statistics, unit_laws, variance_by_layer
from reproduce.report.style import ArmColors, look
from reproduce.results.evaluate import TaskFinding


class ExperimentFigure(NamedTuple):
    """What an experiment's file may name in ``figures``."""

    caption: str
    draw: Callable[[TaskFinding, ArmColors], Figure | None]
    describe: Callable[[TaskFinding], str] | None = None  # in numbers; by default, where the lines end
    add: Callable[[TaskFinding], str] | None = None  # what the caption says of this task beside


def draw(name: str, task: TaskFinding, colors: ArmColors) -> Figure | None:
    """Draw one figure of an experiment; None where its Results hold nothing to draw.

    Raises:
        UserError: there is no figure of that name.
    """
    with look():
        return _named(name, task).draw(task, colors)


def drawing(name: str, task: TaskFinding, colors: ArmColors, caption: str = "") -> Drawing:
    """The figure of that name as part of a page; with a caption of its own, if it needs one. Errors as `draw`."""
    one, shows = _named(name, task), [name, *finding_digest(task, colors)]
    description = one.describe(task) if one.describe else ""
    said = caption or " ".join(filter(None, (one.caption, one.add(task) if one.add else "")))
    return Drawing(said, shows, lambda: draw(name, task, colors), description)


def _named(name: str, task: TaskFinding) -> ExperimentFigure:
    if name not in FIGURES:
        raise UserError(f"unknown figure {name!r} in {task.experiment.title!r}: there are {', '.join(FIGURES)}")
    return FIGURES[name]


def _printed(task: TaskFinding) -> str:
    """Where the numbers stand that are drawn as diamonds."""
    return _addresses("Diamonds", task, None)


def _printed_gaps(task: TaskFinding) -> str:
    return _addresses("Diamonds, the gaps", task, task.experiment.baseline) if task.baseline else ""


def _addresses(what: str, task: TaskFinding, over: str | None) -> str:
    """What is claimed of this task, row by row, by the tables that it is from; "" where nothing is."""
    claims = [one for one in task.experiment.claims if one.task == task.name and one.over == over]
    sources = [one.source.partition(", row")[0] for one in claims if one.value is not None]
    tables = list(dict.fromkeys(sources))
    more = f" and {len(tables) - 2} more" if len(tables) > 2 else ""
    return f"{what}: {'; '.join(tables[:2])}{more}." if tables else ""


def _grey(task: TaskFinding) -> str:
    """What the thin lines are, where there are some."""
    ran = sum(bool(arm.chosen and arm.chosen.results) for arm in task.runs.arms.values())
    behind = ran - len(front(task))
    if behind < 1:
        return ""
    return f"In grey: {behind} more arm{'s' if behind > 1 else ''}, named in the table."


FIGURES = {
    "seeds": ExperimentFigure(
        "Every seed as a point, the mean as a bar with its 95 % interval.",
        seeds,
        seeds_described,
        _printed,
    ),
    "paired_differences": ExperimentFigure(
        "Each arm minus the baseline: a point for every seed, a bar for the gap between the means, its 95 % interval.",
        paired_differences,
        differences_described,
        _printed_gaps,
    ),
    "learning_curves": ExperimentFigure(
        "The metric and the training loss on the way: a line for the mean of seeds, thin lines for each. "
        "Arrows: values beyond the panel.",
        learning_curves,
        add=_grey,
    ),
    "site_statistics": ExperimentFigure(
        "Mean square, norm dispersion and effective rank at Sites from first to last, over training: means of seeds, "
        "with a bar from the lowest to the highest at the end. Arrows: values beyond the panel.",
        site_statistics,
        add=_grey,
    ),
    "unit_quantiles": ExperimentFigure(
        "One unit of each Site over training, first seed: the 15th, 50th and 85th percentiles, arm by arm.",
        unit_laws,
        add=lambda task: "Beside them its mean and its variance." if has_moments(task) else "",
    ),
    "distance_to_normal": ExperimentFigure(
        "Sliced Wasserstein distance W1 from what passes each Site to N(0, I), over training: means of seeds.",
        distance_to_normal,
        add=_grey,
    ),
    "variance_by_layer": ExperimentFigure(
        "From input to output at the end of training: how much varies over samples.",
        variance_by_layer,
        add=_grey,
    ),
    "kernel_spectra": ExperimentFigure(
        "Singular values of kernels from input to output at the end of training, the largest first: means of seeds. "
        "Arrows: values beyond the panel.",
        kernel_spectra,
        add=_grey,
    ),
    "kernel_deviation": ExperimentFigure(
        "How far kernels are from having orthonormal rows, or columns where these are fewer, over training: "
        "the largest |s² - 1| of their singular values s. Arrows: values beyond the panel.",
        kernel_deviation,
        add=_grey,
    ),
}
