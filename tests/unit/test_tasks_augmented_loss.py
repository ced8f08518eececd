"""The augmented loss against loops over single words in float64, and what a recipe with it trains and refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from reproduce import models, tasks
from reproduce.data import WordData
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.tasks._augmented_loss import augmented_loss
from reproduce.training.optim import build_optimizer

CPU = torch.device("cpu")
N_WORDS = 7
ADDED = {"temperature": 3.0, "proportion": 0.5}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def loop(logits: list[list[float]], targets: list[int], vectors: list[list[float]], temperature: float) -> float:
    """Word by word: the mean of sum_w y_w log(y_w / p_w)."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        likeness = [math.fsum(a * b for a, b in zip(vector, vectors[target], strict=True)) for vector in vectors]
        wanted, given = (softmax([value / temperature for value in values]) for values in (likeness, row))
        total += math.fsum(y * math.log(y / p) for y, p in zip(wanted, given, strict=True))
    return total / len(targets)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 10.0])
def test_the_loss_is_the_loop(temperature: float) -> None:
    logits, vectors = seeded(5, 2, N_WORDS), seeded(N_WORDS, 4, seed=1)
    targets = torch.tensor([[0, 6], [3, 3], [1, 2], [5, 4], [2, 0]])
    found = augmented_loss(logits, targets, vectors, temperature)
    wanted = loop(logits.flatten(0, 1).tolist(), targets.flatten().tolist(), vectors.tolist(), temperature)
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    assert wanted > 0.01


def test_predictions_that_are_the_products_of_vectors_have_no_loss() -> None:
    """What the paper's theory ends in: logits L l_t, and then tying."""
    vectors, targets = seeded(N_WORDS, 4), torch.arange(N_WORDS)
    assert augmented_loss(vectors @ vectors.T, targets, vectors, 2.0).item() == pytest.approx(0, abs=1e-15)


def test_gradients_reach_the_logits_and_not_the_target() -> None:
    logits, vectors = seeded(3, N_WORDS).requires_grad_(), seeded(N_WORDS, 4, seed=1).requires_grad_()
    targets = torch.tensor([2, 0, 5])
    assert torch.autograd.gradcheck(lambda given: augmented_loss(given, targets, vectors, 2.0), logits)
    augmented_loss(logits, targets, vectors, 2.0).backward()
    assert vectors.grad is None


def test_vectors_of_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="logits of 7 words need as many vectors"):
        augmented_loss(seeded(3, N_WORDS), torch.zeros(3, dtype=torch.int64), seeded(6, 4), 1.0)


def word_task(model: str = "lstm", options: dict[str, Any] | None = None, **recipe: Any) -> Any:
    text = torch.randint(0, N_WORDS, (90,), generator=torch.Generator().manual_seed(1))
    card = DatasetCard.model_construct(name="tiny")
    data = WordData(card=card, train=text, validation=text, test=text, vocabulary=tuple("abcdefg"), origin="here")
    spec = {"kind": "language_modeling", "dataset": "tiny", "model": model, "model_options": options or {"hidden": 5}}
    content = {"epochs": 1, "batch_size": 3, "learning_rate": 0.1, "window": 4, "eval_batch_size": 2, **recipe}
    return tasks.build(
        TaskSpec.model_validate(spec), Recipe.model_validate(content), data, Generators.seeded(0, CPU), CPU
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model", ["lstm", "variational_lstm"])
def test_training_adds_it_and_evaluation_does_not(model: str, tied: bool) -> None:
    options = {"hidden": 5, "tied": tied, "initial_bound": 1.0}
    plain, added = word_task(model, options), word_task(model, options, augmented_loss=ADDED)
    first = torch.tensor(0)
    plain_loss, found = plain.loss(first).item(), added.loss(first)
    logits, _ = added.model(added.train[:4], added.model.initial_state(3))
    rows, targets = logits.double().flatten(0, 1).tolist(), added.train[1:5].flatten().tolist()
    divergence = loop(rows, targets, added.model.embedding.weight.double().tolist(), 3.0)
    assert found.item() == pytest.approx(plain_loss + 0.5 * 3.0 * divergence, rel=1e-6)
    assert divergence > 1e-3
    assert plain.evaluate() == added.evaluate()


def test_two_steps_lower_the_divergence() -> None:
    """A large proportion: the steps go where predictions are like the target's words."""
    mostly = {"temperature": 2.0, "proportion": 50.0}
    task = word_task("variational_lstm", {"hidden": 5, "initial_bound": 1.0}, augmented_loss=mostly)
    optimizer, window = build_optimizer(task.model, task.recipe), task.prepared_loss()

    def divergence() -> float:
        with torch.no_grad():
            logits, _ = task.model(task.train[:4], task.model.initial_state(3))
            return augmented_loss(logits, task.train[1:5], task.model.embedding.weight, 2.0).item()

    before = divergence()
    for _ in range(2):
        optimizer.zero_grad()
        window().backward()
        optimizer.step()
    assert divergence() < before


def test_what_has_no_words_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", lambda *given: torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="augmented_loss needs a model with a module 'embedding'; 'lstm' has none"):
        word_task(augmented_loss=ADDED)
    with pytest.raises(ValidationError, match="which come in windows: window is missing"):
        Recipe.model_validate({"epochs": 1, "batch_size": 2, "learning_rate": 0.1, "augmented_loss": ADDED})
