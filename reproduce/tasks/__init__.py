"""Tasks: dataset x model x loss x metric. The loop knows this protocol and no Task by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reproduce.data import Data
from reproduce.randomness import Generators
from reproduce.spec import Recipe, SpecError, TaskSpec

Metrics = dict[str, dict[str, float]]  # split -> metric -> value


class Task(Protocol):
    """What the loop asks of a problem."""

    model: nn.Module
    metric: str  # the name of the metric that counts, lower being better
    steps_per_epoch: int

    def start_epoch(self) -> None:
        """Draw what an epoch needs (the order of the examples) and reset carried state."""

    def loss(self, index: int) -> Tensor:
        """Forward pass and task loss of batch ``index`` of this epoch: 0-dim, with gradient."""

    def evaluate(self) -> Metrics:
        """Metrics on validation (where there is one) and test, in evaluation mode."""

    def probe(self) -> None:
        """One forward pass over a fixed batch of training examples, so that Sites record it."""

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted epoch needs to go on: tensors and numbers only."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def build(spec: TaskSpec, recipe: Recipe, data: Data, generators: Generators, device: torch.device) -> Task:
    """The Task of ``spec.kind``: a file of that name in this folder."""
    kinds = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    if spec.kind not in kinds:
        raise SpecError(f"unknown task kind {spec.kind!r}: there are {', '.join(kinds)}")
    module = importlib.import_module(f"reproduce.tasks.{spec.kind}")
    return module.build(spec, recipe, data, generators, device)
