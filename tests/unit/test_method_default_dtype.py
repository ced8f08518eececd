"""What a method puts into a model has the type that the model's asks for, whatever torch's default type is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from methods.quantile_activation.method import QuantileActivation
from reproduce import attach, load_method


@pytest.fixture(autouse=True)
def _default_type_put_back() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("name", "fields"), [("batchnorm", {}), ("quantile_activation", {}), ("activity_prior", {"memory": 32})]
)
@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("of_model", [torch.float32, torch.float64, torch.bfloat16])
def test_buffers_are_float32_or_in_double_precision_float64(
    name: str, fields: dict[str, Any], default: torch.dtype, of_model: torch.dtype
) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU()).to(of_model)
    inputs = torch.randn(16, 4, dtype=of_model)
    torch.set_default_dtype(default)
    side = "post" if fields else "pre"
    handle = attach(load_method(name, **fields), model, sites=side, example=inputs)
    assert torch.get_default_dtype() == default
    model(inputs).sum().backward()
    buffers = [buffer for buffer in handle.sites[0].buffers() if buffer.is_floating_point()]
    assert buffers
    assert {buffer.dtype for buffer in buffers} == {torch.float64 if of_model == torch.float64 else torch.float32}


def test_a_quantile_activation_of_ones_own_is_no_half_precision() -> None:
    torch.set_default_dtype(torch.bfloat16)
    assert QuantileActivation("nc", 3).reference.dtype == torch.float32
