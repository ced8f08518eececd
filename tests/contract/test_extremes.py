"""Functions of tensors with extreme numbers: right at 1e20 in float32, finite at both ends of logarithms and roots."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.activity_norm.method import l1_activity
from methods.energy_distance.method import energy_distance, sliced_energy_distance
from methods.orthogonal.method import mean_absolute_cosine, mutual_coherence
from methods.per.method import limit_per_loss, noisy_per_loss, per_loss, sliced_per_loss
from methods.quantile_activation.method import quantile_transform
from methods.sigreg.method import sigreg, sliced_sigreg
from methods.sliced_wasserstein.method import sliced_wasserstein
from methods.sparse_autoencoder.method import kl_sparsity, l1_code_penalty
from methods.variance_preserving_init.method import relu_correlation_map
from methods.vcl.method import variance_constancy_loss
from reproduce.method import moderate_scale

HUGE = 1e20


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def per_slice(rows: list[list[float]]) -> tuple[float, list[list[float]]]:
    """What PER tends to for long vectors, c_d |h|, the mean over samples; and its gradient."""
    lengths, dimension = [math.hypot(*row) for row in rows], len(rows[0])
    c = math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)) / math.sqrt(math.pi)
    gradient = [[c * number / length / len(rows) for number in row] for row, length in zip(rows, lengths, strict=True)]
    return c * math.fsum(lengths) / len(rows), gradient


@pytest.mark.parametrize("dimension", [1, 2, 5, 40])
@pytest.mark.parametrize("size", [1e12, HUGE, 1e33])
def test_per_of_long_vectors(dimension: int, size: float) -> None:
    activations = (size * seeded(6, dimension)).float().requires_grad_()
    value, gradient = per_slice(activations.double().tolist())
    per_loss(activations).backward()
    assert per_loss(activations).item() == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(activations.grad, torch.tensor(gradient), rtol=1e-5, atol=0)
    transformed = torch.func.grad(per_loss)(activations.detach())
    torch.testing.assert_close(transformed, torch.tensor(gradient), rtol=1e-5, atol=0)


def test_long_samples_change_nothing_of_the_others() -> None:
    """The gradient of an ordinary sample, which a common scale must not lose."""
    activations = seeded(6, 40).float()
    alone, beside = activations.clone().requires_grad_(), activations.clone()
    beside[3] *= HUGE
    beside.requires_grad_()
    per_loss(alone).backward()
    per_loss(beside).backward()
    others = [0, 1, 2, 4, 5]
    torch.testing.assert_close(beside.grad[others], alone.grad[others], rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", [sliced_per_loss, noisy_per_loss])
def test_slices_of_long_vectors(loss: Any) -> None:
    directions = torch.nn.functional.normalize(seeded(2, 4, 5, seed=1), dim=-1)
    directions = directions[0] if loss is sliced_per_loss else directions
    activations = (HUGE * seeded(6, 5)).float().requires_grad_()
    found = loss(activations, directions=directions.float())
    found.backward()
    if loss is sliced_per_loss:
        along = activations.detach().double() @ directions.T
        assert found.item() == pytest.approx(along.abs().mean().item(), rel=1e-5)
        wanted = along.sign() @ directions / along.numel()
        torch.testing.assert_close(activations.grad, wanted.float(), rtol=1e-5, atol=1e-7)
    else:
        assert found.item() == pytest.approx(per_slice(activations.double().tolist())[0], rel=1e-5)
        assert activations.grad.isfinite().all()


def test_the_limit_of_per_for_long_vectors() -> None:
    activations = (HUGE * seeded(6, 40)).float().requires_grad_()
    found = limit_per_loss(activations)
    found.backward()
    rows = activations.double().tolist()
    lengths = [math.hypot(*row) for row in rows]
    c = math.sqrt(2 / math.pi / 40)
    assert found.item() == pytest.approx(c * math.fsum(lengths) / 6, rel=1e-5)
    wanted = [[c * number / length / 6 for number in row] for row, length in zip(rows, lengths, strict=True)]
    torch.testing.assert_close(activations.grad, torch.tensor(wanted), rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [1e12, HUGE])
@pytest.mark.parametrize("dimension", [1, 5, 40])
def test_energy_distance_of_long_vectors(size: float, dimension: int) -> None:
    activations = (size * seeded(6, dimension)).float().requires_grad_()
    found = energy_distance(activations)
    found.backward()
    rows = activations.double().tolist()
    attraction, gradient = per_slice(rows)
    c = attraction * 6 / math.fsum(math.hypot(*row) for row in rows)
    pairs = math.fsum(math.dist(one, other) for one in rows for other in rows)
    assert found.item() == pytest.approx(2 * attraction - c * pairs / 30, rel=1e-4)
    for place, own in enumerate(rows):
        for axis in range(dimension):
            push = math.fsum((own[axis] - other[axis]) / math.dist(own, other) for other in rows if other is not own)
            wanted = 2 * gradient[place][axis] - 2 * c * push / 30
            assert activations.grad[place, axis].item() == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_slices_of_the_energy_distance_of_long_vectors() -> None:
    directions = torch.nn.functional.normalize(seeded(4, 5, seed=1), dim=-1)
    activations = (HUGE * seeded(6, 5)).float().requires_grad_()
    found = sliced_energy_distance(activations, directions=directions.float())
    found.backward()
    along = activations.detach().double() @ directions.T
    wanted = 2 * along.abs().mean() - (along[:, None] - along[None]).abs().sum((0, 1)).mean() / 30
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert activations.grad.isfinite().all()


@pytest.mark.parametrize("twins", [1, 2])
def test_sigreg_of_long_vectors(twins: int) -> None:
    """The kernel is 1 between samples that coincide and 0 between all others, and those and the target."""
    activations = (HUGE * seeded(4, 5)).float().repeat(twins, 1).requires_grad_()
    n = len(activations)
    found = sigreg(activations)
    found.backward()
    wanted = n * math.sqrt(2 * math.pi) * (twins * n / n**2 + 1 / math.sqrt(3))
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    assert activations.grad.abs().max() < 1e-15
    assert torch.func.grad(sigreg)(activations.detach()).abs().max() < 1e-15


def test_what_only_needs_to_stay_finite() -> None:
    directions = torch.nn.functional.normalize(seeded(4, 5, seed=1), dim=-1).float()
    for loss in (
        lambda h: sliced_sigreg(h, directions=directions),
        lambda h: sliced_wasserstein(h, order=1, directions=directions),
        l1_activity,
    ):
        activations = (HUGE * seeded(6, 5)).float().requires_grad_()
        found = loss(activations)
        found.backward()
        assert found.isfinite()
        assert activations.grad.isfinite().all()


def test_ratios_do_not_see_the_size() -> None:
    ordinary = seeded(12, 5)
    for ratio in (
        lambda h: variance_constancy_loss(h, 0.0),
        mean_absolute_cosine,
        lambda h: mutual_coherence(h, normalised=True),
    ):
        wanted = ordinary.clone().requires_grad_()
        ratio(wanted).backward()
        huge = (HUGE * ordinary).float().requires_grad_()
        (HUGE * ratio(huge)).backward()  # the gradient itself is a number that float32 has not
        assert ratio(huge).item() == pytest.approx(ratio(ordinary).item(), rel=1e-5)
        torch.testing.assert_close(huge.grad, wanted.grad.float(), rtol=1e-3, atol=1e-5)


def test_quantiles_have_their_slope_whatever_the_size() -> None:
    values, along = seeded(30, 5), seeded(30, 5, seed=1)
    gradients = []
    for size in (1e3, HUGE):
        scaled = (size * values).float().requires_grad_()
        (size * quantile_transform(scaled) * along.float()).sum().backward()
        gradients.append(scaled.grad)
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_long_decoder_row_weighs_its_latent() -> None:
    decoder = (HUGE * seeded(3, 4)).float()
    wanted = math.fsum(math.hypot(*row) for row in decoder.double().tolist())
    assert l1_code_penalty(torch.ones(2, 3), decoder).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("largest", [0.0, 1e-30, 1.0, 2.0**39, 2.0**41, 1e20, 3e38])
def test_the_scale_is_a_power_of_two_and_one_where_it_can_be(largest: float) -> None:
    numbers = torch.tensor([[-largest, 0.0], [largest / 3, 1e-3]])
    scale = moderate_scale(numbers)
    assert math.frexp(scale.item())[0] == 0.5
    assert (numbers * scale).abs().max() <= 2.0**40
    assert (scale == 1) == (largest < 2**40)
    for other in (math.inf, math.nan):
        assert moderate_scale(torch.tensor([other, largest])) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("samples", [1, 8, 1000])
def test_kl_of_saturated_and_silent_units(dtype: torch.dtype, samples: int) -> None:
    before = torch.zeros(samples, 4, dtype=dtype)
    before[:, 0], before[:, 1], before[:, 2] = 20.0, -20.0, -60.0
    before.requires_grad_()
    found = kl_sparsity(torch.sigmoid(before), 0.05)
    found.backward()
    assert found.isfinite()
    assert before.grad.isfinite().all()
    # Between the ends it is the term of the definition: half of the samples' units are at 1/2.
    middle = 0.05 * math.log(0.05 / 0.5) + 0.95 * math.log(0.95 / 0.5)
    assert kl_sparsity(torch.sigmoid(before[:, 3:]), 0.05).item() == pytest.approx(middle, rel=1e-6)
    saturated = 0.05 * math.log(0.05) + 0.95 * math.log(0.95 * 2**24)
    assert kl_sparsity(torch.ones(samples, 1, dtype=dtype), 0.05).item() == pytest.approx(saturated, rel=1e-6)


def test_kl_of_what_is_no_probability_is_not_a_number() -> None:
    assert kl_sparsity(torch.full((4, 2), 1.5), 0.05).isnan()
    assert kl_sparsity(torch.full((4, 2), math.nan), 0.05).isnan()


def test_the_correlation_map_has_a_slope_at_both_ends() -> None:
    rho = torch.tensor([-1.0, 0.0, 0.3, 1.0], dtype=torch.float64, requires_grad=True)
    relu_correlation_map(rho).sum().backward()
    wanted = [1 - math.acos(value) / math.pi for value in rho.tolist()]
    assert rho.grad.tolist() == pytest.approx(wanted, abs=1e-12)
    assert relu_correlation_map(rho).tolist()[::3] == [0.0, 1.0]
