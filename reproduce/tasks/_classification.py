"""What tasks with labelled examples share: batches in a drawn order, mixing, cross-entropy, error in percent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce.experiment.metrics import METRICS, Metric
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.parts import current_part
from reproduce.method.rng import Generators
from reproduce.tasks import Metrics, check_batches, check_validation, rows_of_batch
from reproduce.tasks._mixing import Mixing


class Labelled(Protocol):
    """Inputs (N, ...) as they are stored, and labels int64 (N,)."""

    @property
    def inputs(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    def to(self, device: torch.device) -> Self: ...


BALANCED_ERROR = "balanced_error"
Part = TypeVar("Part", bound=Labelled)


class Classification(Generic[Part]):
    """All examples stay on the device; a Task says how stored inputs become what the network sees.

    Raises:
        UserError: fewer examples than a batch, or a recipe that asks for what such tasks do not have.
    """

    metric: Metric = METRICS["error"]
    model: nn.Module  # a Task builds it
    source_examples: int | None = None
    balanced_classes: int | None = None  # over so many classes the error is averaged too
    trains_in_parts = True  # the loss is a mean over examples

    def __init__(
        self,
        spec: TaskSpec,
        recipe: Recipe,
        train: Part,
        splits: dict[str, Part],
        generators: Generators,
        device: torch.device,
    ) -> None:
        check_batches(recipe, len(train.labels))
        check_validation(recipe, "validation" in splits, spec.dataset)
        self.recipe = recipe
        self.generators = generators
        self.device = device
        self.train = train.to(device)
        self.splits = {name: split.to(device) for name, split in splits.items()}
        self.steps_per_epoch = len(train.labels) // recipe.batch_size
        # Written in place from epoch to epoch: a recorded step reads them where they are.
        self.order = torch.zeros(len(train.labels), dtype=torch.int64, device=device)
        self.mixing = Mixing(recipe, self.steps_per_epoch, tuple(train.inputs.shape[2:]), device)
        self.epoch_inputs = self.train.inputs  # a Task may put others in their place, of the same shape

    def read(self, inputs: Tensor) -> Tensor:
        """Stored inputs as the network sees them; default: as they are."""
        return inputs

    def augmented(self, inputs: Tensor) -> Tensor:
        """What training does to a batch; default: nothing."""
        return inputs

    def _layout(self, inputs: Tensor) -> Tensor:
        """The same numbers in the memory layout on which the model is fastest; default: as they are."""
        return inputs

    def _logits(self, inputs: Tensor) -> Tensor:
        """The network on inputs that were read, in the recipe's precision; float32 (N, classes)."""
        bfloat16 = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            logits = self.model(self._layout(inputs))
        return logits.float()

    def start_epoch(self) -> None:
        self.order.copy_(torch.randperm(len(self.order), generator=self.generators.order))
        self.mixing.draw(self.generators.order)

    def _batch_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch whose inputs were read: 0-dim. Only those of the source have labels."""
        logits = self._logits(inputs)
        return F.cross_entropy(logits if self.source_examples is None else logits[: self.source_examples], labels)

    def _with_target(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        """Stored inputs of the source, and behind them as many of a target domain; default: there is none.

        Args:
            rows: places in the epoch's order; None: the first ones that are stored.
        """
        return inputs

    def loss(self, index: Tensor) -> Tensor:
        size = self.recipe.batch_size
        rows = rows_of_batch(index, size)
        chosen = self.order.index_select(0, rows)
        labels = self.train.labels[chosen]
        inputs = self.augmented(self.read(self._with_target(self.epoch_inputs[chosen], rows)))
        if not self.mixing.mixes:
            return self._batch_loss(_own(inputs), _own(labels))
        partner = torch.randperm(size, generator=self.generators.augmentation, device=self.device)
        mixed, weight = self.mixing.mixed(inputs, inputs[partner], index)
        logits = self._logits(_own(mixed))
        own, partners = _own(labels), _own(labels[partner])
        return weight * F.cross_entropy(logits, own) + (1 - weight) * F.cross_entropy(logits, partners)

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        self.model.eval()
        found = {name: self._evaluate_split(split) for name, split in self.splits.items()}
        found["test"] |= self._shifted_errors()
        self.model.train()
        return found

    def _shifted_errors(self) -> dict[str, float]:
        """Further metrics of test, on shifted versions of it; default: none."""
        return {}

    def _evaluate_split(self, split: Part) -> dict[str, float]:
        loss = torch.zeros((), device=self.device, dtype=torch.float64)
        wrong = torch.zeros((), device=self.device, dtype=torch.int64)
        missed = []  # of each batch: which examples
        size = self.recipe.eval_batch_size
        for inputs, labels in zip(split.inputs.split(size), split.labels.split(size), strict=True):
            logits = self._logits(self.read(inputs))
            loss += F.cross_entropy(logits, labels, reduction="sum")
            missed.append(logits.argmax(1) != labels)
            wrong += missed[-1].sum()
        n_examples = len(split.labels)
        found = {"loss": loss.item() / n_examples, "error": 100 * wrong.item() / n_examples}
        if self.balanced_classes is not None:
            found[BALANCED_ERROR] = balanced_error(torch.cat(missed), split.labels, self.balanced_classes)
        return found

    def prepared_loss(self) -> Callable[[], Tensor]:
        size = self.recipe.batch_size
        inputs = self._layout(self.read(self._with_target(self.train.inputs[:size])))
        labels = self.train.labels[:size]
        return lambda: self._batch_loss(inputs, labels)

    @torch.no_grad()
    def forward_site_batch(self) -> None:
        self._logits(self.read(self.train.inputs[: self.recipe.probe_examples]))

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, **self.mixing.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.copy_(state["order"])
        self.mixing.load_state_dict(state)


def _own(whole: Tensor) -> Tensor:
    """Of a batch that was drawn whole, the examples that pass the model in this process."""
    part = current_part()
    return whole if part is None else part.own(whole)


def balanced_error(missed: Tensor, labels: Tensor, classes: int) -> float:
    """The mean over classes of each one's error, in percent; a class without an example does not count."""
    sizes = torch.bincount(labels, minlength=classes).double()
    errors = torch.bincount(labels, weights=missed.double(), minlength=classes) / sizes
    return 100 * errors[sizes > 0].mean().item()
