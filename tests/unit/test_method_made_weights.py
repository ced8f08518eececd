"""Penalties on weights that are made in each forward pass, by parametrizations and by the older hooks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from reproduce import attach, load_method
from reproduce.method import kernels_of, weight_in_use

INPUTS = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def of_squares(strength: float = 1.0) -> Any:
    return load_method("weight_norm_penalty", strength=strength)


def made(part: nn.Module) -> nn.Sequential:
    """A layer whose weight ``part`` makes, and an activation, whose layout is looked for in the first passes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    parametrize.register_parametrization(model[0], "weight", part)
    return model


class Seen:
    """The weights that a parametrization has returned when it was called."""

    def __init__(self, module: nn.Module, name: str = "weight") -> None:
        self.weights: list[Tensor] = []
        module.parametrizations[name].register_forward_hook(lambda *call: self.weights.append(call[2]))

    def squares(self) -> float:
        return self.weights[-1].detach().double().square().sum().item()


class Noisy(nn.Module):
    """It draws in evaluation too."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm1d(4), Noisy()], ids=["dropout", "batchnorm", "noise"])
def test_the_penalty_is_of_the_weight_of_the_pass(part: nn.Module) -> None:
    """With its gradient, in several steps; buffers and the stream of random numbers are as without a handle."""
    seen: dict[bool, list[Tensor]] = {}
    for with_handle in (False, True):
        model = made(copy.deepcopy(part))
        found = Seen(model[0])
        handle = attach(of_squares(), model) if with_handle else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            model(INPUTS)
            if handle is not None:
                penalty = handle.penalty()
                assert penalty.item() == pytest.approx(found.squares())
                original = model[0].parametrizations.weight.original
                weight = found.weights[-1]
                expected = torch.autograd.grad(weight, original, 2 * weight.detach(), retain_graph=True)[0]
                torch.testing.assert_close(torch.autograd.grad(penalty, original, retain_graph=True)[0], expected)
                penalty.backward()
            optimizer.step()
        seen[with_handle] = [*found.weights, torch.get_rng_state(), *(buffer.clone() for buffer in model.buffers())]
    assert len(seen[False]) == len(seen[True])
    assert all(map(torch.equal, seen[False], seen[True]))


def test_a_weight_that_is_not_known_is_refused() -> None:
    """Before a pass, after a step, read twice, without gradient; in eval mode dropout gives the weight itself."""
    model = made(nn.Dropout(0.5))
    handle = attach(of_squares(), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def stepped() -> None:
        model(INPUTS).sum().backward()
        optimizer.step()

    def without_gradient() -> None:
        with torch.no_grad():
            model(INPUTS)

    def read_twice() -> None:
        reading = model[0].register_forward_pre_hook(lambda layer, _: layer.weight)
        model(INPUTS)
        reading.remove()

    for passes in (lambda: None, stepped, read_twice, without_gradient):
        passes()
        state = torch.get_rng_state()
        with pytest.raises(ValueError, match=r"'weight' of \w*Linear is another weight each time .*cached\(\) sees"):
            handle.penalty()
        assert torch.equal(torch.get_rng_state(), state)
    model.eval()
    own = model[0].parametrizations.weight.original
    assert handle.penalty().item() == pytest.approx(own.detach().double().square().sum().item())


def test_a_dropped_recurrent_kernel_is_cached_and_known() -> None:
    """An LSTM reads it several times."""
    torch.manual_seed(0)
    layer = nn.LSTM(4, 3)
    parametrize.register_parametrization(layer, "weight_hh_l0", nn.Dropout(0.5))
    handle = attach(of_squares(), layer)
    sequence = torch.randn(5, 2, 4)
    for inside in (True, False):
        with parametrize.cached():
            layer(sequence)
            used = layer.weight_hh_l0.detach().double()
            penalty = handle.penalty() if inside else None
        penalty = handle.penalty() if penalty is None else penalty
        expected = used.square().sum() + layer.weight_ih_l0.detach().double().square().sum()
        assert penalty.item() == pytest.approx(expected.item())
    with parametrize.cached():
        with pytest.raises(ValueError, match="another weight each time"):
            handle.penalty()
        assert not parametrize._cache  # the pass makes its own
    layer(sequence)
    with pytest.raises(ValueError, match="another weight each time"):
        handle.penalty()


def test_a_method_that_looks_at_kernels_can_be_attached_before_a_pass() -> None:
    model = made(nn.Dropout(0.5))
    found = Seen(model[0])
    state = torch.get_rng_state()
    handle = attach(load_method("orthogonal", strength=1.0, formula="srip", redraw=False), model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not found.weights
    model(INPUTS)
    assert handle.penalty().requires_grad


def test_dropout_after_spectral_norm_takes_one_power_iteration() -> None:
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(4, 6))
    parametrize.register_parametrization(layer, "weight", nn.Dropout(0.5))
    found, handle = Seen(layer), attach(of_squares(), layer)
    layer(INPUTS)
    before = [buffer.clone() for buffer in layer.buffers()]
    assert handle.penalty().item() == pytest.approx(found.squares())
    assert all(map(torch.equal, before, layer.buffers()))


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_looking_for_layouts_takes_no_power_iteration(wrap: Any) -> None:
    layers = []
    for with_handle in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(wrap(nn.Linear(4, 6)), nn.ReLU())
        if with_handle:
            attach(load_method("activity_norm", strength=1.0), model)
        model(INPUTS)
        layers.append(model[0])
    assert all(map(torch.equal, layers[0].buffers(), layers[1].buffers()))


def test_a_penalty_before_the_pass_of_the_same_loss() -> None:
    """The pass moves the vectors of the older spectral_norm in place, and the graph of the penalty needs them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 6)), nn.ReLU())
    handle, layer = attach(of_squares(), model), model[0]
    original = layer.weight_orig.detach().double().requires_grad_()
    (original / (layer.weight_u.double() @ original @ layer.weight_v.double())).square().sum().backward()
    penalty = handle.penalty()
    (penalty + 0 * model(INPUTS).sum()).backward()
    torch.testing.assert_close(layer.weight_orig.grad.double(), original.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_hooks_that_make_a_weight_one_from_the_other_are_refused() -> None:
    """The first to run uses what the second left in the pass before."""
    layer = nn.utils.weight_norm(nn.Linear(4, 6))
    prune.l1_unstructured(layer, "weight_v", 0.5)
    with pytest.raises(ValueError, match="'weight' of Linear is made from 'weight_v', which another hook makes"):
        kernels_of(layer)
    with pytest.raises(ValueError, match="which another hook makes"):
        weight_in_use(layer, "weight")
