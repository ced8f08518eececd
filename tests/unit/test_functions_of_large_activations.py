"""What docs/own_model.md promises of functions of tensors in float32, where numbers are large."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from methods.activity_norm.method import (
    activation_regularization,
    l1_activity,
    l2_activity,
    temporal_activation_regularization,
)
from methods.activity_prior.method import prior_loss
from methods.energy_distance.method import energy_distance, sliced_energy_distance
from methods.per.method import per_loss, sliced_per_loss
from methods.sliced_wasserstein.method import sliced_wasserstein
from methods.vcl.method import variance_constancy_loss
from methods.vcreg.method import covariance_penalty, full_covariance_penalty, variance_hinge

Function = Callable[[Tensor], Tensor]
NORMAL = torch.distributions.Normal(0.0, 1.0)


def prior(distance: str) -> Function:
    return lambda activations: prior_loss(activations, NORMAL, distance=distance)


def along_axes(function: Callable[..., Tensor], **options: int) -> Function:
    return lambda activations: function(activations, directions=torch.eye(6, dtype=activations.dtype), **options)


OF_ANY_SCALE: dict[str, Function] = {
    "l1_activity": l1_activity,
    "wasserstein1": prior("wasserstein1"),
    "cramer": prior("cramer"),
    "sliced_wasserstein 1": along_axes(sliced_wasserstein, order=1),
    "energy_distance": energy_distance,
    "sliced_energy_distance": along_axes(sliced_energy_distance),
    "per_loss": per_loss,
    "sliced_per_loss": along_axes(sliced_per_loss),
    "variance_hinge": variance_hinge,
    "variance_constancy_loss": variance_constancy_loss,
}
SQUARES: dict[str, Function] = {
    "l2_activity": l2_activity,
    "activation_regularization": activation_regularization,
    "temporal": lambda activations: temporal_activation_regularization(activations.view(4, 10, 6)),
    "wasserstein2": prior("wasserstein2"),
    "moments": prior("moments"),
    "kl": prior("kl"),
    "sliced_wasserstein 2": along_axes(sliced_wasserstein, order=2),
}
FOURTH_POWERS: dict[str, Function] = {
    "covariance_penalty": covariance_penalty,
    "full_covariance_penalty": full_covariance_penalty,
}
CASES = [
    *((name, function, 1e20) for name, function in OF_ANY_SCALE.items()),
    *((name, function, 1e18) for name, function in SQUARES.items()),
    *((name, function, 1e8) for name, function in FOURTH_POWERS.items()),
]


@pytest.mark.parametrize(("function", "size"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_value_and_its_gradient_are_those_of_double_precision(function: Function, size: float) -> None:
    activations = size * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    single, double = activations.clone().requires_grad_(), activations.double().requires_grad_()
    found, expected = function(single), function(double)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0.0)
    (pull,), (expected_pull,) = torch.autograd.grad(found, single), torch.autograd.grad(expected, double)
    torch.testing.assert_close(pull.double(), expected_pull, rtol=1e-2, atol=1e-3 * float(expected_pull.abs().max()))


@pytest.mark.parametrize("function", SQUARES.values(), ids=SQUARES)
def test_a_mean_of_squares_beyond_float32_is_infinite_and_no_small_number(function: Function) -> None:
    activations = 1e20 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert function(activations) == torch.inf
