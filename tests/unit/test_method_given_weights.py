"""Penalties on weights where `torch.func.functional_call` gives the model its weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from reproduce import attach, load_method
from reproduce.method.last_pass import LastPass

INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU())


def given(module: nn.Module, factor: float = 3.0) -> dict[str, Tensor]:
    return {name: factor * parameter.detach() for name, parameter in module.named_parameters()}


def soft(weight: Tensor) -> Tensor:
    """|W^T W - I|^2 of the smaller side, and its gradient 4 W (W^T W - I)."""
    deviation = weight.mT @ weight - torch.eye(4, dtype=weight.dtype)
    return 4 * weight @ deviation


@pytest.mark.parametrize(
    ("name", "by_hand"), [("weight_norm_penalty", lambda weight: 2 * weight), ("orthogonal", soft)]
)
@pytest.mark.parametrize("inside", [True, False])
def test_the_gradient_is_that_of_the_tensors_given(name: str, by_hand: Any, inside: bool) -> None:
    """By torch.func.grad, and by a backward pass through fast weights as in MAML."""
    module = model()
    handle = attach(load_method(name, strength=1.0), module)
    tensors = given(module)

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        functional_call(module, tensors, (INPUTS,))
        return handle.penalty()

    if inside:
        found = grad(loss)(tensors)["0.weight"]
    else:
        fast = {key: tensor.requires_grad_() for key, tensor in tensors.items()}
        found = torch.autograd.grad(loss(fast), fast["0.weight"])[0]
    torch.testing.assert_close(found.double(), by_hand(tensors["0.weight"].detach().double()), rtol=1e-5, atol=1e-4)
    own = module[0].weight
    module(INPUTS)
    torch.testing.assert_close(
        torch.autograd.grad(handle.penalty(), own)[0].double(), by_hand(own.detach().double()), rtol=1e-5, atol=1e-4
    )


def test_a_learned_beta_of_vcl_is_the_one_given() -> None:
    module = model()
    handle = attach(load_method("vcl", strength=1.0), module, sites="pre", example=INPUTS)
    tensors = given(module)

    def loss(tensors: dict[str, Tensor]) -> Tensor:
        functional_call(module, tensors, (INPUTS,))
        return handle.penalty()

    found = grad(loss)(tensors)
    activations = INPUTS.double() @ tensors["0.weight"].double().mT + tensors["0.bias"].double()
    (name,) = (name for name in tensors if name.endswith("beta"))
    beta = tensors[name].double().requires_grad_()
    expected = (1 - activations[:5].var(0) / (activations[5:10].var(0) + beta)).square().mean()
    torch.testing.assert_close(found[name].double(), torch.autograd.grad(expected, beta)[0], rtol=1e-4, atol=1e-6)


def test_vmap_over_an_ensemble() -> None:
    module = model()
    handle = attach(load_method("weight_norm_penalty", strength=1.0), module)
    stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in given(module, 1.0).items()}

    def penalty(tensors: dict[str, Tensor]) -> Tensor:
        functional_call(module, tensors, (INPUTS,))
        return handle.penalty()

    expected = module[0].weight.double().square().sum() * torch.tensor([1.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(penalty)(stacked).double(), expected)


def test_the_models_own_weights_are_read_before_the_pass_and_after_one_of_its_own() -> None:
    module = model()
    handle = attach(load_method("weight_norm_penalty", strength=1.0), module)
    own = module[0].weight.double().square().sum().item()
    functional_call(module, given(module), (INPUTS,))
    module(INPUTS)
    assert handle.penalty().item() == pytest.approx(own)
    with torch.no_grad():  # a target network, say, is not trained
        functional_call(module, given(module), (INPUTS,))
    assert handle.penalty().item() == pytest.approx(own)


def test_tensors_whose_gradient_is_over_are_refused() -> None:
    module = model()
    handle = attach(load_method("weight_norm_penalty", strength=1.0), module)
    grad(lambda tensors: functional_call(module, tensors, (INPUTS,)).sum())(given(module))
    with pytest.raises(ValueError, match=r"another '0\.weight' than the model has now: after torch\.func"):
        handle.penalty()
    module(INPUTS)
    assert handle.penalty().requires_grad  # what was remembered is gone


def test_parameters_that_were_given_or_replaced_are_refused_where_weights_are_read() -> None:
    module = model()
    handle = attach(load_method("weight_norm_penalty", strength=1.0), module)
    others = dict(copy.deepcopy(module).named_parameters())
    functional_call(module, others, (INPUTS,))
    with pytest.raises(ValueError, match=r"tensors that are no nn\.Parameter"):
        handle.penalty()
    batch_normalized = model()
    handle = attach(load_method("batchnorm"), batch_normalized, sites="pre", example=INPUTS)
    functional_call(batch_normalized, dict(copy.deepcopy(batch_normalized).named_parameters()), (INPUTS,))
    assert handle.penalty().item() == 0


def test_a_copy_remembers_nothing_and_the_hook_goes_with_the_handle() -> None:
    module = model()
    handle = attach(load_method("weight_norm_penalty", strength=1.0), module)
    functional_call(module, {name: 2 * tensor for name, tensor in module.named_parameters()}, (INPUTS,))
    copied = copy.deepcopy(module)
    copied(INPUTS)
    assert [bool(hook.__self__.had) for hook in hooks_of(copied)] == [False]
    assert [bool(hook.__self__.had) for hook in hooks_of(module)] == [True]
    handle.remove()
    assert not hooks_of(module)
    assert not handle.last_pass.had


def hooks_of(module: nn.Module) -> list[Any]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(getattr(hook, "__self__", None), LastPass)]
