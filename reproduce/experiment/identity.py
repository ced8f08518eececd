"""What identifies a Run: the hash of all that can move a number, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from reproduce.experiment.schema import Recipe, TaskSpec

LOOP_VERSION = 1  # grows when a change to the loop, the models or the data can move a number


class RunConfig(BaseModel):
    """All that can move a number, and nothing else. The hash of this is the Run's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

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


def canonical_json(value: Any) -> str:
    """The one spelling of a value: sorted keys, no spaces. Non-finite numbers become null-safe strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
