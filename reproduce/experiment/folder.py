"""Finding methods by folder: a method exists because `methods/<name>/method.py` exists. No list to edit."""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from reproduce.errors import UserError, did_you_mean, explained, one_line, told
from reproduce.experiment.bounded import read_bounded
from reproduce.experiment.files import WORKLOADS, read_columns, read_experiment, read_matrix
from reproduce.experiment.schema import Arm, Experiment
from reproduce.experiment.toml import LARGEST

if TYPE_CHECKING:  # importing a method imports torch; looking at its folder does not
    from reproduce.method import Method

ROOT = Path(__file__).resolve().parents[2]
METHODS = ROOT / "methods"
# What commands write: in a checkout there; installed, ROOT is site-packages, and the current folder is taken instead.
WORKING_FOLDER = ROOT if (ROOT / "pyproject.toml").is_file() else Path()
MORE_METHODS = "REPRODUCE_METHODS"  # names a folder of methods outside the repository; worker processes inherit it


@dataclass(frozen=True)
class MethodFolder:
    """One folder of `methods/`, or of a folder like it outside the repository."""

    name: str
    path: Path

    def module(self) -> ModuleType:
        """Its method.py, imported as ``methods.<name>.method`` wherever the folder lies."""
        package = importlib.import_module("methods")
        if self.path.parent != METHODS and str(self.path.parent) not in package.__path__:
            package.__path__ = [*package.__path__, str(self.path.parent)]
        return importlib.import_module(f"methods.{self.name}.method")

    def load(self) -> type[Method]:
        """The method's class: the one subclass of `Method` that its method.py defines.

        Raises:
            UserError: when the file defines none, or several, or cannot be imported.
        """
        try:
            module = self.module()
        except Exception as error:  # whatever its author wrote
            raise UserError(
                f"{self.path / 'method.py'}: cannot be imported: {type(error).__name__}: {error}"
            ) from error
        base = importlib.import_module("reproduce.method").Method
        classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
        found = [value for value in classes if value.__module__ == module.__name__]
        if len(found) != 1:
            names = ", ".join(value.__name__ for value in found) or "none"
            raise UserError(f"{self.path / 'method.py'}: one subclass of Method is expected, found {names}")
        return found[0]

    def experiments(self, broken: dict[str, str] | None = None) -> dict[str, Experiment]:
        """Its experiments by name, read strictly: its files, and the workloads that its matrix.toml adds arms to.

        The method of a workload's baseline has every column of the matrix, as the workload's file has it.

        Args:
            broken: told of each experiment, or column of the matrix, that does not read, by name, in a line; None: that
                is an error.

        Raises:
            UserError: a file that does not read, or is called like a column of the matrix.
        """
        columns = read_columns(WORKLOADS, broken)
        matrix = self.path / "matrix.toml"
        found = {}
        for path in sorted(self.path.glob("experiments/*.toml")):
            with told(broken, path.stem):
                if path.stem in columns:
                    raise UserError(
                        f"{path}: {path.stem} is a column of the matrix: a method's arms for it go to {matrix}"
                    )
                found[path.stem] = read_experiment(path, WORKLOADS)
        found |= {name: column for name, column in columns.items() if _baseline(column).method == self.name}
        if matrix.exists():
            with told(broken, matrix.stem):
                found |= read_matrix(matrix, columns, broken)
        return dict(sorted(found.items()))

    @property
    def title(self) -> str:
        """The first heading of its card."""
        try:  # a card that does not read is told where its page is made
            text = read_bounded(self.path / "card.md", LARGEST).decode("utf-8")
        except (OSError, ValueError):
            return self.name
        return one_line(text.partition("\n")[0].lstrip("# ").strip()) or self.name


def _baseline(workload: Experiment) -> Arm:
    (arm,) = workload.arms.values()
    return arm


def all_methods() -> dict[str, MethodFolder]:
    """Every method, by name: those of the repository, then those of the folder in ``REPRODUCE_METHODS``.

    Folders that begin with an underscore are templates.

    Raises:
        UserError: the folder outside is not there, holds no method, or one whose name is taken or unusable.
    """
    found = _methods_in(METHODS)
    outside = methods_outside()
    if outside is None:
        return found
    added = _methods_in(outside)
    if not added:
        raise UserError(f"--methods {outside}: no folder in it holds a method.py")
    for name in added:
        if name in found:
            raise UserError(f"{added[name].path}: there is a method {name} already, in {found[name].path}")
    return found | added


def methods_outside() -> Path | None:
    """The folder of methods that ``--methods`` or ``REPRODUCE_METHODS`` adds, if any.

    Raises:
        UserError: it is not there.
    """
    named = os.environ.get(MORE_METHODS, "")
    folder = Path(named).expanduser().resolve()
    if not named or folder == METHODS:
        return None
    if not folder.is_dir():
        raise UserError(f"--methods {named}: no such folder")
    return folder


def _methods_in(root: Path) -> dict[str, MethodFolder]:
    folders = [path.parent for path in sorted(root.glob("*/method.py")) if not path.parent.name.startswith("_")]
    for folder in folders:
        if not re.fullmatch("[a-z][a-z0-9_]*", folder.name):
            raise UserError(f"{folder}: a method's folder is named in lower-case letters, digits and underscores")
    return {folder.name: MethodFolder(folder.name, folder) for folder in folders}


def find_method(name: str) -> MethodFolder:
    """One method by name; hyphens and underscores are the same.

    Raises:
        UserError: unknown, with the nearest names.
    """
    methods = all_methods()
    wanted = name.replace("-", "_")
    if wanted not in methods:
        raise UserError(f"unknown method {name!r}: {did_you_mean(wanted, methods)}")
    return methods[wanted]


def load_method(name: str, /, **parameters: Any) -> Method:
    """A method by its name, with these hyperparameters; what is not given has the method's default.

    >>> load_method("per", strength=3e-4).strength
    0.0003
    >>> load_method("per", strenght=3e-4)
    Traceback (most recent call last):
        ...
    reproduce.errors.UserError: method per has no parameter 'strenght': did you mean strength?

    Raises:
        UserError: an unknown name or parameter, with the nearest ones, or a value that the method refuses.
    """
    folder = find_method(name)
    method_class = folder.load()
    for key in parameters:
        if key not in method_class.model_fields:
            raise UserError(
                f"method {folder.name} has no parameter {key!r}: {did_you_mean(key, method_class.model_fields)}"
            )
    try:
        return method_class(**parameters)
    except ValidationError as error:
        raise explained(error, parameters, f"method {folder.name}", method_class) from None
