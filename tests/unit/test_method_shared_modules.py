"""attach(): what a method puts at an activation module that two models share acts in its own model alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reproduce import attach

INPUTS = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))
REFUSED = r"module '1' is called in a \w+ too that is no part of the model.*each model activation modules of its own"
TRANSFORMS = ["batchnorm", "quantile_activation", "distribution_mismatch_correction"]


def two(act: nn.Module) -> tuple[nn.Sequential, nn.Sequential]:
    torch.manual_seed(0)
    actor, critic = (nn.Sequential(nn.Linear(3, 8), act, nn.Linear(8, size)) for size in (2, 1))
    return actor, critic


class Nested(nn.Module):
    """Another model that calls the shared module in a part without weights."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(3, 8), nn.Sequential(act, nn.Dropout(0.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rest(self.first(inputs))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("other", [lambda act, critic: critic, lambda act, critic: Nested(act)])
def test_another_model_is_not_changed_in_silence(name: str, is_training: bool, other: Any) -> None:
    act = nn.Tanh()
    actor, critic = two(act)
    critic = other(act, critic).train(is_training)
    expected = critic(INPUTS)
    handle = attach(name, actor, sites="pre", example=INPUTS)
    state = copy.deepcopy(actor.state_dict())
    with pytest.raises(ValueError, match=REFUSED):
        critic(INPUTS)
    assert all(torch.equal(state[key], value) for key, value in actor.state_dict().items())
    actor(INPUTS)
    handle.penalty()
    handle.remove()
    assert torch.equal(critic(INPUTS), expected)


def test_what_only_records_leaves_another_model_alone() -> None:
    actor, critic = two(nn.Tanh())
    handle = attach("activity_norm", actor, kind="l2", strength=1.0)
    expected = actor[:2](INPUTS).square().sum(1).mean()
    actor(INPUTS)
    critic(INPUTS)
    torch.testing.assert_close(handle.penalty(), expected)


class Holder(nn.Module):
    """Calls a model's layers one by one."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.net, self.head = model, nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.net:
            inputs = layer(inputs)
        return inputs


def layer_by_layer(model: nn.Sequential) -> Tensor:
    value = INPUTS
    for layer in model:
        value = layer(value)
    return value


def put_around(model: nn.Sequential) -> Tensor:
    model[1] = nn.Sequential(model[1], nn.Identity())
    return model(INPUTS)


WAYS: list[Callable[[nn.Sequential], Tensor]] = [
    lambda model: model(INPUTS),
    lambda model: model.forward(INPUTS),
    layer_by_layer,
    put_around,
    lambda model: model[2](model[:2](INPUTS)),
    lambda model: nn.Sequential(*model.children())(INPUTS),
    lambda model: model[2](nn.Sequential(nn.Dropout(0.0), model[1])(model[0](INPUTS))),
    lambda model: Holder(model)(INPUTS),
    lambda model: torch.fx.symbolic_trace(model)(INPUTS),
    lambda model: checkpoint(model, INPUTS, use_reentrant=False),
    lambda model: copy.deepcopy(model)(INPUTS),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_training", [True, False])
def test_however_its_own_model_is_called_it_acts(way: Callable[[nn.Sequential], Tensor], is_training: bool) -> None:
    """By hand, at the first batch: batch normalization before the activation, or of mean 0 and variance 1."""
    model, _ = two(nn.Tanh())
    hidden = model[0](INPUTS)
    attach("batchnorm", model, sites="pre", example=INPUTS)
    mean, variance = (hidden.mean(0), hidden.var(0, correction=0)) if is_training else (0.0, torch.ones(8))
    expected = model[2](torch.tanh((hidden - mean) / (variance + 1e-5).sqrt()))
    torch.testing.assert_close(way(model.train(is_training)), expected)
