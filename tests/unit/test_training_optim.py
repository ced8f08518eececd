"""Optimisers, schedules, groups and clipping against the same arithmetic written out in plain loops."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from methods.batchnorm.method import BatchNorm
from reproduce import models
from reproduce.experiment.recipe import Clip, CosineRate, DecayRate, LinearRate, PlateauRate, Recipe, Schedule, StepRate
from reproduce.models import Sizes
from reproduce.training.optim import RateSchedule, build_optimizer, clip_gradients, parameter_groups

STEPS_PER_EPOCH = 4


def recipe_of(**changes: Any) -> Recipe:
    return Recipe.model_validate({"epochs": 6, "batch_size": 2, "learning_rate": 0.5, **changes})


def built(name: str, shape: tuple[int, ...], **options: Any) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return models.build(name, options, Sizes(shape, 5), generator, generator)


def rates(recipe: Recipe, n_steps: int) -> list[float]:
    """The learning rate at every step, by the schedule."""
    optimizer = build_optimizer(nn.Linear(2, 3, bias=False), recipe)
    schedule = RateSchedule(optimizer, recipe, STEPS_PER_EPOCH, n_steps)
    found = []
    for _ in range(n_steps):
        found.append(schedule.rate)
        optimizer.step()
        schedule.after_step()
    return found


def constant(step: int) -> float:
    return 1.0


def step_epochs(step: int) -> float:
    rate = 1.0
    for epoch in range(1, step // STEPS_PER_EPOCH + 1):
        if epoch in (2, 5):
            rate *= 0.1
    return rate


def step_steps(step: int) -> float:
    rate = 1.0
    for passed in range(1, step + 1):
        if passed == 3:
            rate *= 0.2
        if passed == 11:
            rate *= 0.5
    return rate


def decay(step: int) -> float:
    rate = 1.0
    for epoch in range(step // STEPS_PER_EPOCH + 1):  # the first two epochs at the full rate
        if epoch >= 2:
            rate *= 0.8
    return rate


def linear(step: int) -> float:
    return 1.0 + (0.25 - 1.0) * step / 24


def cosine(step: int) -> float:
    return (1 + math.cos(math.pi * step / 24)) / 2


@pytest.mark.parametrize("warmup", [None, 6])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"kind": "constant"}, constant),
        (StepRate(kind="step", milestones=(2, 5)), step_epochs),
        (StepRate(kind="step", milestones=(3, 11), factor=(0.2, 0.5), unit="steps"), step_steps),
        (DecayRate(kind="decay", after=2, factor=0.8), decay),
        (CosineRate(kind="cosine"), cosine),
        (LinearRate(kind="linear", last=0.25), linear),
    ],
)
def test_schedule_is_the_loop(schedule: Schedule, expected: Callable[[int], float], warmup: int | None) -> None:
    changes = {} if warmup is None else {"warmup_steps": warmup, "warmup_factor": 0.1}
    found = rates(recipe_of(schedule=schedule, **changes), 24)
    by_hand = [0.5 * expected(step) * (0.1 if step < (warmup or 0) else 1.0) for step in range(24)]
    assert found == pytest.approx(by_hand, rel=1e-12)


def test_decay_is_the_example_of_zaremba() -> None:
    """lr_decay ** max(i + 1 - max_epoch, 0) for epoch i, as in the code published with the paper."""
    found = rates(recipe_of(schedule=DecayRate(kind="decay", after=3, factor=0.5)), 24)
    assert found[::STEPS_PER_EPOCH] == [0.5 * 0.5 ** max(i + 1 - 3, 0) for i in range(6)]


def test_plateau_is_pytorch_examples() -> None:
    """There: the rate is divided by 4 whenever the validation loss is not the lowest so far."""
    recipe = recipe_of(schedule=PlateauRate(kind="plateau"), bias_rate=0.1)
    optimizer = build_optimizer(nn.Linear(2, 3), recipe)
    schedule = RateSchedule(optimizer, recipe, STEPS_PER_EPOCH, 100)
    losses = [5.0, 4.0, 4.5, 4.0, 3.9999999, 4.2, 4.1, 3.0, 3.0, 0.0, 0.0, -1.0]
    rate, best, expected, found = 0.5, None, [], []
    for loss in losses:
        if best is None or loss < best:
            best = loss
        else:
            rate /= 4.0
        expected.append(rate)
        schedule.after_step()  # has no say
        schedule.after_evaluation(loss)
        found.append(schedule.rate)
    assert found == expected
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * rate)


def test_plateau_with_patience() -> None:
    recipe = recipe_of(schedule=PlateauRate(kind="plateau", factor=0.5, patience=2))
    schedule = RateSchedule(build_optimizer(nn.Linear(2, 3), recipe), recipe, STEPS_PER_EPOCH, 100)
    found = []
    for loss in [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]:
        schedule.after_evaluation(loss)
        found.append(schedule.rate)
    assert found == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


@pytest.mark.parametrize(
    "schedule",
    [CosineRate(kind="cosine"), StepRate(kind="step", milestones=(1, 3)), PlateauRate(kind="plateau", patience=1)],
)
def test_schedule_goes_on_from_its_state(schedule: Schedule) -> None:
    recipe = recipe_of(schedule=schedule, bias_rate=0.1)

    def advance(optimizer: torch.optim.Optimizer, schedule: RateSchedule, steps: range) -> list[list[float]]:
        found = []
        for step in steps:
            optimizer.step()
            schedule.after_step()
            if step % 3 == 0:
                schedule.after_evaluation(float(step % 5))
            found.append([group["lr"] for group in optimizer.param_groups])
        return found

    def fresh() -> tuple[torch.optim.Optimizer, RateSchedule]:
        optimizer = build_optimizer(nn.Linear(2, 3), recipe)
        return optimizer, RateSchedule(optimizer, recipe, STEPS_PER_EPOCH, 24)

    whole = advance(*fresh(), range(20))
    first = fresh()
    before = advance(*first, range(7))
    second = fresh()
    second[0].load_state_dict(copy.deepcopy(first[0].state_dict()))
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()), steps=7)
    assert before + advance(*second, range(7, 20)) == whole


def names_in(model: nn.Module, group: dict) -> set[str]:
    inside = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def test_groups_of_a_fixup_network() -> None:
    model = built("resnet", (1, 8, 8), depth=8, width=4, variant="fixup")
    recipe = recipe_of(bias_rate=0.1, weight_decay=1e-4, decay_biases=False)
    weights, biases = parameter_groups(model, recipe)
    per_block = {"bias_1a", "bias_1b", "bias_2a", "bias_2b", "scale"}
    expected = {f"blocks.{block}.{name}" for block in range(3) for name in per_block}
    assert names_in(model, biases) == expected | {"bias_1", "bias_2", "classifier.bias"}
    convolutions = {f"blocks.{block}.conv_{i}.weight" for block in range(3) for i in (1, 2)}
    assert names_in(model, weights) == convolutions | {"conv.weight", "classifier.weight"}
    assert (weights["lr"], biases["lr"]) == (0.5, pytest.approx(0.05))
    assert (weights["weight_decay"], biases["weight_decay"]) == (1e-4, 0.0)


@pytest.mark.parametrize("tied", [False, True])
def test_groups_of_a_tied_lstm_hold_each_parameter_once(tied: bool) -> None:
    model = built("lstm", (), hidden=4, tied=tied)
    weights, biases = parameter_groups(model, recipe_of(weight_decay=1e-3))
    lstm = {f"layers.{layer}.lstm." for layer in (0, 1)}
    expected = {f"{part}bias_{kind}_l0" for part in lstm for kind in ("ih", "hh")} | {"decoder.bias"}
    assert names_in(model, biases) == expected
    everything = [id(parameter) for group in (weights, biases) for parameter in group["params"]]
    assert sorted(everything) == sorted({id(parameter) for parameter in model.parameters()})
    assert (weights["lr"], biases["lr"]) == (0.5, 0.5)
    assert (weights["weight_decay"], biases["weight_decay"]) == (1e-3, 1e-3)


def test_groups_of_a_batch_normalised_network() -> None:
    """Its shifts are biases; its scales, one for each feature, are weights."""
    model = built("mlp", (1, 4, 4), width=6, depth=2)
    BatchNorm().prepare(model, torch.Generator())
    weights, biases = parameter_groups(model, recipe_of(bias_rate=0.1))
    shifts = {f"layers.{layer}.pre.transform.bias" for layer in (0, 1)}
    assert shifts < names_in(model, biases)
    assert {f"layers.{layer}.pre.transform.weight" for layer in (0, 1)} < names_in(model, weights)


def gradients(seed: int, steps: int, shapes: list[tuple[int, ...]]) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(steps)]


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay", "decay_biases"),
    [(0.0, False, 0.0, True), (0.9, False, 0.1, True), (0.9, True, 0.1, False), (0.5, True, 0.0, True)],
)
def test_sgd_is_the_loop(momentum: float, nesterov: bool, weight_decay: float, decay_biases: bool) -> None:
    recipe = recipe_of(
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        decay_biases=decay_biases,
        bias_rate=0.1,
        learning_rate=0.05,
    )
    model = built("mlp", (1, 2, 2), width=3, depth=1)
    names = [name for name, _ in model.named_parameters()]
    parameters = list(model.parameters())
    values = [parameter.detach().double().numpy().copy() for parameter in parameters]
    velocity = [np.zeros_like(value) for value in values]
    optimizer = build_optimizer(model, recipe)
    for drawn in gradients(1, 12, [tuple(parameter.shape) for parameter in parameters]):
        for index, (name, gradient) in enumerate(zip(names, drawn, strict=True)):
            parameters[index].grad = gradient.clone()
            bias = name.endswith("bias")
            rate = 0.05 * (0.1 if bias else 1.0)
            decayed = 0.0 if bias and not decay_biases else weight_decay
            direction = gradient.double().numpy() + decayed * values[index]
            velocity[index] = momentum * velocity[index] + direction
            values[index] -= rate * (direction + momentum * velocity[index] if nesterov else velocity[index])
        optimizer.step()
    for parameter, value in zip(parameters, values, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=2e-5, atol=2e-6)


def test_adam_and_rmsprop_are_the_loops() -> None:
    for name, smoothing in (("adam", None), ("rmsprop", None), ("rmsprop", 0.9)):
        weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))
        model = nn.Module()
        model.weight = weight
        optimizer = build_optimizer(model, recipe_of(optimizer=name, learning_rate=0.01, smoothing=smoothing))
        kept = smoothing or 0.99
        value = weight.detach().double().numpy().copy()
        first, second = np.zeros_like(value), np.zeros_like(value)
        for step, (drawn,) in enumerate(gradients(2, 10, [(1, 3)]), 1):
            weight.grad = drawn.clone()
            optimizer.step()
            gradient = drawn.double().numpy()
            if name == "adam":
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                corrected = first / (1 - 0.9**step), second / (1 - 0.999**step)
                value -= 0.01 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
            else:
                second = kept * second + (1 - kept) * gradient**2
                value -= 0.01 * gradient / (np.sqrt(second) + 1e-8)
        np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-5)


def test_nadam_is_the_loop() -> None:
    """Dozat (2016), with its schedule of momentum: mu_t = 0.9 (1 - 0.5 * 0.96 ** (0.004 t))."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5]]))
    model = nn.Module()
    model.weight = weight
    optimizer = build_optimizer(model, recipe_of(optimizer="nadam", learning_rate=0.01))
    value = weight.detach().double().numpy().copy()
    first, second, product = np.zeros_like(value), np.zeros_like(value), 1.0
    for step, (drawn,) in enumerate(gradients(2, 10, [(1, 3)]), 1):
        weight.grad = drawn.clone()
        optimizer.step()
        gradient = drawn.double().numpy()
        now, after = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * place)) for place in (step, step + 1))
        product *= now
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        ahead = after * first / (1 - product * after) + (1 - now) * gradient / (1 - product)
        value -= 0.01 * ahead / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-5)


def test_smoothing_is_of_rmsprop_alone() -> None:
    with pytest.raises(ValidationError, match="only rmsprop takes smoothing, found adam"):
        recipe_of(optimizer="adam", smoothing=0.9)


@pytest.mark.parametrize("norm", [0.5, 100.0])
@pytest.mark.parametrize("per", ["global", "tensor"])
def test_clipping_is_the_loop(per: str, norm: float) -> None:
    drawn = gradients(3, 1, [(4, 3), (3,), (2, 2)])[0]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in drawn]
    for parameter, gradient in zip(parameters, drawn, strict=True):
        parameter.grad = gradient.clone()
    idle = nn.Parameter(torch.zeros(2))  # took no part in the step
    clip_gradients([*parameters, idle], Clip.model_validate({"norm": norm, "per": per}))
    lengths = [math.sqrt(sum(x * x for x in gradient.flatten().tolist())) for gradient in drawn]
    if per == "global":
        lengths = [math.hypot(*lengths)] * len(drawn)
    assert (max(lengths) > norm) == (norm == 0.5)
    for parameter, gradient, length in zip(parameters, drawn, lengths, strict=True):
        expected = gradient * min(1.0, norm / length)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-7)
    assert idle.grad is None


def test_clipping_together_is_clipping_one_by_one_to_the_bit() -> None:
    """Of any size, and of any size of the numbers: tiny, huge, all zero, infinite, not a number."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(), (1,), (3,), (64, 33), (16, 3, 3, 3), (1000,)]
    scales = [0.0, 1e-30, 1e-8, 1e-3, 1.0, 1e4, 1e20, math.inf, math.nan]
    drawn = [scale * torch.randn(shape, generator=generator) for shape in shapes for scale in scales]
    for norm in (1e-3, 0.1, 7.0):
        together = [nn.Parameter(torch.zeros_like(gradient)) for gradient in drawn]
        apart = [nn.Parameter(torch.zeros_like(gradient)) for gradient in drawn]
        for parameter, other, gradient in zip(together, apart, drawn, strict=True):
            parameter.grad, other.grad = gradient.clone(), gradient.clone()
            nn.utils.clip_grad_norm_([other], norm)
        clip_gradients(together, Clip(norm=norm, per="tensor"))
        for parameter, other in zip(together, apart, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=0, equal_nan=True)


def test_no_clipping_changes_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1e6, 0.0, -1e6])
    clip_gradients([parameter], None)
    assert parameter.grad.tolist() == [1e6, 0.0, -1e6]


def test_every_optimizer_takes_its_own_rates() -> None:
    for name, momentum in itertools.product(("sgd", "rmsprop"), (0.0, 0.9)):
        optimizer = build_optimizer(nn.Linear(2, 3), recipe_of(optimizer=name, momentum=momentum, bias_rate=0.1))
        assert [group["lr"] for group in optimizer.param_groups] == [0.5, pytest.approx(0.05)]
        assert {group["momentum"] for group in optimizer.param_groups} == {momentum}
