"""Gradients of exact PER where it is linear, of each sample by itself, and how the penalty counts samples."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import erf, gammaln, hyp1f1
from torch import Tensor

from methods.per.method import PER, matched_noise, per_loss, per_losses
from reproduce.method import sample_directions


def directions_of_samples(dimension: int, dtype: torch.dtype = torch.float64) -> Tensor:
    h = torch.randn(3, dimension, generator=torch.Generator().manual_seed(dimension), dtype=torch.float64)
    return (h / h.norm(dim=1, keepdim=True)).to(dtype)


def slope_of_length(dimension: int) -> float:
    """E|<theta, u>| of a unit vector u: what PER grows by with the length of a sample, once noise is nothing to it."""
    return math.exp(gammaln(dimension / 2) - gammaln((dimension + 1) / 2)) / math.sqrt(math.pi)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dimension", [1, 2, 7, 40, 500])
@pytest.mark.parametrize("length", [1e10, 1e15, 1e25])
def test_far_out_the_gradient_is_the_direction(dimension: int, length: float, create_graph: bool) -> None:
    """Value and gradient of float32 samples whose squares float32 does, or does not, hold."""
    unit = directions_of_samples(dimension)
    h = (unit * length).float().requires_grad_()
    loss = per_loss(h)
    (gradient,) = torch.autograd.grad(loss, h, create_graph=create_graph)
    assert loss.item() == pytest.approx(slope_of_length(dimension) * length, rel=1e-6)
    torch.testing.assert_close(gradient.double(), slope_of_length(dimension) * unit / 3, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("dimension", [2, 7, 40])
@pytest.mark.parametrize("length", [1.0, 1e15])
def test_noise_is_a_loop_over_slices_at_any_length(dimension: int, length: float) -> None:
    """``mean_k (erf(<theta_k, h>/sqrt2) - c <g, theta_k>) phi_k`` with the gradient g of the closed form."""
    h = directions_of_samples(dimension) * length
    generator = torch.Generator().manual_seed(1)
    drawn = sample_directions(dimension, 6, generator, dtype=torch.float64).view(2, 3, dimension)
    share = dimension * (1 - math.sqrt(1 - 1 / dimension))
    if length == 1.0:
        slope = math.sqrt(2 / math.pi) / dimension * hyp1f1(0.5, dimension / 2 + 1, -0.5)
    else:
        slope = slope_of_length(dimension) / length
    wanted = torch.zeros_like(h)
    for row, sample in enumerate(h):
        for theta, phi in zip(*drawn, strict=True):
            along = math.fsum((sample * theta).tolist())
            wanted[row] += (erf(along / math.sqrt(2)) - share * slope * along) * phi / 3
    torch.testing.assert_close(matched_noise(h, drawn), wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dimension", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_samples_by_themselves_are_the_closed_form(dimension: int, dtype: torch.dtype) -> None:
    """Under `torch.func.vmap`, which allows no writing into a tensor that is given."""
    h = (directions_of_samples(dimension) * torch.tensor([[0.2], [1.0], [4.0]], dtype=torch.float64)).to(dtype)
    found = torch.func.vmap(torch.func.grad(per_loss))(h)
    assert found.dtype == dtype
    squares = h.double().square().sum(1, keepdim=True).numpy()
    slopes = math.sqrt(2 / math.pi) / dimension * hyp1f1(0.5, dimension / 2 + 1, -squares / 2)
    torch.testing.assert_close(found.double(), torch.from_numpy(slopes) * h.double(), rtol=2e-6, atol=0)


def test_the_penalty_says_whether_it_is_a_mean_over_samples() -> None:
    assert PER().is_mean_over_samples
    assert PER(reduction="mean").is_mean_over_samples
    assert not PER(reduction="sum").is_mean_over_samples


@pytest.mark.parametrize("dimension", [1, 5, 40])
def test_gradients_of_several_layers_are_taken_at_once(dimension: int) -> None:
    """As for a whole Jacobian: backward itself is mapped, in which nothing is written into a tensor that is given."""
    layers = [(scale * directions_of_samples(dimension)).requires_grad_() for scale in (0.5, 3.0)]
    found = torch.autograd.grad(per_losses(layers), layers, torch.eye(2, dtype=torch.float64), is_grads_batched=True)
    for place, (h, gradients) in enumerate(zip(layers, found, strict=True)):
        square = h.detach().square().sum(1, keepdim=True).numpy()
        slopes = math.sqrt(2 / math.pi) / dimension * hyp1f1(0.5, dimension / 2 + 1, -square / 2)
        wanted = torch.zeros(2, *h.shape, dtype=torch.float64)
        wanted[place] = torch.from_numpy(slopes) * h.detach() / 3
        torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=0)
