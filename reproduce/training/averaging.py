"""Averaged stochastic gradient descent whose averaging begins where validation has stalled (NT-ASGD)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.experiment.recipe import Averaging


class AveragedWeights:
    """The mean of the weights since it began: ``a_n = a_{n-1} + (w_n - a_{n-1}) / n``, with a_1 those at the beginning.

    Everything is on the weights' device and is written in place. With ``lambd = 0`` it is the average of
    `torch.optim.ASGD` with ``t0`` two steps before the beginning. Polyak & Juditsky 1992.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights: list[Tensor] = list(weights)
        self.means = [weight.detach().clone() for weight in self.weights]
        self.count = torch.zeros((), device=self.weights[0].device)  # of weights in the mean; 0: not begun
        self.begun = False  # the same, as the host knows it

    @torch.no_grad()
    def begin(self) -> None:
        """Average from the weights as they are now."""
        torch._foreach_copy_(self.means, self.weights)
        self.count.fill_(1)
        self.begun = True

    @torch.no_grad()
    def begin_anew(self) -> None:
        """Put the mean in the weights' place, and average from there."""
        if self.begun:
            torch._foreach_copy_(self.weights, self.means)
        self.begin()

    @torch.no_grad()
    def add(self) -> None:
        """Take in the weights after a step; nothing before the beginning."""
        if self.begun:
            self.count += 1
            share = 1 / self.count  # a tensor: a recorded step reads it anew
            for mean, weight in zip(self.means, self.weights, strict=True):
                mean.lerp_(weight, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The means in the weights' place, for an evaluation; the weights are put back. Before it began: nothing."""
        if not self.begun:
            yield
            return
        with torch.no_grad():
            kept = [weight.clone() for weight in self.weights]
            torch._foreach_copy_(self.weights, self.means)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, kept)

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.means, list(state["means"]))
        self.count.copy_(state["count"])
        self.begun = bool(state["count"] > 0)


class NonMonotonic:
    """Says after each evaluation whether averaging has to begin or to begin anew.

    It begins once a result is worse than the best of all but the ``patience`` results before it (Merity, Keskar &
    Socher 2018, algorithm 1, as their code has it), at the latest with fine-tuning.

    Args:
        averaging: patience, and when fine-tuning begins.
        higher_is_better: of the results.
    """

    def __init__(self, averaging: Averaging, higher_is_better: bool = False) -> None:
        self.patience = averaging.patience
        self.fine_tune_after = averaging.fine_tune_after
        self.sign = -1.0 if higher_is_better else 1.0
        self.results: list[float] = []

    def stalled(self, result: float) -> bool:
        """Whether this result is such a one; it is remembered."""
        value = self.sign * result
        older = self.results[: -self.patience]
        self.results.append(value)
        return bool(older) and value > min(older)

    def state_dict(self) -> dict[str, Any]:
        return {"results": self.results}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.results = list(state["results"])


class Averager:
    """What a Run with the recipe's ``averaging`` keeps: the means, and when they begin."""

    def __init__(self, weights: Sequence[nn.Parameter], averaging: Averaging, higher_is_better: bool = False) -> None:
        self.mean = AveragedWeights(weights)
        self.rule = NonMonotonic(averaging, higher_is_better)

    def after_evaluation(self, result: float, epoch: int) -> bool:
        """Begin, or begin anew, where the rule says so; whether the next steps are other ones than the last were."""
        stalled = self.rule.stalled(result)
        if epoch == self.rule.fine_tune_after:
            began = not self.mean.begun
            self.mean.begin_anew()
            return began
        if stalled and not self.mean.begun:
            self.mean.begin()
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.state_dict(), "rule": self.rule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean.load_state_dict(state["mean"])
        self.rule.load_state_dict(state["rule"])
