"""Directions of slices against what uniform ones on the sphere must be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reproduce.method.projections import directions_for, sample_directions


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 2**31))
def test_each_has_length_one_and_the_generator_decides(dimension: int, n_slices: int, seed: int) -> None:
    drawn = [
        sample_directions(dimension, n_slices, torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(2)
    ]
    assert drawn[0].shape == (n_slices, dimension)
    assert torch.equal(*drawn)
    torch.testing.assert_close(drawn[0].square().sum(1), torch.ones(n_slices, dtype=torch.float64))


def test_no_direction_is_preferred() -> None:
    """Mean 0, covariance I/3, and the first coordinate of a uniform direction in 3 dimensions is uniform itself."""
    theta = sample_directions(3, 60_000, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert theta.mean(0).abs().max() < 4 * (1 / 3 / 60_000) ** 0.5
    covariance = theta.mT @ theta / len(theta)
    torch.testing.assert_close(covariance, torch.eye(3, dtype=torch.float64) / 3, rtol=0, atol=0.006)
    quantiles = theta[:, 0].quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64))
    expected = torch.tensor([-0.9, -0.5, 0.0, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(quantiles, expected, rtol=0, atol=0.015)


@pytest.mark.parametrize(("dimension", "n_slices"), [(0, 3), (3, 0)])
def test_none_is_refused(dimension: int, n_slices: int) -> None:
    with pytest.raises(ValueError, match=f"at least one slice and one dimension, got {n_slices} and {dimension}"):
        sample_directions(dimension, n_slices)


def test_given_directions_are_used_and_others_drawn_in_the_precision_of_the_loss() -> None:
    activations = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    given = torch.eye(4, dtype=torch.bfloat16)
    assert torch.equal(directions_for(activations, 9, None, given), torch.eye(4))
    drawn = directions_for(activations, 9, torch.Generator().manual_seed(5), None)
    assert torch.equal(drawn, sample_directions(4, 9, torch.Generator().manual_seed(5)))
    assert directions_for(activations.double(), 1, None, None).dtype == torch.float64


@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (4,), (2, 3, 4)])
def test_given_directions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(slices, 4\) for activations of width 4, got"):
        directions_for(torch.zeros(7, 4), 9, None, torch.ones(shape))
