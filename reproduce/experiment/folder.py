"""Finding methods by folder: a method exists because `methods/<name>/method.py` exists. No list to edit."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from reproduce.errors import UserError, first_problem
from reproduce.experiment.schema import Experiment, read_experiment

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
        """The class `Method` of its method.py.

        Raises:
            UserError: when the file defines none.
        """
        module = importlib.import_module(f"methods.{self.name}.method")
        found = getattr(module, "Method", None)
        if found is None:
            raise UserError(f"{self.path / 'method.py'}: defines no class Method")
        return found

    def experiments(self) -> dict[str, Experiment]:
        """Its experiments by file name, read strictly."""
        return {path.stem: read_experiment(path) for path in sorted(self.path.glob("experiments/*.toml"))}

    @property
    def title(self) -> str:
        """The first heading of its card."""
        card = self.path / "card.md"
        first = card.read_text("utf-8").partition("\n")[0] if card.exists() else ""
        return first.lstrip("# ").strip() or self.name


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
        raise UserError(f"unknown method {name!r}: {_nearest(wanted, methods)}")
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
                f"method {folder.name} has no parameter {key!r}: {_nearest(key, method_class.model_fields)}"
            )
    try:
        return method_class(**parameters)
    except ValidationError as error:
        location, problem, _ = first_problem(error, parameters)
        where = ".".join(str(part) for part in location)
        raise UserError(f"method {folder.name}: {where + ': ' if where else ''}{problem}") from None


def _nearest(wanted: str, known: Iterable[str]) -> str:
    """The name that was probably meant, or all that there are."""
    names = list(known)
    near = difflib.get_close_matches(wanted, names, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
