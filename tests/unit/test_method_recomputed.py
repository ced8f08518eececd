"""attach(): what is computed again, by a checkpoint in a backward pass, is recorded, counted and drawn once."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from methods.activity_norm.method import ActivityNorm
from methods.activity_prior.method import ActivityPrior, Memory, prior_loss
from reproduce import load_method
from reproduce.method.attach import attach

L2 = ActivityNorm(kind="l2", strength=1.0)  # a sum over a sample, the mean over samples


def batch(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class ForceField(nn.Module):
    """Energies, and forces, which are a gradient that is taken inside the forward pass."""

    def __init__(self, is_checkpointed: bool, act: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(3, 8), act or nn.SiLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 1)
        self.is_checkpointed = is_checkpointed
        self.double()

    @torch.enable_grad()
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        positions = positions.detach().requires_grad_()
        if self.is_checkpointed:
            made = checkpoint(self.block, positions, use_reentrant=False)
        else:
            made = self.block(positions)
        energy = self.head(made).sum()
        return energy, -torch.autograd.grad(energy, positions, create_graph=True)[0]


def a_step(model: nn.Module, handle: Any, inputs: Tensor) -> dict[str, Tensor]:
    """Numbers of one step: loss, penalty, and the gradient of their sum."""
    energy, forces = model(inputs)
    loss, penalty = energy + forces.square().sum(), handle.penalty()
    model.zero_grad()
    (loss + penalty).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), "penalty": penalty.detach(), **gradients}


def test_what_is_computed_again_inside_the_forward_pass_is_recorded_once() -> None:
    plain, checkpointed = ForceField(is_checkpointed=False), ForceField(is_checkpointed=True)
    inputs = batch(16, 3)
    expected = a_step(plain, attach(L2, plain), inputs)
    by_hand = plain.block[:2](inputs).square().sum(1).mean()
    torch.testing.assert_close(expected["penalty"], by_hand.detach())
    torch.testing.assert_close(a_step(checkpointed, attach(L2, checkpointed), inputs), expected)


def test_a_backward_pass_in_another_thread_is_no_branch_of_the_model() -> None:
    """Autograd has a thread for each GPU, in which checkpoints are computed again."""

    class Threaded(ForceField):
        def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
            positions = positions.detach().requires_grad_()
            energy = self.head(checkpoint(self.block, positions, use_reentrant=False)).sum()
            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(torch.autograd.grad, energy, positions, create_graph=True).result()
            return energy, -found[0]

    model, threaded = ForceField(is_checkpointed=False), Threaded(is_checkpointed=True)
    expected = a_step(model, attach(L2, model), batch(16, 3))
    torch.testing.assert_close(a_step(threaded, attach(L2, threaded), batch(16, 3)), expected)


@pytest.mark.parametrize("name", ["batchnorm", "distribution_mismatch_correction", "vcl"])
def test_a_filled_site_inside_such_a_pass_is_met_once(name: str) -> None:
    found = []
    for is_checkpointed in (False, True):
        model = ForceField(is_checkpointed, nn.Softplus())
        handle = attach(load_method(name), model, sites="pre", example=batch(16, 3))
        found.append(a_step(model, handle, batch(16, 3)))
    assert len(found[0]) > 6  # penalties, and gradients of what the method added too
    torch.testing.assert_close(found[1], found[0])


def test_a_reentrant_checkpoint_inside_such_a_pass_is_refused() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.part = nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())

        def forward(self, value: Tensor) -> Tensor:
            made = checkpoint(self.part, self.first(value), use_reentrant=True)
            made.sum().backward()
            return self.first(value)

    model = Inner().double()
    attach(L2, model)
    with pytest.raises(ValueError, match=r"module 'part\.1' lies in a reentrant checkpoint"):
        model(batch(5, 3))


def test_gradients_inside_the_forward_pass_record_what_only_they_call() -> None:
    """Without a checkpoint nothing is computed again: a potential is called in the pass, and its Sites count."""

    class Gradient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.potential = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

        def forward(self, value: Tensor) -> Tensor:
            value = value.detach().requires_grad_()
            return torch.autograd.grad(self.potential(value).sum(), value, create_graph=True)[0]

    model, inputs = Gradient().double(), batch(7, 3)
    handle = attach(L2, model)
    model(inputs)
    torch.testing.assert_close(handle.penalty(), model.potential[:2](inputs).square().sum(1).mean())


def test_a_weight_that_is_drawn_inside_such_a_pass_is_that_of_its_first_time() -> None:
    model = ForceField(is_checkpointed=True)
    stored = model.block[0].weight.detach().clone()
    parametrize.register_parametrization(model.block[0], "weight", nn.Dropout(0.5))
    handle = attach(load_method("weight_norm_penalty", strength=1.0), model)
    torch.manual_seed(3)
    model(batch(16, 3))
    torch.manual_seed(3)
    kernels = nn.functional.dropout(stored), model.block[2].weight, model.head.weight
    reference = nn.Sequential(*[nn.Linear(*weight.shape[::-1]) for weight in kernels]).double()
    for layer, weight in zip(reference, kernels, strict=True):
        layer.weight = nn.Parameter(weight.detach())
    torch.testing.assert_close(handle.penalty(), attach(handle.method, reference).penalty())


class Blocks(nn.Module):
    """One block, which may lie in a checkpoint."""

    def __init__(self, is_checkpointed: bool, block: nn.Module) -> None:
        super().__init__()
        self.block, self.is_checkpointed = block.double(), is_checkpointed

    def forward(self, value: Tensor) -> Any:
        return checkpoint(self.block, value, use_reentrant=False) if self.is_checkpointed else self.block(value)


def tanh_block(is_checkpointed: bool = False) -> Blocks:
    torch.manual_seed(0)
    return Blocks(is_checkpointed, nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))


def no_pass(model: Blocks, value: Tensor) -> None:
    """Nothing between a pass and its penalty."""


def a_pass_without_gradient(model: Blocks, value: Tensor) -> None:
    with torch.no_grad():
        model(value)


def a_part_called_alone(model: Blocks, value: Tensor) -> None:
    model.block(value)


def a_copy_that_is_called(model: Blocks, value: Tensor) -> None:
    copied = copy.deepcopy(model)
    copied(value)
    assert torch.equal(memory_of(copied).values, memory_of(model).values)  # as deep copies record nothing


def memory_of(model: Blocks) -> Memory:
    (found,) = [module for module in model.modules() if isinstance(module, Memory)]
    return found


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("between", [no_pass, a_pass_without_gradient, a_part_called_alone, a_copy_that_is_called])
def test_a_memory_takes_in_what_is_recorded_alone(is_checkpointed: bool, between: Any) -> None:
    """By hand: the histogram is that of the last three batches, the first one in place of those that have not come."""
    model, inputs = tanh_block(is_checkpointed), batch(5, 8, 3)
    made = model.block[:2](inputs).detach()
    handle = attach(ActivityPrior(strength=1.0, memory=24), model, example=inputs[0])
    for step in range(5):
        output = model(inputs[step])
        between(model, batch(8, 3, seed=7))
        penalty = handle.penalty()
        (output.sum() + penalty).backward()
        samples = made[[max(step - 2, 0), max(step - 1, 0), step]].flatten(0, 1)
        torch.testing.assert_close(penalty, prior_loss(samples, Normal(0.0, 1.0)))
        assert {*memory_of(model).values[:, 0].tolist()} == {*samples[:, 0].tolist()}


def test_a_memory_takes_in_what_is_recorded_of_a_part_in_evaluation() -> None:
    model, inputs = tanh_block(), batch(3, 8, 3)
    made = model.block[:2](inputs).detach()
    handle = attach(ActivityPrior(strength=1.0, memory=16), model, example=inputs[0])
    model.block.eval()
    for step, before in ((0, 0), (1, 0), (2, 1)):
        model(inputs[step])
        torch.testing.assert_close(handle.penalty(), prior_loss(made[[before, step]].flatten(0, 1), Normal(0.0, 1.0)))


def recurrent_step(is_checkpointed: bool, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = Blocks(is_checkpointed, nn.LSTM(3, 4))
    handle = attach(load_method("recurrent_batchnorm", initial_scale=1.0, **options), model)
    (model(batch(5, 8, 3))[0].square().mean() + handle.penalty()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_noise_that_a_checkpoint_would_draw_anew_is_refused() -> None:
    recurrent_step(False, initial_state_noise=1.0)
    with pytest.raises(ValueError, match=r"cannot draw initial_state_noise a second time.*leave the LSTM out of"):
        recurrent_step(True, initial_state_noise=1.0)


@pytest.mark.parametrize("learn_initial_state", [False, True])
def test_without_noise_a_checkpoint_changes_no_gradient(learn_initial_state: bool) -> None:
    options = {"learn_initial_state": learn_initial_state}
    torch.testing.assert_close(recurrent_step(True, **options), recurrent_step(False, **options))
