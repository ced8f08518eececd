"""Finding methods by folder: a method exists because `methods/<name>/method.py` exists. No list to edit."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reproduce.errors import UserError
from reproduce.experiment.files import WORKLOADS, read_columns, read_experiment, read_matrix
from reproduce.experiment.schema import Arm, Experiment

if TYPE_CHECKING:  # importing a method imports torch; looking at its folder does not
    from reproduce.method import Method

ROOT = Path(__file__).resolve().parents[2]
METHODS = ROOT / "methods"


@dataclass(frozen=True)
class MethodFolder:
    """One folder of `methods/`."""

    name: str
    path: Path

    def load(self) -> type[Method]:
        """The method's class: the one subclass of `Method` that its method.py defines.

        Raises:
            UserError: when the file defines none, or several.
        """
        module = importlib.import_module(f"methods.{self.name}.method")
        base = importlib.import_module("reproduce.method").Method
        classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
        found = [value for value in classes if value.__module__ == module.__name__]
        if len(found) != 1:
            names = ", ".join(value.__name__ for value in found) or "none"
            raise UserError(f"{self.path / 'method.py'}: one subclass of Method is expected, found {names}")
        return found[0]

    def experiments(self) -> dict[str, Experiment]:
        """Its experiments by name, read strictly: its files, and the workloads that its matrix.toml adds arms to.

        The method of a workload's baseline has every column of the matrix, as the workload's file has it.

        Raises:
            UserError: a file that does not read, or is called like a column of the matrix.
        """
        columns = read_columns(WORKLOADS)
        matrix = self.path / "matrix.toml"
        found = {}
        for path in self.path.glob("experiments/*.toml"):
            if path.stem in columns:
                raise UserError(f"{path}: {path.stem} is a column of the matrix: a method's arms for it go to {matrix}")
            found[path.stem] = read_experiment(path, WORKLOADS)
        found |= {name: column for name, column in columns.items() if _baseline(column).method == self.name}
        found |= read_matrix(matrix, columns) if matrix.exists() else {}
        return dict(sorted(found.items()))

    @property
    def title(self) -> str:
        """The first heading of its card."""
        card = self.path / "card.md"
        first = card.read_text("utf-8").partition("\n")[0] if card.exists() else ""
        return first.lstrip("# ").strip() or self.name


def _baseline(workload: Experiment) -> Arm:
    (arm,) = workload.arms.values()
    return arm


def all_methods() -> dict[str, MethodFolder]:
    """Every method, by name. Folders that begin with an underscore are templates."""
    return {
        path.parent.name: MethodFolder(path.parent.name, path.parent)
        for path in sorted(METHODS.glob("*/method.py"))
        if not path.parent.name.startswith("_")
    }


def find_method(name: str) -> MethodFolder:
    """One method by name; hyphens and underscores are the same.

    Raises:
        UserError: unknown, with the nearest names.
    """
    methods = all_methods()
    wanted = name.replace("-", "_")
    if wanted not in methods:
        near = difflib.get_close_matches(wanted, methods, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(methods)}"
        raise UserError(f"unknown method {name!r}: {hint}")
    return methods[wanted]
