"""The figures that a method folder draws itself."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure

from reproduce.errors import UserError
from reproduce.experiment.folder import MethodFolder
from reproduce.report.drawings import Drawing, own_figures_digest
from reproduce.results.record import Result


def own_drawings(folder: MethodFolder, results: Sequence[Result]) -> tuple[Drawing, ...]:
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
    own: Mapping[str, tuple[str, Callable[[list[Result]], Figure]]] | None = getattr(module, "FIGURES", None)
    if own is None:
        raise UserError(f"{path}: defines no FIGURES")
    shows = own_figures_digest(folder.path, results)
    return tuple(
        Drawing(caption, [name, *shows], functools.partial(draw, list(results)))
        for name, (caption, draw) in own.items()
    )
