"""Two processes on the CPU: what every rank computes is what one process would, with the mean of their losses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.ranks import DDP_OPTIONS, RANKS, SHARDED, attached, batch, convolutional, images, penalty_of, stepped

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("options", DDP_OPTIONS)
def test_vcl_is_trained_alike_on_every_rank(ranks: list[dict[str, Any]], options: str) -> None:
    """Whose statistic is that of each rank's own batch: the loss is the mean of their losses."""
    own = [attached() for _ in range(RANKS)]
    shared = own[0][0]
    for model, _ in own[1:]:
        for one, other in zip(model.modules(), shared.modules(), strict=True):
            one._parameters.update(other._parameters)

    def loss(step: int) -> Tensor:
        return sum(m(batch(step, rank)).square().mean() + handle.penalty() for rank, (m, handle) in enumerate(own)) / 2

    wanted = stepped(shared, loss)
    assert any("beta" in name for name in wanted)
    for found in ranks:
        for name, value in wanted.items():
            torch.testing.assert_close(found[options][name], value, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, ranks[1][options][name]) for name, value in ranks[0][options].items())


@pytest.mark.parametrize("name", SHARDED)
def test_penalties_on_sharded_weights_are_those_on_whole_ones(ranks: list[dict[str, Any]], name: str) -> None:
    model, method = convolutional(), SHARDED[name]
    penalty = penalty_of(method, model)
    for rank in range(RANKS):
        (copy.copy(model)(images(rank)).square().mean() / RANKS).backward()
    penalty.backward()
    for found in ranks:
        assert found[name]["before"] == pytest.approx(penalty.item(), rel=1e-6)
        assert found[name]["penalty"] == pytest.approx(penalty.item(), rel=1e-6)
        for place, parameter in model.named_parameters():
            torch.testing.assert_close(found[name]["gradients"][place], parameter.grad, rtol=1e-5, atol=1e-6)
