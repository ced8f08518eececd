"""Oracles for SIGReg: loops in float64, mpmath, Monte Carlo, numpy, and the facts that the card states."""

from __future__ import annotations

import cmath
import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.sigreg.method import SIGReg, sigreg, sliced_sigreg, weak_sigreg
from reproduce.method import Site, sample_directions
from reproduce.method.sites import Trace, watch

FLOOR = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))  # 1.0594, the mean at the target
WIDE = {"t_max": 8.0, "n_points": 65}  # the window of the closed form has no end


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_pairs(rows: list[list[float]]) -> float:
    """The closed form as it reads, one pair after the other, to 30 digits."""
    n, d = len(rows), len(rows[0])
    with mpmath.workdps(30):

        def kernel(s: float) -> mpmath.mpf:
            return mpmath.hyp1f1(mpmath.mpf(1) / 2, mpmath.mpf(d) / 2, -mpmath.mpf(s))

        pairs = sum(kernel(math.dist(a, b) ** 2 / 2) for a in rows for b in rows) / n**2
        singles = sum(kernel(math.fsum(x * x for x in row) / 4) for row in rows) / n
        whole = pairs - mpmath.sqrt(2) * singles + 1 / mpmath.sqrt(3)
        return float(n * mpmath.sqrt(2 * mpmath.pi) * whole)


def by_knots(projections: list[float], n_points: int, t_max: float) -> float:
    """The Epps-Pulley statistic of one direction with complex exponentials, over both signs of t."""
    step, n, total = t_max / (n_points - 1), len(projections), 0.0
    for k in range(1 - n_points, n_points):
        t = k * step
        empirical = sum(cmath.exp(1j * t * p) for p in projections) / n
        weight = step * math.exp(-t * t / 2) * (0.5 if abs(k) == n_points - 1 else 1)
        total += weight * abs(empirical - math.exp(-t * t / 2)) ** 2
    return n * total


@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (5, 2), (6, 3), (4, 40)])
def test_closed_form_equals_a_loop_over_pairs(n: int, d: int) -> None:
    h = seeded(n, d) * 1.3 + 0.4
    assert sigreg(h).item() == pytest.approx(by_pairs(h.tolist()), rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3, 7, 30])
def test_gradients_of_the_closed_form(d: int) -> None:
    h = (seeded(4, d) + 0.2).requires_grad_()
    assert torch.autograd.gradcheck(sigreg, h)
    assert torch.autograd.gradgradcheck(sigreg, h)


@pytest.mark.parametrize(("n_points", "t_max"), [(17, 3.0), (9, 5.0), (2, 1.0)])
def test_slices_equal_a_loop_over_knots(n_points: int, t_max: float) -> None:
    h = seeded(3, 2, 4) * 1.2 - 0.3
    directions = sample_directions(4, 5, torch.Generator().manual_seed(7), dtype=torch.float64)
    projections = (directions @ h.reshape(6, 4).mT).tolist()
    wanted = sum(by_knots(row, n_points, t_max) for row in projections) / 5
    found = sliced_sigreg(h, directions=directions, n_points=n_points, t_max=t_max)
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_gradients_of_the_slices() -> None:
    h, directions = seeded(4, 3).requires_grad_(), sample_directions(3, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sliced_sigreg(x, directions=directions), h)
    assert torch.autograd.gradgradcheck(lambda x: sliced_sigreg(x, directions=directions), h)


@pytest.mark.parametrize(("d", "scale", "offset"), [(2, 1.0, 0.0), (16, 0.7, 0.0), (16, 1.0, 0.5), (300, 2.0, 0.1)])
def test_closed_form_is_the_mean_over_many_slices(d: int, scale: float, offset: float) -> None:
    h = (seeded(24, d) * scale + offset).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    (slope,) = torch.autograd.grad(sigreg(h), h)
    along = seeded(24, d, seed=4)  # one component of the gradient, as a directional derivative
    values, slopes = [], []
    for _ in range(60):
        loss = sliced_sigreg(h, 50, generator, **WIDE)
        values.append(loss.item())
        slopes.append((torch.autograd.grad(loss, h)[0] * along).sum().item())
    for found, wanted in ((values, sigreg(h).item()), (slopes, (slope * along).sum().item())):
        error = np.std(found, ddof=1) / math.sqrt(len(found))
        assert abs(np.mean(found) - wanted) < 3 * error


def test_in_one_dimension_there_is_one_direction() -> None:
    h = seeded(20, 1) * 1.5
    one = sliced_sigreg(h, directions=torch.ones(1, 1, dtype=torch.float64), **WIDE)
    assert sigreg(h).item() == pytest.approx(one.item(), rel=1e-10)


def test_the_published_window_leaves_out_what_lies_beyond_3() -> None:
    """At most 4 N times the normal weight beyond t_max, which is 0.27 percent of sqrt(2 pi)."""
    h = seeded(50, 5) * 3
    directions = sample_directions(5, 40, torch.Generator().manual_seed(0), dtype=torch.float64)
    cut, whole = (sliced_sigreg(h, directions=directions, **window).item() for window in ({}, WIDE))
    assert 0 < whole - cut < 50 * 4 * math.sqrt(2 * math.pi) * math.erfc(3 / math.sqrt(2))


@pytest.mark.parametrize("n", [1, 2, 16, 128])
@pytest.mark.parametrize("d", [1, 3, 100])
def test_mean_at_the_target_is_the_same_for_every_n(n: int, d: int) -> None:
    draws = 400 if n < 100 else 60
    values = [sigreg(seeded(n, d, seed=index)).item() for index in range(draws)]
    assert pytest.approx(1.059, abs=1e-3) == FLOOR
    assert abs(np.mean(values) - FLOOR) < 3 * np.std(values, ddof=1) / math.sqrt(draws)


def mean_slope(s: float, n: int) -> float:
    """d/ds of sqrt(2 pi) [(1 - 1/n) (1 + 2 s^2)^(-1/2) - sqrt2 (1 + s^2/2)^(-1/2)], for n samples of s N(0, I)."""
    pairs, singles = -2 * s * (1 + 2 * s * s) ** -1.5, s / math.sqrt(2) * (1 + s * s / 2) ** -1.5
    return math.sqrt(2 * math.pi) * ((1 - 1 / n) * pairs + singles)


@pytest.mark.parametrize(
    ("s", "table"), [(0.01, -0.03), (0.1, -0.31), (0.5, -0.62), (1.0, 0.01), (3.0, 0.23), (10.0, 0.03)]
)
def test_gradient_vanishes_at_collapse_and_at_explosion(s: float, table: float) -> None:
    """The card's table: derivative of the mean discrepancy with respect to the scale, at 64 units and 256 samples."""
    slopes, scale = [], torch.tensor(s, dtype=torch.float64, requires_grad=True)
    for seed in range(10):
        (slope,) = torch.autograd.grad(sigreg(scale * seeded(256, 64, seed=seed)) / 256, scale)
        slopes.append(slope.item())
    assert np.mean(slopes) == pytest.approx(table, abs=0.01)
    assert abs(np.mean(slopes) - mean_slope(s, 256)) < 3 * np.std(slopes, ddof=1) / math.sqrt(10)


def test_a_collapsed_batch_pays_and_feels_nothing() -> None:
    h = torch.zeros(10, 7, dtype=torch.float64, requires_grad=True)
    loss = sigreg(h)
    loss.backward()
    wanted = 10 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    assert loss.item() == pytest.approx(wanted, rel=1e-10)
    assert (h.grad == 0).all()


def test_equal_samples_have_equal_finite_gradients() -> None:
    h = seeded(4, 6)
    h[1] = h[0]
    h.requires_grad_()
    sigreg(h).backward()
    torch.testing.assert_close(h.grad[0], h.grad[1])
    assert h.grad.isfinite().all()


@pytest.mark.parametrize(("n", "d"), [(128, 1000), (700, 64), (64, 20_000), (300, 1)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_float32_keeps_five_digits_near_the_target(n: int, d: int, offset: float) -> None:
    """There the statistic is a difference of numbers N times its size."""
    h = (seeded(n, d) + offset).float().requires_grad_()
    wide = h.detach().double().requires_grad_()
    loss, wanted = sigreg(h), sigreg(wide)
    loss.backward()
    wanted.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    size = wide.grad.square().mean().sqrt().item()
    assert (h.grad - wide.grad).abs().max().item() < 1e-4 * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [sigreg, sliced_sigreg, weak_sigreg])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype, loss) -> None:
    """A square of 3e4 overflows float16, and a sum over 20000 units has no digits in either."""
    for scale, dimension in ((1.0, 20_000), (3e4, 300)):
        h = (seeded(4, dimension).clamp(-2, 2) * scale).to(dtype).requires_grad_()
        wide = h.detach().float().requires_grad_()
        options = [{} if loss is sigreg else {"generator": torch.Generator().manual_seed(0)} for _ in range(2)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = loss(h, **options[0])
        wanted = loss(wide, **options[1])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
        (found * 100).backward()
        (wanted * 100).backward()
        torch.testing.assert_close(h.grad, wide.grad.to(dtype))


def test_nan_and_infinity_are_not_hidden() -> None:
    for dimension in (1, 3, 50):
        for bad in (math.nan, math.inf):
            h = torch.ones(3, dimension)
            h[1, 0] = bad
            assert not sigreg(h).isfinite()


# Pairs within groups


@pytest.mark.parametrize(("n", "m"), [(9, 2), (9, 3), (8, 5), (7, 3)])
def test_groups_are_right_on_average_over_orders(n: int, m: int) -> None:
    h = seeded(n, 4) * 1.5 + 0.3
    whole, generator = sigreg(h).item(), torch.Generator().manual_seed(0)
    values = [sigreg(h, 1, m, generator).item() for _ in range(400)]
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - whole) < 3 * error or n // m == 1
    assert (error > 1e-9) == (n // m > 1)


def test_groups_have_the_pairs_of_their_own_samples() -> None:
    """Seven samples in groups of three: two groups, and one sample that nothing pushes."""
    h, constant = seeded(7, 5), math.sqrt(2 * math.pi)

    def repulsion(rows: Tensor) -> float:  # the mean over pairs, from the statistic and its own other terms
        n = len(rows)
        alone = sum(by_pairs(row[None].tolist()) - constant * (1 + 1 / math.sqrt(3)) for row in rows)
        return (by_pairs(rows.tolist()) - alone - constant * (1 + n / math.sqrt(3))) / (n - 1)

    alone = sum(by_pairs(row[None].tolist()) - constant * (1 + 1 / math.sqrt(3)) for row in h)
    pairs = 6 * (repulsion(h[:3]) + repulsion(h[3:6])) / 2
    wanted = pairs + alone + constant * (1 + 7 / math.sqrt(3))
    assert sigreg(h, 1, 3).item() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("drawn", [False, True])
def test_gradients_of_groups(drawn: bool) -> None:
    def loss(h: Tensor) -> Tensor:
        return sigreg(h, 1, 2, torch.Generator().manual_seed(1) if drawn else None)

    h = seeded(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, h)
    assert torch.autograd.gradgradcheck(loss, h)


def test_one_group_draws_nothing() -> None:
    h, generator = seeded(7, 4), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sigreg(h, 1, 4, generator) == sigreg(h)
    assert torch.equal(generator.get_state(), before)


# Whole maps


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_whole_maps_equal_their_flat_vectors(memory: torch.memory_format) -> None:
    maps = seeded(5, 3, 4, 2)
    whole, flat = maps.to(memory_format=memory).requires_grad_(), maps.clone().requires_grad_()
    loss, expected = sigreg(whole, feature_axes=3), sigreg(flat.flatten(1))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, whole)
    assert gradient.stride() == whole.stride()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, flat)[0], rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradgradcheck(lambda h: sigreg(h, feature_axes=3), whole[:3])


@pytest.mark.parametrize("strides", ["transposed", "expanded", "moved"])
def test_any_memory_layout_gives_the_same(strides: str) -> None:
    base = seeded(3, 5, 4)
    h = {"transposed": base.mT, "expanded": base[:1].expand(3, -1, -1), "moved": base.movedim(0, -1)}[strides]
    h, dense = h.requires_grad_(), h.detach().contiguous().requires_grad_()
    losses = sigreg(h), sigreg(dense)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(torch.autograd.grad(losses[0], h)[0], torch.autograd.grad(losses[1], dense)[0])


# The weak form


def test_weak_form_is_a_distance_of_covariances() -> None:
    h, generator = seeded(3, 10, 90) * 2 + 5, torch.Generator().manual_seed(4)
    sketch = torch.randn(64, 90, generator=generator, dtype=torch.float64).numpy() / math.sqrt(90)
    wanted = np.linalg.norm(np.cov(h.reshape(30, 90).numpy() @ sketch.T, rowvar=False) - np.eye(64))
    found = weak_sigreg(h, generator=torch.Generator().manual_seed(4))
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_narrow_activations_are_not_sketched() -> None:
    h, generator = seeded(20, 6), torch.Generator().manual_seed(0)
    before = generator.get_state()
    found = weak_sigreg(h, 6, generator)
    assert torch.equal(generator.get_state(), before)
    assert found.item() == pytest.approx(np.linalg.norm(np.cov(h.numpy(), rowvar=False) - np.eye(6)), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: weak_sigreg(x, 6), seeded(5, 3).requires_grad_())


# What is refused


@pytest.mark.parametrize("loss", [sigreg, sliced_sigreg, weak_sigreg])
@pytest.mark.parametrize(
    "activations", [torch.tensor(1.0), torch.zeros(0, 3), torch.zeros(3, 0), torch.ones(2, 3, dtype=torch.int64)]
)
def test_unusable_activations_are_refused(loss, activations: Tensor) -> None:
    with pytest.raises(ValueError, match="activations must be"):
        loss(activations)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda h: sigreg(h, group_size=1), "at least 2, got 1"),
        (lambda h: sigreg(h, feature_axes=3), "1 to 2, got 3"),
        (lambda h: sliced_sigreg(h, directions=torch.ones(4, 2)), r"\(slices, 3\).*got \(4, 2\)"),
        (lambda h: sliced_sigreg(h, n_slices=0), "got 0 and 3"),
        (lambda h: sliced_sigreg(h, n_points=1), "got 1 and 3.0"),
        (lambda h: sliced_sigreg(h, t_max=0.0), "got 17 and 0.0"),
        (lambda h: weak_sigreg(h[:1]), "at least 2 samples.*got 1"),
    ],
)
def test_unusable_options_are_refused(call, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call(torch.ones(2, 3))


# The method on recorded activations


def recorded(axes: str, *activations: Tensor) -> Trace:
    """The Trace of a model that passed each activation through a post Site of its own."""
    sites = [Site("post", axes, (value.shape[1 if axes == "nchw" else -1],)) for value in activations]
    model = nn.ModuleList([*sites, nn.Linear(1, 1)]).train()
    trace = watch(model)
    for site, value in zip(sites, activations, strict=True):
        site(value)
    return trace


def penalty(trace: Trace, seed: int = 0, **fields) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SIGReg(**{"strength": 1.0, **fields}).penalty(trace, torch.tensor(0.5), generator)


def test_penalty_sums_layers_and_is_weighted() -> None:
    first, second = seeded(4, 6), seeded(4, 40)
    found = penalty(recorded("nc", first, second), strength=0.3)
    torch.testing.assert_close(found, 0.3 * (sigreg(first) + sigreg(second)))


def test_mean_reduction_leaves_out_the_number_of_samples() -> None:
    trace = recorded("tnc", seeded(7, 4, 10))  # seven time steps, batch of four
    for mode in ("exact", "sliced"):
        torch.testing.assert_close(penalty(trace, mode=mode), 28 * penalty(trace, mode=mode, reduction="mean"))
    assert penalty(trace, mode="weak") == penalty(trace, mode="weak", reduction="mean")


@pytest.mark.parametrize("mode", ["exact", "sliced", "weak"])
def test_a_sample_of_a_map_is_all_of_it_a_location_or_its_mean(mode: str) -> None:
    maps = seeded(2, 3, 4, 5)
    samples = {
        "flatten": maps.reshape(2, 60),
        "channels": maps.permute(0, 2, 3, 1).reshape(40, 3),
        "pooled": maps.mean((2, 3)),
    }
    for features, rows in samples.items():
        fields = {"mode": mode, "reduction": "mean", "group_size": None}
        found = penalty(recorded("nchw", maps), features=features, **fields)
        torch.testing.assert_close(found, penalty(recorded("nc", rows), **fields))
    assert penalty(recorded("nc", samples["pooled"]), features="pooled") == sigreg(samples["pooled"])


def test_options_reach_their_form() -> None:
    h, generator = seeded(12, 80), torch.Generator().manual_seed(0)
    found = penalty(recorded("nc", h), mode="sliced", n_slices=3, n_points=9, t_max=5.0)
    directions = sample_directions(80, 3, generator, dtype=torch.float64)
    torch.testing.assert_close(found, sliced_sigreg(h, directions=directions, n_points=9, t_max=5.0))
    found = penalty(recorded("nc", h), mode="weak", n_slices=5)
    torch.testing.assert_close(found, weak_sigreg(h, 5, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(penalty(recorded("nc", h), group_size=3), sigreg(h, 1, 3))
    for mode, published in (("sliced", 256), ("weak", 64)):
        trace = recorded("nc", h)
        assert penalty(trace, mode=mode) == penalty(trace, mode=mode, n_slices=published)


def test_groups_are_drawn_where_samples_are_in_no_random_order() -> None:
    steps, maps = seeded(4, 3, 6), seeded(6, 2, 2, 2)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(penalty(recorded("tnc", steps), group_size=3), sigreg(steps, 1, 3, generator))
    generator.manual_seed(0)
    found = penalty(recorded("nchw", maps), group_size=3, features="channels")
    torch.testing.assert_close(found, sigreg(maps.movedim(1, -1), 1, 3, generator))
    torch.testing.assert_close(penalty(recorded("nchw", maps), group_size=3), sigreg(maps, 3, 3))


@pytest.mark.parametrize("mode", ["exact", "sliced", "weak"])
def test_strength_zero_is_exactly_zero_whatever_the_activations(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    trace = recorded("nc", torch.full((2, 3), math.nan))
    assert SIGReg(strength=0.0, mode=mode).penalty(trace, torch.tensor(0.0), generator).item() == 0.0
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("fields", [{"strength": -1.0}, {"mode": "strong"}, {"group_size": 1}, {"t_max": 0.0}])
def test_unusable_hyperparameters_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SIGReg(**fields)
