"""One step against a step written out by hand, and what it leaves for the next one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Recipe
from reproduce.method import Method, Role, Trace, Unregularized
from reproduce.method.rng import Generators
from reproduce.method.sites import Site
from reproduce.training.step import RunningSums, Step

CPU = torch.device("cpu")
INPUTS = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))


class Squares:
    """A Task of six batches: the outputs of a linear layer shall be zero."""

    metric = METRICS["loss"]
    steps_per_epoch = 6
    source_examples = None

    def __init__(self) -> None:
        self.model: Any = nn.Sequential(nn.Linear(3, 2), Site("post", "nc", (2,)))
        nn.init.ones_(self.model[0].weight)
        nn.init.ones_(self.model[0].bias)

    def loss(self, index: Tensor) -> Tensor:
        return self.model(INPUTS.index_select(0, index.view(1))[0]).square().mean()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


class Everything(Method):
    """Adds to the loss by progress and chance, and halves the biases after the step."""

    sites: Role = "post"

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        (record,) = trace.records
        return progress * record.activation.abs().mean() * torch.rand((), generator=generator)

    def after_step(self, model: Any, optimizer: Any, progress: Tensor, generator: torch.Generator) -> None:
        with torch.no_grad():
            model[0].bias.mul_(1 - 0.5 * progress)


def step_of(method: Method, total_steps: int, **recipe: Any) -> Step:
    content = {"steps": total_steps, "batch_size": 4, "learning_rate": 0.1, **recipe}
    return Step(Squares(), method, Recipe.model_validate(content), Generators.seeded(0, CPU), CPU)


def test_it_is_the_step_written_out() -> None:
    """Gradients of loss and penalty together, clipped; the optimiser; the method; the rate of the next step."""
    schedule = {"kind": "step", "milestones": (2,), "factor": 0.1, "unit": "steps"}
    step = step_of(Everything(), 5, schedule=schedule, clip={"norm": 0.5})
    weight, bias = torch.ones(2, 3), torch.ones(2)
    generator = Generators.seeded(0, CPU).method
    losses = []
    for index, rate in enumerate([0.1, 0.1, 0.01]):
        step()
        weight.requires_grad_()
        bias.requires_grad_()
        output = nn.functional.linear(INPUTS[index], weight, bias)
        loss = output.square().mean()
        penalty = index / 5 * output.abs().mean() * torch.rand((), generator=generator)
        gradients = torch.autograd.grad(loss + penalty, (weight, bias))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        scale = min(1.0, 0.5 / norm)
        weight = (weight - rate * scale * gradients[0]).detach()
        bias = (bias - rate * scale * gradients[1]).detach() * (1 - 0.5 * index / 5)
        losses.append(float(loss.detach()))
        torch.testing.assert_close(step.model[0].weight, weight)
        torch.testing.assert_close(step.model[0].bias, bias)
        assert (float(step.loss), float(step.penalty)) == pytest.approx((loss.item(), penalty.item()), rel=1e-5)
    assert step.sums.means()[0] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert step.schedule.rate == pytest.approx(0.01)


@pytest.mark.parametrize("total_steps", [3, 49, 1000])
def test_progress_is_the_fraction_of_steps_to_the_last_bit(total_steps: int) -> None:
    step = step_of(Unregularized(), total_steps)
    for number in range(min(total_steps, 60)):
        assert int(step.number) == number
        assert torch.equal(step.progress, torch.tensor(number / total_steps))
        step()


def tensors_of(step: Step) -> list[Tensor]:
    own = [value for value in (*vars(step).values(), *vars(step.sums).values()) if isinstance(value, Tensor)]
    return [*own, *step.parameters]


def test_its_tensors_stay_where_they_are() -> None:
    """They are written in place, so that whoever holds one reads the newest value."""
    step = step_of(Everything(), 5)
    held = tensors_of(step)
    assert len(held) == 12
    places = [tensor.data_ptr() for tensor in held]
    for _ in range(3):
        step()
    now = tensors_of(step)
    assert [tensor.data_ptr() for tensor in now] == places
    assert all(one is other for one, other in zip(held, now, strict=True))


def test_no_activation_outlives_its_step() -> None:
    step = step_of(Everything(), 5)
    step()
    assert step.trace.records == []


@pytest.mark.parametrize(
    "optimizer", [{"momentum": 0.9}, {"optimizer": "adam"}, {"optimizer": "nadam"}, {"optimizer": "rmsprop"}]
)
def test_another_step_goes_on_from_its_state(optimizer: dict[str, Any]) -> None:
    schedule = {"kind": "cosine"}
    whole, first, second = (step_of(Everything(), 6, schedule=schedule, **optimizer) for _ in range(3))
    for index in range(6):
        whole()
        (first if index < 4 else second)()
        if index == 3:
            second.load_state_dict(first.state_dict())
    assert whole.state_dict()["step"] == second.state_dict()["step"] == 6
    assert all(map(torch.equal, whole.parameters, second.parameters))
    assert whole.sums.means() == second.sums.means()
    assert torch.equal(whole.progress, second.progress)


def test_the_first_step_that_is_not_finite_is_remembered() -> None:
    sums = RunningSums(CPU)
    one, infinite = torch.tensor(1.0), torch.tensor(math.inf)
    for number, (loss, penalty) in enumerate([(one, one), (one, -infinite), (infinite, one), (one, one)]):
        assert int(sums.diverged_step) == (1 if number > 1 else -1)
        sums.add(loss, penalty, torch.tensor(number))
    sums.reset()
    assert int(sums.diverged_step) == 1  # of the Run, not of the time since the last evaluation
    assert sums.means() == (0.0, 0.0)


def test_sums_of_an_older_checkpoint_are_read() -> None:
    """There, the number of steps is a Python number."""
    sums, again = RunningSums(CPU), RunningSums(CPU)
    for number in range(3):
        sums.add(torch.tensor(2.0), torch.tensor(0.5), torch.tensor(number))
    again.load_state_dict(sums.state_dict() | {"steps": 3})
    assert again.means() == (2.0, 0.5)
    again.add(torch.tensor(6.0), torch.tensor(0.5), torch.tensor(3))
    assert again.means() == (3.0, 0.5)
    assert sums.means() == (2.0, 0.5)
