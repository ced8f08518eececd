"""Results on disk: sealed JSON, written whole or not at all, and read only where seal and id hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reproduce.errors import first_problem
from reproduce.experiment.identity import canonical_json
from reproduce.results.record import SCHEMA_VERSION, Result


class ResultError(Exception):
    """A Result file that cannot be trusted; the message names the file and the reason."""


def _seal_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json({k: v for k, v in content.items() if k != "seal"}).encode()).hexdigest()


def write_result(result: Result, path: Path) -> Result:
    """Seal ``result`` and put it at ``path`` in one step: a crash leaves nothing there."""
    content = json.loads(result.model_dump_json())
    content["seal"] = _seal_of(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    sealed = read_result(temporary)
    temporary.replace(path)
    return sealed


def read_result(path: Path) -> Result:
    """Read and validate one Result.

    Raises:
        ResultError: truncated or invalid JSON, another schema, a broken seal, an id that is not its config's.
    """
    try:
        text = path.read_text("utf-8")
        content = json.loads(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultError(f"{path}: not a readable Result ({error})") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        found = content.get("schema_version") if isinstance(content, dict) else type(content).__name__
        raise ResultError(f"{path}: schema version {found}, expected {SCHEMA_VERSION}")
    if content.get("seal") != _seal_of(content):
        raise ResultError(f"{path}: its seal does not match its content; it was edited or damaged after the run")
    try:
        result = Result.model_validate_json(text)  # as JSON: strict models then take arrays for their tuples
    except ValidationError as error:
        location, message, _ = first_problem(error, content)
        raise ResultError(f"{path}: {'.'.join(map(str, location))}: {message}") from error
    if result.id != result.config.id:
        raise ResultError(f"{path}: id {result.id} is not the hash of its config ({result.config.id})")
    return result


def read_results(paths: Iterable[Path]) -> tuple[list[Result], list[str]]:
    """All readable Results, and one line for each file that is not."""
    results: list[Result] = []
    problems: list[str] = []
    for path in sorted(paths):
        try:
            results.append(read_result(path))
        except ResultError as error:
            problems.append(str(error))
    return results, problems
