"""The kernel of the closed form against mpmath, special functions, and its expansion in 1/d."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial

from methods.sigreg.method import kernel_and_slope

MEAN_SQUARES = (0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 5.0, 20.0, 300.0, 1e4)


def kernel(mean_square: float, dimension: int) -> tuple[float, float]:
    value, slope = kernel_and_slope(torch.tensor(mean_square, dtype=torch.float64), dimension)
    return value.item(), slope.item()


def kummer(mean_square: float, dimension: int) -> tuple[float, float]:
    """1F1(1/2; b; -b q) and its derivative in q, to 30 digits."""
    with mpmath.workdps(30):
        b, q, half = mpmath.mpf(dimension) / 2, mpmath.mpf(mean_square), mpmath.mpf(1) / 2
        value = mpmath.hyp1f1(half, b, -b * q, maxterms=10**6)
        slope = -half * mpmath.hyp1f1(half + 1, b + 1, -b * q, maxterms=10**6)
    return float(value), float(slope)


@pytest.mark.parametrize("dimension", [*range(1, 18), 31, 32, 64, 129, 650, 4096])
def test_value_and_slope_agree_with_mpmath(dimension: int) -> None:
    for q in MEAN_SQUARES if dimension > 1 else MEAN_SQUARES[:9]:  # exp(-q/2) underflows
        value, slope = kummer(q, dimension)
        found = kernel(q, dimension)
        assert found[0] == pytest.approx(value, rel=1e-10), q
        assert found[1] == pytest.approx(slope, rel=1e-8), q


@settings(deadline=None, max_examples=15, derandomize=True)
@given(dimension=st.integers(2, 500), mean_square=st.floats(0, 1e3))
def test_value_and_slope_agree_with_mpmath_anywhere(dimension: int, mean_square: float) -> None:
    value, slope = kummer(mean_square, dimension)
    assert kernel(mean_square, dimension) == (pytest.approx(value, rel=1e-10), pytest.approx(slope, rel=1e-8))


@pytest.mark.parametrize("q", MEAN_SQUARES[1:8])
def test_two_and_three_dimensions_have_special_functions(q: float) -> None:
    assert kernel(q, 2)[0] == pytest.approx(scipy.special.i0e(q / 2), rel=1e-10)
    root = math.sqrt(1.5 * q)
    assert kernel(q, 3)[0] == pytest.approx(math.sqrt(math.pi) / 2 * math.erf(root) / root, rel=1e-10)


@pytest.mark.parametrize("dimension", [1000, 65_536, 10**6])
def test_large_dimensions_have_the_expansion_of_the_card(dimension: int) -> None:
    """F = 1 + P_1/b + P_2/b^2 + ..., dP_(n+1)/du = -u [3/4 P_n - 3(1-u) dP_n/du + (1-u)^2 d2P_n/du2]."""
    u = Polynomial([0, 1])
    order, factor = Polynomial([1]), Polynomial([1])
    for n in range(1, 5):
        inner = 0.75 * order - 3 * (1 - u) * order.deriv() + (1 - u) ** 2 * order.deriv(2)
        order = (-u * inner).integ()
        factor = factor + order / (dimension / 2) ** n
        if n == 1:
            np.testing.assert_allclose(order.coef, [0, 0, -3 / 8])
    for q in MEAN_SQUARES:
        place = q / (1 + q)
        slope = ((1 - place) * factor.deriv()(place) - factor(place) / 2) / (1 + q) ** 1.5
        found = kernel(q, dimension)
        assert found[0] == pytest.approx(factor(place) / math.sqrt(1 + q), rel=1e-10)
        assert found[1] == pytest.approx(slope, rel=1e-8)


@pytest.mark.parametrize("dimension", [1, 2, 5, 650])
def test_slope_is_the_derivative_of_the_value(dimension: int) -> None:
    q = torch.linspace(0.01, 30, 9, dtype=torch.float64).reshape(3, 3).requires_grad_()
    value, slope = kernel_and_slope(q, dimension)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), q)[0], slope, rtol=1e-8, atol=0)


def test_it_is_the_mean_over_directions() -> None:
    rng = np.random.default_rng(0)
    for dimension, q in ((4, 2.0), (50, 0.7)):
        normal = rng.standard_normal((200_000, dimension))
        share = normal[:, 0] ** 2 / (normal**2).sum(1)
        draws = np.exp(-dimension * q / 2 * share)
        assert abs(draws.mean() - kernel(q, dimension)[0]) < 3 * draws.std() / math.sqrt(len(draws))


def test_a_first_call_in_inference_mode_leaves_later_gradients_alone() -> None:
    h = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        kernel_and_slope(h.detach(), 777)  # a dimension that no other test has
    assert torch.autograd.gradcheck(lambda x: kernel_and_slope(x, 777), h)
