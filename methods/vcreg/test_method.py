"""Oracles for VCReg: loops in float64, numpy's covariance, expectations, and what descent on each term does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from methods.vcreg.method import VCReg, covariance_penalty, full_covariance_penalty, variance_hinge
from reproduce.method import Site
from reproduce.method.sites import Trace, watch


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def recorded(*passed: tuple[str, str, Tensor]) -> Trace:
    """The Trace of a model that passed each activation through a Site of the given role and axes."""
    sites = [Site(role, axes, tuple(value.shape[1:])) for role, axes, value in passed]
    trace = watch(nn.ModuleList([*sites, nn.Linear(1, 1)]).train())
    for site, (_, _, value) in zip(sites, passed, strict=True):
        site(value)
    return trace


def penalty(trace: Trace, **fields) -> float:
    return VCReg(**fields).penalty(trace, torch.tensor(0.5), torch.Generator()).item()


def looped_covariance(rows: list[list[float]], i: int, j: int) -> float:
    n = len(rows)
    means = [math.fsum(row[unit] for row in rows) / n for unit in (i, j)]
    return math.fsum((row[i] - means[0]) * (row[j] - means[1]) for row in rows) / (n - 1)


def looped_penalty(rows: list[list[float]]) -> float:
    d = len(rows[0])
    squares = [looped_covariance(rows, i, j) ** 2 for i in range(d) for j in range(d) if i != j]
    return math.fsum(squares) / d


def test_values_by_hand() -> None:
    h = torch.tensor([[0.0, 0.0], [2.0, 4.0]])  # variances 2 and 8, covariance 4
    assert covariance_penalty(h).item() == 16  # (16 + 16) / 2
    assert variance_hinge(h, target_std=2.0, epsilon=1.0).item() == pytest.approx((2 - math.sqrt(3)) / 2)
    assert variance_hinge(h, epsilon=1e-4).item() == 0
    assert covariance_penalty(h[:, :1]).item() == 0
    constant = torch.full((3, 2), 7.0)
    assert variance_hinge(constant, epsilon=0.01).item() == pytest.approx(0.9)
    assert covariance_penalty(constant).item() == 0


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5), (2, 6), (2, 3, 4)])
def test_both_ways_equal_a_loop_over_pairs_of_units(shape: tuple[int, ...]) -> None:
    h = seeded(*shape) * 3 + 5
    wanted = looped_penalty(h.reshape(-1, shape[-1]).tolist())
    assert covariance_penalty(h).item() == pytest.approx(wanted, rel=1e-12)
    assert full_covariance_penalty(h).item() == pytest.approx(wanted, rel=1e-12)


def test_the_hinge_equals_a_loop_over_units() -> None:
    h = seeded(3, 5, 4) * torch.tensor([0.1, 0.5, 1.0, 3.0])
    rows = h.reshape(-1, 4).tolist()
    deviations = [math.sqrt(looped_covariance(rows, unit, unit) + 1e-3) for unit in range(4)]
    wanted = sum(max(0.0, 0.8 - deviation) for deviation in deviations) / 4
    assert variance_hinge(h, target_std=0.8, epsilon=1e-3).item() == pytest.approx(wanted, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 40), d=st.integers(1, 40), offset=st.floats(-100, 100), rank=st.integers(1, 5), seed=st.integers(0)
)
def test_in_float32_it_is_numpys_covariance_at_any_shape(n: int, d: int, offset: float, rank: int, seed: int) -> None:
    """Also far from zero and with units that depend on each other."""
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(n, rank)) @ generator.normal(size=(rank, d))
    h = torch.tensor(mixed + generator.normal(size=(n, d)) + offset, dtype=torch.float32)
    covariance = np.atleast_2d(np.cov(h.double().numpy(), rowvar=False))
    wanted = (np.square(covariance).sum() - np.square(covariance.diagonal()).sum()) / d
    scale = np.square(covariance).sum() / d  # what the smaller matrix subtracts from
    assert covariance_penalty(h).item() == pytest.approx(wanted, abs=2e-4 * scale)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (2, 2, 3)])
def test_gradients(shape: tuple[int, ...]) -> None:
    h = seeded(*shape).requires_grad_()
    assert torch.autograd.gradcheck(covariance_penalty, h)
    assert torch.autograd.gradcheck(lambda h: variance_hinge(h, target_std=1.3), h)
    one = torch.autograd.grad(covariance_penalty(h), h)[0]
    other = torch.autograd.grad(full_covariance_penalty(h), h)[0]
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("n", "d"), [(40, 8), (8, 40)])
def test_independent_units_cost_what_the_docstring_says(n: int, d: int) -> None:
    std = 1.5
    draws = torch.stack([covariance_penalty(std * seeded(n, d, seed=seed)) for seed in range(300)])
    wanted = std**4 * (d - 1) / (n - 1)
    assert abs(draws.mean() - wanted) < 3 * draws.std() / math.sqrt(len(draws))


def test_too_few_samples_have_a_floor() -> None:
    """n - 1 directions cannot hold d uncorrelated units: at equal variances s^2, at least s^4 (d/(n-1) - 1)."""
    h = seeded(5, 12).requires_grad_()
    optimizer = torch.optim.LBFGS([h], max_iter=25, line_search_fn="strong_wolfe")

    def at_unit_variance() -> Tensor:
        return covariance_penalty((h - h.mean(0)) / h.std(0))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = at_unit_variance()
        loss.backward()
        return loss

    before = at_unit_variance().item()
    optimizer.step(closure)
    floor = 12 / 4 - 1
    assert before > 1.05 * floor
    assert floor - 1e-9 <= at_unit_variance().item() < 1.001 * floor


def test_a_unit_that_varies_enough_is_left_alone_and_a_constant_one_is_not_revived() -> None:
    h = (seeded(50, 3) * torch.tensor([2.0, 0.3, 0.0])).requires_grad_()
    variance_hinge(h).backward()
    assert torch.count_nonzero(h.grad[:, 0]) == 0
    assert (h.grad[:, 1] * (h - h.mean(0))[:, 1]).sum() < 0, "descent spreads the unit"
    assert torch.count_nonzero(h.grad[:, 2]) == 0


def test_descent_on_both_terms_whitens_a_mixture() -> None:
    """Three units that share one source, on top of weak ones of their own, become uncorrelated at unit variance."""
    inputs = seeded(400, 3)
    weight = (torch.ones(3, 3, dtype=torch.float64) * 0.4 + 0.1 * torch.eye(3)).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.04)
    before = torch.corrcoef((inputs @ weight).detach().mT)
    for _ in range(200):
        optimizer.zero_grad()
        outputs = inputs @ weight
        (variance_hinge(outputs) + covariance_penalty(outputs)).backward()
        optimizer.step()
    after = torch.corrcoef((inputs @ weight).detach().mT)
    largest = [(matrix - torch.eye(3)).abs().max().item() for matrix in (before, after)]
    assert largest[0] > 0.9
    assert largest[1] < 0.05
    assert ((inputs @ weight).std(0) > 0.95).all()


def test_half_precision_does_not_overflow() -> None:
    h = (seeded(64, 4) * 200).to(torch.float16)
    for term in (covariance_penalty, lambda h: variance_hinge(h, target_std=1000.0)):
        assert term(h).dtype == torch.float32
        assert term(h).item() == pytest.approx(term(h.double()).item(), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert covariance_penalty(h).item() == pytest.approx(covariance_penalty(h.double()).item(), rel=1e-4)


def test_the_method_adds_weighted_terms_over_its_sites() -> None:
    units, maps, steps = seeded(6, 3), seeded(4, 3, 2, 5), seeded(7, 4, 3) * 0.3
    trace = recorded(("post", "nc", units), ("post", "nchw", maps), ("pre", "nc", 9 * units), ("post", "tnc", steps))
    at_locations = maps.permute(0, 2, 3, 1).reshape(-1, 3)
    seen = [units, at_locations, steps.reshape(-1, 3)]
    wanted = sum(0.2 * variance_hinge(h, 1.5, 1e-3) + 0.3 * covariance_penalty(h) for h in seen).item()
    fields = {"target_std": 1.5, "epsilon": 1e-3}
    assert penalty(trace, variance_strength=0.2, covariance_strength=0.3, **fields) == pytest.approx(wanted)
    flat = sum(0.3 * covariance_penalty(h) for h in (units, maps.flatten(1), steps.reshape(-1, 3))).item()
    alone = penalty(trace, variance_strength=0.0, covariance_strength=0.3, features="flatten")
    assert alone == pytest.approx(flat)
    before = penalty(trace, variance_strength=0.0, covariance_strength=1.0, sites="pre")
    assert before == pytest.approx(covariance_penalty(9 * units).item())


@pytest.mark.parametrize("term", [variance_hinge, covariance_penalty])
@pytest.mark.parametrize(
    ("activations", "named"),
    [
        (torch.ones(4), r"\(4,\)"),
        (torch.ones(0, 4), r"\(0, 4\)"),
        (torch.ones(3, 4, dtype=torch.int64), "int64"),
        (torch.ones(1, 4), r"at least 2 samples are needed, got activations of shape \(1, 4\)"),
    ],
)
def test_unusable_activations_are_refused(term, activations: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        term(activations)


def test_unusable_numbers_are_refused_and_a_site_is_named() -> None:
    with pytest.raises(ValueError, match="got -1"):
        variance_hinge(torch.ones(3, 2), target_std=-1.0)
    with pytest.raises(ValueError, match="and 0"):
        variance_hinge(torch.ones(3, 2), epsilon=0.0)
    with pytest.raises(ValueError, match="Site '0': at least 2 samples are needed"):
        penalty(recorded(("post", "nc", seeded(1, 3))))
