"""TOML read strictly into frozen models; every error is one line with file, line and key. No torch here."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from reproduce.errors import UserError, problems_in, shown, with_others
from reproduce.experiment.bounded import is_deeper, read_bounded

Model = TypeVar("Model", bound=BaseModel)
LARGEST = 2**20  # bytes of a file; those of the papers have a hundredth
DEEPEST = 32  # tables and arrays inside each other
# Keys with more parts than that take the parser quadratic time.
DEEP_KEY = re.compile(rf"(?:[\w\"'-]{{1,80}}[ \t]{{0,8}}\.[ \t]{{0,8}}){{{DEEPEST}}}")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


@dataclass(frozen=True)
class TomlFile:
    """A file as read, so that what is wrong in its content can be said with file and line."""

    path: Path
    text: str
    content: dict[str, Any]

    def parse(self, model: type[Model], content: Any = None, below: Sequence[int | str] = ()) -> Model:
        """Its content as a strict model.

        Args:
            content: what to read instead of the whole content, and
            below: the keys under which that stands in the file.

        Raises:
            UserError: one line that names file, line, key, what was found and what was expected.
        """
        given = self.content if content is None else content
        try:
            return model.model_validate(given)
        except ValidationError as error:
            (location, message), *others = problems_in(error, given, model)
            more = [self._in_file([*below, *at], what) for at, what in others]
            raise self.error([*below, *location], with_others(message, more)) from error

    def _in_file(self, location: Sequence[int | str], message: str) -> str:
        """As `error`, where the file is named already."""
        line = _line_of(self.text, list(location))
        return f"{line}: {_keyed(location, message)}" if line else _keyed(location, message)

    def error(self, location: Sequence[int | str], message: str) -> UserError:
        """What is wrong at a key, in one line."""
        return UserError(f"{self.place(location)}: {_keyed(location, message)}")

    def place(self, location: Sequence[int | str]) -> str:
        """``file:line`` of a key, or of the table that should hold it."""
        line = _line_of(self.text, list(location))
        return f"{self.path}:{line}" if line else str(self.path)


def _keyed(location: Sequence[int | str], message: str) -> str:
    key = ".".join(str(part) for part in location)
    return f"{key}: {message}" if key else message


def open_toml(path: Path) -> TomlFile:
    """Read a TOML file.

    Raises:
        UserError: it cannot be read, or is no TOML.
    """
    try:
        text = read_bounded(path, LARGEST).decode("utf-8").replace("\r\n", "\n")
        if DEEP_KEY.search(text):
            raise ValueError(f"a key of more than {DEEPEST} parts")
        content = tomllib.loads(text)
        _check(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid TOML: {_TOO_DEEP}") from error
    except ValueError as error:  # no UTF-8, no TOML, numbers of thousands of digits
        raise UserError(f"{path}: not valid TOML: {error}") from error
    return TomlFile(path, text, _tuples(content))


_TOO_DEEP = f"tables or arrays lie inside each other more than {DEEPEST} deep"


def _check(content: dict[str, Any]) -> None:
    """See that what follows can walk through it, and that its integers are those of TOML.

    Raises:
        ValueError: they are not.
    """
    if is_deeper(content, DEEPEST):
        raise ValueError(_TOO_DEEP)
    waiting: list[Any] = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{shown(value)}, expected at most 64")


def read_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a strict model; see `open_toml` and `TomlFile.parse` for errors."""
    return open_toml(path).parse(model)


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, since every model here is frozen and strict."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _line_of(text: str, location: list[int | str]) -> int | None:
    """The line of a key: tables are followed, the last name that appears as a key counts."""
    names = [part for part in location if isinstance(part, str)]
    index = next((part for part in location if isinstance(part, int)), 0)
    table: list[str] = []
    seen_array = -1
    best: int | None = None
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[(\[?)\s*([^\]]+?)\s*\]", line)
        if header:
            table = [part.strip().strip("\"'") for part in header.group(2).split(".")]
            seen_array += bool(header.group(1)) and table == names[: len(table)]
            if header.group(1) and seen_array != index:
                table = [""]  # another element: its keys are not looked at
                continue
            if (reached := _reached(table, names)) > depth:
                best, depth = number, reached
            continue
        key = re.match(r"\s*([\w\"'.-]+)\s*=", line)
        if key:
            full = table + [part.strip("\"'") for part in key.group(1).split(".")]
            if (reached := _reached(full, names)) > depth:
                best, depth = number, reached
    return best


def _reached(keys: list[str], names: list[str]) -> int:
    """How far these keys lead to the names: all their way, or past them, as ``[a.b]`` does to ``a``; else 0."""
    shared = min(len(keys), len(names))
    return shared if keys[:shared] == names[:shared] else 0
