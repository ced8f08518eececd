"""Oracles for this method only: a value by hand, a naive loop, the gradient, what is read, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods._template.method import Example, squared_mean
from reproduce.method.sites import Site, watch


def test_a_value_by_hand() -> None:
    h = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # means 2 and 0, squares 4 and 0
    assert squared_mean(h).item() == 2.0


def test_equals_a_loop_over_samples() -> None:
    h = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = h.reshape(-1, 5).tolist()
    means = [sum(row[unit] for row in rows) / 12 for unit in range(5)]
    assert squared_mean(h).item() == pytest.approx(sum(mean**2 for mean in means) / 5)


def test_gradient() -> None:
    h = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(squared_mean, h.requires_grad_())


def test_centred_activations_cost_nothing() -> None:
    h = torch.tensor([[1.0, -2.0], [-1.0, 2.0]])
    assert squared_mean(h).item() == 0.0


def test_penalty_sums_the_sites_of_its_role_and_is_weighted() -> None:
    sites = [Site("post", "nc", (2,)), Site("pre", "nc", (2,)), Site("post", "nchw", (2, 1, 1))]
    trace = watch(nn.ModuleList([*sites, nn.Linear(1, 1)]).train())
    maps = torch.tensor([[1.0, 3.0]])
    for site, value in zip(sites, (maps, 100 * maps, maps[:, :, None, None]), strict=True):
        site(value)
    found = Example(strength=0.5).penalty(trace, torch.tensor(0.0), torch.Generator())
    assert found.item() == pytest.approx(0.5 * (5 + 5))


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="activations must be"):
        squared_mean(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="strength"):
        Example(strength=-1.0)
