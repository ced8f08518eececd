"""Penalties on weights where `torch.func.functional_call` gives the model its weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrizations, prune

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


def squares(weight: Tensor) -> float:
    return weight.detach().double().square().sum().item()


def penalty_of(module: nn.Module) -> Any:
    return attach(load_method("weight_norm_penalty", strength=1.0), module)


def test_a_mask_that_is_given_prunes_the_weight() -> None:
    module = nn.Sequential(prune.l1_unstructured(nn.Linear(4, 6), "weight", 0.5))
    handle = penalty_of(module)
    functional_call(module, {"0.weight_mask": torch.ones(6, 4)}, (INPUTS,))
    assert handle.penalty().item() == pytest.approx(squares(module[0].weight_orig))
    module(INPUTS)
    assert handle.penalty().item() == pytest.approx(squares(module[0].weight_orig * module[0].weight_mask))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c = self.a  # a module with two names

    def forward(self, inputs: Tensor) -> Tensor:
        return self.c(self.b(self.a(inputs).relu()))


@pytest.mark.parametrize(
    ("factors", "tie_weights", "expected"),
    [({"a": 2}, True, 4), ({"a": 2}, False, 4 + 1), ({"a": 2, "b": 3}, False, 4 + 9)],
)
def test_weights_that_are_tied_in_the_model_may_be_given_apart(
    factors: dict[str, int], tie_weights: bool, expected: int
) -> None:
    module = Tied()
    del module.c  # functional_call itself loses the weights of such a module
    module.c = nn.Identity()
    handle = penalty_of(module)
    own = module.a.weight
    given = {f"{name}.weight": factor * own.detach().requires_grad_() for name, factor in factors.items()}
    functional_call(module, given, (INPUTS,), tie_weights=tie_weights)
    assert handle.penalty().item() == pytest.approx(expected * squares(own))
    assert module.a.weight is module.b.weight is own


def test_a_module_with_two_names_keeps_its_weights() -> None:
    module = Tied()
    handle = penalty_of(module)
    module(INPUTS)
    own, module.a.weight = module.a.weight, nn.Parameter(torch.ones(4, 4))
    new = module.a.weight
    with pytest.raises(ValueError, match=r"had another 'a\.weight' than the model has now"):
        handle.penalty()
    assert module.a.weight is module.c.weight is new
    assert module.b.weight is own


@pytest.mark.parametrize("name", ["weight_g", "weight_v", "parametrizations.weight.original1"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_what_a_weight_is_made_from_may_be_given(name: str) -> None:
    """|g v / |v||^2 is that of g alone."""
    wrap = parametrizations.weight_norm if "." in name else nn.utils.weight_norm
    module = nn.Sequential(wrap(nn.Linear(4, 6)))
    handle = penalty_of(module)
    expected = (9 if name == "weight_g" else 1) * squares(module[0].weight)
    given = (3 * module.get_parameter(f"0.{name}").detach()).requires_grad_()
    functional_call(module, {f"0.{name}": given}, (INPUTS,))
    penalty = handle.penalty()
    assert penalty.item() == pytest.approx(expected)
    torch.autograd.grad(penalty, given)


class Around(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_model_around_the_attached_one_may_be_given_weights(is_compiled: bool) -> None:
    module = model()
    handle = penalty_of(module)
    outer = Around(torch.compile(module, backend="eager") if is_compiled else module)
    prefix = "inner._orig_mod." if is_compiled else "inner."
    for _ in range(2):
        fast = {f"{prefix}{name}": tensor.requires_grad_() for name, tensor in given(module).items()}
        functional_call(outer, fast, (INPUTS,))
        penalty = handle.penalty()
        assert penalty.item() == pytest.approx(9 * squares(module[0].weight))
        found = torch.autograd.grad(penalty, fast[f"{prefix}0.weight"])[0]
        torch.testing.assert_close(found, 2 * fast[f"{prefix}0.weight"])
        outer(INPUTS)
        assert handle.penalty().item() == pytest.approx(squares(module[0].weight))


def test_in_eval_mode_weights_with_a_gradient_are_trained_and_an_average_is_not() -> None:
    module = model().eval()
    handle = penalty_of(module)
    fast = {name: tensor.requires_grad_() for name, tensor in given(module).items()}
    functional_call(module, fast, (INPUTS,))
    found = torch.autograd.grad(handle.penalty(), fast["0.weight"])[0]
    torch.testing.assert_close(found, 2 * fast["0.weight"].detach())
    module.train()(INPUTS)
    functional_call(module.eval(), given(module), (INPUTS,))  # evaluated without no_grad
    assert handle.penalty().item() == pytest.approx(squares(module[0].weight))


def test_one_penalty_of_a_pass_that_was_given_weights_for_each_handle() -> None:
    """A second one would be of the model's own."""
    module = model()
    handles = [penalty_of(module), penalty_of(module)]
    functional_call(module, given(module), (INPUTS,))
    for handle in handles:
        assert handle.penalty().item() == pytest.approx(9 * squares(module[0].weight))
        with pytest.raises(ValueError, match=r"given other weights .* one penalty has been taken of it: call"):
            handle.penalty()
    module(INPUTS)
    for handle in handles:
        for _ in range(2):
            assert handle.penalty().item() == pytest.approx(squares(module[0].weight))


def test_weights_given_to_a_pass_that_failed_are_forgotten() -> None:
    module = model()
    handle = penalty_of(module)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        functional_call(module, given(module), (INPUTS[:, :3],))
    assert handle.penalty().item() == pytest.approx(squares(module[0].weight))


def hooks_of(module: nn.Module) -> list[Any]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(getattr(hook, "__self__", None), LastPass)]
