"""What goes wrong for a user: one line that says what was found, what was expected and what to do; exit code 2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ValidationError

UNKNOWN_KEY = "unknown key"


class UserError(Exception):
    """An experiment, card, file or argument that cannot be used; the message is one line for the user."""


@contextmanager
def errors_in(where: str) -> Iterator[None]:
    """Say of a ValueError where it happened: ``where`` before its message."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class Misplaced(ValueError):
    """A broken rule between keys, and the key to look at."""

    def __init__(self, location: tuple[int | str, ...], message: str) -> None:
        super().__init__(message)
        self.location = location


def first_problem(error: ValidationError, content: Any) -> tuple[list[int | str], str, int]:
    """Where the problem to show lies, what it is, and how many there are."""
    problems = error.errors()
    unknown = (problem for problem in problems if problem["type"] == "extra_forbidden")
    first = next(unknown, problems[0])  # a misspelled key is missing as well: say what was found
    cause = first.get("ctx", {}).get("error")
    at = _location(first["loc"], content)
    if isinstance(cause, Misplaced):
        return [*at, *cause.location], str(cause), len(problems)
    match first["type"]:
        case "extra_forbidden":
            return at, UNKNOWN_KEY, len(problems)
        case "missing":
            return [*at, first["loc"][-1]], "missing key", len(problems)
    found = "" if isinstance(first["input"], dict | BaseModel) else f", found {first['input']!r}"
    return at, first["msg"].removeprefix("Value error, ") + found, len(problems)


def explained(error: ValidationError, content: Any, owner: str, fields: Iterable[str]) -> str:
    """The first problem of ``owner`` ("model 'mlp'"), which takes these fields, in one line.

    Args:
        error: what validating ``content`` raised.
        content: the values by name.
        owner: who was given them, as the line should call it.
        fields: what the owner takes, for the reader who misspelled one.
    """
    location, message, n_problems = first_problem(error, content)
    key = ".".join(str(part) for part in location)
    more = f" (and {n_problems - 1} more)" if n_problems > 1 else ""
    if message == UNKNOWN_KEY and len(location) == 1:
        taken = ", ".join(fields) or "nothing"
        return f"{owner} takes {taken} and no {key!r}, found {content[key]!r}{more}"
    return f"{owner}: {f'{key}: ' if key else ''}{message}{more}"


def _location(named: tuple[int | str, ...], content: Any) -> list[int | str]:
    """The keys that lead to the problem, without pydantic's own names for the alternatives of a union."""
    keys: list[int | str] = []
    for part in named:
        inside = range(len(content)) if isinstance(content, tuple) else content
        if isinstance(inside, dict | range) and part in inside:
            content = content[part]
            keys.append(part)
    return keys
