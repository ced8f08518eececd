"""Tasks: dataset x model x loss x metric. The loop knows this protocol and no Task by name.

A file of this folder is one kind of Task. It holds a class ``Options``, the options of a TaskSpec that the kind takes,
and ``build(spec, options, recipe, data, generators, device)``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from reproduce.data import Data
from reproduce.errors import UserError, did_you_mean, explained
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.metrics import Metric
from reproduce.experiment.recipe import PlateauRate, Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.experiment.toml import Strict
from reproduce.method.rng import Generators

Metrics = dict[str, dict[str, float]]  # split -> metric -> value


class Task(Protocol):
    """What the loop asks of a problem."""

    model: nn.Module
    metric: Metric  # the one that counts
    steps_per_epoch: int
    source_examples: int | None  # of a step's batch, its first ones; others of a target domain follow. None: no others

    def start_epoch(self) -> None:
        """Draw what an epoch needs (the order of the examples) and reset carried state."""

    def loss(self, index: Tensor) -> Tensor:
        """Forward pass and task loss of one batch of this epoch: 0-dim, with gradient.

        Args:
            index: which batch, 0-dim int64 on the Task's device, where it is read: the host does not know it.
        """

    def evaluate(self) -> Metrics:
        """Metrics on validation (where there is one) and test, in evaluation mode."""

    def forward_site_batch(self) -> None:
        """One forward pass over a fixed batch of training examples, so that Sites record it."""

    def prepared_loss(self) -> Callable[[], Tensor]:
        """A function that computes the loss of one batch made ready here: it draws, reads and augments nothing."""

    def state_dict(self) -> dict[str, Any]:
        """What an interrupted epoch needs to go on: tensors and numbers only."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def rows_of_batch(index: Tensor, size: int) -> Tensor:
    """``index * size, ..., index * size + size - 1``: the places of a batch's rows, (size,) int64."""
    return index * size + torch.arange(size, device=index.device)


WHERE_USED = {
    "window": "windows are of words",
    "window_lengths": "windows of random length are for task language_modeling",
    "mixup": "mixing is of classes",
    "cutmix": "mixing is of classes of images",
    "augment": "augmentation is of images that are classified",
}


class TaskOptions(Strict):
    """Base of every kind's ``Options``: a Task refuses what it would not use, since it would change a Run's id, and
    none of its numbers.
    """

    needs: ClassVar[Literal["images", "a table", "words"]]  # what its dataset holds
    unused: ClassVar[tuple[str, ...]] = ()  # keys of a recipe that say nothing to it

    @property
    def metrics(self) -> frozenset[str]:
        """What an evaluation may give of each split, by name; a kind of Task says it, a claim is checked by it."""
        raise NotImplementedError

    @property
    def test_metrics(self) -> frozenset[str]:
        """Further ones, which an evaluation gives of test alone. Default: none."""
        return frozenset()

    def holds_out(self, card: DatasetCard) -> bool:
        """Whether there is a validation split. Default: the dataset brings one, as texts and tables do."""
        return True

    def check_card(self, card: DatasetCard, n_train: int | None) -> None:
        """Refuse, with UserError, what a dataset with so many training examples, where that is known, cannot give.

        Default: nothing.
        """

    def check_recipe(self, recipe: Recipe, n_train: int | None) -> None:
        """Refuse, with UserError, what the Task would not use of a recipe, or cannot do with so many training examples.

        ``n_train`` is None where that is not known yet. Default: keys of a recipe that are ``unused``.
        """
        for name in self.unused:
            if getattr(recipe, name):
                raise UserError(f"recipe.{name}: {WHERE_USED[name]}, and this task has none", ["recipe", name])


def build(
    spec: TaskSpec, recipe: Recipe, data: Data, generators: Generators, device: torch.device, host: Any = None
) -> Task:
    """The Task of ``spec.kind``: a file of that name in this folder.

    Args:
        host: what `read_host` made of the trained host network, for Tasks that read one's activations.

    Raises:
        UserError: no such kind, an option that it does not take, or what the Task itself refuses.
    """
    options = check_options(spec)
    options.check_recipe(recipe, None)
    given = {} if spec.host is None else {"host": host}
    return _module(spec.kind).build(spec, options, recipe, data, generators, device, **given)


def build_host(spec: TaskSpec, data: Data, generators: Generators, device: torch.device) -> Task:
    """The Task on which the host network of ``spec.host`` is trained.

    Raises:
        UserError: what that Task refuses, or a Site that its model has not.
    """
    return _module(spec.kind).build_host(spec, check_options(spec), data, generators, device)


def read_host(spec: TaskSpec, task: Task) -> Any:
    """What the Task of ``spec`` needs of the host that was trained on ``task``."""
    return _module(spec.kind).read_host(check_options(spec), task)


def check_options(spec: TaskSpec) -> TaskOptions:
    """The ``Options`` of the Task's kind, filled from ``spec``.

    Raises:
        UserError: no such kind, an option that it does not take, or one that it needs.
    """
    taken = _module(spec.kind).Options
    try:
        return taken.model_validate(spec.options)
    except ValidationError as error:
        owner = f"a task of kind {spec.kind!r}"
        raise explained(error, spec.options, owner, taken) from error


def check_data(spec: TaskSpec, options: TaskOptions, card: DatasetCard) -> None:
    """Refuse a dataset of another kind than the Task's.

    Raises:
        UserError: it is.
    """
    if card.holds != options.needs:
        raise UserError(
            f"task {spec.kind} needs {options.needs}; dataset {spec.dataset!r} holds {card.holds}", ["dataset"]
        )


def check_batches(recipe: Recipe, n_train: int) -> None:
    """Refuse batches that are larger than what there is to train on.

    Raises:
        UserError: they are.
    """
    if n_train < recipe.batch_size:
        raise UserError(
            f"batch_size {recipe.batch_size} is larger than the {n_train} examples", ["recipe", "batch_size"]
        )


def check_validation(recipe: Recipe, has_validation: bool, dataset: str) -> None:
    """Refuse a recipe that looks at validation results where nothing is held out.

    Raises:
        UserError: selection by validation, or a plateau schedule, without a validation split.
    """
    if has_validation:
        return
    lacking = f"{dataset!r} has no validation split; set task.validation"
    if recipe.selection.startswith("best_validation"):
        raise UserError(f"selection {recipe.selection}: {lacking}", ["recipe", "selection"])
    if isinstance(recipe.schedule, PlateauRate):
        raise UserError(f"schedule plateau: {lacking}", ["recipe", "schedule"])


@cache  # a plan asks thousands of times
def _module(kind: str) -> ModuleType:
    kinds = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    if kind not in kinds:
        raise UserError(f"unknown task kind {kind!r}: {did_you_mean(kind, kinds)}", ["kind"])
    return importlib.import_module(f"{__name__}.{kind}")
