"""Oracles for the modes that take PER apart: its limit in wide layers, and its expectation with matched noise."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf
from torch import Tensor, nn

from methods.activity_norm.method import l2_activity
from methods.per.figures import drawn, measured_layers, noise_to_signal, slice_noise
from methods.per.method import PER, limit_per_loss, matched_noise, noisy_per_loss, per_loss, sliced_per_loss
from reproduce.experiment.files import read_experiment
from reproduce.method import Site, sample_directions
from reproduce.method.sites import Trace, watch


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def recorded(*activations: Tensor) -> Trace:
    """The Trace of a model that passed each activation (samples, units) through a post Site of its own."""
    sites = [Site("post", "nc", (value.shape[-1],)) for value in activations]
    trace = watch(nn.ModuleList(sites).train())
    for site, value in zip(sites, activations, strict=True):
        site(value)
    return trace


def penalty(trace: Trace, seed: int = 0, **fields) -> Tensor:
    return PER(**fields).penalty(trace, torch.tensor(0.5), torch.Generator().manual_seed(seed))


def gradient(loss, h: Tensor, *arguments, **options) -> Tensor:
    leaf = h.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, *arguments, **options), leaf)[0]


# The limit


def test_the_limit_equals_a_loop_and_its_gradient_the_formula() -> None:
    h = seeded(3, 2, 5) * 1.7
    value, slopes = 0.0, []
    for row in h.reshape(-1, 5).tolist():
        mean_square = sum(x * x for x in row) / 5
        value += math.sqrt(2 / math.pi * (1 + mean_square)) / 6
        slopes.append([x * math.sqrt(2 / math.pi) / 5 / math.sqrt(1 + mean_square) / 6 for x in row])
    assert limit_per_loss(h).item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(gradient(limit_per_loss, h).reshape(-1, 5), torch.tensor(slopes, dtype=torch.float64))
    assert limit_per_loss(torch.zeros(2, 5)).item() == pytest.approx(math.sqrt(2 / math.pi))
    assert torch.equal(gradient(limit_per_loss, torch.zeros(2, 5)), torch.zeros(2, 5))


@pytest.mark.parametrize("dimension", [64, 1000])
def test_the_limit_is_low_by_the_parts_that_its_docstring_says(dimension: int) -> None:
    """Against the closed form in mpmath: less than 1/(4d) of the value and 1/(3d) of the slope, and nearly so much."""
    b, gaps = mpmath.mpf(dimension) / 2, {"value": [], "slope": []}
    for mean_square in (0.1, 1.0, 2.0, 30.0, 1000.0):
        h = torch.full((1, dimension), math.sqrt(mean_square), dtype=torch.float64)
        x, root = -mpmath.mpf(mean_square) * dimension / 2, mpmath.sqrt(2 / mpmath.pi)
        value = root * mpmath.hyp1f1(-0.5, b, x, maxterms=10**6)
        slope = root / dimension * mpmath.hyp1f1(0.5, b + 1, x, maxterms=10**6)
        gaps["value"].append(1 - limit_per_loss(h).item() / float(value))
        gaps["slope"].append(1 - (gradient(limit_per_loss, h) / h)[0, 0].item() / float(slope))
    for name, bound in (("value", 1 / (4 * dimension)), ("slope", 1 / (3 * dimension))):
        assert min(gaps[name]) > 0
        assert 0.95 * bound < max(gaps[name]) < 1.02 * bound


@given(width=st.integers(1, 60), seed=st.integers(0, 999), scale=st.floats(0, 30))
@settings(max_examples=40, deadline=None)
def test_the_limit_lies_below_the_exact_loss(width: int, seed: int, scale: float) -> None:
    """Jensen: E|p - Z| over Gaussian p of that variance is the limit, and directions are less spread than that."""
    h = seeded(4, width, seed=seed) * scale
    assert limit_per_loss(h) <= per_loss(h) * (1 + 1e-12)
    torch.testing.assert_close(limit_per_loss(h.view(2, 2, width), 3), limit_per_loss(h.reshape(1, -1)))


def test_l2_at_its_matched_strength_pulls_as_the_limit_does_where_the_mean_square_is_one() -> None:
    h = seeded(5, 1000)
    h /= h.square().mean(1, keepdim=True).sqrt()
    matched = 1 / (2 * math.sqrt(math.pi)) * gradient(l2_activity, h, "mean")
    torch.testing.assert_close(matched, gradient(limit_per_loss, h), rtol=1e-12, atol=0)
    torch.testing.assert_close(matched, gradient(per_loss, h), rtol=1 / 3000, atol=0)
    assert not torch.allclose(matched * 1.1, gradient(limit_per_loss, h * 1.1), rtol=0.03)  # not elsewhere


# The noise

N_SLICES = 4


def moments(h: np.ndarray, draws: int = 100_000) -> tuple[np.ndarray, np.ndarray]:
    """``E a_i a_j - <g_i, g_j>`` of one slice by simulation in numpy, and its standard error."""
    generator = np.random.default_rng(1)
    theta = generator.standard_normal((draws, h.shape[1]))
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    weights = erf(theta @ h.T / math.sqrt(2))
    expectation = weights.T @ theta / draws
    products = weights[:, :, None] * weights[:, None, :]
    return products.mean(0) - expectation @ expectation.T, products.std(0) / math.sqrt(draws)


@pytest.mark.parametrize("dimension", [2, 7, 40])
def test_noise_has_the_energy_and_the_sharing_of_slices_and_no_direction(dimension: int) -> None:
    """Inner products between three samples, two of them close, over 20,000 draws; all within 3 standard errors."""
    h = seeded(3, dimension, seed=2)
    h[1] = 2 * h[0] + 0.3 * h[1]
    draws = sample_directions(dimension, 2 * N_SLICES * 20_000, torch.Generator().manual_seed(3), dtype=torch.float64)
    noise = torch.vmap(lambda directions: matched_noise(h, directions))(draws.view(-1, 2, N_SLICES, dimension))
    products = N_SLICES * torch.einsum("rid,rjd->rij", noise, noise).numpy()
    wanted, error = moments(h.numpy())
    error = np.hypot(products.std(0, ddof=1) / math.sqrt(len(products)), error)
    assert (np.abs(products.mean(0) - wanted) < 3 * error).all()
    mean, scatter = noise.mean(0), noise.std(0) / math.sqrt(len(noise))
    assert (mean.abs() < 4 * scatter).all()  # of up to 120 numbers, one in 16,000 passes 4
    along = (noise * (h / h.norm(dim=1, keepdim=True))).sum(-1).square()
    surplus = (along - noise.square().sum(-1) / dimension).numpy()  # zero where no direction is preferred
    assert (np.abs(surplus.mean(0)) < 3 * surplus.std(0, ddof=1) / math.sqrt(len(surplus))).all()


def test_one_dimension_has_no_noise() -> None:
    """There a slice is exact, since erf is odd."""
    directions = sample_directions(1, 6, torch.Generator().manual_seed(0), dtype=torch.float64).view(2, 3, 1)
    torch.testing.assert_close(matched_noise(seeded(5, 1), directions), torch.zeros(5, 1, dtype=torch.float64))


def test_value_is_the_exact_loss_and_gradient_is_its_gradient_plus_the_noise() -> None:
    h = seeded(2, 3, 9)
    directions = sample_directions(9, 10, torch.Generator().manual_seed(5), dtype=torch.float64).view(2, 5, 9)
    assert torch.equal(noisy_per_loss(h, directions=directions), per_loss(h))
    found = gradient(noisy_per_loss, h, directions=directions)
    torch.testing.assert_close(found, gradient(per_loss, h) + matched_noise(h, directions) / 6)
    drawn = gradient(noisy_per_loss, h, 5, torch.Generator().manual_seed(5))
    torch.testing.assert_close(drawn, found)


def test_noise_does_not_average_out_over_the_batch() -> None:
    """What a layer's weights see: noise over signal as with slices, and far above that of independent samples."""
    inputs, weight = seeded(64, 30, dtype=torch.float32), seeded(200, 30, seed=1, dtype=torch.float32) / math.sqrt(30)
    generator = torch.Generator().manual_seed(2)

    def ratios(loss) -> np.ndarray:
        exact = gradient(lambda w: per_loss(inputs @ w.mT), weight)
        found = [gradient(lambda w: loss(inputs @ w.mT, 64, generator), weight) for _ in range(60)]
        return np.array([((g - exact).square().sum() / exact.square().sum()).item() for g in found])

    sliced, noisy = ratios(sliced_per_loss), ratios(noisy_per_loss)
    error = math.hypot(*(sample.std(ddof=1) / math.sqrt(len(sample)) for sample in (sliced, noisy)))
    assert abs(sliced.mean() - noisy.mean()) < 3 * error
    per_sample = (math.pi * 200 / 3 - 1) / 64  # near unit mean square
    assert noisy.mean() > 0.5 * per_sample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [limit_per_loss, noisy_per_loss])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype, loss) -> None:
    h = (seeded(2, 300).clamp(-2, 2) * 1e4).to(dtype)  # squares overflow float16

    def options() -> dict:
        return {} if loss is limit_per_loss else {"generator": torch.Generator().manual_seed(0)}

    found, wanted = loss(h, **options()), loss(h.float(), **options())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    narrow, wide = gradient(loss, h, **options()), gradient(loss, h.float(), **options())
    step = torch.finfo(dtype).eps * wide.abs().max().item()  # of a sum of two rounded gradients
    torch.testing.assert_close(narrow.float(), wide, rtol=0, atol=2 * step)


def test_unusable_directions_are_refused() -> None:
    for shape in ((4, 3), (1, 4, 3), (2, 0, 3), (2, 4, 5)):
        with pytest.raises(ValueError, match=r"directions must be \(2, slices, 3\).*got"):
            noisy_per_loss(torch.ones(2, 3), directions=torch.ones(shape))
    with pytest.raises(ValueError, match="feature_axes must be 1 to 2, got 3"):
        limit_per_loss(torch.ones(2, 3), 3)
    with pytest.raises(ValueError, match="activations must be"):
        matched_noise(torch.tensor(1.0), torch.ones(2, 1, 1))


# The method


def test_the_method_draws_once_for_each_width_and_sums_layers() -> None:
    h, other = seeded(4, 6, dtype=torch.float32), seeded(4, 9, dtype=torch.float32)
    layers = [value.requires_grad_() for value in (h, other, h.detach().clone())]
    penalty(recorded(*layers), mode="noisy", n_slices=3, strength=0.2).backward()
    generator = torch.Generator().manual_seed(0)
    draws = {width: sample_directions(width, 6, generator).view(2, 3, width) for width in (6, 9)}
    for layer in layers:
        wanted = 0.2 * gradient(noisy_per_loss, layer, directions=draws[layer.shape[1]])
        torch.testing.assert_close(layer.grad, wanted)


@pytest.mark.parametrize("mode", ["limit", "noisy"])
def test_maps_sums_and_strength_zero_are_as_in_the_exact_mode(mode: str) -> None:
    site = Site("post", "nchw", (3,))
    trace = watch(nn.ModuleList([site, nn.Linear(1, 1)]).train())
    maps = seeded(2, 3, 4, 5)
    site(maps)
    value = limit_per_loss if mode == "limit" else per_loss
    by_location = maps.permute(0, 2, 3, 1).reshape(40, 3)
    torch.testing.assert_close(penalty(trace, mode=mode, strength=1.0), value(maps.reshape(2, 60)))
    torch.testing.assert_close(penalty(trace, mode=mode, strength=1.0, features="channels"), value(by_location))
    torch.testing.assert_close(
        penalty(trace, mode=mode, strength=1.0, reduction="sum"), 2 * penalty(trace, mode=mode, strength=1.0)
    )
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    nothing = PER(mode=mode, strength=0.0).penalty(trace, torch.tensor(0.0), generator)
    assert nothing.item() == 0.0
    assert torch.equal(generator.get_state(), before)


# The study


@pytest.mark.parametrize("name", ["quick", "images", "ptb"])
def test_strengths_of_the_study_follow_from_that_of_per(name: str) -> None:
    """The rules beside the arms, each from its own function of the scale s of normal activations, at s = 1."""
    experiment = read_experiment(Path(__file__).parent / "experiments" / f"signal_or_noise_{name}.toml")
    arms, samples = experiment.arms, experiment.recipe.batch_size * (experiment.recipe.window or 1)
    per = [arm.params for arm in arms.values() if arm.method == "per"]
    assert {(params["strength"], params["reduction"]) for params in per} == {(3e-4, "sum")}
    assert {params["mode"] for params in per} == {"sliced", "exact", "noisy", "limit"}
    strength = 3e-4 * samples

    def pull(value) -> float:
        return (value(1 + 1e-5) - value(1 - 1e-5)) / 2e-5

    def stiffness(value) -> float:
        return (value(1.02) - 2 * value(1.0) + value(0.98)) / 0.02**2

    def limit(s: float) -> float:
        return math.sqrt(2 / math.pi) * math.sqrt(1 + s * s)

    def energy(s: float) -> float:  # with the repulsion of normal samples of that scale
        return 2 * limit(s) - 2 * s / math.sqrt(math.pi)

    def sigreg(s: float) -> float:  # the mean over the window of the squared gap of characteristic functions
        t = np.linspace(-9, 9, 4001)
        gap = np.exp(-((s * t) ** 2) / 2) - np.exp(-(t**2) / 2)
        return float((gap**2 * np.exp(-(t**2) / 2)).sum() * (t[1] - t[0]))

    assert arms["l2_matched"].params["strength"] * pull(np.square) == pytest.approx(strength * pull(limit), rel=1e-4)
    assert arms["energy_distance"].params["strength"] == pytest.approx(strength / 2)
    assert arms["sigreg"].params["strength"] * samples * stiffness(sigreg) == pytest.approx(
        arms["energy_distance"].params["strength"] * stiffness(energy), rel=3e-3
    )


# The figure


def finished(width: int, squares: list[float], model: str = "mlp", status: str = "completed", **params) -> Any:
    """As much of a Result as the figure reads: layers of these mean squares at the end of training."""
    option = {"mlp": "width", "lstm": "hidden"}.get(model, "depth")
    task = SimpleNamespace(dataset="data", model=model, model_options={option: width})
    params = {"strength": 3e-4, "mode": "sliced", "n_slices": 256, "reduction": "sum"} | params
    sites = {f"layers.{i}.post": SimpleNamespace(mean_square=square) for i, square in enumerate(squares)}
    epochs = [SimpleNamespace(sites={}), SimpleNamespace(sites=sites | {"pre": SimpleNamespace(mean_square=99.0)})]
    return SimpleNamespace(config=SimpleNamespace(task=task, method="per", params=params), status=status, epochs=epochs)


def test_layers_are_those_trained_with_256_slices_averaged_over_seeds() -> None:
    results = [
        finished(650, [0.2, 0.4]),
        finished(650, [0.4, 0.8]),
        finished(128, [0.05, 0.0], "lstm"),
        finished(650, [9.0], mode="exact"),
        finished(650, [9.0], n_slices=1),
        finished(650, [9.0], status="diverged"),
        finished(8, [9.0], "resnet"),
    ]
    wanted = [(128, 0.05), (650, pytest.approx(0.3)), (650, pytest.approx(0.6))]
    assert measured_layers(results) == measured_layers(results[::-1]) == wanted
    squares = [bar for axes in slice_noise(results).axes for bar in axes.containers if bar[0].get_marker() == "s"]
    assert [float(bar[0].get_xdata()[0]) for bar in squares] == [128, 650, 650] * 2


@pytest.mark.parametrize("mean_square", [0.05, 4.0])
def test_drawn_noise_agrees_with_theory_away_from_mean_square_one(mean_square: float) -> None:
    noise, cosine = drawn(40, 300, np.random.default_rng(0), mean_square)
    error = (noise**2).std(ddof=1) / math.sqrt(len(noise))
    ratio = noise_to_signal(40, 256, mean_square)
    assert abs((noise**2).mean() - ratio**2) < 3 * error
    assert cosine.mean() == pytest.approx(1 / math.sqrt(1 + ratio**2), rel=0.01)
