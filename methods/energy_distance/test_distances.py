"""Which samples count as one: few numbers tell a close pair apart, and many, compared by products, do not."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import gammaln, hyp1f1
from torch import Tensor

from methods.energy_distance.method import energy_distance


def batch(n: int, dimension: int) -> Tensor:
    """Normal samples in float32, of which the first two are 5e-4 of their length apart along a random direction."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(n, dimension, generator=generator)
    apart = torch.randn(dimension, generator=generator)
    h[1] = h[0] + 5e-4 * h[0].norm() * apart / apart.norm()
    return h


def gradient_of_first(h: Tensor, leave_out: int | None) -> Tensor:
    """From the formula in float64, one pair after the other, without the repulsion of one sample."""
    rows, (n, d) = h.double(), h.shape
    constant = math.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / math.sqrt(math.pi)
    square = math.fsum(rows[0].square().tolist())
    wanted = 2 / n * math.sqrt(2 / math.pi) / d * hyp1f1(0.5, d / 2 + 1, -square / 2) * rows[0]
    for j in range(1, n):
        if j != leave_out:
            gap = rows[0] - rows[j]
            wanted = wanted - 2 * constant / (n * (n - 1)) * gap / gap.norm()
    return wanted


@pytest.mark.parametrize(("n", "dimension", "is_resolved"), [(3, 50, True), (8, 300, True), (96, 1024, False)])
def test_a_close_pair_repels_where_there_are_few_numbers_and_counts_as_one_where_many(
    n: int, dimension: int, is_resolved: bool
) -> None:
    """The last has 96 * 96 * 1024 differences, above 2^23."""
    h = batch(n, dimension).requires_grad_()
    (gradient,) = torch.autograd.grad(energy_distance(h), h)
    wanted = gradient_of_first(h.detach(), None if is_resolved else 1)
    assert (gradient[0].double() - wanted).norm() < 1e-3 * wanted.norm()
