"""A cache of recent words, and predictions averaged over masks, against loops over single words in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reproduce import tasks
from reproduce.data import WordData
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.experiment.word_cache import WordCacheSpec
from reproduce.method.rng import Generators
from reproduce.tasks._word_predictions import WordCache

CPU = torch.device("cpu")
N_WORDS = 6


def task_of(model: str, options: dict[str, Any], **more: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    train, validation, test = (torch.randint(0, N_WORDS, (size,), generator=generator) for size in (90, 50, 41))
    card = DatasetCard.model_construct(name="tiny")
    data = WordData(card=card, train=train, validation=validation, test=test, vocabulary=tuple("abcdef"), origin="here")
    spec = {"kind": "language_modeling", "dataset": "tiny", "model": model, "model_options": options, **more}
    recipe = Recipe(epochs=1, batch_size=3, learning_rate=0.1, window=4, eval_batch_size=2)
    return tasks.build(TaskSpec.model_validate(spec), recipe, data, Generators.seeded(0, CPU), CPU)


def cache_loop(states: Tensor, words: Tensor, spec: WordCacheSpec) -> list[list[float]]:
    """The probability of each word of each stream, place by place; at the first place there is none."""
    found = []
    for place in range(len(states)):
        row = []
        for stream in range(states.shape[1]):
            weights = [0.0] * N_WORDS
            for before in range(max(0, place - spec.length), place):
                product = math.fsum((states[place, stream] * states[before, stream]).tolist())
                weights[int(words[before, stream])] += math.exp(spec.sharpness * product)
            row.append(weights[int(words[place, stream])] / sum(weights) if place else 0.0)
        found.append(row)
    return found


@pytest.mark.parametrize("length", [1, 5, 100])
def test_a_cache_is_the_loop_whatever_the_windows(length: int) -> None:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(13, 2, 4, dtype=torch.float64, generator=generator)
    words = torch.randint(0, N_WORDS, (13, 2), generator=generator)
    spec = WordCacheSpec(share=0.1, sharpness=0.7, length=length)
    cache, found, seen = WordCache(spec), [], []
    for window in ((0, 4), (4, 5), (5, 13)):
        probabilities, any_seen = cache.probabilities(states[slice(*window)], words[slice(*window)])
        found.append(probabilities)
        seen.append(any_seen)
    expected = torch.tensor(cache_loop(states, words, spec), dtype=torch.float64)
    torch.testing.assert_close(torch.cat(found), expected)
    assert torch.cat(seen).flatten().tolist() == [False] + [True] * 12


def test_the_cached_perplexity_is_that_of_the_mixture() -> None:
    spec = {"share": 0.3, "sharpness": 2.0, "length": 7}
    task = task_of("awd_lstm", {"hidden": 5, "embedding": 4}, word_cache=spec)
    found = task.evaluate()
    model, tokens = task.model.eval(), task.splits["test"]
    states: list[Tensor] = []
    handle = model.decoder.register_forward_pre_hook(lambda decoder, inputs: states.append(inputs[0].double()))
    logits, _ = model(tokens[:-1], model.initial_state(2))
    handle.remove()
    cached = cache_loop(states[0].detach(), tokens[1:], WordCacheSpec.model_validate(spec))
    total = 0.0
    for place, row in enumerate(cached):
        for stream, of_cache in enumerate(row):
            of_model = logits[place, stream].double().softmax(0)[tokens[place + 1, stream]].item()
            total -= math.log(0.7 * of_model + 0.3 * of_cache if place else of_model)
    expected = math.exp(total / (len(cached) * 2))
    assert found["test"]["cached_perplexity"] == pytest.approx(expected, rel=1e-5)
    assert found["validation"]["cached_perplexity"] != found["test"]["cached_perplexity"]
    assert found["test"]["perplexity"] != pytest.approx(expected, rel=1e-5)


def test_sampled_predictions_are_averaged_as_probabilities() -> None:
    """Against passes of a model in training, one by one; and nobody hears of it afterwards."""
    options = {"hidden": 5, "dropout": 0.3, "recurrent_dropout": 0.3, "embedding_dropout": 0.2}
    task, other = (task_of("variational_lstm", options, dropout_samples=6) for _ in range(2))
    before = task.generators.dropout.get_state()
    found = task.evaluate()
    assert torch.equal(task.generators.dropout.get_state(), before)
    assert all(module.training for module in task.model.modules())
    tokens, model = other.splits["test"], other.model.train()
    rows = len(tokens) - 1
    samples = []
    for _ in range(6):
        state, passed = model.initial_state(2), []
        for start in range(0, rows, 4):
            end = min(start + 4, rows)
            logits, state = model(tokens[start:end], state)
            passed.append(logits.detach().double().softmax(-1))
        samples.append(torch.cat(passed))
    total = 0.0
    for place in range(rows):
        for stream in range(2):
            word = int(tokens[place + 1, stream])
            total -= math.log(math.fsum(sample[place, stream, word].item() for sample in samples) / 6)
    assert found["test"]["sampled_perplexity"] == pytest.approx(math.exp(total / (rows * 2)), rel=1e-5)
    assert "sampled_perplexity" not in found["validation"]


def test_samples_without_dropout_are_the_model() -> None:
    found = task_of("variational_lstm", {"hidden": 5}, dropout_samples=3).evaluate()["test"]
    assert found["sampled_perplexity"] == pytest.approx(found["perplexity"], rel=1e-6)
