"""Oracles for quantile activation: scipy's ranks, exact marginals, a smoothed staircase, numpy's quantiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from methods.quantile_activation.method import QAct, QuantileActivation, quantile_transform, reference_quantile
from reproduce.method import Site
from reproduce.method.sites import watch


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(x: Tensor, upstream: Tensor, **choices) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(quantile_transform(leaf, **choices), leaf, upstream)[0]


ROUNDED = st.lists(st.integers(-4, 4), min_size=2, max_size=30)  # with many ties


@settings(max_examples=50, deadline=None)
@given(values=ROUNDED)
def test_quantiles_are_scipys_average_ranks(values: list[int]) -> None:
    n = len(values)
    wanted = (stats.rankdata(values) - 0.5) / n
    x = torch.tensor(values, dtype=torch.float32).unsqueeze(1)
    np.testing.assert_allclose(quantile_transform(x)[:, 0].numpy(), wanted, rtol=1e-6)
    normal = quantile_transform(x.double(), "normal")[:, 0].numpy()
    np.testing.assert_allclose(normal, stats.norm.ppf(wanted), rtol=1e-9, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(values=ROUNDED, scale=st.floats(0.1, 10), shift=st.floats(-50, 50))
def test_increasing_maps_of_a_unit_change_nothing(values: list[int], scale: float, shift: float) -> None:
    x = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
    wanted = quantile_transform(x)
    for increasing in (lambda value: scale * value + shift, math.sinh, lambda value: value**3 + value):
        mapped = torch.tensor([[increasing(value)] for value in values], dtype=torch.float64)
        assert torch.equal(quantile_transform(mapped), wanted)
    assert torch.allclose(quantile_transform(-x), 1 - wanted), "and decreasing ones turn it around"


@pytest.mark.parametrize("law", [stats.norm, stats.cauchy, stats.expon])
def test_the_marginals_of_any_law_are_exactly_uniform(law) -> None:
    """The Kolmogorov-Smirnov distance is the least that n samples can have, 1/(2n)."""
    n = 73
    samples = torch.tensor(law.rvs(size=(n, 3), random_state=0))
    uniform, normal = quantile_transform(samples).numpy(), quantile_transform(samples, "normal").numpy()
    for unit in range(3):
        assert stats.kstest(uniform[:, unit], "uniform").statistic == pytest.approx(0.5 / n)
        assert stats.kstest(normal[:, unit], "norm").statistic == pytest.approx(0.5 / n)


@pytest.mark.parametrize("output", ["uniform", "normal"])
def test_units_and_leading_axes(output) -> None:
    """Units are treated apart, leading axes together; the type is kept."""
    x = seeded(4, 5, 3)
    result = quantile_transform(x, output)
    for unit in range(3):
        alone = quantile_transform(x[..., unit].reshape(20, 1), output)
        assert torch.equal(result[..., unit].flatten(), alone[:, 0])
    for dtype in (torch.bfloat16, torch.float16):
        assert quantile_transform(x.to(dtype), output).dtype == dtype


@pytest.mark.parametrize("context", ["fixed", "moving"])
def test_gradient_of_evenly_spaced_samples_is_that_of_a_smoothed_staircase(context) -> None:
    """F(x) = mean_j clip((x - x_j)/(2h) + 1/2, 0, 1), a box of m + 1/2 spacings for each sample, by finite differences.

    With and without the other samples moving. Away from the ends, where the windows are whole.
    """
    n, spacing = 36, 0.25
    m = 6  # sqrt(n)
    half = (m + 0.5) * spacing
    order = np.random.default_rng(1).permutation(n)
    x = spacing * order.astype(np.float64)
    inner = (order >= m) & (order < n - m)
    upstream = np.random.default_rng(2).normal(size=n) * inner

    def loss(samples: np.ndarray, rod: np.ndarray) -> float:
        smooth = np.clip((samples[:, None] - rod[None, :]) / (2 * half) + 0.5, 0, 1).mean(1)
        return float(upstream @ smooth)

    wanted, step = np.zeros(n), 1e-4 * spacing
    for j in range(n):
        sides = []
        for sign in (1, -1):
            moved = x.copy()
            moved[j] += sign * step
            sides.append(loss(moved, x if context == "fixed" else moved))
        wanted[j] = (sides[0] - sides[1]) / (2 * step)
    found = gradient(torch.tensor(x).unsqueeze(1), torch.tensor(upstream).unsqueeze(1), context=context)
    np.testing.assert_allclose(found[:, 0].numpy(), wanted, atol=1e-9)


@pytest.mark.parametrize("law", [stats.norm(1, 2), stats.uniform(-3, 6), stats.gamma(3)])
def test_the_slope_estimates_the_density(law) -> None:
    """Of 2 m samples it has a relative error of about 1/sqrt(2 m), less on average."""
    n = 10_000
    x = law.rvs(size=(n, 1), random_state=1)
    found = gradient(torch.tensor(x), torch.ones(n, 1, dtype=torch.float64))[:, 0].numpy()
    central = (law.cdf(x[:, 0]) > 0.05) & (law.cdf(x[:, 0]) < 0.95)
    ratio = found[central] / law.pdf(x[central, 0])
    assert abs(ratio.mean() - 1) < 0.03
    assert ratio.std() < 1.5 / math.sqrt(2 * math.sqrt(n))


def test_normal_quantiles_of_a_normal_unit_are_nearly_a_straight_line() -> None:
    """In slope too, to the last sample: the density in the tails and the normal law's there cancel."""
    x = 2 * seeded(10_000, 1) + 1
    slope = gradient(x, torch.ones_like(x), output="normal")[:, 0]
    assert (slope - 0.5).abs().max() < 0.2
    assert abs(slope.mean() - 0.5) < 0.01
    assert (quantile_transform(x, "normal") - (x - 1) / 2).abs().mean() < 0.03  # three standard errors of the mean


@settings(max_examples=30, deadline=None)
@given(values=ROUNDED, seed=st.integers(0, 1000), output=st.sampled_from(["uniform", "normal"]))
def test_with_ties_gradients_stay_bounded_balanced_and_without_order(values: list[int], seed: int, output) -> None:
    x = torch.tensor(values, dtype=torch.float64).unsqueeze(1)
    upstream = seeded(*x.shape, seed=seed)
    fixed = gradient(x, upstream, output=output, steepest=3.0)
    steepest = 3.0 * (math.sqrt(1 / 12) if output == "uniform" else 1) / math.sqrt(x.var(correction=0).item() + 1e-5)
    assert (fixed.abs() <= steepest * upstream.abs() * (1 + 1e-9)).all()
    moving = gradient(x, upstream, output=output, context="moving")
    assert abs(moving.sum()) < 1e-9 * (1 + moving.abs().sum()), "a common shift changes no quantile"
    order = torch.tensor(np.random.default_rng(seed).permutation(len(values)))
    shuffled = gradient(x[order], upstream[order], output=output, context="moving")
    torch.testing.assert_close(shuffled, moving[order])


def test_a_loss_that_no_move_of_the_samples_changes_pulls_only_with_a_fixed_context() -> None:
    """All samples together have the same quantiles wherever they are, so a sum of one function of each is constant."""
    x = seeded(2_500, 4)
    upstream = 2 * (quantile_transform(x) - 0.2)  # of the sum of (u - 0.2)^2
    fixed, moving = (gradient(x, upstream, context=context) for context in ("fixed", "moving"))
    assert moving.norm() < 0.1 * fixed.norm()
    assert abs(fixed.sum(0)).min() > 100


def test_a_constant_unit_has_the_middle_quantile_and_no_gradient() -> None:
    x = torch.full((6, 1), 3.0)
    assert torch.equal(quantile_transform(x), torch.full((6, 1), 0.5))
    for context in ("fixed", "moving"):
        assert torch.equal(gradient(x, torch.ones(6, 1), context=context), torch.zeros(6, 1))


def test_not_a_number_is_not_hidden() -> None:
    x = torch.tensor([[1.0, 1.0], [torch.nan, 2.0], [3.0, 3.0]])
    assert quantile_transform(x).isnan().tolist() == [[False, False], [True, False], [False, False]]
    assert gradient(x, torch.ones(3, 2), context="moving")[:, 0].isnan().any()
    reference = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert torch.equal(reference_quantile(x, reference).isnan(), x.isnan())


def test_reference_quantiles_are_numpys_interpolation() -> None:
    reference = seeded(3, 10).sort(dim=1).values
    x = 2 * seeded(4, 6, 3, seed=1)
    levels = (np.arange(10) + 0.5) / 10
    for output, law in (("uniform", lambda u: u), ("normal", stats.norm.ppf)):
        found = reference_quantile(x, reference, output).numpy()
        for unit in range(3):
            wanted = law(np.interp(x[..., unit], reference[unit], levels))
            np.testing.assert_allclose(found[..., unit], wanted, rtol=1e-9, atol=1e-12)


def test_equal_points_share_their_middle_level() -> None:
    """As behind a ReLU: half of the points are zero."""
    reference = torch.tensor([[0.0, 0.0, 0.0, 1.0, 2.0]])
    x = torch.tensor([[-1.0], [0.0], [0.5], [1.0], [2.0], [9.0]])
    wanted = torch.tensor([[0.1], [0.3], [0.6], [0.7], [0.9], [0.9]])
    torch.testing.assert_close(reference_quantile(x, reference), wanted)


def test_reference_quantiles_have_the_gradient_of_their_interpolation() -> None:
    reference = seeded(2, 8).sort(dim=1).values
    x = seeded(5, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference_quantile(x, reference), x)


def test_the_reference_is_the_moving_average_of_numpys_quantiles() -> None:
    layer = QuantileActivation("nc", 2, points=7, momentum=0.3).double()
    levels = (np.arange(7) + 0.5) / 7
    torch.testing.assert_close(layer.reference[1], torch.tensor(stats.norm.ppf(levels)), atol=1e-6, rtol=0)
    wanted = None
    for seed, n in enumerate((5, 30, 11)):
        batch = seeded(n, 2, seed=seed)
        layer(batch)
        newest = np.quantile(batch.numpy(), levels, axis=0, method="hazen").T
        wanted = newest if wanted is None else 0.7 * wanted + 0.3 * newest
        np.testing.assert_allclose(layer.reference.numpy(), wanted, atol=1e-12)
    layer.eval()
    layer(seeded(9, 2))
    np.testing.assert_allclose(layer.reference.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("output", ["uniform", "normal"])
def test_evaluation_agrees_with_training_on_the_same_law(output) -> None:
    layer = QuantileActivation("nc", 3, output=output)
    scale, shift = torch.tensor([0.1, 1.0, 30.0]), torch.tensor([5.0, 0.0, -7.0])
    for seed in range(80):
        layer(scale * seeded(60, 3, seed=seed, dtype=torch.float32) + shift)
    fresh = seeded(4000, 3, seed=99, dtype=torch.float32)
    layer.eval()
    evaluated = layer(scale * fresh + shift).double().numpy()
    law = stats.norm.cdf(fresh.double().numpy())
    # A momentum of 0.1 averages over 1.9 / 0.1 batches, 60 samples each.
    allowed = 3 * np.sqrt(law * (1 - law) / (60 * 19)) + 1.5 / 60
    found = evaluated if output == "uniform" else stats.norm.cdf(evaluated)
    assert (np.abs(found - law) < allowed).mean() > 0.99


def test_a_channel_is_a_unit_with_a_sample_at_each_location() -> None:
    layer, maps = QuantileActivation("nchw", 3).double(), seeded(4, 3, 2, 5)
    wanted = quantile_transform(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(layer(maps), wanted)
    layer.eval()
    wanted = reference_quantile(maps.permute(0, 2, 3, 1), layer.reference).permute(0, 3, 1, 2)
    assert torch.equal(layer(maps), wanted)


@pytest.mark.parametrize("axes", ["tnc", "ntc"])
def test_each_time_step_is_ranked_by_itself_and_all_fill_the_reference(axes) -> None:
    steps = seeded(6, 20, 2) * torch.linspace(1, 2, 6, dtype=torch.float64).view(6, 1, 1)
    layer = QuantileActivation(axes, 2, points=9).double()
    result = layer(steps if axes == "tnc" else steps.transpose(0, 1))
    result = result if axes == "tnc" else result.transpose(0, 1)
    for now, step in zip(result, steps, strict=True):
        assert torch.equal(now, quantile_transform(step))
    each = [np.quantile(step.numpy(), (np.arange(9) + 0.5) / 9, axis=0, method="hazen").T for step in steps]
    np.testing.assert_allclose(layer.reference.numpy(), np.mean(each, axis=0), atol=1e-12)


def test_a_training_step_waits_for_no_value() -> None:
    class NoWaiting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert torch.Tag.data_dependent_output not in func.tags
            assert torch.Tag.dynamic_output_shape not in func.tags
            return func(*args, **(kwargs or {}))

    layer = QuantileActivation("nchw", 2, context="moving")
    maps = seeded(3, 2, 4, 4, dtype=torch.float32).requires_grad_()
    with NoWaiting():
        layer(maps).sum().backward()
        layer.eval()(maps)


def test_the_method_fills_every_site_of_its_role() -> None:
    model = nn.ModuleList([Site("pre", "nc", (3,)), Site("post", "nc", (3,)), Site("pre", "nchw", (2, 4, 4))])
    QAct(output="normal", context="moving", points=5, momentum=0.5, steepest=4.0).prepare(model, torch.Generator())
    assert [type(site.transform) for site in model] == [QuantileActivation, type(None), QuantileActivation]
    layer = model[2].transform
    assert layer.reference.shape == (2, 5)
    chosen = (layer.axes, layer.output, layer.context, layer.momentum, layer.steepest)
    assert chosen == ("nchw", "normal", "moving", 0.5, 4.0)
    assert set(model.state_dict()) == {f"{i}.transform.{name}" for i in (0, 2) for name in ("reference", "is_filled")}
    trace = watch(model.train())
    model[0](seeded(5, 3))
    torch.testing.assert_close(trace.records[0].activation, quantile_transform(seeded(5, 3), "normal"))
    with pytest.raises(ValueError, match="Site '0' already holds QuantileActivation"):
        QAct().prepare(model, torch.Generator())
    with pytest.raises(ValueError, match="no 'post' Site"):
        QAct(sites="post").prepare(nn.ModuleList([Site("pre", "nc", (3,))]), torch.Generator())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"activations": torch.ones(4)}, r"\(4,\)"),
        ({"activations": torch.ones(2, 0)}, r"\(2, 0\)"),
        ({"activations": torch.ones(3, 2, dtype=torch.int64)}, "int64"),
        ({"activations": torch.ones(1, 2)}, r"at least 2 samples are needed, got activations of shape \(1, 2\)"),
        ({"output": "cauchy"}, "'cauchy'"),
        ({"context": "absent"}, "'absent'"),
        ({"steepest": 0.5}, "0.5"),
    ],
)
def test_unusable_input_is_refused(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        quantile_transform(**{"activations": torch.ones(3, 2), **arguments})


def test_points_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(2, 7\)"):
        reference_quantile(torch.ones(5, 3), torch.ones(2, 7))
