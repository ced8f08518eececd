"""Slopes of quantiles at their bounds, and the kernel density where half of a grounded law is nowhere near."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.quantile_activation.choices import KERNEL_POINTS, grounded_levels, kernel_slopes
from methods.quantile_activation.method import quantile_transform


@pytest.mark.parametrize(("output", "deviation_of_law"), [("uniform", math.sqrt(1 / 12)), ("normal", 1.0)])
@pytest.mark.parametrize("spread", [0.01, 1.0, 40.0])
@pytest.mark.parametrize("steepest", [2.0, 10.0])
def test_amid_a_dense_cluster_the_slope_is_the_bound(
    output: str, deviation_of_law: float, spread: float, steepest: float
) -> None:
    """A straight line from the samples' deviation to the output's, ``steepest`` times; 1e-5 is in the variance."""
    cluster = spread * (1e-6 * np.arange(100) - 5e-5)
    x = np.concatenate([cluster, spread * np.linspace(-3, -2, 20), spread * np.linspace(2, 3, 20)])
    leaf = torch.tensor(x).unsqueeze(1).requires_grad_()
    quantile_transform(leaf, output, steepest=steepest).sum().backward()
    wanted = steepest * deviation_of_law / math.sqrt(x.var() + 1e-5)
    np.testing.assert_allclose(leaf.grad[20:80, 0], wanted, rtol=1e-9)


def density_by_loops(ordered: np.ndarray, levels: np.ndarray, bandwidth: float) -> np.ndarray:
    """At each sample: the mean of kernels over the points that the law has, at the level nearest to its own."""
    wanted = (np.arange(KERNEL_POINTS) + 0.5) / KERNEL_POINTS
    points = [ordered[min(int((levels < level).sum()), len(ordered) - 1)] for level in wanted]
    reach = 0.5 / KERNEL_POINTS + 1 / len(levels)
    found = []
    for level in levels:
        here = points[min(int(level * KERNEL_POINTS), KERNEL_POINTS - 1)]
        total = 0.0
        for point, at in zip(points, wanted, strict=True):
            if levels[0] - reach < at < levels[-1] + reach:
                total += math.exp(-0.5 * ((here - point) / bandwidth) ** 2)
        found.append(total / KERNEL_POINTS / bandwidth / math.sqrt(2 * math.pi))
    return np.array(found)


def grounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted, and their levels where each sign counts one half."""
    ordered = rows.sort(dim=-1).values
    plain = ((torch.arange(rows.shape[-1], dtype=rows.dtype) + 0.5) / rows.shape[-1]).expand_as(ordered)
    is_negative = ordered < 0
    return ordered, grounded_levels(plain, is_negative.double().mean(-1, keepdim=True), is_negative)


@pytest.mark.parametrize("n", [12, 64, 300])
def test_the_density_of_laws_of_one_sign_and_of_both_is_a_loop(n: int) -> None:
    """Steps of units, as layers give them (units, steps, samples): positive, negative, and of both signs."""
    drawn = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    rows = torch.stack([drawn[:, 0].abs() + 0.1, -drawn[:, 1].abs() - 0.1, drawn[:, 2]], dim=1)
    ordered, levels = grounded(rows)
    found = kernel_slopes(ordered, levels, 0.4)
    for unit in range(2):
        for step in range(3):
            wanted = density_by_loops(ordered[unit, step].numpy(), levels[unit, step].numpy(), 0.4)
            np.testing.assert_allclose(found[unit, step], wanted, rtol=1e-10)
