"""Oracles for distribution mismatch correction: loops, sorted matching, distances by SciPy, training left alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from methods.distribution_mismatch_correction.method import (
    DistributionMatching,
    DistributionMismatchCorrection,
    match_quantiles,
)
from reproduce.method import Site


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def matched_by_loops(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    n, units = values.shape
    points = reference.shape[1]
    levels = (np.arange(points) + 0.5) / points
    result = np.empty_like(values)
    for unit in range(units):
        for i in range(n):
            less = sum(values[j, unit] < values[i, unit] for j in range(n))
            not_more = sum(values[j, unit] <= values[i, unit] for j in range(n))
            result[i, unit] = np.interp((less + not_more) / (2 * n), levels, reference[unit])
    return result


@pytest.mark.parametrize("points", [2, 5, 40])
def test_values_are_those_of_a_loop(points: int) -> None:
    values = seeded(23, 3)
    values[:8, 1] = 0.0  # ties
    reference = seeded(3, points, seed=1).sort(dim=1).values
    found = match_quantiles(values, reference)
    np.testing.assert_allclose(found.numpy(), matched_by_loops(values.numpy(), reference.numpy()), atol=1e-12)


def test_as_many_points_as_samples_is_the_matching_of_sorted_values() -> None:
    values, reference = seeded(50, 2), (3 * seeded(2, 50, seed=1) - 4).sort(dim=1).values
    found = match_quantiles(values, reference)
    for unit in range(2):
        order = np.argsort(values[:, unit].numpy())
        np.testing.assert_allclose(found[order, unit].numpy(), reference[unit].numpy(), atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_distance_that_is_left_is_that_part_of_it(share: float) -> None:
    values, reference = seeded(60, 1).exp(), (2 * seeded(1, 60, seed=1) + 1).sort(dim=1).values
    before = scipy.stats.wasserstein_distance(values[:, 0], reference[0])
    moved = match_quantiles(values, reference, share)
    after = scipy.stats.wasserstein_distance(moved[:, 0], reference[0])
    assert after == pytest.approx((1 - share) * before, abs=1e-12)
    assert float((moved - values).abs().mean()) == pytest.approx(share * before, rel=1e-12)  # no move is wasted


def test_an_increasing_distortion_of_a_unit_is_undone() -> None:
    clean = seeded(64, 3)
    reference = clean.sort(dim=0).values.T.contiguous()
    distorted = torch.stack([clean[:, 0].exp(), 5 * clean[:, 1] - 9, clean[:, 2] ** 3], dim=1)
    torch.testing.assert_close(match_quantiles(distorted, reference), clean, atol=1e-12, rtol=0)


def test_one_sample_and_nan_stay_as_they_are() -> None:
    reference = seeded(2, 4).sort(dim=1).values
    alone = seeded(1, 2, seed=2)
    assert torch.equal(match_quantiles(alone, reference), alone)
    values = seeded(6, 2, seed=3)
    values[2, 0] = torch.nan
    assert torch.equal(match_quantiles(values, reference).isnan(), values.isnan())


def test_a_channel_is_a_unit_with_a_sample_at_each_location() -> None:
    layer, maps = DistributionMatching("nchw", 3, points=7).double(), seeded(4, 3, 2, 5)
    assert torch.equal(layer.eval()(maps), maps)  # nothing is known of training yet
    assert layer.train()(maps) is maps
    wanted = np.quantile(maps.permute(0, 2, 3, 1).reshape(-1, 3), (np.arange(7) + 0.5) / 7, axis=0, method="hazen").T
    np.testing.assert_allclose(layer.reference.numpy(), wanted, atol=1e-12)
    shifted = 2 * maps + 1
    wanted = match_quantiles(shifted.permute(0, 2, 3, 1), layer.reference).permute(0, 3, 1, 2)
    assert torch.equal(layer.eval()(shifted), wanted)


def test_training_is_vanilla_bit_for_bit() -> None:
    def trained(method: DistributionMismatchCorrection | None) -> list[Tensor]:
        model = nn.Sequential(nn.Linear(4, 5), Site("pre", "nc", (5,)), nn.ReLU(), nn.Linear(5, 2))
        with torch.no_grad():
            for place, parameter in enumerate(model.parameters()):
                parameter.copy_(seeded(*parameter.shape, seed=place, dtype=torch.float32))
        if method is not None:
            method.prepare(model, torch.Generator())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for seed in range(3):
            optimizer.zero_grad()
            model(seeded(8, 4, seed=seed, dtype=torch.float32)).square().sum().backward()
            optimizer.step()
        return list(model.parameters())

    for ours, vanilla in zip(trained(DistributionMismatchCorrection()), trained(None), strict=True):
        assert torch.equal(ours, vanilla)


def test_a_shift_of_the_inputs_is_undone_behind_a_linear_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False), Site("pre", "nc", (2,))).double()
    DistributionMismatchCorrection(points=200, momentum=1.0).prepare(model, torch.Generator())
    clean = seeded(200, 3)
    expected = model(clean)
    model.eval()
    torch.testing.assert_close(model(clean + 3), expected, atol=1e-12, rtol=0)


def test_sites_that_cannot_be_corrected_are_refused() -> None:
    with pytest.raises(ValueError, match="holds a sequence"):
        DistributionMismatchCorrection().prepare(nn.ModuleList([Site("pre", "tnc", (3,))]), torch.Generator())
    with pytest.raises(ValueError, match="no 'post' Site"):
        DistributionMismatchCorrection(sites="post").prepare(
            nn.ModuleList([Site("pre", "nc", (3,))]), torch.Generator()
        )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"activations": torch.ones(2, 4)}, r"\(2, 4\) and \(3, 5\)"),
        ({"reference": torch.ones(3, 1)}, r"\(2, 3\) and \(3, 1\)"),
        ({"activations": torch.ones(2, 3, dtype=torch.int64)}, "int64"),
        ({"share": 1.5}, "1.5"),
    ],
)
def test_unusable_input_is_refused(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        match_quantiles(**{"activations": torch.ones(2, 3), "reference": torch.ones(3, 5), **arguments})
