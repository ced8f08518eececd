"""TOML read strictly into frozen models; every error is one line with file, line and key. No torch here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from reproduce.errors import UserError, first_problem

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def read_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a strict model.

    Raises:
        UserError: one line that names file, line, key, what was found and what was expected.
    """
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    content = _tuples(content)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(_explain(path, text, content, error)) from error


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples, since every model here is frozen and strict."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def _explain(path: Path, text: str, content: Any, error: ValidationError) -> str:
    location, message, n_problems = first_problem(error, content)
    line = _line_of(text, location)
    where = f"{path}:{line}" if line else str(path)
    key = ".".join(str(part) for part in location)
    more = f" (and {n_problems - 1} more)" if n_problems > 1 else ""
    return f"{where}: {key + ': ' if key else ''}{message}{more}"


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
            if table == names[: len(table)] and len(table) > depth:
                best, depth = number, len(table)
            continue
        key = re.match(r"\s*([\w\"'.-]+)\s*=", line)
        if key:
            full = table + [part.strip("\"'") for part in key.group(1).split(".")]
            if full == names[: len(full)] and len(full) > depth:
                best, depth = number, len(full)
    return best
