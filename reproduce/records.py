"""Results: the sealed, immutable JSON that a finished Run leaves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from reproduce.spec import Recipe, Selection, TaskSpec

SCHEMA_VERSION = 1
LOOP_VERSION = 1  # grows when a change to the loop, the models or the data can move a number


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class RunConfig(_Frozen):
    """All that can move a number, and nothing else. The hash of this is the Run's identity."""

    task: TaskSpec
    dataset_checksum: str
    recipe: Recipe
    method: str
    method_version: int
    params: dict[str, Any]
    seed: int
    loop_version: int = LOOP_VERSION

    @property
    def id(self) -> str:
        content = self.model_dump(mode="json", exclude_none=True)
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """A readable name that is unique because it ends in the id."""
        return f"{self.task.dataset}-{self.task.model}-{self.method}-seed{self.seed}-{self.id}"


class SiteStatistics(_Frozen):
    """What one Site saw in a training-mode pass over the probe batch."""

    mean: float
    mean_square: float
    norm_dispersion: float  # std / mean of the samples' norms
    effective_rank: float  # exp of the entropy of the covariance's normalised eigenvalues
    unit_quantiles: tuple[float, ...]  # of one fixed unit, at QUANTILES
    unit_range: tuple[float, float] | None = None  # smallest and largest value of that unit
    unit_histogram: tuple[int, ...] | None = None  # its values in BINS equal parts of that range
    excess_kurtosis: float | None = None  # mean over units of E[(h - mean)^4] / variance^2 - 3


QUANTILES = (0.15, 0.25, 0.5, 0.75, 0.85)
BINS = 24


class EpochRecord(_Frozen):
    """One evaluation: after this many epochs and optimiser steps."""

    epoch: int
    step: int
    train_loss: float  # mean task loss since the last evaluation, penalty apart
    penalty: float
    learning_rate: float
    validation: dict[str, float] = {}
    test: dict[str, float] = {}
    sites: dict[str, SiteStatistics] = {}
    seconds_per_step: float


class Final(_Frozen):
    """The numbers that count, by the selection rule stated in the recipe."""

    selection: Selection
    epoch: int
    validation: dict[str, float]
    test: dict[str, float]


class Environment(_Frozen):
    """Where and with what a Run was made."""

    commit: str
    dirty: bool
    packages: dict[str, str]
    python: str
    platform: str
    device: str
    precision: str
    threads: int
    wall_seconds: float
    peak_memory_bytes: int
    finished: str  # UTC, ISO 8601
    resumed: int = 0  # how often the run went on from a checkpoint


class Result(_Frozen):
    """One finished Run. ``seal`` is the hash of everything else: an edited Result does not read."""

    schema_version: int = SCHEMA_VERSION
    id: str
    config: RunConfig
    defaults: dict[str, Any]  # the method's own defaults then, so that an arm finds its Results without torch
    status: Literal["completed", "diverged"]
    diverged_step: int | None = None
    metric: str
    parameters: int
    epochs: tuple[EpochRecord, ...]
    final: Final | None
    environment: Environment
    seal: str = ""


class ResultError(Exception):
    """A Result file that cannot be trusted; the message names the file and the reason."""


def canonical_json(value: Any) -> str:
    """The one spelling of a value: sorted keys, no spaces. Non-finite numbers become null-safe strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


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
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultError(f"{path}: {where}: {first['msg']}") from error
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
