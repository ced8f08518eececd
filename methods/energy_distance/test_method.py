"""Oracles for the energy distance: mpmath, scipy, double loops, closed forms, Monte Carlo, and what it should do."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.energy_distance import method as module
from methods.energy_distance.method import attraction, energy_distance, sliced_energy_distance
from reproduce.method import sample_directions

S = math.sqrt(2 / math.pi)
DIMENSIONS = (1, 2, 3, 4, 5, 8, 16, 31, 33, 64, 650, 4096, 65536)
MEAN_SQUARES = (0.0, 2.0**-20, 2.0**-10, 0.125, 0.5, 1.0, 2.0, 5.0, 20.0, 300.0, 1e4)  # exact in float32


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hypergeometric(dimension: int, square: float) -> tuple[float, float]:
    """Attraction and its slope at |h|^2 = square, to 30 digits."""
    with mpmath.workdps(30):
        constant, b, x = mpmath.sqrt(2 / mpmath.pi), mpmath.mpf(dimension) / 2, mpmath.mpf(square) / 2
        value = constant * mpmath.hyp1f1(-0.5, b, -x, maxterms=10**7)
        slope = constant / dimension * mpmath.hyp1f1(0.5, b + 1, -x, maxterms=10**7)
    return float(value), float(slope)


def by_loops(rows: list[list[float]], groups: list[list[int]]) -> float:
    """The statistic from its definition, with pairs within each group."""
    dimension = len(rows[0])
    constant = float(mpmath.gamma(dimension / 2) / (mpmath.sqrt(mpmath.pi) * mpmath.gamma((dimension + 1) / 2)))
    pulled = [hypergeometric(dimension, sum(x * x for x in row))[0] for row in rows]
    pairs = [math.dist(rows[i], rows[j]) for group in groups for i in group for j in group if i != j]
    return 2 * sum(pulled) / len(pulled) - constant * sum(pairs) / len(pairs) - 2 / math.sqrt(math.pi)


def of_scaled_normal(scale: float) -> float:
    """Expectation where samples are scale times N(0, I), in every dimension."""
    return 2 * S * math.sqrt(1 + scale**2) - 2 * (1 + scale) / math.sqrt(math.pi)


def within_three_errors(samples: list[float] | np.ndarray, wanted: float) -> bool:
    error = np.std(samples, ddof=1) / math.sqrt(len(samples))
    assert error > 0
    return bool(abs(np.mean(samples) - wanted) < 3 * error)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_attraction_agrees_with_mpmath(dimension: int) -> None:
    wanted = np.array([hypergeometric(dimension, dimension * mean_square) for mean_square in MEAN_SQUARES])
    for dtype, tolerances in ((torch.float32, (1e-6, 2e-6)), (torch.float64, (2e-10, 2e-9))):
        value, slope = attraction(torch.tensor(MEAN_SQUARES, dtype=dtype), dimension)
        np.testing.assert_allclose(value, wanted[:, 0], rtol=tolerances[0])
        np.testing.assert_allclose(slope, wanted[:, 1], rtol=tolerances[1])


@pytest.mark.parametrize("dimension", [1, 2, 3, 7, 40])
def test_equals_a_double_loop(dimension: int) -> None:
    h = seeded(3, 2, dimension, seed=dimension) * 1.7
    wanted = by_loops(h.reshape(6, dimension).tolist(), [list(range(6))])
    assert energy_distance(h).item() == pytest.approx(wanted, abs=1e-9)
    assert energy_distance(h.float()).item() == pytest.approx(wanted, abs=1e-6)
    assert energy_distance(h, feature_axes=2).item() == pytest.approx(
        by_loops(h.reshape(3, -1).tolist(), [[0, 1, 2]]), abs=1e-9
    )


def test_pairs_are_taken_within_groups() -> None:
    """Eleven samples in groups of at least three: three groups of three, and two left over."""
    h = seeded(11, 4, seed=1)
    consecutive = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert energy_distance(h, group_size=3).item() == pytest.approx(by_loops(h.tolist(), consecutive), abs=1e-9)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(5)).tolist()
    drawn = [[order[i] for i in group] for group in consecutive]
    found = energy_distance(h, group_size=3, generator=torch.Generator().manual_seed(5))
    assert found.item() == pytest.approx(by_loops(h.tolist(), drawn), abs=1e-9)
    for large in (6, 11, 100):
        assert energy_distance(h, group_size=large) == energy_distance(h)


def test_drawn_groups_are_unbiased_for_all_pairs() -> None:
    """Samples in an order that is not random: neighbours alike, as time steps are."""
    h = seeded(12, 3, seed=2) + torch.arange(12.0, dtype=torch.float64).unsqueeze(1) / 2
    generator = torch.Generator().manual_seed(3)
    drawn = [energy_distance(h, 1, 3, generator).item() for _ in range(400)]
    assert within_three_errors(drawn, energy_distance(h).item())
    assert not within_three_errors(drawn, energy_distance(h, 1, 3).item())


@pytest.mark.parametrize(
    "function", [energy_distance, lambda h: sliced_energy_distance(h, directions=h.new_ones(1, 1))]
)
def test_one_dimension_agrees_with_scipy(function) -> None:
    """scipy's is the root of the biased statistic, in which the n pairs (i, i) count too."""
    h = seeded(40, 1, seed=4) * 0.6 + 0.3
    dense = scipy.stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    biased = scipy.stats.energy_distance(h[:, 0].numpy(), dense) ** 2
    gaps = sum(abs(a - b) for a, b in itertools.permutations(h[:, 0].tolist(), 2))
    assert function(h).item() == pytest.approx(biased - gaps * (1 / (40 * 39) - 1 / 40**2), abs=2e-5)


@pytest.mark.parametrize(("size", "group"), [(2, None), (5, None), (9, 3)])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_small_batches_are_unbiased(size: int, group: int | None, scale: float) -> None:
    """Closed form for a scaled normal law: zero at scale 1, .0916 at one half."""
    batches = seeded(600, size, 6, seed=size) * scale
    assert within_three_errors([energy_distance(batch, 1, group).item() for batch in batches], of_scaled_normal(scale))


def test_groups_cost_second_order_noise_alone() -> None:
    """At the target the variance grows by (n-1)/(m-1) = 5: samples are no noisier, only pairs are fewer."""
    batches = seeded(500, 16, 6, seed=16)
    variances = [np.var([energy_distance(batch, 1, size).item() for batch in batches]) for size in (4, 16)]
    assert variances[0] / variances[1] == pytest.approx(5, rel=0.3)


@pytest.mark.parametrize("dimension", [2, 64, 650])
def test_known_values(dimension: int) -> None:
    normal = seeded(512, dimension, seed=6)
    assert energy_distance(normal).item() == pytest.approx(0, abs=1.5e-2 / math.sqrt(dimension))
    assert energy_distance(normal / 2).item() == pytest.approx(0.09156, abs=3e-2 / math.sqrt(dimension))
    assert energy_distance(0 * normal).item() == pytest.approx(0.467389, abs=1e-6)
    assert 2 * S - 2 / math.sqrt(math.pi) == pytest.approx(0.467389, abs=1e-6)


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.5, 1.0, 3.0, 10.0])
def test_collapsed_samples_are_driven_apart_and_large_ones_together(scale: float) -> None:
    """The derivative with respect to the scale of a normal batch is 2 S s / sqrt(1+s^2) - 2/sqrt(pi)."""
    normal = seeded(256, 64, seed=7)
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    energy_distance(factor * normal).backward()
    wanted = 2 * S * scale / math.sqrt(1 + scale**2) - 2 / math.sqrt(math.pi)
    assert factor.grad.item() == pytest.approx(wanted, abs=0.02)


def test_descent_spreads_a_collapsed_batch_until_it_has_unit_variance() -> None:
    h = (0.01 * seeded(64, 8, seed=8)).requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(energy_distance(h, group_size=16), h)
        h.data -= 64 * gradient
    assert 0.8 < h.square().mean().item() < 1.25
    assert abs(h.mean().item()) < 0.1


@pytest.mark.parametrize("dimension", [2, 8, 200])
def test_closed_form_is_the_mean_over_many_slices(dimension: int) -> None:
    h = (seeded(12, dimension, seed=9) * 0.7 + 0.2).requires_grad_()
    generator = torch.Generator().manual_seed(10)
    losses, along = [], []
    for _ in range(300):
        loss = sliced_energy_distance(h, 16, generator)
        losses.append(loss.item())
        along.append((torch.autograd.grad(loss, h)[0] * seeded(12, dimension, seed=11)).sum().item())
    exact = energy_distance(h)
    (gradient,) = torch.autograd.grad(exact, h)
    assert within_three_errors(losses, exact.item())
    assert within_three_errors(along, (gradient * seeded(12, dimension, seed=11)).sum().item())


@pytest.mark.parametrize("dimension", [1, 3, 33])
@pytest.mark.parametrize("direct", [0, 2**23])
def test_gradient(dimension: int, direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DIRECT", direct)
    h = seeded(3, 2, dimension, seed=12).requires_grad_()
    assert torch.autograd.gradcheck(energy_distance, h)
    assert torch.autograd.gradcheck(lambda x: energy_distance(x, 1, 3), h)
    assert torch.autograd.gradcheck(lambda x: energy_distance(x, 1, 2, torch.Generator().manual_seed(0)), h)
    odd = h.detach().reshape(6, dimension)[:5].requires_grad_()  # one sample is in no group
    assert torch.autograd.gradcheck(lambda x: energy_distance(x, 1, 2, torch.Generator().manual_seed(0)), odd)
    assert torch.autograd.gradcheck(lambda x: sliced_energy_distance(x, directions=seeded(5, dimension)), h)


@pytest.mark.parametrize("direct", [0, 2**23])
def test_coincident_samples_do_not_repel_each_other(direct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three copies of each of two samples in float32, and the batch of zeros."""
    monkeypatch.setattr(module, "_DIRECT", direct)
    pair = seeded(2, 5000, seed=13)
    h = pair.repeat(3, 1).float().requires_grad_()
    loss = energy_distance(h)
    (gradient,) = torch.autograd.grad(loss, h)
    apart = (pair[0] - pair[1]) / torch.linalg.vector_norm(pair[0] - pair[1])
    constant = math.exp(math.lgamma(2500) - math.lgamma(2500.5)) / math.sqrt(math.pi)
    slopes = [hypergeometric(5000, row.square().sum().item())[1] for row in pair]
    wanted = 2 / 6 * slopes[0] * pair[0] - 2 * constant / 30 * 3 * apart
    torch.testing.assert_close(gradient[0].double(), wanted, rtol=1e-4, atol=1e-8)
    assert loss.item() == pytest.approx(by_loops(pair.repeat(3, 1).tolist(), [list(range(6))]), abs=2e-6)
    zeros = torch.zeros(4, 300, requires_grad=True)
    (gradient,) = torch.autograd.grad(energy_distance(zeros), zeros)
    assert torch.equal(gradient, torch.zeros(4, 300))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_both_ways_to_distances_agree_in_float32(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a large common offset, too: squares about 0 would keep no digit of the distances.

    The gradient has as many digits as the samples keep beside the offset, 2,000 times their spread.
    """
    h = (seeded(8, 9000, seed=14) * 0.5 + offset).float()
    exact = h.double().requires_grad_()
    (wanted,) = torch.autograd.grad(energy_distance(exact, group_size=4), exact)
    for direct in (0, 2**23):
        monkeypatch.setattr(module, "_DIRECT", direct)
        single = h.clone().requires_grad_()
        loss = energy_distance(single, group_size=4)
        (gradient,) = torch.autograd.grad(loss, single)
        assert loss.item() == pytest.approx(energy_distance(exact, group_size=4).item(), rel=1e-6, abs=1e-6)
        tolerance = 1e-4 if offset else 1e-6
        torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=tolerance * wanted.abs().max().item())


@given(dimension=st.integers(1, 20), seed=st.integers(0, 999), scale=st.floats(0.0, 20))
@settings(max_examples=30, deadline=None)
def test_depends_on_lengths_and_distances_alone(dimension: int, seed: int, scale: float) -> None:
    """Rotations and permutations change nothing, and translations only the attraction."""
    h = seeded(6, dimension, seed=seed) * scale
    rotation = torch.linalg.qr(seeded(dimension, dimension, seed=seed + 1)).Q
    loss = energy_distance(h)
    shuffled = h[torch.tensor([3, 1, 5, 0, 2, 4])].view(2, 3, -1)
    torch.testing.assert_close(energy_distance(h @ rotation), loss, rtol=0, atol=1e-9)
    torch.testing.assert_close(energy_distance(shuffled), loss, rtol=0, atol=1e-9)

    def pairs(samples: Tensor) -> Tensor:
        return energy_distance(samples) - 2 * attraction(samples.square().mean(1), dimension)[0].mean()

    torch.testing.assert_close(pairs(h + 3), pairs(h), rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", ["channels_last", "movedim", "transposed", "expanded"])
def test_any_memory_layout_gives_the_same(layout: str) -> None:
    base = seeded(5, 3, 4, 6, seed=15)
    h, axes = {
        "channels_last": (base.to(memory_format=torch.channels_last), 3),
        "movedim": (base.movedim(1, -1), 1),
        "transposed": (base.mT, 3),
        "expanded": (base[:1].expand(5, -1, -1, -1), 2),
    }[layout]
    dense = h.detach().contiguous().requires_grad_()
    h = h.detach().requires_grad_()
    losses = energy_distance(h, axes, 2), energy_distance(dense, axes, 2)
    torch.testing.assert_close(*losses)
    gradients = torch.autograd.grad(losses[0], h)[0], torch.autograd.grad(losses[1], dense)[0]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    """A square of 3e4 overflows float16; autocast changes nothing."""
    for scale, shape, axes in ((1.0, (4, 8, 40, 40), 3), (3e4, (4, 300), 1)):
        h = (seeded(*shape).clamp(-2, 2) * scale).to(dtype)
        h = h.to(memory_format=torch.channels_last) if axes == 3 else h
        wide, half = h.float().requires_grad_(), h.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = energy_distance(half, axes, 2)
            sliced = sliced_energy_distance(half, 4, torch.Generator().manual_seed(0))
        assert found.dtype == sliced.dtype == torch.float32
        torch.testing.assert_close(found, energy_distance(wide, axes, 2), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(sliced, sliced_energy_distance(wide, 4, torch.Generator().manual_seed(0)))
        (found * h.numel()).backward()
        (energy_distance(wide, axes, 2) * h.numel()).backward()
        torch.testing.assert_close(half.grad, wide.grad.to(dtype))


def test_nan_and_infinity_are_not_hidden() -> None:
    for dimension, wrong in itertools.product((1, 3, 50), (math.nan, math.inf)):
        h = torch.ones(4, dimension)
        h[1, 0] = wrong
        assert not energy_distance(h).isfinite()
        assert not energy_distance(h, 1, 2).isfinite()


def test_directions_are_uniform_on_the_sphere() -> None:
    directions = sample_directions(5, 40_000, torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(40_000, dtype=torch.float64))
    second_moment = directions.mT @ directions / 40_000  # I/5; entries scatter by less than 0.27/sqrt(n)
    torch.testing.assert_close(second_moment, torch.eye(5, dtype=torch.float64) / 5, atol=4 * 0.27 / 200, rtol=0)


@pytest.mark.parametrize("loss", [energy_distance, sliced_energy_distance])
@pytest.mark.parametrize(
    ("activations", "message"),
    [
        (torch.tensor(1.0), r"\(\.\.\., units\) and not empty"),
        (torch.zeros(0, 3), "not empty"),
        (torch.ones(2, 3, dtype=torch.int64), "floating point, got torch.int64"),
        (torch.ones(1, 3), r"at least 2 samples are needed, got activations of shape \(1, 3\)"),
    ],
)
def test_unusable_activations_are_refused(loss, activations: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(activations)


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="feature_axes must be 1 to 2, got 3"):
        energy_distance(torch.ones(4, 3), 3)
    with pytest.raises(ValueError, match="group_size must be at least 2, got 1"):
        energy_distance(torch.ones(4, 3), 1, 1)
    with pytest.raises(ValueError, match=r"\(slices, 3\).*got \(4, 2\)"):
        sliced_energy_distance(torch.ones(2, 3), directions=torch.ones(4, 2))
    with pytest.raises(ValueError, match="got 0 and 3"):
        sliced_energy_distance(torch.ones(2, 3), n_slices=0)
