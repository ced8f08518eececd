"""Results on disk: sealed JSON, written whole or not at all, and read only where seal and id hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reproduce.errors import first_problem, one_line, shown
from reproduce.experiment.bounded import read_bounded
from reproduce.experiment.identity import canonical_json
from reproduce.results.durable import move_flushed, write_flushed
from reproduce.results.memory import collector_paused
from reproduce.results.record import SCHEMA_VERSION, Result
from reproduce.results.spelling import content_of, spelled

LARGEST = 2**26  # bytes of one Result: a hundred times what the longest Runs leave


class ResultError(Exception):
    """A Result file that cannot be trusted; the message names the file and the reason, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class NewerResult(ResultError):
    """A Result that a newer suite has sealed: not damaged, and not to be trained again."""


def _sealed_text(content: dict[str, Any]) -> str:
    """What a seal is the hash of."""
    return canonical_json({name: value for name, value in content.items() if name != "seal"})


def seal_of(content: dict[str, Any]) -> str:
    """The SHA-256 (hex) of all of it but its own seal."""
    return hashlib.sha256(_sealed_text(content).encode()).hexdigest()


def write_result(result: Result, path: Path) -> Result:
    """Seal ``result`` and put it at ``path`` in one step, onto the disk: a crash before leaves nothing there."""
    content = json.loads(result.model_dump_json())
    content["seal"] = seal_of(content)
    return place_result(content, path)


def copy_result(source: Path, target: Path, of_run: str | None = None) -> Result:
    """Put the Result at ``source`` to ``target`` in today's spelling, with the seal that it has.

    A Result of before may lack names that today's have: it is copied as it is, not sealed anew.

    Raises:
        ResultError: as `read_result`, and where it is not of the run of that id.
    """
    content = read_content(source)
    if of_run is not None and content["id"] != of_run:
        raise ResultError(f"{source}: holds the Result of run {content['id']}, expected {of_run}")
    return place_result(content, target)


def respell(path: Path) -> Result:
    """Give a Result's file today's spelling, which is shorter: neither content nor seal change."""
    return copy_result(path, path)


def read_result(path: Path) -> Result:
    """Read and validate one Result.

    Raises:
        ResultError: truncated or invalid JSON, another schema, a broken seal, an id that is not its config's.
    """
    return _read(path)[1]


def read_content(path: Path) -> dict[str, Any]:
    """What one Result says, names that today's Results have and it lacks left out; errors as `read_result`."""
    return _read(path)[0]


def checked(text: str, where: str) -> tuple[dict[str, Any], Result]:
    """The content of one Result and the Result that it is, where seal and id hold.

    Args:
        text: a Result in any spelling.
        where: what an error begins with: the file, say.

    Raises:
        ResultError: as `read_result`.
    """
    try:
        content = content_of(text)
        sealed = _sealed_text(content) if isinstance(content, dict) else ""
        digest = hashlib.sha256(sealed.encode()).hexdigest()
    except (ValueError, TypeError, RecursionError) as error:  # no JSON, names that are none, half a character
        raise ResultError(f"{where}: not a readable Result ({error})") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
        kind = NewerResult if isinstance(found, int) and found > SCHEMA_VERSION else ResultError
        raise kind(
            f"{where}: schema version {found if isinstance(found, str) else shown(found)}, expected {SCHEMA_VERSION}"
        )
    if content.get("seal") != digest:
        raise ResultError(f"{where}: its seal does not match its content; it was edited or damaged after the run")
    try:
        result = Result.model_validate_json(sealed)  # as JSON: strict models then take arrays for their tuples
    except ValidationError as error:
        location, message = first_problem(error, content)
        raise ResultError(f"{where}: {'.'.join(map(str, location))}: {message}") from error
    if result.id != result.config.id:
        raise ResultError(f"{where}: id {result.id} is not the hash of its config ({result.config.id})")
    return content, result.model_copy(update={"seal": content["seal"]})


def _read(path: Path) -> tuple[dict[str, Any], Result]:
    try:
        text = read_bounded(path, LARGEST).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: not a readable Result ({error})") from error
    return checked(text, str(path))


def place_result(content: dict[str, Any], path: Path) -> Result:
    """Put sealed content to ``path`` in one step, in today's spelling, and onto the disk; errors as `read_result`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    write_flushed(temporary, spelled(content).encode())
    sealed = read_result(temporary)
    move_flushed(temporary, path)
    return sealed


def read_results(paths: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """All readable Results, and one line for each file that is not."""
    results: list[Result] = []
    problems: list[str] = []
    with collector_paused():
        for path in sorted(paths):
            try:
                results.append(read_result(path))
            except ResultError as error:
                problems.append(str(error))
    return results, problems
