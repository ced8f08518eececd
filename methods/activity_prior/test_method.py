"""Oracles for activity priors: scipy's distances, closed forms, quadrature, and what the loss does to a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Cauchy, Exponential, Gamma, Laplace, LogNormal, Normal, StudentT, Uniform

from methods.activity_prior.method import (
    ActivityPrior,
    Histogram,
    Laws,
    Memory,
    RectifiedNormal,
    SmoothedHistogram,
    prior_loss,
)
from reproduce.method.attach import attach
from reproduce.method.sites import Site, watch

SAMPLE_DISTANCES = ("wasserstein1", "wasserstein2", "cramer")
BINS = Histogram([0.0, 0.5, 1.0, 2.0], [3.0, 0.0, 1.0])


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (12, 5), (5, 12), (64, 63), (3, 1)])
def test_distances_to_samples_equal_scipy(n: int, m: int) -> None:
    h, law = seeded(n, 3), 1.5 * seeded(m, seed=1) + 0.3
    columns = h.T.numpy()
    first = np.mean([scipy.stats.wasserstein_distance(column, law.numpy()) for column in columns])
    assert prior_loss(h, law).item() == pytest.approx(first, rel=1e-9)
    energy = np.mean([scipy.stats.energy_distance(column, law.numpy()) ** 2 / 2 for column in columns])
    assert prior_loss(h, law, distance="cramer").item() == pytest.approx(energy, rel=1e-9)
    repeated = [np.sort(np.repeat(column, m)) - np.sort(np.repeat(law.numpy(), n)) for column in columns]
    second = np.mean([(gap**2).mean() for gap in repeated])  # the coupling in order, on a common number of samples
    assert prior_loss(h, law, distance="wasserstein2").item() == pytest.approx(second, rel=1e-9)


LAWS: list[tuple[Any, Any]] = [
    (Normal(0.3, 1.4), scipy.stats.norm(0.3, 1.4)),
    (Laplace(-0.2, 0.7), scipy.stats.laplace(-0.2, 0.7)),
    (Uniform(-1.0, 2.0), scipy.stats.uniform(-1, 3)),
    (Exponential(1.5), scipy.stats.expon(scale=1 / 1.5)),
    (LogNormal(0.1, 0.4), scipy.stats.lognorm(0.4, scale=math.exp(0.1))),
    (Gamma(torch.tensor(2.0, dtype=torch.float64), 1.5), scipy.stats.gamma(2, scale=1 / 1.5)),  # has no icdf in torch
    (BINS, scipy.stats.rv_histogram(([3.0, 0.0, 1.0], [0.0, 0.5, 1.0, 2.0]), density=False)),
]


@pytest.mark.parametrize(("law", "reference"), LAWS, ids=lambda law: type(law).__name__)
@pytest.mark.parametrize("n", [5, 400])
def test_distances_to_laws_equal_quadrature(law: Any, reference: Any, n: int) -> None:
    """Quadrature over probability for Wasserstein, and over the line, of the distribution functions, for Cramér."""
    h = 0.8 * seeded(n, 1) + 0.4
    ordered = np.sort(h[:, 0].numpy())
    level = (np.arange(400_000) + 0.5) / 400_000
    gap = ordered[(level * n).astype(int)] - reference.ppf(level)
    assert prior_loss(h, law).item() == pytest.approx(np.abs(gap).mean(), rel=0.02)
    assert prior_loss(h, law, distance="wasserstein2").item() == pytest.approx((gap**2).mean(), rel=0.05)
    x = np.linspace(-12, 14, 1_000_001)
    squares = (np.searchsorted(ordered, x, side="right") / n - reference.cdf(x)) ** 2
    expected = scipy.integrate.trapezoid(squares, x)
    assert prior_loss(h, law, distance="cramer").item() == pytest.approx(expected, rel=0.01, abs=2e-5)


def test_w2_between_normal_laws_is_its_closed_form() -> None:
    """Normal quantiles as the sample: W2^2 = (m1 - m2)^2 + (s1 - s2)^2, and "moments" is the same by definition."""
    n = 20_000
    level = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    sample = (0.7 + 1.8 * Normal(0.0, 1.0).icdf(level))[:, None]
    expected = (0.7 + 0.4) ** 2 + (1.8 - 0.5) ** 2
    for distance in ("wasserstein2", "moments"):
        assert prior_loss(sample, Normal(-0.4, 0.5), distance=distance).item() == pytest.approx(expected, rel=1e-3)


def test_moments_of_every_sort_of_law() -> None:
    h = seeded(50, 2)
    mean, deviation = h.mean(0), h.std(0, correction=0)
    samples = seeded(9, seed=3)
    cases = [
        (Normal(1.0, 2.0), 1.0, 2.0),
        (samples, samples.mean().item(), samples.std(correction=0).item()),
        (BINS, 0.75 * 0.25 + 0.25 * 1.5, scipy.stats.rv_histogram(([3, 0, 1], BINS.edges), density=False).std()),
        (RectifiedNormal(0.0, 1.0), 1 / math.sqrt(2 * math.pi), math.sqrt(0.5 - 1 / (2 * math.pi))),
    ]
    for law, mu, sigma in cases:
        expected = ((mean - mu) ** 2 + (deviation - sigma) ** 2).mean().item()
        assert prior_loss(h, law, distance="moments").item() == pytest.approx(expected, rel=1e-6)


def test_l2_to_the_batch_normalized_activations_is_the_moments_distance() -> None:
    h = 2 * seeded(40, 3) + 1
    normalized = nn.functional.batch_norm(h, None, None, training=True, eps=1e-12)
    assert prior_loss(h, Normal(0.0, 1.0), distance="moments").item() == pytest.approx(
        (h - normalized).square().mean().item(), rel=1e-9
    )


def test_the_divergence_of_a_matching_sample_is_near_zero_and_that_of_another_is_its_closed_form() -> None:
    h = seeded(4000, 4)
    assert prior_loss(h, Normal(0.0, 1.0), distance="kl").item() == pytest.approx(0, abs=0.03)
    mean, deviation = 0.5, 1.7  # KL(N(0, 1), N(mean, deviation^2))
    expected = math.log(deviation) + (1 + mean**2) / (2 * deviation**2) - 0.5
    assert prior_loss(h, Normal(mean, deviation), distance="kl").item() == pytest.approx(expected, abs=0.03)
    tied = torch.zeros(20, 2, requires_grad=True)
    prior_loss(tied, Normal(0.0, 1.0), distance="kl").backward()
    assert tied.grad.isfinite().all()


SMOOTHED = SmoothedHistogram(torch.tensor(BINS.edges, dtype=torch.float64), BINS.counts, deviation=0.3)


def convolved(value: float) -> float:
    """The density of the histogram's variable plus N(0, 0.3^2), by quadrature bin by bin."""
    shares = np.array(BINS.counts) / sum(BINS.counts) / np.diff(BINS.edges)
    noise = scipy.stats.norm(value, 0.3)
    return sum(
        share * scipy.integrate.quad(noise.pdf, low, high, epsabs=0, epsrel=1e-12)[0]
        for share, low, high in zip(shares, BINS.edges[:-1], BINS.edges[1:], strict=True)
    )


@pytest.mark.slow
def test_a_smoothed_histogram_is_the_histogram_plus_noise() -> None:
    places = torch.tensor([-0.9, 0.0, 0.2, 0.77, 1.5, 2.0, 2.8], dtype=torch.float64)
    found = SMOOTHED.log_prob(places).exp()
    assert found.tolist() == pytest.approx([convolved(float(place)) for place in places], rel=1e-9)
    for place in (-0.4, 0.6, 2.2):
        below = scipy.integrate.quad(convolved, -3, place, epsabs=1e-10)[0]
        assert SMOOTHED.cdf(torch.tensor(place)).item() == pytest.approx(below, abs=1e-7)
    mean = scipy.integrate.quad(lambda x: x * convolved(x), -3, 5)[0]
    second = scipy.integrate.quad(lambda x: x * x * convolved(x), -3, 5)[0]
    assert SMOOTHED.mean.item() == pytest.approx(mean, rel=1e-7)
    assert SMOOTHED.variance.item() == pytest.approx(second - mean**2, rel=1e-7)


def test_a_smoothed_histogram_has_a_logarithm_and_a_slope_far_away_and_in_an_empty_bin() -> None:
    assert torch.autograd.gradcheck(SMOOTHED.log_prob, (2 * seeded(2, 9)).requires_grad_())
    far = torch.tensor([-60.0, 80.0], requires_grad=True)
    value = SMOOTHED.log_prob(far)
    value.sum().backward()
    assert value.tolist() == pytest.approx([-0.5 * (60 / 0.3) ** 2, -0.5 * (78 / 0.3) ** 2], rel=1e-3)
    assert far.grad.tolist() == pytest.approx([60 / 0.09, -78 / 0.09], rel=1e-3)


def test_the_divergence_to_a_histogram_moves_samples_into_its_bins() -> None:
    """One unit to a histogram and one to a density, as the forum question has it, by the divergence to both."""
    bins = Histogram([0.0, 1.0, 2.0, 3.0], [1.0, 0.2, 3.0])
    h = (0.5 * seeded(600, 2) + 1).requires_grad_()
    optimizer = torch.optim.Adam([h], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = prior_loss(h, [bins, Normal(-1.0, 0.5)], distance="kl")
        loss.backward()
        optimizer.step()
    first = h.detach()[:, 0]
    shares = [((low <= first) & (first < low + 1)).double().mean().item() for low in range(3)]
    noisy = np.random.default_rng(0).normal(0, 0.5, 400_000)  # what is left of the bins under the noise
    drawn = np.random.default_rng(1).choice(3, 400_000, p=np.array(bins.counts) / 4.2)
    expected = np.histogram(drawn + np.random.default_rng(2).random(400_000) + noisy, [0, 1, 2, 3])[0] / 400_000
    assert shares == pytest.approx(expected.tolist(), abs=0.06)
    assert h.detach()[:, 1].mean().item() == pytest.approx(-1, abs=0.1)
    assert h.detach()[:, 1].std().item() == pytest.approx(0.5, abs=0.1)


def test_the_rectified_normal_is_the_law_of_a_rectified_sample() -> None:
    law = RectifiedNormal(torch.tensor(0.4, dtype=torch.float64), 1.3)
    draws = (0.4 + 1.3 * seeded(200_000)).clamp_min(0)
    assert law.mean.item() == pytest.approx(draws.mean().item(), abs=0.01)
    assert law.variance.item() == pytest.approx(draws.var().item(), rel=0.01)
    level = torch.tensor([0.1, 0.3, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(law.icdf(level), torch.quantile(draws, level), atol=0.02, rtol=0)
    assert law.cdf(torch.tensor([-1.0, 0.0])).tolist() == pytest.approx([0, scipy.stats.norm.cdf(-0.4 / 1.3)], abs=1e-6)
    assert prior_loss(draws[:5000, None], law).item() < 0.05


@pytest.mark.parametrize("distance", [*SAMPLE_DISTANCES, "moments", "kl"])
def test_gradients(distance: str) -> None:
    """Away from ties and from the edges of pieces."""
    for across in ("samples", "units", "all"):
        h = (1.1 * seeded(6, 5) + 0.2).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, a=across: prior_loss(x, Normal(0.1, 1.2), a, distance), h)


def test_the_gradient_of_cramer_is_the_difference_of_the_distribution_functions() -> None:
    h = seeded(9, 1).requires_grad_()
    prior_loss(h, Normal(0.0, 1.0), distance="cramer").backward()
    ranks = h.detach()[:, 0].argsort().argsort() + 0.5
    expected = 2 / 9 * (scipy.stats.norm.cdf(h.detach()[:, 0].numpy()) - ranks.numpy() / 9)
    np.testing.assert_allclose(h.grad[:, 0].numpy(), expected, atol=2 / 9 / 200)


def test_across_chooses_which_numbers_make_a_histogram() -> None:
    h = seeded(6, 4)
    law = seeded(5, seed=2)
    by_unit = [prior_loss(h[:, [unit]], law).item() for unit in range(4)]
    by_sample = [prior_loss(h[[sample]].T, law).item() for sample in range(6)]
    assert prior_loss(h, law).item() == pytest.approx(np.mean(by_unit))
    assert prior_loss(h, law, "units").item() == pytest.approx(np.mean(by_sample))
    assert prior_loss(h, law, "all").item() == pytest.approx(prior_loss(h.reshape(-1, 1), law).item())
    assert prior_loss(h.reshape(2, 3, 4), law).item() == pytest.approx(prior_loss(h, law).item())


@pytest.mark.parametrize("distance", [*SAMPLE_DISTANCES, "moments"])
def test_a_list_gives_each_unit_its_own_law(distance: str) -> None:
    h = seeded(30, 4).abs()
    laws = [Exponential(2.0), BINS, seeded(17, seed=2), Normal(0.2, 0.5)]
    alone = [prior_loss(h[:, [unit]], law, distance=distance).item() for unit, law in enumerate(laws)]
    assert prior_loss(h, laws, distance=distance).item() == pytest.approx(np.mean(alone), rel=1e-3)
    batch = Normal(torch.tensor([0.0, 1.0, 2.0, 3.0]), 1.0)
    spread = [Normal(float(mean), 1.0) for mean in range(4)]
    found = prior_loss(h, batch, distance=distance).item()
    assert found == pytest.approx(prior_loss(h, spread, distance=distance).item(), rel=1e-6)


def test_divergence_with_one_law_a_unit() -> None:
    h = seeded(30, 2)
    alone = [prior_loss(h[:, [unit]], Normal(float(unit), 1.0), distance="kl").item() for unit in range(2)]
    found = prior_loss(h, [Normal(0.0, 1.0), Normal(1.0, 1.0)], distance="kl").item()
    assert found == pytest.approx(np.mean(alone))


def test_memory_keeps_the_newest_and_starts_with_the_first_batch() -> None:
    memory = Memory(5, 1)
    memory.remember(torch.tensor([[1.0], [2.0]]))
    assert sorted(memory.values.flatten().tolist()) == [1, 1, 1, 2, 2]
    memory.remember(torch.tensor([[3.0], [4.0]]))
    memory.remember(torch.tensor([[5.0], [6.0]]))
    assert sorted(memory.values.flatten().tolist()) == [2, 3, 4, 5, 6]
    assert memory.earlier(2).flatten().tolist() == [2, 3, 4]
    memory.remember(torch.arange(8.0)[:, None])
    assert sorted(memory.values.flatten().tolist()) == [3, 4, 5, 6, 7]
    assert memory.earlier(8).shape == (0, 1)
    assert set(memory.state_dict()) == {"values", "position", "is_filled"}


def test_memory_leaves_the_first_loss_as_it_is_and_scales_the_gradient_to_the_batch() -> None:
    h = seeded(8, 3, dtype=torch.float32).requires_grad_()
    memory = Memory(64, 3)
    found = prior_loss(h, Normal(0.0, 1.0), memory=memory)
    assert found.item() == pytest.approx(prior_loss(h.repeat(8, 1), Normal(0.0, 1.0)).item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(found, h)
    (whole,) = torch.autograd.grad(prior_loss(h.repeat(8, 1), Normal(0.0, 1.0)), h)
    assert gradient.abs().sum().item() == pytest.approx(whole.abs().sum().item(), rel=0.2)


class TwoUnits(nn.Module):
    """Two outputs behind a ReLU, each with its own law to follow."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))
        for parameter in self.layers.parameters():
            nn.init.normal_(parameter, 0.3, 0.4, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs).relu()


TWO_LAWS = Laws([Exponential(1.0), Histogram([0.0, 0.5, 1.0, 1.5, 2.0], [1.0, 4.0, 1.0, 4.0])])


def distance_after(n_steps: int, batch_size: int, memory: Memory | None = None, strength: float = 1.0) -> float:
    """Sum of both units' W1 (scipy) on new inputs, after training on an MSE and the prior."""
    model, generator = TwoUnits(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, n_steps))
    for _ in range(n_steps):
        inputs = torch.randn(batch_size, 6, generator=generator)
        outputs = model(inputs)
        loss = 0.05 * nn.functional.mse_loss(outputs, inputs[:, :2].abs())
        if strength:
            loss = loss + strength * prior_loss(outputs, TWO_LAWS, distance="wasserstein2", memory=memory)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    outputs = model(torch.randn(4000, 6, generator=generator)).detach().numpy()
    level = (np.arange(4000) + 0.5) / 4000
    wanted = (scipy.stats.expon.ppf(level), np.interp(level, [0, 0.1, 0.5, 0.6, 1.0], [0, 0.5, 1.0, 1.5, 2.0]))
    return sum(scipy.stats.wasserstein_distance(outputs[:, unit], wanted[unit]) for unit in range(2))


@pytest.mark.slow
def test_histograms_of_two_rectified_outputs_come_to_follow_two_laws() -> None:
    """The distance falls tenfold, far below what the MSE alone reaches; with memory 8 samples do what 512 do."""
    untrained = distance_after(0, 8)
    without, large = distance_after(300, 512, strength=0.0), distance_after(500, 512)
    small, small_with_memory = distance_after(1000, 8), distance_after(1000, 8, Memory(128, 2))
    assert large < untrained / 10
    assert large < without / 3
    assert small_with_memory < untrained / 10
    assert small > 1.4 * large
    assert small_with_memory < 1.25 * large


def recorded(role: str, axes: str, value: Tensor, method: ActivityPrior, n_times: int = 1) -> tuple[Site, Any]:
    shape = tuple(value.shape[1:]) if axes == "nchw" else (value.shape[-1],)
    site = Site(role, axes, shape)
    model = nn.ModuleDict({"layer": nn.ModuleDict({"post": site, "weight": nn.Linear(1, 1)})}).train()
    trace = watch(model)
    method.prepare(model, torch.Generator().manual_seed(0))
    for _ in range(n_times):
        trace.clear()
        site(value)
    return site, trace


def penalty(role: str, axes: str, value: Tensor, n_times: int = 1, **fields: Any) -> float:
    method = ActivityPrior(**fields)
    _, trace = recorded(role, axes, value, method, n_times)
    return method.penalty(trace, torch.tensor(0.0), torch.Generator().manual_seed(0)).item()


def test_penalty_reads_units_or_channels_of_its_sites() -> None:
    maps = seeded(8, 3, 2, 2, dtype=torch.float32)
    normal = Normal(0.0, 1.0)
    flat = prior_loss(maps.flatten(1), normal).item()
    channels = prior_loss(maps.movedim(1, -1), normal).item()
    assert penalty("post", "nchw", maps, strength=2.0) == pytest.approx(2 * flat)
    assert penalty("post", "nchw", maps, strength=2.0, features="channels") == pytest.approx(2 * channels)
    outputs = seeded(5, 2, 3, dtype=torch.float32)
    assert penalty("post", "tnc", outputs, strength=1.0) == pytest.approx(prior_loss(outputs, normal).item())
    with pytest.raises(ValueError, match="no 'post' Site has 'output'"):
        penalty("post", "nc", outputs[0], site_name="output")
    two = ({"kind": "uniform", "low": 0.0, "high": 1.0}, {"kind": "normal", "mean": 0.0, "std": 1.0})
    with pytest.raises(ValueError, match=r"Site 'layer\.post': one law .* each of 3, found 2"):
        penalty("post", "nc", outputs[0], prior=two)


def test_priors_of_an_experiment_file_are_the_laws_that_they_name() -> None:
    h = seeded(20, 1, dtype=torch.float32).abs()
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"kind": "normal", "mean": 0.5, "std": 2.0}, Normal(0.5, 2.0)),
        ({"kind": "rectified_normal", "mean": 0.5, "std": 2.0}, RectifiedNormal(0.5, 2.0)),
        ({"kind": "uniform", "low": 0.5, "high": 2.0}, Uniform(0.5, 2.0)),
        ({"kind": "laplace", "location": 0.5, "scale": 2.0}, Laplace(0.5, 2.0)),
        ({"kind": "exponential", "rate": 0.5}, Exponential(0.5)),
        ({"kind": "histogram", "edges": (0.0, 1.0, 3.0), "counts": (1.0, 2.0)}, ([0, 1, 3], [1, 2])),
    ]
    for prior, law in cases:
        found = penalty("post", "nc", h, strength=1.0, prior=prior)
        assert found == pytest.approx(prior_loss(h, law).item(), rel=1e-6)
    for wrong, said in (
        ({"kind": "uniform", "low": 2.0, "high": 1.0}, "low below high"),
        ({"kind": "histogram", "edges": (0.0, 1.0), "counts": (1.0, 2.0)}, r"b \+ 1 increasing edges"),
        ({"kind": "normal", "mean": 0.0, "std": 0.0}, "std"),
        ({"kind": "poisson", "rate": 1.0}, "kind"),
    ):
        with pytest.raises(ValueError, match=said):
            ActivityPrior(prior=wrong)


def test_the_memory_of_a_site_is_filled_by_training_passes_and_read_by_the_penalty() -> None:
    h = seeded(8, 3, dtype=torch.float32)
    found = penalty("post", "nc", h, n_times=5, strength=1.0, memory=32)
    assert found == pytest.approx(prior_loss(h.repeat(4, 1), Normal(0.0, 1.0)).item(), rel=1e-5)
    site, _ = recorded("post", "nc", h, ActivityPrior(memory=32))
    before = {name: value.clone() for name, value in site.state_dict().items()}
    assert len(before) == 3
    site.eval()
    site(2 * h)
    assert all(torch.equal(before[name], value) for name, value in site.state_dict().items())
    _, bare = recorded("post", "nc", h, ActivityPrior())
    with pytest.raises(ValueError, match="needs `prepare`"):
        ActivityPrior(memory=32).penalty(bare, torch.tensor(0.0), torch.Generator())
    with pytest.raises(ValueError, match="got 'units'"):
        ActivityPrior(memory=32, across="units")


def test_at_most_so_many_samples_of_a_step_are_drawn_from_the_generator() -> None:
    h = seeded(300, 2, dtype=torch.float32)
    values = [penalty("post", "nc", h, strength=1.0, max_samples=n) for n in (50, 50, 300, None)]
    assert values[0] == values[1] != values[2]
    assert values[2] == values[3]


def test_l2_after_batchnorm_normalizes_units_or_channels_and_charges_for_the_rest() -> None:
    maps = 3 * seeded(16, 3, 4, 4, dtype=torch.float32) + 1
    for features, expected in (("flatten", 3 * 4 * 4), ("channels", 3)):
        method = ActivityPrior(mode="l2_after_batchnorm", strength=1.0, features=features)
        site, trace = recorded("post", "nchw", maps, method)
        assert sum(parameter.numel() for parameter in site.parameters()) == 2 * expected
        value = method.penalty(trace, torch.tensor(0.0), torch.Generator())
        assert value.item() == pytest.approx(1, rel=1e-3)  # scale 1 and shift 0: unit mean square, whatever came in
        assert trace.records[0].activation.shape == maps.shape
    with pytest.raises(ValueError, match=r"Site 'layer\.post' holds a sequence"):
        recorded("post", "tnc", seeded(5, 2, 3), method)


def test_strength_zero_is_exactly_zero_and_changes_nothing() -> None:
    h = torch.full((4, 3), math.nan)
    for fields in ({}, {"memory": 9}, {"mode": "l2_after_batchnorm"}):
        assert penalty("post", "nc", h, strength=0.0, **fields) == 0.0
        assert recorded("post", "nc", h, ActivityPrior(strength=0.0, **fields))[0].transform is None


def test_half_precision_is_computed_in_float32() -> None:
    h = seeded(16, 2).to(torch.bfloat16)
    for distance in (*SAMPLE_DISTANCES, "moments", "kl"):
        found = prior_loss(h, Normal(0.0, 1.0), distance=distance)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(
            prior_loss(h.double(), Normal(0.0, 1.0), distance=distance).item(), rel=1e-3
        )


REFUSED: list[tuple[Callable[[], Tensor], str]] = [
    (lambda: prior_loss(torch.ones(4), Normal(0.0, 1.0)), r"\(\.\.\., units\) with samples, got shape \(4,\)"),
    (lambda: prior_loss(torch.ones(0, 3), Normal(0.0, 1.0)), r"got shape \(0, 3\)"),
    (lambda: prior_loss(torch.ones(4, 3).long(), Normal(0.0, 1.0)), "int64"),
    (lambda: prior_loss(torch.tensor([[math.nan, 1.0]]), Normal(0.0, 1.0)), "must be finite, found 1 of 2"),
    (lambda: prior_loss(seeded(4, 2), StudentT(3.0)), "needs quantiles; StudentT has neither icdf nor cdf"),
    (lambda: prior_loss(seeded(4, 2), Beta(2.0, 3.0)), "needs quantiles; Beta has neither"),
    (lambda: prior_loss(seeded(4, 2), Cauchy(0.0, 1.0), distance="moments"), "finite mean and variance"),
    (lambda: prior_loss(seeded(4, 2), seeded(9), distance="kl"), "'kl' needs a density; found Tensor"),
    (lambda: SmoothedHistogram([0.0, 1.0], [1.0], deviation=0.0), "positive deviation, got 0.0"),
    (lambda: SmoothedHistogram([0.0, 1.0], [1.0, 2.0]), "increasing edges"),
    (lambda: prior_loss(seeded(4, 2), RectifiedNormal(0.0, 1.0), distance="kl"), "needs a density"),
    (lambda: prior_loss(seeded(2, 2), Normal(0.0, 1.0), distance="kl"), "at least 3 samples, found 2"),
    (lambda: prior_loss(seeded(4, 2), [Normal(0.0, 1.0)] * 3), "each of 2, found 3"),
    (lambda: prior_loss(seeded(4, 2), []), "at least one law"),
    (lambda: prior_loss(seeded(4, 2), ([0.0, 0.0, 1.0], [1.0, 1.0])), "increasing edges"),
    (lambda: prior_loss(seeded(4, 2), (Normal(0.0, 1.0),) * 2), r"laws as a list, found \(Normal, Normal\)"),
    (lambda: prior_loss(seeded(4, 2), (Histogram([0, 1], [1]),) * 2), r"as a list, found \(Histogram, Histogram\)"),
    (lambda: prior_loss(seeded(4, 3), (Normal(0.0, 1.0),) * 3), r"found \(Normal, Normal, Normal\)"),
    (lambda: prior_loss(seeded(4, 2), seeded(3, 3)), r"found \(3, 3\)"),
    (lambda: prior_loss(seeded(4, 2), "normal"), "found str"),
    (lambda: prior_loss(seeded(4, 2), Normal(0.0, 1.0), "time"), "got 'time'"),
    (lambda: prior_loss(seeded(4, 2), Normal(0.0, 1.0), distance="l2"), "got 'l2'"),
    (lambda: prior_loss(seeded(4, 2), Normal(0.0, 1.0), "units", memory=Memory(9, 2)), "got 'units'"),
]


@pytest.mark.parametrize(("call", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_unusable_input_is_refused_with_what_was_found(call: Callable[[], Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("law", [Normal(0.0, 1.0), Histogram([0.0, 1.0], [1.0]), torch.ones(3)])
def test_one_law_in_place_of_a_list_is_said(law: Any) -> None:
    said = f"^Laws takes a list, one law for all units or one for each; found {type(law).__name__}$"
    with pytest.raises(TypeError, match=said):
        Laws(law)


@pytest.mark.parametrize("options", [{"memory": 8}, {"mode": "l2_after_batchnorm"}])
def test_maps_of_another_size_have_no_units_of_their_own(options: dict) -> None:
    model = nn.Sequential(nn.Conv1d(3, 2, 3), nn.ReLU())
    handle = attach(ActivityPrior(**options), model, example=torch.ones(4, 3, 6))
    model(torch.randn(4, 3, 6))
    assert torch.isfinite(handle.penalty())
    with pytest.raises(ValueError, match=r"activations \(4, 2, 5\) .* prepared for units of shape \(2, 4\)"):
        model(torch.randn(4, 3, 7))


@pytest.mark.parametrize("axes", ["ncl", "nchw", "nhwc"])
def test_laws_of_units_of_a_map_go_by_channel_and_place(axes: str) -> None:
    """However the map lies in memory: the law of unit (channel 1, place 0) is the third of four."""
    values = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0))  # (n, channels, places)
    means = (0.0, 1.0, 5.0, 9.0)
    priors = tuple({"kind": "normal", "mean": mean, "std": 1.0} for mean in means)
    expected = prior_loss(values.flatten(1), [Normal(mean, 1.0) for mean in means])
    laid = {"ncl": values, "nchw": values.unsqueeze(2), "nhwc": values.mT.unsqueeze(1)}[axes]
    for one in (laid.contiguous(), laid.movedim(1, -1).contiguous().movedim(-1, 1)):
        model = nn.Sequential(nn.Identity())
        handle = attach(ActivityPrior(strength=1.0, prior=priors), model, sites=["0"], axes=axes)
        model(one.requires_grad_())
        torch.testing.assert_close(handle.penalty(), expected)


def test_a_law_without_quantiles_takes_the_divergence_or_samples_of_it() -> None:
    """KL(uniform, Beta(2, 3)) = -log 12 - E log x - 2 E log(1 - x) = 3 - log 12, and W1 the gap of the means."""
    uniform = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law = Beta(2.0, 3.0)
    assert prior_loss(uniform, law, distance="kl").item() == pytest.approx(3 - math.log(12), abs=0.05)
    torch.manual_seed(0)
    shifted = law.sample((4000,)).flatten() - 1
    assert prior_loss(uniform, shifted).item() == pytest.approx(0.5 - (0.4 - 1), abs=0.02)
