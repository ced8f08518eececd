"""Exact PER on whole maps: the same as on their flat vectors, whatever their memory layout."""

from __future__ import annotations

import pytest
import torch

from methods.per.method import per_loss


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_whole_maps_equal_their_flat_vectors(memory: torch.memory_format) -> None:
    maps = torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole = maps.to(memory_format=memory).requires_grad_()
    flat = maps.clone().requires_grad_()
    loss, expected = per_loss(whole, feature_axes=3), per_loss(flat.flatten(1))
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(loss, whole, create_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, flat)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-13, atol=0)
    assert torch.autograd.gradgradcheck(lambda h: per_loss(h, feature_axes=3), whole)


@pytest.mark.parametrize("feature_axes", [0, 3])
def test_feature_axes_that_are_not_there_are_refused(feature_axes: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 2, got {feature_axes}"):
        per_loss(torch.ones(4, 3), feature_axes=feature_axes)
