"""Language modeling by truncated back-propagation: cross-entropy in nats, perplexity, of characters bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from reproduce import models
from reproduce.data import WordData
from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Count, Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.experiment.word_cache import CACHED_PERPLEXITY, SAMPLED_PERPLEXITY, WordCacheSpec
from reproduce.method.rng import Generators
from reproduce.models import Sizes
from reproduce.tasks import Metrics, TaskOptions, rows_of_batch
from reproduce.tasks._augmented_loss import augmented_loss, vectors_of
from reproduce.tasks._word_predictions import cached_perplexity, sampled_perplexity

# Of windows of random length, in tokens.
LENGTH_DEVIATION = 5.0
SHORTEST = 5
HALVED = 0.05  # the fraction of windows that are about half as long


class Options(TaskOptions):
    needs = "words"
    unused: ClassVar[tuple[str, ...]] = ("mixup", "cutmix", "augment")

    train_examples: Count | None = None  # tokens
    symbols: Literal["characters"] | None = None  # None: words
    token_errors: Literal[True] | None = None
    word_cache: WordCacheSpec | None = None
    dropout_samples: Count | None = None

    def check_window(self, recipe: Recipe) -> int:
        if recipe.window is None:
            raise UserError(
                "language modeling needs recipe.window, the length of truncated back-propagation: window = 35, say",
                ["recipe"],
            )
        return recipe.window

    def check_recipe(self, recipe: Recipe, n_train: int | None) -> None:
        super().check_recipe(recipe, n_train)
        window = self.check_window(recipe)
        if n_train is None:
            return
        if self.train_examples and self.train_examples > n_train:
            raise UserError(
                f"train_examples = {self.train_examples}: there are only {n_train} tokens", ["train_examples"]
            )
        n_tokens = self.train_examples or n_train
        rows = n_tokens // recipe.batch_size
        if rows <= window:
            raise UserError(
                f"{n_tokens} tokens to train on are {recipe.batch_size} streams (recipe.batch_size) of {rows}, and a "
                f"window of {window} (recipe.window) needs {window + 1}: lower one of the two, or take a longer text",
                ["recipe", "batch_size"],
            )

    @property
    def metrics(self) -> frozenset[str]:
        of_characters = {"bits_per_character"} if self.symbols == "characters" else set()
        of_tokens = {"error"} if self.token_errors else set()
        of_cache = {CACHED_PERPLEXITY} if self.word_cache else set()
        return frozenset({"loss", "perplexity"} | of_characters | of_tokens | of_cache)

    @property
    def test_metrics(self) -> frozenset[str]:
        return frozenset({SAMPLED_PERPLEXITY} if self.dropout_samples else ())


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
        self.window = options.check_window(recipe)
        options.check_recipe(recipe, len(data.train))
        if options.symbols == "characters" and data.card.format != "characters":
            raise UserError(
                f"symbols = 'characters' needs a dataset of format 'characters'; {spec.dataset!r} has "
                f"{data.card.format!r}",
                ["symbols"],
            )
        self.counts_bits = options.symbols == "characters"
        self.options, self.generators = options, generators
        self.recipe = recipe
        self.device = device
        train = data.train[: options.train_examples] if options.train_examples else data.train
        self.train = streams(train, recipe.batch_size).to(device)
        self.splits = {
            "validation": streams(data.validation, recipe.eval_batch_size).to(device),
            "test": streams(data.test, recipe.eval_batch_size).to(device),
        }
        self.steps_per_epoch = (len(self.train) - 1) // self.window
        sizes = Sizes((), len(data.vocabulary))
        model = models.build(spec.model, dict(spec.model_options), sizes, generators.initialisation, generators.dropout)
        self.model: Any = model.to(device)
        if recipe.augmented_loss:
            vectors_of(model, spec.model)  # or it is refused before anything is trained
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
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        if added := self.recipe.augmented_loss:
            vectors = vectors_of(self.model, "the model")
            divergence = augmented_loss(logits, targets, vectors, added.temperature)
            loss = loss + added.proportion * added.temperature * divergence
        return loss, state

    def _logits(self, tokens: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        bfloat16 = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            logits, state = self.model(tokens, state)
        return logits.float(), state

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        self.model.eval()
        found = {name: self._evaluate_split(tokens) for name, tokens in self.splits.items()}
        if self.options.word_cache:
            for name, tokens in self.splits.items():
                found[name][CACHED_PERPLEXITY] = cached_perplexity(self, tokens, self.options.word_cache)
        if self.options.dropout_samples:
            found["test"][SAMPLED_PERPLEXITY] = sampled_perplexity(
                self, self.splits["test"], self.options.dropout_samples, self.generators.dropout
            )
        self.model.train()
        return found

    def predictions(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Window by window over streams (rows, B): logits (T, B, V) and the words that come, (T, B)."""
        state = self.model.initial_state(tokens.shape[1])
        for start in range(0, len(tokens) - 1, self.window):
            end = min(start + self.window, len(tokens) - 1)
            logits, state = self._logits(tokens[start:end], state)
            yield logits, tokens[start + 1 : end + 1]

    def _evaluate_split(self, tokens: Tensor) -> dict[str, float]:
        total, wrong = torch.zeros(2, device=self.device, dtype=torch.float64)
        for logits, targets in self.predictions(tokens):
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
            if self.options.token_errors:
                wrong += (logits.argmax(-1) != targets).sum()
        predicted = (len(tokens) - 1) * tokens.shape[1]
        loss = total.item() / predicted
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self.counts_bits:
            found["bits_per_character"] = loss / math.log(2)
        if self.options.token_errors:
            found["error"] = 100 * wrong.item() / predicted
        return found

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


class RandomWindows(LanguageModeling):
    """As language modeling, in windows of random length, at a rate in proportion to it.

    Lengths are max(5, round(N(m, 5))) with m the recipe's window, of one in twenty half of it (Merity, Keskar & Socher
    2018, section 4.1). An epoch is as many windows as fit the text on average; it begins with the text, and where they
    reach its end before, they go on at its beginning, with a state of zero.

    Windows differ in shape, so no recording holds a step: the host reads which one it is, and steps stay eager.
    """

    rate_factor = 1.0

    def __init__(
        self,
        spec: TaskSpec,
        options: Options,
        recipe: Recipe,
        data: WordData,
        generators: Generators,
        device: torch.device,
    ) -> None:
        super().__init__(spec, options, recipe, data, generators, device)
        self.generator = generators.order
        expected = self.window * (1 - HALVED / 2)
        self.steps_per_epoch = max(1, round((len(self.train) - 1) / expected))
        self.windows = self._drawn()

    def _drawn(self) -> Tensor:
        """First row and length of each window of an epoch: (steps, 2) int64, on the host."""
        halved = torch.rand(self.steps_per_epoch, generator=self.generator) < HALVED
        centres = torch.where(halved, self.window / 2, float(self.window))
        noise = torch.randn(self.steps_per_epoch, generator=self.generator)
        lengths = (centres + LENGTH_DEVIATION * noise).round().clamp(min=SHORTEST).long()
        rows, first, windows = len(self.train) - 1, 0, []
        for length in lengths.tolist():
            windows.append((first, min(length, rows - first)))
            first = (first + length) if first + length < rows else 0
        return torch.tensor(windows)

    def start_epoch(self) -> None:
        super().start_epoch()
        self.windows = self._drawn()

    def loss(self, index: Tensor) -> Tensor:
        first, length = self.windows[int(index)].tolist()
        if first == 0:
            self._carry(self._initial_state())
        before = tuple(part.clone() for part in self.state)
        rows = slice(first, first + length)
        loss, state = self._window_loss(self.train[rows], self.train[first + 1 : first + length + 1], before)
        self._carry(state)
        self.rate_factor = length / self.window
        return loss

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"windows": self.windows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.windows = state["windows"].cpu()


def streams(tokens: Tensor, batch_size: int) -> Tensor:
    """(tokens,) to (rows, batch_size): consecutive streams as columns; tokens that fill no row are dropped."""
    rows = len(tokens) // batch_size
    if rows < 2:
        raise UserError(
            f"{len(tokens)} tokens are too few for {batch_size} streams (recipe.batch_size or eval_batch_size)"
        )
    return tokens[: rows * batch_size].view(batch_size, rows).t().contiguous()


def build(
    spec: TaskSpec, options: Options, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> LanguageModeling:
    if not isinstance(data, WordData):
        raise UserError(f"task language_modeling needs words; dataset {spec.dataset!r} holds {data.holds}")
    kind = RandomWindows if recipe.window_lengths else LanguageModeling
    return kind(spec, options, recipe, data, generators, device)
