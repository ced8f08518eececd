"""Oracles for the sliced Wasserstein distance: scipy, dense quantiles, closed forms, order statistics, simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.sliced_wasserstein.method import SlicedWasserstein, sliced_wasserstein
from reproduce.method import sample_directions
from reproduce.method.sites import Site, Trace, watch

S = math.sqrt(2 / math.pi)
ONE = torch.ones(1, 1, dtype=torch.float64)


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def within_three_errors(samples: list[float] | np.ndarray, wanted: float) -> bool:
    error = np.std(samples, ddof=1) / math.sqrt(len(samples))
    assert error > 0
    return bool(abs(np.mean(samples) - wanted) < 3 * error)


def dense_quantiles(n: int, each: int) -> np.ndarray:
    """(n, each): quantiles of N(0, 1) at the middles of n x each pieces of probability."""
    return scipy.stats.norm.ppf((np.arange(n * each) + 0.5) / (n * each)).reshape(n, each)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize(("scale", "shift"), [(0.0, 0.0), (1.0, 0.0), (0.3, 0.5), (4.0, -2.0)])
def test_one_dimension_agrees_with_dense_quantiles(n: int, scale: float, shift: float) -> None:
    """Either direction of a line sees the same distance, since the target is symmetric."""
    h = seeded(n, 1, seed=n) * scale + shift
    quantiles = dense_quantiles(n, 200_000 // n)
    first = scipy.stats.wasserstein_distance(h[:, 0].numpy(), quantiles.ravel())
    second = np.mean((h[:, 0].sort().values.numpy()[:, None] - quantiles) ** 2)
    for seed in range(3):
        assert sliced_wasserstein(h, 2, 1, generator(seed)).item() == pytest.approx(first, abs=1e-5)
        assert sliced_wasserstein(h, 2, 2, generator(seed)).item() == pytest.approx(second, abs=2e-4)


def test_slices_equal_a_loop_over_projections() -> None:
    h, directions = seeded(3, 4, 6), sample_directions(6, 5, generator(1), dtype=torch.float64)
    for order in (1, 2):
        wanted = []
        for direction in directions:
            line = torch.tensor([[float(row @ direction)] for row in h.reshape(12, 6)], dtype=torch.float64)
            wanted.append(sliced_wasserstein(line, order=order, directions=ONE).item())
        found = sliced_wasserstein(h, order=order, directions=directions)
        assert found.item() == pytest.approx(np.mean(wanted), rel=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.0), (3.0, 0.0), (1.0, 0.7), (0.2, -0.4)])
def test_shifted_and_scaled_normal_laws(scale: float, shift: float) -> None:
    """W_2^2 = shift^2 + (scale - 1)^2; W_1 = |shift| at scale 1, sqrt(2/pi) |scale - 1| at shift 0."""
    h = torch.from_numpy(scale * dense_quantiles(20_000, 1) + shift)
    second = sliced_wasserstein(h, order=2, directions=ONE).item()
    assert second == pytest.approx(shift**2 + (scale - 1) ** 2, abs=1e-3)  # tails that quantiles cut off
    if scale == 1 or shift == 0:
        first = sliced_wasserstein(h, order=1, directions=ONE).item()
        assert first == pytest.approx(abs(shift) + S * abs(scale - 1), abs=3e-4)


def test_a_shift_in_many_dimensions_costs_its_square_over_the_dimension() -> None:
    """The mean over directions of <theta, shift>^2, for samples that are normal but for the shift."""
    shift = 3 * seeded(8, seed=2)
    h = seeded(20_000, 8, seed=3) + shift
    slices = [sliced_wasserstein(h, 1, 2, generator(seed)).item() for seed in range(60)]
    assert within_three_errors(slices, shift.square().sum().item() / 8)


def mean_order_statistics(n: int) -> np.ndarray:
    """E z_(i) of n standard normal numbers, by quadrature over the beta law of their levels."""
    z = np.linspace(-9, 9, 20_001)
    level, density = scipy.stats.norm.cdf(z), scipy.stats.norm.pdf(z)
    return np.array(
        [np.sum(z * density * scipy.stats.beta.pdf(level, i, n + 1 - i)) * (z[1] - z[0]) for i in range(1, n + 1)]
    )


@pytest.mark.parametrize("n", [4, 32])
def test_a_finite_batch_of_the_target_has_the_distance_and_the_scale_that_the_card_says(n: int) -> None:
    """E W_2^2 = 2 (1 - r), least at scale r, with r the mean product of expected order statistics and cell means."""
    edge = scipy.stats.norm.pdf(scipy.stats.norm.ppf(np.arange(n + 1) / n))
    ratio = float(np.mean(mean_order_statistics(n) * n * (edge[:-1] - edge[1:])))
    scale = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    losses, slopes = [], []
    for seed in range(500):
        h = seeded(n, 1, seed=seed)
        losses.append(sliced_wasserstein(h, order=2, directions=ONE).item())
        slopes.append(torch.autograd.grad(sliced_wasserstein(scale * h, order=2, directions=ONE), scale)[0].item())
    assert 0.7 < ratio < 1
    assert within_three_errors(losses, 2 * (1 - ratio))
    assert within_three_errors(slopes, 0.0)


@pytest.mark.parametrize(("order", "wanted"), [(1, -S), (2, -2.0)])
def test_the_pull_out_of_a_collapse_does_not_vanish(order: int, wanted: float) -> None:
    """d/ds at s near 0 of a batch s x, in one dimension: PER's own bound has slope 0 there."""
    quantiles = torch.from_numpy(dense_quantiles(2_000, 1))
    scale = torch.tensor(1e-3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(sliced_wasserstein(scale * quantiles, order=order, directions=ONE), scale)
    assert slope.item() == pytest.approx(wanted, rel=5e-3)


def test_independent_coupling_is_an_upper_bound() -> None:
    """E|x - Z|, which PER averages, is at least W_1, slice by slice."""
    for scale in (0.0, 0.5, 1.0, 3.0):
        h = seeded(50, 1, seed=4).numpy() * scale
        independent = np.abs(h - dense_quantiles(1, 20_000)).mean()
        coupled = sliced_wasserstein(torch.from_numpy(h), order=1, directions=ONE).item()
        assert independent >= coupled - 1e-4
        assert (independent > coupled + 0.2) == (scale > 0)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_gradient(order: int, n: int) -> None:
    directions = sample_directions(3, 4, generator(5), dtype=torch.float64)
    for scale in (0.1, 2.0):
        h = (seeded(n, 3, seed=6) * scale).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: sliced_wasserstein(x, order=order, directions=directions), h)


def test_descent_turns_a_skewed_batch_into_the_cell_means() -> None:
    """In one dimension the optimum of W_2 is the mean of N(0, 1) over each of n cells."""
    h = (seeded(16, 1, seed=7).square() - 3).requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(sliced_wasserstein(h, order=2, directions=ONE), h)
        h.data -= 4 * gradient
    wanted = dense_quantiles(16, 20_000).mean(axis=1)
    np.testing.assert_allclose(h.detach()[:, 0].sort().values, wanted, atol=1e-3)


@given(dimension=st.integers(1, 12), n=st.integers(1, 40), seed=st.integers(0, 999), order=st.sampled_from([1, 2]))
@settings(max_examples=30, deadline=None)
def test_is_never_negative_and_blind_to_the_order_of_samples(dimension: int, n: int, seed: int, order: int) -> None:
    h = seeded(n, dimension, seed=seed) * 1.5
    directions = sample_directions(dimension, 6, generator(seed), dtype=torch.float64)
    loss = sliced_wasserstein(h, order=order, directions=directions)
    assert loss > 0
    torch.testing.assert_close(sliced_wasserstein(h.flip(0), order=order, directions=directions), loss)
    torch.testing.assert_close(sliced_wasserstein(-h, order=order, directions=directions), loss)


@pytest.mark.parametrize("order", [1, 2])
def test_float32_keeps_its_digits_on_many_samples(order: int) -> None:
    """Each of 50,000 cells of W_1 is a difference of numbers 10,000 times as large."""
    h = seeded(50_000, 1, seed=8)
    wanted = sliced_wasserstein(h, order=order, directions=ONE).item()
    found = sliced_wasserstein(h.float(), order=order, directions=ONE)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("order", [1, 2])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype, order: int) -> None:
    for scale in (1.0, 3e4):
        h = (seeded(5, 300).clamp(-2, 2) * scale).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found = sliced_wasserstein(h, 4, order, generator())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, sliced_wasserstein(h.float(), 4, order, generator()))


@pytest.mark.parametrize("order", [1, 2])
def test_nan_is_not_hidden(order: int) -> None:
    h = torch.ones(4, 3)
    h[1, 0] = math.nan
    assert sliced_wasserstein(h, 2, order, generator()).isnan()


@pytest.mark.parametrize(
    ("activations", "options", "message"),
    [
        (torch.tensor(1.0), {}, r"\(\.\.\., units\) and not empty"),
        (torch.zeros(0, 3), {}, "not empty"),
        (torch.ones(2, 3, dtype=torch.int64), {}, "floating point, got torch.int64"),
        (torch.ones(2, 3), {"order": 3}, "order is 1 or 2, got 3"),
        (torch.ones(2, 3), {"n_slices": 0}, "got 0 and 3"),
        (torch.ones(2, 3), {"directions": torch.ones(4, 2)}, r"\(slices, 3\).*got \(4, 2\)"),
    ],
)
def test_unusable_input_is_refused(activations: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(activations, **options)


# The method on recorded activations


def recorded(axes: str, *activations: Tensor) -> Trace:
    """The Trace of a model that passed each activation through a post Site of its own."""
    channel = 1 if axes == "nchw" else -1
    sites = [Site("post", axes, (value.shape[channel],)) for value in activations]
    trace = watch(nn.ModuleList([*sites, nn.Linear(1, 1)]).train())
    for site, value in zip(sites, activations, strict=True):
        site(value)
    return trace


def penalty(trace: Trace, **fields) -> Tensor:
    return SlicedWasserstein(**fields).penalty(trace, torch.tensor(0.5), generator())


@pytest.mark.parametrize("order", [1, 2])
def test_penalty_sums_layers_that_share_directions_by_width(order: int) -> None:
    h, other = seeded(4, 6, dtype=torch.float32), seeded(4, 9, dtype=torch.float32)
    stream = generator()
    draws = [sample_directions(width, 3, stream) for width in (6, 9)]
    wanted = [sliced_wasserstein(v, order=order, directions=draw) for v, draw in zip((h, other), draws, strict=True)]
    found = penalty(recorded("nc", h, other, h), strength=0.3, order=order, n_slices=3)
    torch.testing.assert_close(found, 0.3 * (2 * wanted[0] + wanted[1]))


def test_maps_are_one_sample_flattened_or_one_for_each_location() -> None:
    maps = seeded(2, 3, 4, 5, dtype=torch.float32)
    trace = recorded("nchw", maps)
    torch.testing.assert_close(penalty(trace, strength=1.0), sliced_wasserstein(maps.flatten(1), generator=generator()))
    locations = maps.permute(0, 2, 3, 1).reshape(40, 3)
    found = penalty(trace, strength=1.0, features="channels")
    torch.testing.assert_close(found, sliced_wasserstein(locations, generator=generator()))


def test_strength_zero_is_exactly_zero_whatever_the_activations() -> None:
    found = penalty(recorded("nc", torch.full((2, 3), math.nan)), strength=0.0)
    assert found.item() == 0.0
    assert found.shape == ()


@pytest.mark.parametrize("fields", [{"strength": -1.0}, {"order": 3}, {"n_slices": 0}])
def test_unusable_hyperparameters_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SlicedWasserstein(**fields)
