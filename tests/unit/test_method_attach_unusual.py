"""Passes that are left, threads, copies, scripted parts, weights of odd parametrizations: right, or one line."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils import parametrize, prune

from reproduce import attach, load_method


@pytest.fixture(autouse=True)
def in_float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(before)


class Leaving(nn.Module):
    """Raises what it is given, once."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return x


def of_activations(**options: Any) -> Any:
    return load_method("activity_norm", strength=1.0, **options)


def of_weights() -> Any:
    return load_method("weight_norm_penalty", strength=1.0)


def mean_of_squares(activations: Tensor) -> float:
    return activations.square().flatten(1).sum(1).mean().item()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_a_pass_that_is_interrupted_is_none(error: BaseException) -> None:
    """torch calls no hook at its end."""
    leaving = Leaving()
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), leaving)
    handle = attach(of_activations(), model)
    leaving.error = error
    with pytest.raises(type(error)):
        model(torch.randn(8, 4))
    with pytest.raises(ValueError, match="raised an error or was interrupted"):
        handle.penalty()
    for _ in range(2):
        output = model(torch.randn(8, 4))
        assert handle.penalty().item() == pytest.approx(mean_of_squares(output))


def test_after_an_interrupted_pass_another_thread_may_train() -> None:
    leaving = Leaving()
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), leaving)
    handle = attach(of_activations(), model)
    leaving.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(8, 4))
    found: list[float] = []

    def step() -> None:
        output = model(torch.randn(8, 4))
        found.extend([handle.penalty().item(), mean_of_squares(output)])

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert found[0] == pytest.approx(found[1])


def test_a_transform_is_met_once_again_after_an_interrupted_pass() -> None:
    leaving = Leaving()
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), leaving)
    handle = attach(load_method("batchnorm"), model, sites="pre", example=torch.randn(8, 4))
    leaving.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(torch.randn(8, 4))
    model(torch.randn(8, 4))
    handle.penalty()


def test_an_error_of_a_hook_of_others_is_one_of_the_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    fails: list[int] = []
    model.register_forward_pre_hook(lambda module, arguments: 1 / 0 if fails else None)  # type: ignore[arg-type, return-value]
    handle = attach(of_activations(), model)
    model(torch.randn(8, 4))
    fails.append(1)
    with pytest.raises(ZeroDivisionError):
        model(torch.randn(8, 4))
    with pytest.raises(ValueError, match="raised an error"):
        handle.penalty()


class Nothing(nn.Sequential):
    """Keeps its output."""

    def forward(self, x: Tensor) -> None:
        self.output = super().forward(x)


def test_a_model_that_returns_none_is_called_while_an_error_is_handled() -> None:
    model = Nothing(nn.Linear(4, 6), nn.ReLU())
    handle = attach(of_activations(), model)
    try:
        raise ConnectionError
    except ConnectionError:
        model(torch.randn(8, 4))
        assert handle.penalty().item() == pytest.approx(mean_of_squares(model.output))
    kernels = attach(of_weights(), model)
    weight = torch.randn(6, 4, requires_grad=True)
    try:
        raise ConnectionError
    except ConnectionError:
        functional_call(model, {"0.weight": weight}, (torch.randn(8, 4),))
        assert kernels.penalty().item() == pytest.approx(weight.square().sum().item())


def test_a_branch_in_another_thread_is_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.here = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
            self.there = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
            self.errors: list[str] = []

        def forward(self, x: Tensor) -> Tensor:
            def work() -> None:
                try:
                    self.there(x)
                except ValueError as error:
                    self.errors.append(str(error))

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            return self.here(x)

    model = Branches()
    attach(of_activations(), model)
    model(torch.randn(8, 4))
    assert len(model.errors) == 1
    assert "'there.1' is called in another thread" in model.errors[0]


def test_a_traced_pass_is_none() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    handle = attach(of_activations(), model)
    traced = torch.jit.trace(model, torch.randn(8, 4), check_trace=False)
    traced(torch.randn(8, 4))
    with pytest.raises(ValueError, match="nothing was recorded"):
        handle.penalty()


def test_a_pass_past_all_sites_says_so() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.drops = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), True

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) if self.drops else self.layer(self.first(x))

    model = Dropping()
    handle = attach(of_activations(), model)
    model(torch.randn(3, 4))
    with pytest.raises(ValueError, match="went past all Sites"):
        handle.penalty()


class Low(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.rand(6, 6) > 0.5).double())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = random.random()

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def registered(kind: type[nn.Module]) -> Callable[[nn.Module], None]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", kind())  # type: ignore[return-value]


def pruned(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.4)


@pytest.mark.parametrize("change", [*map(registered, (Low, Masked, Scaled)), pruned])
def test_of_a_shared_weight_each_that_is_in_use_counts(change: Callable[[nn.Module], None]) -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    change(first)
    change(second)
    model = nn.Sequential(first, nn.ReLU(), second)
    model(torch.randn(2, 6))
    penalty = attach(of_weights(), model).penalty()
    assert penalty.item() == pytest.approx((first.weight.square().sum() + second.weight.square().sum()).item())
    gradients = torch.autograd.grad(penalty, [p for p in model.parameters() if p.dim() > 1], allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


def test_a_shared_weight_that_is_made_alike_counts_once() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    for layer in (first, second):
        registered(Doubled)(layer)
    penalty = attach(of_weights(), nn.Sequential(first, nn.ReLU(), second)).penalty()
    assert penalty.item() == pytest.approx(first.weight.square().sum().item())


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight * torch.bernoulli(torch.full_like(weight, 0.5), generator=self.generator)


class OfNumpy(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.from_numpy(np.random.rand(*weight.shape))


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight / self.calls


@pytest.mark.parametrize("kind", [OwnGenerator, OfNumpy, Counted])
def test_a_weight_is_that_of_the_pass_whatever_it_is_drawn_from(kind: type[nn.Module]) -> None:
    layer = nn.Linear(6, 6)
    registered(kind)(layer)
    handle = attach(of_weights(), nn.Sequential(layer, nn.ReLU()))
    used: list[Tensor] = []
    layer.parametrizations.weight.register_forward_hook(lambda a, b, weight: used.append(weight))  # type: ignore[operator, union-attr]
    handle.model(torch.randn(3, 6))
    calls = getattr(layer.parametrizations.weight[0], "calls", 0)  # type: ignore[index, union-attr]
    before = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    assert handle.penalty().item() == pytest.approx(used[-1].square().sum().item())
    assert len(used) == 1
    assert np.random.get_state()[1].tolist() == before  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="another weight each time"):
        handle.penalty()  # no pass since
    assert getattr(layer.parametrizations.weight[0], "calls", 0) == calls  # type: ignore[index, union-attr]


@pytest.mark.parametrize("reads", ["weight_norm_penalty", "orthogonal"])
@pytest.mark.parametrize(("other", "where"), [("latent_density", "post"), ("compound_batchnorm", "pre")])
def test_what_another_handle_has_added_is_no_kernel(reads: str, other: str, where: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh())
    handle = attach(load_method(reads, strength=1.0), model)
    alone = handle.penalty().item()
    attach(load_method(other), model, sites=where, example=torch.randn(8, 4))
    assert handle.penalty().item() == alone
    assert attach(load_method(reads, strength=1.0), model).penalty().item() == alone


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Dropout2d(0.0)])
def test_maps_without_a_batch_axis_are_refused_behind_other_layers(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.ReLU())
    handle = attach(of_activations(), model)
    with pytest.raises(ValueError, match="no batch axis"):
        model(torch.randn(3, 20, 20))
    output = model(torch.randn(2, 3, 20, 20))
    assert handle.penalty().item() == pytest.approx(mean_of_squares(output))


def test_the_first_tensor_is_not_passed_over_because_it_is_complex() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.complex(x, x), x

    model = nn.Sequential(nn.Linear(4, 6), Both())
    attach(of_activations(), model, sites=["1"])
    with pytest.raises(ValueError, match="no floating-point tensor"):
        model(torch.randn(8, 4))


@pytest.mark.parametrize("to_sparse", [Tensor.to_sparse, Tensor.to_sparse_csr])
def test_sparse_activations_are_refused(to_sparse: Callable[[Tensor], Tensor]) -> None:
    class Sparse(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return to_sparse(x)

    model = nn.Sequential(nn.Linear(4, 6), Sparse())
    attach(of_activations(), model, sites=["1"])
    with pytest.raises(ValueError, match="sparse tensors cannot be recorded"):
        model(torch.randn(8, 4))


def test_joined_channels_of_which_there_are_as_many_as_positions_are_asked_about() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.site = nn.Conv1d(8, 8, 3, padding=1), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            found = self.convolution(x)
            return self.site(torch.cat([found[..., :8], found[..., -8:]], dim=1))

    model = Joined()
    handle = attach(of_activations(features="channels"), model, sites=["site"])
    model(torch.randn(2, 8, 12))
    with pytest.raises(ValueError, match="'ntc' or 'ncl'"):
        handle.penalty()


@pytest.mark.parametrize("make", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.randn(2, 4))])
@pytest.mark.filterwarnings("ignore")
def test_a_scripted_part_is_passed_by(make: Callable[[nn.Module], nn.Module]) -> None:
    part = make(nn.Linear(4, 6))
    model = nn.Sequential(part, nn.ReLU(), nn.Linear(6, 2))
    handle = attach(of_activations(), model)
    activations = model[:2](x := torch.randn(8, 4))
    model(x)
    assert handle.penalty().item() == pytest.approx(mean_of_squares(activations))
    with pytest.raises(ValueError, match="scripted or traced"):
        attach(of_activations(), model, sites=["0"])
    with pytest.raises(ValueError, match="scripted or traced"):
        attach(of_weights(), part)


def test_a_copied_handle_says_what_it_is() -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
            self.handle = attach(of_activations(), self.layers)

    model = Holding()
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model.handle))):
        copied = made.handle if isinstance(made, Holding) else made
        assert "a copy of a handle" in repr(copied)
        for act in ("penalty", "remove"):
            with pytest.raises(ValueError, match=r"attach\(\) the method to the copied model"):
                getattr(copied, act)()
    output = model.layers(torch.randn(8, 4))
    assert model.handle.penalty().item() == pytest.approx(mean_of_squares(output))


def test_what_a_transform_has_recorded_is_read_within_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    handle = attach(of_activations(), model)
    vmap(model)(torch.randn(3, 8, 4))
    with pytest.raises(ValueError, match=r"torch\.func transforms"):
        handle.penalty()


@pytest.mark.parametrize("name", ["vcreg", "energy_distance"])
def test_a_second_derivative_that_is_not_there_is_an_error(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    handle = attach(load_method(name), model)
    inputs = torch.randn(8, 4)

    def penalty(weight: Tensor) -> Tensor:
        functional_call(model, {"0.weight": weight}, (inputs,))
        return handle.penalty()

    weight = model[0].weight.detach()
    once = torch.func.grad(penalty)(weight)
    leaf = weight.clone().requires_grad_()
    torch.testing.assert_close(once, torch.autograd.grad(penalty(leaf), leaf)[0])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(penalty(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.grad(lambda given: torch.func.grad(penalty)(given).sum())(weight)


def test_l2_after_batchnorm_keeps_float64() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).double()
    method = load_method("activity_prior", mode="l2_after_batchnorm", strength=1.0)
    handle = attach(method, model, example=torch.randn(8, 4))
    model(torch.randn(8, 4))
    assert handle.penalty().dtype == torch.float64
