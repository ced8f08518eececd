"""Oracles for this method only: a value by hand, what is changed and what is not, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from methods.distribution_mismatch_correction.method import Example, scaled


def test_a_value_by_hand() -> None:
    assert scaled(torch.tensor([[2.0, -4.0]]), 0.5).tolist() == [[1.0, -2.0]]


def test_kernels_are_scaled_and_biases_are_not() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Example(gain=0.25).prepare(model, torch.Generator())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] * (0.25 if name == "0.weight" else 1)), name


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="a weight must be"):
        scaled(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="needs a kernel"):
        Example().prepare(nn.BatchNorm1d(2), torch.Generator())
    with pytest.raises(ValueError, match="gain"):
        Example(gain=0.0)
