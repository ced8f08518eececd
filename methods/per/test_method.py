"""Oracles for PER: mpmath, quadrature, Monte Carlo, naive loops, and the facts that the card states."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.per.figures import FIGURES, N_SLICES, loss_and_gradient, noise_to_signal
from methods.per.method import PER, per_loss, sliced_per_loss, value_and_slope
from reproduce.method import Site, sample_directions
from reproduce.method.sites import Trace, watch

DIMENSIONS = (1, 2, 3, 5, 8, 16, 24, 31, 32, 33, 64, 650, 4096, 65536)
MEAN_SQUARES = (0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 300.0, 1e4)  # |h| from 0 to 100 sqrt(d)


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact(dimension: int, square: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Value, and slope with gradient = slope * h, of the closed form to 30 digits; square = |h|^2."""
    with mpmath.workdps(30):
        constant, b = mpmath.sqrt(2 / mpmath.pi), mpmath.mpf(dimension) / 2
        value = constant * mpmath.hyp1f1(-0.5, b, -square / 2, maxterms=10**7)
        slope = constant / dimension * mpmath.hyp1f1(0.5, b + 1, -square / 2, maxterms=10**7)
    return value, slope


def distance(projection: np.ndarray) -> np.ndarray:
    """E|p - Z| of eq. 5, in numpy."""
    return projection * scipy.special.erf(projection / math.sqrt(2)) + math.sqrt(2 / math.pi) * np.exp(
        -(projection**2) / 2
    )


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_value_and_gradient_agree_with_mpmath_in_float32(dimension: int) -> None:
    for mean_square in MEAN_SQUARES:
        start = seeded(1, dimension)
        h = (start / start.norm() * math.sqrt(mean_square * dimension)).float().requires_grad_()
        wide = h.detach().double()
        value, slope = exact(dimension, mpmath.mpf(math.fsum(wide.square().flatten().tolist())))
        loss = per_loss(h)
        loss.backward()
        assert loss.item() == pytest.approx(float(value), rel=1e-6), mean_square
        torch.testing.assert_close(h.grad.double(), float(slope) * wide, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_functions_of_the_norm_agree_with_mpmath_in_float64(dimension: int) -> None:
    """Far below float32 except just above 32 dimensions, where the expansion's third order ends."""
    tolerance = 6e-7 * (32 / dimension) ** 4 + 5e-11 if dimension >= 32 else 5e-11
    q = torch.tensor(MEAN_SQUARES, dtype=torch.float64)
    values, slopes = value_and_slope(q, dimension)
    wanted = [exact(dimension, dimension * mpmath.mpf(mean_square)) for mean_square in MEAN_SQUARES]
    np.testing.assert_allclose(values, [float(value) for value, _ in wanted], rtol=tolerance)
    np.testing.assert_allclose(slopes, [float(slope) for _, slope in wanted], rtol=tolerance)


@pytest.mark.parametrize("dimension", range(1, 41))
def test_every_small_dimension_agrees_with_quadrature_over_the_marginal(dimension: int) -> None:
    """Independent of the closed form: the mean of eq. 5 over t = cos(angle to h), with density (1-t^2)^((d-3)/2)."""
    angle = (np.arange(4000) + 0.5) * math.pi / 4000  # midpoint rule: spectrally accurate for periodic functions
    weight = np.sin(angle) ** (dimension - 2) if dimension > 1 else None
    for mean_square in (0.01, 0.7, 3.0, 40.0):
        length = math.sqrt(mean_square * dimension)
        if weight is None:
            wanted = distance(np.array(length))
        else:
            wanted = (weight * distance(length * np.cos(angle))).sum() / weight.sum()
        value, _ = value_and_slope(torch.tensor([mean_square], dtype=torch.float32), dimension)
        assert value.item() == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("dimension", [1, 2, 3, 7, 33, 100])
def test_value_and_gradient_are_a_consistent_pair(dimension: int) -> None:
    h = seeded(2, 3, dimension)
    h[0, 0] = 0
    h.requires_grad_()
    assert torch.autograd.gradcheck(per_loss, h)
    assert torch.autograd.gradgradcheck(per_loss, h)


def test_second_derivative_at_zero_is_that_of_half_a_square() -> None:
    """The Hessian of one sample at h = 0 is the identity times sqrt(2/pi)/d."""
    for dimension in (1, 2, 40):
        hessian = torch.autograd.functional.hessian(per_loss, torch.zeros(dimension, dtype=torch.float64))
        wanted = torch.eye(dimension, dtype=torch.float64) * math.sqrt(2 / math.pi) / dimension
        torch.testing.assert_close(hessian, wanted)


@pytest.mark.parametrize(
    ("projection", "value", "slope"),
    [  # of sqrt(2/pi) exp(-p^2/2) + p erf(p/sqrt2), by hand to ten digits
        (0.0, 0.7978845608, 0.0),
        (0.5, 0.8955931148, 0.3829249225),
        (1.0, 1.1666309412, 0.6826894921),
        (2.0, 2.0169814052, 0.9544997361),
        (-3.0, 3.0007643086, -0.9973002039),
    ],
)
def test_one_dimension_is_the_error_function(projection: float, value: float, slope: float) -> None:
    h = torch.tensor([[projection]], dtype=torch.float64, requires_grad=True)
    for loss in (per_loss(h), sliced_per_loss(h, directions=torch.ones(1, 1, dtype=torch.float64))):
        (gradient,) = torch.autograd.grad(loss, h)
        assert loss.item() == pytest.approx(value, abs=1e-10)
        assert gradient.item() == pytest.approx(slope, abs=1e-10)


@pytest.mark.parametrize(("dimension", "draws"), [(2, 100_000), (8, 50_000), (650, 4_000)])
def test_exact_loss_is_the_mean_over_random_directions(dimension: int, draws: int) -> None:
    for scale in (0.3, 1.0, 4.0):
        h = (seeded(1, dimension) * scale).requires_grad_()
        per_loss(h).backward()
        directions = sample_directions(dimension, draws, torch.Generator().manual_seed(1), dtype=torch.float64)
        projection = (h.detach() @ directions.mT)[0].numpy()
        along = scipy.special.erf(projection / math.sqrt(2)) * projection  # <gradient, h>
        for sample, wanted in (
            (distance(projection), per_loss(h).item()),
            (along, (h.grad * h).sum().item()),
        ):
            assert abs(sample.mean() - wanted) < 3 * sample.std() / math.sqrt(draws)


def test_exact_loss_is_a_multiple_of_the_mean_distance_to_a_normal_sample() -> None:
    """PER(h) = Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) E|h - Z|."""
    dimension, draws = 20, 100_000
    h = seeded(dimension, seed=3) * 1.5
    lengths = (h - seeded(draws, dimension, seed=4)).norm(dim=1)
    constant = math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)) / math.sqrt(math.pi)
    error = constant * lengths.std().item() / math.sqrt(draws)
    assert abs(constant * lengths.mean().item() - per_loss(h).item()) < 3 * error


def test_standard_normal_activations_cost_more_than_zeros() -> None:
    """At N(0, I) the loss is 2/sqrt(pi) in every dimension, and its minimum sqrt(2/pi) is at zero."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    values, _ = value_and_slope(torch.from_numpy(nodes**2), 1)
    assert values.numpy() @ weights / weights.sum() == pytest.approx(2 / math.sqrt(math.pi), rel=1e-9)
    samples = torch.stack([per_loss(row) for row in seeded(4_000, 16)])
    error = samples.std().item() / math.sqrt(len(samples))
    assert abs(samples.mean().item() - 2 / math.sqrt(math.pi)) < 3 * error
    assert per_loss(torch.zeros(5, 16)).item() == pytest.approx(math.sqrt(2 / math.pi))


@given(dimension=st.integers(1, 80), seed=st.integers(0, 999), scale=st.floats(0, 50), growth=st.floats(1.01, 3))
@settings(max_examples=60, deadline=None)
def test_depends_on_norms_only_and_grows_with_them(dimension: int, seed: int, scale: float, growth: float) -> None:
    h = seeded(6, dimension, seed=seed) * scale
    rotation = torch.linalg.qr(seeded(dimension, dimension, seed=seed + 1)).Q
    loss = per_loss(h)
    torch.testing.assert_close(per_loss(h @ rotation), loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(per_loss(h[torch.tensor([3, 1, 5, 0, 2, 4])].view(2, 3, -1)), loss, rtol=1e-12, atol=0)
    assert per_loss(h * growth) >= loss >= math.sqrt(2 / math.pi) * (1 - 1e-12)
    assert per_loss(h * growth) > loss or scale < 1e-6


def test_small_activations_pay_half_their_mean_square() -> None:
    """Near zero PER is an L2 penalty: sqrt(2/pi) + |h|^2 / (d sqrt(2 pi))."""
    h = seeded(3, 40) * 1e-3
    wanted = h.square().sum(1).mean().item() / (40 * math.sqrt(2 * math.pi))
    assert per_loss(h).item() - math.sqrt(2 / math.pi) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [per_loss, sliced_per_loss])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype, loss) -> None:
    """A square of 3e4 overflows float16, and so does a sum of 65536 ones."""
    for scale, dimension in ((1.0, 65536), (3e4, 300)):
        h = (seeded(2, dimension).clamp(-2, 2) * scale).to(dtype).requires_grad_()
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        options = [{} if loss is per_loss else {"generator": g, "n_slices": 8} for g in generators]
        wide = h.detach().float().requires_grad_()
        found, wanted = loss(h, **options[0]), loss(wide, **options[1])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
        (found * dimension).backward()
        (wanted * dimension).backward()
        assert h.grad.dtype == dtype
        torch.testing.assert_close(h.grad, wide.grad.to(dtype))


def test_autocast_leaves_the_loss_in_float32() -> None:
    h = seeded(4, 30, dtype=torch.float32)
    directions = sample_directions(30, 8, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = per_loss(h), sliced_per_loss(h, directions=directions)
    assert inside[0] == per_loss(h)
    assert inside[1] == sliced_per_loss(h, directions=directions)


def test_a_first_call_in_inference_mode_leaves_later_gradients_alone() -> None:
    h = seeded(2, 777)  # a width that no other test has
    with torch.inference_mode():
        inside = per_loss(h)
    assert inside.item() == per_loss(h).item()
    assert torch.autograd.functional.hvp(per_loss, h, h)[1].isfinite().all()


def test_nan_and_infinity_are_not_hidden() -> None:
    for dimension in (1, 3, 50):
        h = torch.ones(2, dimension)
        h[1, 0] = math.nan
        assert per_loss(h).isnan()
        h[1, 0] = math.inf
        assert not per_loss(h).isfinite()


@pytest.mark.parametrize("strides", ["channels_last", "transposed", "expanded"])
def test_any_memory_layout_gives_the_same(strides: str) -> None:
    base = seeded(3, 5, 4, 6)
    h = {
        "channels_last": base.to(memory_format=torch.channels_last).movedim(1, -1),
        "transposed": base.mT,
        "expanded": base[:1].expand(3, -1, -1, -1),
    }[strides].requires_grad_()
    dense = h.detach().contiguous().requires_grad_()
    losses = per_loss(h), per_loss(dense)
    torch.testing.assert_close(*losses)
    gradients = torch.autograd.grad(losses[0], h)[0], torch.autograd.grad(losses[1], dense)[0]
    torch.testing.assert_close(*gradients)


def test_slices_equal_a_loop_over_algorithm_1() -> None:
    h = seeded(4, 3, 6).requires_grad_()
    directions = sample_directions(6, 5, torch.Generator().manual_seed(7), dtype=torch.float64)
    loss = sliced_per_loss(h, directions=directions)
    loss.backward()
    value, gradients = 0.0, []
    rows = h.detach().reshape(-1, 6).tolist()
    for row in rows:
        gradient = [0.0] * 6
        for direction in directions.tolist():
            p = sum(x * t for x, t in zip(row, direction, strict=True))
            value += p * math.erf(p / math.sqrt(2)) + math.sqrt(2 / math.pi) * math.exp(-p * p / 2)
            for unit in range(6):
                gradient[unit] += math.erf(p / math.sqrt(2)) * direction[unit]
        gradients.append([g / (5 * len(rows)) for g in gradient])
    assert loss.item() == pytest.approx(value / (5 * len(rows)), rel=1e-12)
    torch.testing.assert_close(h.grad.reshape(-1, 6), torch.tensor(gradients, dtype=torch.float64))


def test_directions_are_uniform_on_the_sphere_and_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    directions = sample_directions(5, 40_000, torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(40_000, dtype=torch.float64))
    second_moment = directions.mT @ directions / 40_000  # I/5; entries scatter by less than 0.27/sqrt(n)
    torch.testing.assert_close(second_moment, torch.eye(5, dtype=torch.float64) / 5, atol=4 * 0.27 / 200, rtol=0)


@pytest.mark.parametrize("loss", [per_loss, sliced_per_loss])
@pytest.mark.parametrize(
    "activations", [torch.tensor(1.0), torch.zeros(0, 3), torch.zeros(3, 0), torch.ones(2, 3, dtype=torch.int64)]
)
def test_unusable_activations_are_refused(loss, activations: Tensor) -> None:
    with pytest.raises(ValueError, match="activations must be"):
        loss(activations)


def test_unusable_slices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(slices, 3\).*got \(4, 2\)"):
        sliced_per_loss(torch.ones(2, 3), directions=torch.ones(4, 2))
    with pytest.raises(ValueError, match="got 0 and 3"):
        sliced_per_loss(torch.ones(2, 3), n_slices=0)


# The figures of the card


@pytest.mark.parametrize("dimension", [2, 16, 650])
def test_noise_of_the_sliced_gradient_is_what_the_card_says(dimension: int) -> None:
    """Mean square error of gradients of 256 slices over the squared length of the exact one, within 3 errors."""
    h = seeded(dimension, seed=5)
    h = (h / h.norm() * math.sqrt(dimension)).requires_grad_()
    (wanted,) = torch.autograd.grad(per_loss(h), h)
    generator = torch.Generator().manual_seed(6)
    ratios = []
    for _ in range(100):
        (gradient,) = torch.autograd.grad(sliced_per_loss(h, N_SLICES, generator), h)
        ratios.append(((gradient - wanted).square().sum() / wanted.square().sum()).item())
    error = np.std(ratios, ddof=1) / math.sqrt(len(ratios))
    assert abs(np.mean(ratios) - noise_to_signal(dimension, N_SLICES) ** 2) < 3 * error


def test_noise_grows_with_the_square_root_of_the_width() -> None:
    for dimension in (1000, 100_000):
        law = math.sqrt((math.pi * dimension / 3 - 1) / 256)
        assert noise_to_signal(dimension, 256) == pytest.approx(law, rel=2e-3)


def test_figures_show_the_losses_and_are_repeatable() -> None:
    for name, (_, draw) in FIGURES.items():
        lines = [[line.get_xydata() for axes in draw([]).axes for line in axes.lines] for _ in range(2)]
        assert all(np.array_equal(a, b) for a, b in zip(*lines, strict=True)), name
    loss, gradient = loss_and_gradient([]).axes
    x = torch.from_numpy(loss.lines[0].get_xdata().copy()).unsqueeze(1).requires_grad_()
    values = torch.stack([per_loss(row) for row in x])
    (slopes,) = torch.autograd.grad(values.sum(), x)
    np.testing.assert_allclose(loss.lines[0].get_ydata(), values.detach() - math.sqrt(2 / math.pi), atol=1e-9)
    np.testing.assert_allclose(gradient.lines[0].get_ydata(), slopes[:, 0], atol=1e-9)


# The method on recorded activations


def recorded(axes: str, *activations: Tensor) -> Trace:
    """The Trace of a model that passed each activation through a post Site of its own."""
    channel = 1 if axes == "nchw" else -1
    sites = [Site("post", axes, (value.shape[channel],)) for value in activations]
    model = nn.ModuleList([*sites, nn.Linear(1, 1)]).train()
    trace = watch(model)
    for site, value in zip(sites, activations, strict=True):
        site(value)
    return trace


def penalty(trace: Trace, seed: int = 0, **fields) -> Tensor:
    return PER(**fields).penalty(trace, torch.tensor(0.5), torch.Generator().manual_seed(seed))


def test_penalty_sums_layers_and_is_weighted() -> None:
    first, second = seeded(4, 6), seeded(4, 40)
    found = penalty(recorded("nc", first, second), strength=0.3)
    torch.testing.assert_close(found, 0.3 * (per_loss(first) + per_loss(second)))


def test_sum_reduction_is_the_number_of_samples_times_the_mean() -> None:
    h = seeded(7, 4, 10)  # seven time steps, batch of four
    trace = recorded("tnc", h)
    for mode in ("exact", "sliced"):
        mean = penalty(trace, mode=mode, strength=1.0)
        torch.testing.assert_close(penalty(trace, mode=mode, strength=1.0, reduction="sum"), 28 * mean)
    torch.testing.assert_close(penalty(trace, strength=1.0), per_loss(h))


def test_maps_are_one_sample_flattened_or_one_for_each_location() -> None:
    maps = seeded(2, 3, 4, 5)
    trace = recorded("nchw", maps)
    torch.testing.assert_close(penalty(trace, strength=1.0), per_loss(maps.reshape(2, 60)))
    by_location = per_loss(maps.permute(0, 2, 3, 1).reshape(40, 3))
    torch.testing.assert_close(penalty(trace, strength=1.0, features="channels"), by_location)


def test_layers_of_one_width_share_the_slices_of_a_step() -> None:
    h, other = seeded(4, 6, dtype=torch.float32), seeded(4, 9, dtype=torch.float32)
    options = {"mode": "sliced", "n_slices": 3, "strength": 1.0}
    alone = penalty(recorded("nc", h), **options)
    torch.testing.assert_close(penalty(recorded("nc", h, h), **options), 2 * alone)
    generator = torch.Generator().manual_seed(0)
    draws = [sample_directions(value.shape[1], 3, generator) for value in (h, other)]
    wanted = [sliced_per_loss(value, directions=draw) for value, draw in zip((h, other), draws, strict=True)]
    torch.testing.assert_close(penalty(recorded("nc", h, other, h), **options), 2 * wanted[0] + wanted[1])
    method, trace, generator = PER(**options), recorded("nc", h), torch.Generator().manual_seed(0)
    steps = [method.penalty(trace, torch.tensor(0.0), generator) for _ in range(2)]
    assert steps[0] != steps[1]  # new slices each step


def test_slices_agree_with_the_exact_mode_in_expectation() -> None:
    trace = recorded("nc", seeded(8, 12))
    exact_penalty = penalty(trace, strength=1.0).item()
    sliced = [penalty(trace, seed, mode="sliced", n_slices=16, strength=1.0).item() for seed in range(300)]
    error = np.std(sliced, ddof=1) / math.sqrt(len(sliced))
    assert abs(np.mean(sliced) - exact_penalty) < 3 * error
    assert error > 0


@pytest.mark.parametrize("mode", ["exact", "sliced"])
def test_strength_zero_is_exactly_zero_whatever_the_activations(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    method = PER(strength=0.0, mode=mode)
    found = method.penalty(recorded("nc", torch.full((2, 3), math.nan)), torch.tensor(0.0), generator)
    assert found.item() == 0.0
    assert found.shape == ()
    assert torch.equal(generator.get_state(), before)


def test_a_role_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no 'pre' Site"):
        penalty(recorded("nc", torch.ones(2, 3)), sites="pre")


@pytest.mark.parametrize(
    "fields",
    [{"strength": -1.0}, {"strength": math.nan}, {"mode": "approximate"}, {"n_slices": 0}, {"lambda": 1.0}],
)
def test_unusable_hyperparameters_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        PER(**fields)
