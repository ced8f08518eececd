"""Language modeling by truncated back-propagation: cross-entropy in nats, perplexity, of characters bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from reproduce import models
from reproduce.data import WordData
from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Count, Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.models import Sizes
from reproduce.tasks import Metrics, TaskOptions, rows_of_batch


class Options(TaskOptions):
    train_examples: Count | None = None  # tokens
    symbols: Literal["characters"] | None = None  # None: words

    @property
    def metrics(self) -> frozenset[str]:
        of_characters = {"bits_per_character"} if self.symbols == "characters" else set()
        return frozenset({"loss", "perplexity"} | of_characters)


class LanguageModeling:
    """A corpus cut into ``batch_size`` streams, read in windows with the state carried across them.

    The last window, shorter than the others, is left out of training so that every step has one shape; evaluation
    reads every token. Perplexity is exp(sum of token losses / tokens), the ``rows - 1`` normalisation; bits per
    character are its logarithm to the base 2.
    """

    metric = METRICS["perplexity"]
    source_examples: int | None = None

    def __init__(
        self,
        spec: TaskSpec,
        options: Options,
        recipe: Recipe,
        data: WordData,
        generators: Generators,
        device: torch.device,
    ) -> None:
        if recipe.window is None:
            raise UserError("language modeling needs recipe.window, the length of truncated back-propagation")
        if recipe.mixup or recipe.cutmix or recipe.augment:
            raise UserError("recipe.mixup, cutmix and augment are for images; language modeling has none")
        if options.train_examples and options.train_examples > len(data.train):
            raise UserError(f"train_examples = {options.train_examples}: there are only {len(data.train)} tokens")
        if options.symbols == "characters" and data.card.format != "characters":
            raise UserError(
                f"symbols = 'characters' needs a dataset of format 'characters'; {spec.dataset!r} has "
                f"{data.card.format!r}",
                ["symbols"],
            )
        self.counts_bits = options.symbols == "characters"
        self.window = recipe.window
        self.recipe = recipe
        self.device = device
        train = data.train[: options.train_examples] if options.train_examples else data.train
        self.train = streams(train, recipe.batch_size).to(device)
        self.splits = {
            "validation": streams(data.validation, recipe.eval_batch_size).to(device),
            "test": streams(data.test, recipe.eval_batch_size).to(device),
        }
        self.steps_per_epoch = (len(self.train) - 1) // self.window
        if self.steps_per_epoch < 1:
            raise UserError(f"window {self.window} is longer than a stream of {len(self.train)} tokens")
        sizes = Sizes((), len(data.vocabulary))
        model = models.build(spec.model, dict(spec.model_options), sizes, generators.initialisation, generators.dropout)
        self.model: Any = model.to(device)
        self.state = self._initial_state()  # carried from window to window, in place

    def _initial_state(self) -> tuple[Tensor, ...]:
        return self.model.initial_state(self.recipe.batch_size)

    def start_epoch(self) -> None:
        self._carry(self._initial_state())

    @torch.no_grad()
    def _carry(self, state: Sequence[Tensor]) -> None:
        for place, part in zip(self.state, state, strict=True):
            place.copy_(part)

    def loss(self, index: Tensor) -> Tensor:
        rows = rows_of_batch(index, self.window)
        inputs, targets = self.train.index_select(0, rows), self.train.index_select(0, rows + 1)
        before = tuple(part.clone() for part in self.state)  # the backward pass reads it, after it is overwritten
        loss, state = self._window_loss(inputs, targets, before)
        self._carry(state)
        return loss

    def _window_loss(
        self, inputs: Tensor, targets: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The mean loss of a window that begins in ``state``, and the state at its end."""
        logits, state = self._logits(inputs, state)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), state

    def _logits(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        bfloat16 = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            logits, state = self.model(tokens, state)
        return logits.float(), state

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        self.model.eval()
        found = {name: self._evaluate_split(tokens) for name, tokens in self.splits.items()}
        self.model.train()
        return found

    def _evaluate_split(self, tokens: Tensor) -> dict[str, float]:
        state = self.model.initial_state(tokens.shape[1])
        total = torch.zeros((), device=self.device, dtype=torch.float64)
        for start in range(0, len(tokens) - 1, self.window):
            end = min(start + self.window, len(tokens) - 1)
            logits, state = self._logits(tokens[start:end], state)
            targets = tokens[start + 1 : end + 1]
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        loss = total.item() / ((len(tokens) - 1) * tokens.shape[1])
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        return found | {"bits_per_character": loss / math.log(2)} if self.counts_bits else found

    def prepared_loss(self) -> Callable[[], Tensor]:
        inputs, targets = self.train[: self.window], self.train[1 : self.window + 1]
        state = self._initial_state()
        return lambda: self._window_loss(inputs, targets, state)[0]

    @torch.no_grad()
    def forward_site_batch(self) -> None:
        self._logits(self.train[: self.window], self._initial_state())

    def state_dict(self) -> dict[str, Any]:
        return {"state": list(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._carry(state["state"])


def streams(tokens: Tensor, batch_size: int) -> Tensor:
    """(tokens,) to (rows, batch_size): consecutive streams as columns; tokens that fill no row are dropped."""
    rows = len(tokens) // batch_size
    if rows < 2:
        raise UserError(f"{len(tokens)} tokens are too few for {batch_size} streams")
    return tokens[: rows * batch_size].view(batch_size, rows).t().contiguous()


def build(
    spec: TaskSpec, options: Options, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> LanguageModeling:
    if not isinstance(data, WordData):
        raise UserError(f"task language_modeling needs words; dataset {spec.dataset!r} holds {data.holds}")
    return LanguageModeling(spec, options, recipe, data, generators, device)
