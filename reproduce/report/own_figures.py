"""The figures that a method folder draws itself.

A function there takes the method's Results; one with a parameter ``colors`` gets, by a Result's id, the color that its
arm has in the other figures of the page.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence

from matplotlib.figure import Figure

from reproduce.errors import UserError
from reproduce.experiment.folder import MethodFolder
from reproduce.report.drawings import Drawing, own_figures_digest
from reproduce.report.style import ArmColors
from reproduce.results.evaluate import Finding
from reproduce.results.record import Result


def colors_of_results(findings: Iterable[Finding], colors: ArmColors) -> dict[str, str]:
    """By id the color of the arm in which a Result stands, of several the first."""
    found: dict[str, str] = {}
    for finding in findings:
        for task in finding.tasks.values():
            for arm in task.runs.arms.values():
                for point in arm.points:
                    for result in point.results.values():
                        found.setdefault(result.id, colors.color(arm.name))
    return found


def own_drawings(folder: MethodFolder, results: Sequence[Result], colors: Mapping[str, str]) -> tuple[Drawing, ...]:
    """Those of its figures.py, whose `FIGURES` give a caption and a function for each name; none without that file.

    Raises:
        UserError: a file that cannot be imported, or defines no FIGURES.
    """
    path = folder.path / "figures.py"
    if not path.exists():
        return ()
    spec = importlib.util.spec_from_file_location(f"methods.{folder.name}.figures", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own: Mapping[str, tuple[str, Callable[..., Figure]]] | None = getattr(module, "FIGURES", None)
    if own is None:
        raise UserError(f"{path}: defines no FIGURES")
    shows = own_figures_digest(folder.path, results)
    drawings = []
    for name, (caption, draw) in own.items():
        colored = {"colors": colors} if "colors" in inspect.signature(draw).parameters else {}
        drawing = functools.partial(draw, list(results), **colored)
        drawings.append(Drawing(caption, [name, *shows, colored], drawing))
    return tuple(drawings)
