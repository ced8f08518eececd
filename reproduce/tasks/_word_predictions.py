"""Other predictions of a trained language model: with a cache of recent words, and averaged over dropout masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from reproduce.experiment.word_cache import WordCacheSpec
from reproduce.models.dropout import Dropout
from reproduce.models.dropped_lstm import RecurrentLayer


class PredictsWords(Protocol):
    """What is asked of a Task: its model has a ``decoder``, whose input is the hidden state."""

    model: Any

    def predictions(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Window by window: logits (T, B, V) and the words that come, (T, B)."""


class WordCache:
    """Words that followed the last hidden states of each stream.

    ``p(w) ~ sum_i 1{w_i = w} exp(theta <h_t, h_i>)`` over the ``length`` places i before t, where w_i followed h_i
    (Grave, Joulin & Usunier 2017, eqs. 2 and 3).
    """

    def __init__(self, spec: WordCacheSpec) -> None:
        self.spec = spec
        self._states: Tensor | None = None  # (places, B, d)
        self._words: Tensor | None = None  # (places, B)

    def probabilities(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Of the words (T, B) that follow the states (T, B, d), (T, B); and whether there was a place before, (T, 1).

        Each place sees those before it; all of them are then kept for the next call.
        """
        kept = 0 if self._states is None else len(self._states)
        every_state = states if self._states is None else torch.cat([self._states, states])
        every_word = words if self._words is None else torch.cat([self._words, words])
        here = torch.arange(kept, kept + len(states), device=states.device).view(-1, 1)
        there = torch.arange(len(every_state), device=states.device)
        seen = (there < here) & (there >= here - self.spec.length)  # (T, places)
        scores = self.spec.sharpness * torch.einsum("tbd,pbd->tpb", states, every_state)
        scores = scores.masked_fill(~seen.unsqueeze(-1), -math.inf)
        any_seen = seen.any(1, keepdim=True)
        shares = scores.softmax(1).masked_fill(~any_seen.unsqueeze(-1), 0.0)
        found = (shares * (every_word.unsqueeze(0) == words.unsqueeze(1))).sum(1)
        self._states, self._words = every_state[-self.spec.length :], every_word[-self.spec.length :]
        return found, any_seen


@torch.no_grad()
def cached_perplexity(task: PredictsWords, tokens: Tensor, spec: WordCacheSpec) -> float:
    """Perplexity of ``(1 - share) p_model + share p_cache``, each stream of tokens (rows, B) with its own cache."""
    cache, states = WordCache(spec), []
    handle = task.model.decoder.register_forward_pre_hook(lambda decoder, inputs: states.append(inputs[0]))
    total = torch.zeros((), device=tokens.device, dtype=torch.float64)
    try:
        for logits, words in task.predictions(tokens):
            of_model = _of_words(logits, words)
            of_cache, any_seen = cache.probabilities(states.pop().float(), words)
            share = spec.share * any_seen
            total -= ((1 - share) * of_model + share * of_cache).double().log().sum()
    finally:
        handle.remove()
    return _perplexity(total, tokens)


@torch.no_grad()
def sampled_perplexity(task: PredictsWords, tokens: Tensor, n_samples: int, masks: torch.Generator) -> float:
    """Perplexity of predictions averaged over ``n_samples`` passes with dropout (Gal & Ghahramani 2016, section 5.1).

    Probabilities are averaged, not their logarithms. The generator is put back, and the model left in evaluation mode.
    """
    state = masks.get_state()
    dropping = [module for module in task.model.modules() if isinstance(module, Dropout | RecurrentLayer)]
    mean = torch.zeros((len(tokens) - 1, tokens.shape[1]), device=tokens.device, dtype=torch.float64)
    try:
        for module in dropping:
            module.training = True
        for _ in range(n_samples):
            passed = [_of_words(logits, words) for logits, words in task.predictions(tokens)]
            mean += torch.cat(passed).double() / n_samples
    finally:
        task.model.eval()
        masks.set_state(state)
    return _perplexity(-mean.log().sum(), tokens)


def _of_words(logits: Tensor, words: Tensor) -> Tensor:
    return logits.softmax(-1).gather(-1, words.unsqueeze(-1)).squeeze(-1)


def _perplexity(total: Tensor, tokens: Tensor) -> float:
    return math.exp(min(total.item() / ((len(tokens) - 1) * tokens.shape[1]), 700.0))
