"""Oracles for this method only: a value by hand, a naive loop, the gradient, what is read, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods._template.method import Example, kernels, squared_mean
from reproduce.method.sites import Trace


def test_a_value_by_hand() -> None:
    weight = torch.tensor([[1.0, 3.0], [0.0, 0.0]])  # means 2 and 0, squares 4 and 0
    assert squared_mean(weight).item() == 2.0


def test_equals_a_loop() -> None:
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = [sum(row) / 20 for row in weight.reshape(3, 20).tolist()]
    assert squared_mean(weight).item() == pytest.approx(sum(mean**2 for mean in means) / 3)


def test_gradient() -> None:
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(squared_mean, weight.requires_grad_())


def test_the_kernels_count_and_are_weighted() -> None:
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1), nn.Linear(1, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    assert [tuple(kernel.shape) for kernel in kernels(model)] == [(1, 2), (1, 1)]
    found = Example(strength=0.5).penalty(Trace(model), torch.tensor(0.0), torch.Generator())
    assert found.item() == pytest.approx(0.5 * (9 + 9))


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight must be"):
        squared_mean(torch.zeros(3))
    with pytest.raises(ValueError, match="needs a kernel"):
        kernels(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="strength"):
        Example(strength=-1.0)
