"""Figures of what kernels are: their singular values, and how far these are from 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reproduce.report.axes import step_ticks, write_labels
from reproduce.report.curves import (
    ArmLine,
    Points,
    ValueOf,
    arm_lines,
    arms_that_ran,
    by_step,
    chosen_results,
    draw_lines,
    end_labels,
    grid_with_names,
    lines_of,
)
from reproduce.report.site_plots import short_name, spread_over
from reproduce.report.style import ArmColors
from reproduce.results.evaluate import TaskFinding
from reproduce.results.record import EpochRecord, Result

MOST = 3  # kernels, from first to last
HEIGHT = 2.0  # inches of a panel


def kernel_spectra(task: TaskFinding, colors: ArmColors) -> Figure | None:
    """A panel for each kernel; nothing where no Result keeps any."""
    names = _shown(task)
    panels = [lines_of(task, _at_the_end(name)) for name in names]
    figure = _row(names, panels, "singular value", colors)
    if figure is not None:
        for axis in figure.axes[: len(names)]:
            axis.set_xlabel("rank, share of all")
            axis.xaxis.set_major_locator(MaxNLocator(3))
    return figure


def kernel_deviation(task: TaskFinding, colors: ArmColors) -> Figure | None:
    """A panel for each kernel; nothing where no Result keeps any."""
    names = _shown(task)
    panels = [arm_lines(task, _deviation(name)) for name in names]
    figure = _row(names, panels, "largest |s² - 1|", colors)
    if figure is not None:
        for axis in figure.axes[: len(names)]:
            step_ticks(axis, by_step(task), 4)
    return figure


def _row(names: Sequence[str], panels: Sequence[Sequence[ArmLine]], label: str, colors: ArmColors) -> Figure | None:
    """The panels, and the names of lines behind the last."""
    if not any(panels):
        return None
    labels = end_labels(max(reversed(panels), key=len), colors)
    figure, (row,), column = grid_with_names(1, len(names), HEIGHT, [one.text for one in labels], after=len(names))
    for axis, name, lines in zip(row, names, panels, strict=True):
        draw_lines(axis, lines, colors, "lines")
        axis.set_label(f"{label}, {name}")
        axis.set_title(short_name(name.removesuffix(".weight")))
    row[0].set_ylabel(label)
    write_labels(column, row[-1], labels, HEIGHT - 0.2)
    return figure


def _shown(task: TaskFinding) -> list[str]:
    """At most MOST kernels that some Result keeps, in the order of its model."""
    results = [result for arm in arms_that_ran(task) for result in chosen_results(arm)]
    names = dict.fromkeys(one.name for result in results for record in result.epochs for one in record.kernels or ())
    return spread_over(list(names), MOST)


def _values(record: EpochRecord, name: str) -> tuple[float, ...]:
    """The kernel's singular values; none where they were not kept."""
    return next((one.singular_values for one in record.kernels or () if one.name == name), ())


def _at_the_end(name: str) -> Callable[[Result], Points]:
    def of(result: Result) -> Points:
        values = next((found for record in reversed(result.epochs) if (found := _values(record, name))), ())
        return [(place / max(1, len(values) - 1), value) for place, value in enumerate(values) if np.isfinite(value)]

    return of


def _deviation(name: str) -> ValueOf:
    """The spectral norm of the smaller Gram matrix less the identity; the extreme singular values decide it."""
    return lambda record: max((abs(value**2 - 1) for value in _values(record, name)), default=None)
