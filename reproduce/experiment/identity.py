"""What identifies a Run, and which Runs an experiment's cell asks for: both decided here, so that they agree."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from reproduce.experiment.cells import Cell
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec

LOOP_VERSION = 1  # grows when a change to the loop, the models or the data can move a number


class Start(BaseModel):
    """The method that prepared the network before the Run's own did."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", defer_build=True)

    method: str
    version: int
    params: dict[str, Any]


class RunConfig(BaseModel):
    """All that can move a number, and nothing else. The hash of this is the Run's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", defer_build=True)

    task: TaskSpec
    dataset_checksum: str
    recipe: Recipe
    method: str
    method_version: int
    params: dict[str, Any]
    start: Start | None = Field(default=None, exclude_if=lambda start: start is None)  # as before: not in the JSON
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


def run_key(config: RunConfig) -> str:
    """What a Run shares with all that differ from it in seed, data and versions alone.

    A Run belongs to a Cell when this is the `cell_key` of the Cell under the method's defaults at the Run's time. For
    equal seed, data, versions and defaults, two configs have the same key exactly if they have the same id.
    """
    started_by = config.start.method if config.start else None
    return _key(config.method, config.task, config.recipe, config.params, started_by)


def cell_key(cell: Cell, defaults: Mapping[str, Any]) -> str:
    """The `run_key` of the Runs that planning makes of a Cell for a method with these defaults."""
    return _key(cell.method, cell.task, cell.recipe, {**defaults, **cell.params}, cell.start)


def _key(method: str, task: TaskSpec, recipe: Recipe, params: Mapping[str, Any], start: str | None) -> str:
    problem = [spec.model_dump(mode="json", exclude_none=True) for spec in (task, recipe)]
    return canonical_json([method, *problem, one_spelling(dict(params)), start])


def one_spelling(value: Any) -> Any:
    """Parameters as a Run's config and an experiment's file both spell them: 1.0 as 1, tuples as lists.

    A config has its method's types, of which an experiment's file knows nothing: there 1 may stand for 1.0.
    """
    if isinstance(value, Mapping):
        return {key: one_spelling(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [one_spelling(item) for item in value]
    is_negative_zero = value == 0 and isinstance(value, float) and math.copysign(1.0, value) < 0
    if isinstance(value, float) and value.is_integer() and not is_negative_zero:
        return int(value)
    return value


def canonical_json(value: Any) -> str:
    """The one spelling of a value: sorted keys, no spaces. Non-finite numbers become null-safe strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
