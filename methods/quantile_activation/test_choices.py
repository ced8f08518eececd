"""Oracles for what quantile activation takes from its authors' code: sums over pairs in float64, and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from methods.quantile_activation.choices import KERNEL_POINTS, Choices, grounded_levels, kernel_slopes, on_grid
from methods.quantile_activation.method import QAct, QuantileActivation, quantile_transform
from reproduce.method import Site


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grounded_by_loops(values: np.ndarray) -> np.ndarray:
    """(F_-(x) + F_+(x)) / 2, ties counted half; a sign without a value lies infinitely far away."""
    result = np.empty_like(values)
    for i, x in enumerate(values):
        halves = []
        for members, where_none in ((values[values < 0], 1.0), (values[values >= 0], 0.0)):
            weights = (members < x) + 0.5 * (members == x)
            halves.append(weights.mean() if len(members) else where_none)
        result[i] = sum(halves) / 2
    return result


@pytest.mark.parametrize("shift", [0.0, 0.7, -1.1, 9.0, -9.0])
def test_each_sign_counts_one_half(shift: float) -> None:
    values = seeded(40, 2) + shift
    values[:6, 1] = 0.25
    layer = QuantileActivation("nc", 2, choices=Choices(grounded=True)).double()
    found = layer(values)
    for unit in range(2):
        np.testing.assert_allclose(found[:, unit], grounded_by_loops(values[:, unit].numpy()), atol=1e-12)
    signs = found[(values < 0)], found[(values >= 0)]
    assert (signs[0] < 0.5).all()
    assert (signs[1] > 0.5).all()


def test_evaluation_is_grounded_by_what_training_has_shown() -> None:
    layer = QuantileActivation("nc", 1, points=500, momentum=1.0, choices=Choices(grounded=True)).double()
    seen = seeded(500, 1, seed=1) + 0.8
    layer(seen)
    fresh = seeded(300, 1, seed=2) + 0.8
    found = layer.eval()(fresh)[:, 0]
    half_below = stats.norm.cdf(fresh[:, 0] - 0.8) / (2 * stats.norm.cdf(-0.8))
    half_above = 0.5 + (stats.norm.cdf(fresh[:, 0] - 0.8) - stats.norm.cdf(-0.8)) / (2 * stats.norm.cdf(0.8))
    wanted = np.where(fresh[:, 0] < 0, half_below, half_above)
    assert np.abs(found.numpy() - wanted).max() < 0.09, "as far as 500 samples know the law, a fifth of them negative"
    assert ((found < 0.5) == (fresh[:, 0] < 0)).all()


def test_a_grid_has_its_levels() -> None:
    found = on_grid(torch.tensor([0.0, 0.24, 0.25, 0.6, 0.99, 1.0]), 4)
    torch.testing.assert_close(found, torch.tensor([1, 1, 2, 3, 4, 4]) / 5)
    layer = QuantileActivation("nc", 3, choices=Choices(levels=7))
    found = layer(seeded(200, 3).float())
    torch.testing.assert_close(found.unique(), torch.arange(1, 8) / 8)
    torch.testing.assert_close(layer.eval()(seeded(200, 3, seed=1).float()).unique(), torch.arange(1, 8) / 8)


@pytest.mark.parametrize("bandwidth", [0.2, 0.5])
def test_the_slope_is_the_density_of_the_kernel(bandwidth: float) -> None:
    values = seeded(4000, 1)
    layer = QuantileActivation("nc", 1, choices=Choices(bandwidth=bandwidth)).double()
    values.requires_grad_()
    layer(values).sum().backward()
    # A normal law blurred by a normal kernel is normal.
    wanted = stats.norm.pdf(values.detach(), scale=math.sqrt(1 + bandwidth**2))
    inner = values.detach().abs() < 2
    assert np.abs(values.grad.numpy() - wanted)[inner.numpy()].max() < 0.02


def test_the_slope_is_a_sum_over_pairs_of_quantiles() -> None:
    n, bandwidth = KERNEL_POINTS, 0.3
    ordered = seeded(1, n).sort(dim=1).values
    levels = (torch.arange(n, dtype=torch.float64)[None] + 0.5) / n
    found = kernel_slopes(ordered, levels, bandwidth)
    x = ordered[0].numpy()
    wanted = [np.mean([stats.norm.pdf(a, b, bandwidth) for b in x]) for a in x]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-12)


def test_without_negative_values_half_of_the_law_is_far_away() -> None:
    ordered = seeded(1, 400).abs().sort(dim=1).values
    plain = (torch.arange(400, dtype=torch.float64)[None] + 0.5) / 400
    grounded = grounded_levels(plain, torch.zeros(1, 1, dtype=torch.float64), ordered < 0)
    ratio = kernel_slopes(ordered, grounded, 0.5) / kernel_slopes(ordered, plain, 0.5)
    # The grounded law has half as many of the points, which tells in its tail.
    assert float((ratio - 0.5)[:, :380].abs().max()) < 0.06


def test_the_test_batch_is_ranked_by_itself_and_leaves_no_trace() -> None:
    layer = QuantileActivation("nchw", 3, adapts=True).double()
    layer(seeded(6, 3, 4, 4))
    reference = layer.reference.clone()
    layer.eval()
    maps = seeded(5, 3, 4, 4, seed=1)
    wanted = quantile_transform(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(layer(maps), wanted)
    torch.testing.assert_close(layer((3 * maps - 2).exp()), wanted), "an increasing distortion changes nothing"
    assert torch.equal(layer.reference, reference)


def test_normalizations_stand_where_they_are_asked_for() -> None:
    kinds = {}
    for where in (None, "before", "after", "both"):
        model = nn.ModuleList([Site("pre", "nchw", (3, 4, 4))])
        QAct(normalise=where).prepare(model, torch.Generator())
        layer = model[0].transform
        kinds[where] = isinstance(layer.before, nn.BatchNorm2d), isinstance(layer.after, nn.BatchNorm2d)
    assert kinds == {None: (False, False), "before": (True, False), "after": (False, True), "both": (True, True)}
    maps = (7 * seeded(8, 3, 4, 4) + 4).float()
    found = layer(maps)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    before = layer.before(maps)
    wanted = layer.after(quantile_transform(before.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, wanted)


def test_fields_that_came_later_leave_parameters_as_they_were() -> None:
    assert QAct().model_dump(mode="json").keys() == {"sites", "output", "context", "steepest", "points", "momentum"}
    assert QAct(statistics="batch").model_dump(mode="json")["statistics"] == "batch"


@pytest.mark.parametrize("choice", [{"grounded": True}, {"bandwidth": 0.5}])
@pytest.mark.parametrize("other", [{"output": "normal"}, {"context": "moving"}])
def test_choices_that_do_not_go_together_are_refused(choice: dict, other: dict) -> None:
    with pytest.raises(ValueError, match="need output 'uniform' and context 'fixed'"):
        QAct(**choice, **other)
