"""Modules in wrappers that answer for an attribute with that of the module inside: nothing changes but names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import weight_norm as older_weight_norm

from methods.activity_norm.method import ActivityNorm
from methods.sparse_autoencoder.weights import weights_of
from methods.weight_norm_penalty.method import WeightNormPenalty
from reproduce import attach
from reproduce.method import Method, holder_of, kernels_of, own_attribute, own_parametrizations
from tests.unit.own_models import assert_penalty, by_map, layouts


class Passing(nn.Module):
    """As people write a wrapper."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)

    def forward(self, *inputs: Any) -> Any:
        return self.inner(*inputs)


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


WRAPPERS: list[Callable[[nn.Module], Any]] = [
    compiled,
    checkpoint_wrapper,
    Passing,
    lambda m: Passing(checkpoint_wrapper(m)),
    lambda m: m,
]


def weight_normed() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    def by_hand(layer: Any) -> Tensor:
        g, v = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        return (g * v / v.square().sum(1, keepdim=True).sqrt()).square().sum()

    layer = parametrizations.weight_norm(nn.Linear(3, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr, operator]
    return layer, by_hand


def spectrally_normed() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    def by_hand(layer: Any) -> Tensor:
        weight, made_by = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
        return (weight / (made_by._u @ weight @ made_by._v)).square().sum()

    return parametrizations.spectral_norm(nn.Linear(3, 4)), by_hand


def normed_by_a_hook() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    layer = older_weight_norm(nn.Linear(3, 4))
    with torch.no_grad():
        layer.weight_g.mul_(2)  # type: ignore[operator]
    return layer, lambda layer: layer.weight_g.square().sum()  # rows have these norms


def pruned() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    layer = prune.l1_unstructured(nn.Linear(3, 4), "weight", amount=5)
    return layer, lambda layer: layer.weight_orig.square().flatten().sort().values[5:].sum()


def recurrent() -> tuple[nn.Module, Callable[[Any], Tensor]]:
    lstm = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")

    def by_hand(layer: Any) -> Tensor:
        return layer.weight_ih_l0.square().sum() + layer.parametrizations.weight_hh_l0.original0.square().sum()

    return lstm, by_hand


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("make", [weight_normed, spectrally_normed, normed_by_a_hook, pruned, recurrent])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_penalty_on_weights_reads_what_is_in_a_wrapper(
    make: Callable[[], tuple[nn.Module, Callable[[Any], Tensor]]], wrap: Callable[[nn.Module], Any]
) -> None:
    torch.manual_seed(0)
    layer, by_hand = make()
    model = nn.ModuleDict({"first": wrap(layer.double()), "second": nn.Linear(4, 2).double()})
    handle = attach(WeightNormPenalty(kind="l2", strength=1.0), model)
    expected = by_hand(layer) + model["second"].weight.square().sum()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(handle.penalty().double(), expected.detach(), rtol=1e-6, atol=0, check_dtype=False)
    bare = {kernel.name: kernel.kind for kernel in kernels_of(layer)}
    found = [(k.name.rpartition(".")[2], k.kind) for k in kernels_of(model) if k.name.startswith("first")]
    assert found == list(bare.items())


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_queries_keys_and_values_are_three_kernels_in_a_wrapper_too(wrap: Callable[[nn.Module], Any]) -> None:
    model = nn.ModuleDict({"qkv": wrap(nn.Linear(4, 12)), "out": wrap(nn.Linear(4, 12))})
    assert [kernel.blocks for kernel in kernels_of(model)] == [3, 1]
    assert [kernel.blocks for kernel in kernels_of(Passing(nn.ModuleDict({"qkv": nn.Linear(4, 12)})))] == [3]


class Pointwise(nn.Module):
    """A convolution of single locations, with a matrix: channels come second."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6))

    def forward(self, activation: Tensor) -> Tensor:
        return torch.einsum("oi,nil->nol", self.weight, activation)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(module: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(module, "weight", Doubled())


@pytest.mark.parametrize("wrap", [*WRAPPERS, parametrized, torch.fx.symbolic_trace])
def test_a_wrapper_says_nothing_of_the_axes(wrap: Callable[[nn.Module], Any]) -> None:
    """8 channels and 6 locations: the weight is (8, 6), and which axis it multiplies its class does not say."""
    model = nn.Sequential(wrap(Pointwise()), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    handle = attach(ActivityNorm(kind="l2", strength=1.0), model)
    model(torch.randn(5, 6, 6))
    with pytest.raises(ValueError, match="axes="):
        handle.penalty()


def test_a_scripted_matrix_of_ones_own_says_nothing_of_the_axes_before_it() -> None:
    """The next layer is looked at, and its class before it was scripted is not torch's."""
    model = nn.Sequential(nn.ReLU(), torch.jit.script(Pointwise()))
    handle = attach(ActivityNorm(kind="l2", strength=1.0), model)
    model(torch.randn(5, 6, 6, requires_grad=True))
    with pytest.raises(ValueError, match="axes="):
        handle.penalty()


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_layer_in_a_wrapper_says_what_it_says_alone(wrap: Callable[[nn.Module], Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Conv1d(6, 6, 1)), nn.ReLU())
    handle = attach(ActivityNorm(kind="l2", strength=1.0), model)
    output = model(torch.randn(6, 6, 6))
    assert layouts(handle) == [("ncl", 6)]
    assert_penalty(handle, by_map(output.detach()))


class OwnReLU(nn.ReLU):
    pass


@pytest.mark.parametrize("make", [OwnReLU, lambda: parametrized(nn.PReLU())])
def test_a_class_made_from_one_of_torch_works_as_that_does(make: Callable[[], nn.Module]) -> None:
    """Unit by unit, between a convolution and the activation that is recorded, where all sizes are equal."""
    model = nn.Sequential(nn.Conv1d(6, 6, 1), make(), nn.Tanh())
    method: Method = ActivityNorm(kind="l2", strength=1.0)
    handle = attach(method, model, sites=["2"])
    output = model(torch.randn(6, 6, 6))
    assert layouts(handle) == [("ncl", 6)]
    assert_penalty(handle, by_map(output.detach()))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_dec, self.b_enc = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.zeros(5))
        self.W_enc = nn.Parameter(torch.randn(3, 5))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_weights_of_an_autoencoder_are_found_in_a_wrapper(wrap: Callable[[nn.Module], Any]) -> None:
    inner = Autoencoder()
    found = weights_of(wrap(inner))
    assert found is not None
    assert found.encoder is not None
    assert found.b_enc is not None
    assert found.decoder.stored is inner.W_dec
    assert found.encoder.stored is inner.W_enc
    assert found.b_enc.stored is inner.b_enc


@pytest.mark.parametrize("wrap", WRAPPERS[:-1])
def test_a_wrapper_holds_nothing_of_what_it_passes_on(wrap: Callable[[nn.Module], Any]) -> None:
    layer = parametrizations.weight_norm(nn.Linear(3, 4))
    wrapper = wrap(layer)
    assert hasattr(wrapper, "weight")
    assert own_attribute(wrapper, "weight") is None
    assert own_attribute(wrapper, "in_features", 0) == 0
    assert own_parametrizations(wrapper) == {}
    assert list(own_parametrizations(layer)) == ["weight"]
    torch.testing.assert_close(own_attribute(layer, "weight"), layer.weight, rtol=0, atol=0)
    assert own_attribute(layer, "bias") is layer.bias
    assert own_attribute(layer, "in_features") == 3
    assert holder_of(wrapper, "weight") is layer
    assert holder_of(wrapper, "missing") is None
