"""One sequence without a batch axis through several layers: the shapes and numbers of a batch of one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.recurrent_batchnorm.method import RecurrentBatchNorm


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_states_have_the_shapes_of_torch_s_own_and_the_numbers_of_a_batch_of_one(
    layers: int, batch_first: bool, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    options = {"batch_first": batch_first, "bidirectional": bidirectional}
    lstm, inputs = nn.LSTM(2, 3, layers, **options), torch.randn(5, 2)
    output, (hidden, cell) = lstm(inputs)
    wanted = [tuple(part.shape) for part in (output, hidden, cell)]
    RecurrentBatchNorm().prepare(lstm, torch.Generator())
    single, (hidden, cell) = lstm.eval()(inputs)
    assert [tuple(part.shape) for part in (single, hidden, cell)] == wanted
    axis = 0 if batch_first else 1
    whole, states = lstm(inputs.unsqueeze(axis))
    assert torch.equal(single, whole.squeeze(axis))
    assert all(torch.equal(part, state[:, 0]) for part, state in zip((hidden, cell), states, strict=True))
