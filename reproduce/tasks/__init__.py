"""Tasks: dataset x model x loss x metric. The loop knows this protocol and no Task by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reproduce.data import Data
from reproduce.errors import UserError
from reproduce.experiment.schema import Recipe, TaskSpec
from reproduce.method.rng import Generators

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


def build(
    spec: TaskSpec, recipe: Recipe, data: Data, generators: Generators, device: torch.device, host: Any = None
) -> Task:
    """The Task of ``spec.kind``: a file of that name in this folder.

    Args:
        host: what `read_host` made of the trained host network, for Tasks that read one's activations.

    Raises:
        UserError: no such kind, a field that it does not use, or what the Task itself refuses.
    """
    check_fields(spec)
    given = {} if spec.host is None else {"host": host}
    return _module(spec.kind).build(spec, recipe, data, generators, device, **given)


def build_host(spec: TaskSpec, data: Data, generators: Generators, device: torch.device) -> Task:
    """The Task on which the host network of ``spec.host`` is trained.

    Raises:
        UserError: what that Task refuses, or a Site that its model has not.
    """
    return _module(spec.kind).build_host(spec, data, generators, device)


def read_host(spec: TaskSpec, task: Task) -> Any:
    """What the Task of ``spec`` needs of the host that was trained on ``task``."""
    return _module(spec.kind).read_host(spec, task)


def check_fields(spec: TaskSpec) -> None:
    """Refuse fields that Tasks of this kind do not use: they would change a Run's id, and none of its numbers.

    A file of this folder names the optional fields of a TaskSpec that it uses in ``USES``.

    Raises:
        UserError: no such kind, or a field that it does not use.
    """
    module = _module(spec.kind)
    given = {name: getattr(spec, name) for name, field in TaskSpec.model_fields.items() if field.default is None}
    uses: tuple[str, ...] = module.USES
    for name, value in given.items():
        if value is not None and name not in uses:
            taken = ", ".join(uses)
            raise UserError(f"a task of kind {spec.kind!r} takes {taken} and no {name!r}, found {value!r}")


def _module(kind: str) -> ModuleType:
    kinds = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    if kind not in kinds:
        raise UserError(f"unknown task kind {kind!r}: there are {', '.join(kinds)}")
    return importlib.import_module(f"{__name__}.{kind}")
