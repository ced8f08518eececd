"""Averaged weights against torch's own averaged SGD, and when they begin."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Averaging, Recipe
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.training.averaging import AveragedWeights, Averager, NonMonotonic
from reproduce.training.loop import train
from reproduce.training.step import Step

CPU = torch.device("cpu")


def gradients(n: int, shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(n)]


@pytest.mark.parametrize("begins", [3, 7])
def test_it_is_the_average_of_torch(begins: int) -> None:
    """`torch.optim.ASGD` averages from the second step behind t0 on; ours holds the weights at the beginning too."""
    ours, theirs = (nn.Parameter(torch.ones(2, 3, dtype=torch.float64)) for _ in range(2))
    plain = torch.optim.SGD([ours], lr=0.1)
    averaged = torch.optim.ASGD([theirs], lr=0.1, lambd=0.0, t0=begins - 2)
    weights = AveragedWeights([ours])
    for number, gradient in enumerate(gradients(20, (2, 3)), start=1):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        plain.step()
        averaged.step()
        weights.add()
        if number == begins:
            weights.begin()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
        if number >= begins:
            torch.testing.assert_close(weights.means[0], averaged.state[theirs]["ax"], rtol=1e-6, atol=1e-9)
    assert weights.count == 20 - begins + 1


def test_it_is_the_mean_in_float64() -> None:
    weight = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    weights, seen = AveragedWeights([weight]), []
    for number, value in enumerate(gradients(50, (5,))):
        weight.data.copy_(value)
        weights.begin() if number == 0 else weights.add()
        seen.append(value.tolist())
    expected = [math.fsum(column) / 50 for column in zip(*seen, strict=True)]
    torch.testing.assert_close(weights.means[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-8)


def test_means_stand_in_the_weights_place_for_a_while() -> None:
    weight = nn.Parameter(torch.zeros(2))
    weights, place = AveragedWeights([weight]), weight.data_ptr()
    with weights.in_place():
        assert weight.tolist() == [0.0, 0.0]
    weights.begin()
    weight.data.fill_(2.0)
    weights.add()
    with contextlib.suppress(InterruptedError), weights.in_place():
        assert weight.tolist() == [1.0, 1.0]
        raise InterruptedError
    assert weight.tolist() == [2.0, 2.0]
    weights.begin_anew()
    assert weight.tolist() == [1.0, 1.0]
    assert weights.count == 1
    assert weight.data_ptr() == place


@pytest.mark.parametrize(
    ("results", "first"),
    [
        ([5, 4, 3, 2, 1], None),
        ([5, 4, 3, 3.5, 3.4, 3.3, 3.2, 3.1], 5),  # worse than 3, which is then two evaluations older than the last two
        ([5, 6, 7, 8], 3),
        ([5, 6, 7], None),  # nothing is old enough
    ],
)
def test_it_begins_where_the_best_of_the_older_results_is_not_reached(results: list[float], first: int | None) -> None:
    """Result number t (from 0) is held against those before t - 2, the two newest left out."""
    for sign, higher in ((1, False), (-1, True)):
        rule = NonMonotonic(Averaging(patience=2), higher)
        stalled = [rule.stalled(sign * result) for result in results]
        assert (stalled.index(True) if True in stalled else None) == first


def test_fine_tuning_begins_from_the_average() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    averager = Averager([weight], Averaging(patience=1, fine_tune_after=4))
    for epoch, result in enumerate([1.0, 2.0, 3.0, 2.5, 2.0], start=1):
        weight.data.fill_(float(epoch))
        averager.mean.add()
        changed = averager.after_evaluation(result, epoch)
        assert changed == (epoch == 3)
        if epoch == 3:
            assert averager.mean.means[0].item() == 3.0
        if epoch == 4:  # the mean of 3 and 4, which is also where it goes on
            assert weight.item() == averager.mean.means[0].item() == 3.5
    assert averager.mean.count == 2
    assert averager.mean.means[0].item() == (3.5 + 5.0) / 2


class Line:
    """A Task of one weight that is pulled to 1 by each step, and is evaluated as its distance from a moving goal."""

    metric = METRICS["loss"]
    steps_per_epoch = 2
    source_examples = None

    def __init__(self, results: list[float]) -> None:
        self.model: Any = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.results = iter(results)
        self.seen: list[float] = []

    def start_epoch(self) -> None:
        return

    def loss(self, index: Tensor) -> Tensor:
        return 0.5 * (self.model(torch.ones(1, 1)) - 1).square().sum()

    def evaluate(self) -> dict[str, dict[str, float]]:
        self.seen.append(self.model.weight.item())
        return {"validation": {"loss": next(self.results)}, "test": {"loss": self.model.weight.item()}}

    def forward_site_batch(self) -> None:
        self.model(torch.ones(1, 1))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


def test_the_loop_evaluates_the_average_and_goes_on_from_the_weights(tmp_path: Any) -> None:
    content = {"epochs": 5, "batch_size": 1, "learning_rate": 0.1, "averaging": {"patience": 1}}
    recipe = Recipe.model_validate(content)
    task: Any = Line([3.0, 2.0, 4.0, 5.0, 6.0])
    outcome = train("r", recipe, task, Unregularized(), Generators.seeded(0, CPU), CPU, tmp_path)
    weights = [1 - 0.9**number for number in range(11)]  # gradient w - 1
    plain, fourth, fifth = weights[2:7:2], math.fsum(weights[6:9]) / 3, math.fsum(weights[6:11]) / 5
    assert task.seen == pytest.approx([*plain, fourth, fifth])
    assert [record.test["loss"] for record in outcome.epochs] == pytest.approx(task.seen)
    assert task.model.weight.item() == pytest.approx(weights[10])


def test_a_step_goes_on_from_its_average(tmp_path: Any) -> None:
    content = {"epochs": 4, "batch_size": 1, "learning_rate": 0.1, "averaging": {"patience": 1}}
    recipe = Recipe.model_validate(content)

    def new() -> Step:
        task: Any = Line([])
        return Step(task, Unregularized(), recipe, Generators.seeded(0, CPU), CPU)

    first, second = new(), new()
    for number in range(4):
        first()
        first.after_evaluation(float(number), number + 1)
    second.load_state_dict(first.state_dict())
    for step in (first, second):
        step()
    assert first.averager is not None
    assert second.averager is not None
    assert second.averager.mean.begun
    assert torch.equal(first.averager.mean.means[0], second.averager.mean.means[0])
    assert first.averager.rule.results == second.averager.rule.results == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("changed", [{"epochs": None, "steps": 10}, {"epochs": 4}, {"evaluate_every": 3}])
def test_fine_tuning_begins_at_an_evaluation(changed: dict[str, Any]) -> None:
    content = {"epochs": 9, "batch_size": 1, "learning_rate": 0.1, "averaging": {"fine_tune_after": 4}, **changed}
    with pytest.raises((UserError, ValueError), match="found 4, expected a multiple of evaluate_every"):
        Recipe.model_validate({name: value for name, value in content.items() if value is not None})
