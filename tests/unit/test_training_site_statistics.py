"""Statistics of Sites against numpy, and probing that a run does not notice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

from reproduce.method.sites import Record, Site
from reproduce.results.record import BINS, QUANTILES
from reproduce.training.site_statistics import describe, effective_rank


def test_statistics_of_a_map_are_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn((6, 3, 4, 5), generator=generator) * 2 + 1
    found = describe(Record(Site("pre", "nchw", (3, 4, 5)), maps))
    samples = maps.double().numpy().transpose(0, 2, 3, 1).reshape(120, 3)
    norms = np.sqrt((samples**2).sum(1))
    assert found.mean == pytest.approx(samples.mean(), rel=1e-5)
    assert found.mean_square == pytest.approx((samples**2).mean(), rel=1e-5)
    assert found.norm_dispersion == pytest.approx(norms.std() / norms.mean(), rel=1e-5)
    assert found.unit_quantiles == pytest.approx(np.quantile(samples[:, 1], QUANTILES), rel=1e-5)
    values = np.linalg.eigvalsh(np.cov(samples.T))
    share = values / values.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert found.excess_kurtosis == pytest.approx(kurtosis(samples, axis=0).mean(), rel=1e-4)
    counts, edges = np.histogram(samples[:, 1], bins=BINS)
    assert found.unit_range == pytest.approx((edges[0], edges[-1]), rel=1e-6)
    assert found.unit_histogram == tuple(counts)


def test_statistics_of_a_sequence_count_times_as_samples() -> None:
    outputs = torch.randn((7, 4, 5), generator=torch.Generator().manual_seed(1))
    found = describe(Record(Site("post", "tnc", (5,)), outputs))
    assert found == describe(Record(Site("post", "nc", (5,)), outputs.reshape(28, 5)))


def spectrum(variances: list[float], n_samples: int = 64) -> torch.Tensor:
    """Samples whose covariance has exactly these eigenvalues, rotated at random."""
    generator = torch.Generator().manual_seed(2)
    d = len(variances)
    draws = torch.randn((n_samples, d), generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(draws - draws.mean(0))  # centred orthonormal columns
    rotation, _ = torch.linalg.qr(torch.randn((d, d), generator=generator, dtype=torch.float64))
    return (basis * torch.tensor(variances, dtype=torch.float64).sqrt()) @ rotation * 8 + 3


@pytest.mark.parametrize("variances", [[1.0] * 5, [4.0, 2.0, 1.0, 1.0], [1.0, 0.0, 0.0], [9.0, 1e-8, 1e-8], [1.0] * 40])
def test_effective_rank_of_known_spectra(variances: list[float]) -> None:
    share = [value / sum(variances) for value in variances]
    expected = math.exp(-sum(p * math.log(p) for p in share if p > 0))
    assert float(effective_rank(spectrum(variances))) == pytest.approx(expected, rel=1e-4)


def test_effective_rank_with_fewer_samples_than_features() -> None:
    """The covariance of n samples has rank n - 1 at most: with equal distances, exactly that, evenly."""
    assert float(effective_rank(torch.eye(8, 30))) == pytest.approx(7.0, rel=1e-5)


def test_effective_rank_takes_samples_spread_over_the_whole_batch() -> None:
    samples = torch.zeros(2560, 3)
    samples[0::10, 0] = torch.linspace(-1, 1, 256)
    samples[1::10, 1] = 5.0  # not among every tenth
    assert float(effective_rank(samples)) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_effective_rank_of_a_constant_batch_is_one(value: float) -> None:
    assert float(effective_rank(torch.full((20, 4), value))) == 1.0


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_a_diverged_batch_is_described(bad: float, shape: tuple[int, int]) -> None:
    samples = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    samples[1, 2], samples[3, 4], samples[4, 2] = bad, -bad, bad
    found = describe(Record(Site("pre", "nc", shape[1:]), samples))
    assert not math.isfinite(found.mean)
    assert 1.0 <= found.effective_rank <= 5.0
    everything = describe(Record(Site("pre", "nc", shape[1:]), torch.full(shape, bad)))
    assert everything.effective_rank == 1.0


def test_silence_has_no_dispersion() -> None:
    found = describe(Record(Site("post", "nc", (4,)), torch.zeros(10, 4)))
    assert (found.mean, found.mean_square, found.norm_dispersion, found.effective_rank) == (0.0, 0.0, 0.0, 1.0)


def test_excess_kurtosis_of_two_points_and_of_constants() -> None:
    two_points = torch.tensor([[1.0, 5.0], [-1.0, 5.0]]).repeat(10, 1)
    found = describe(Record(Site("pre", "nc", (2,)), two_points))
    assert found.excess_kurtosis == pytest.approx(-1.0)  # the mean of -2, and of 0 for the unit that does not vary
    assert found.unit_range == (5.0, 5.0)
    assert found.unit_histogram is not None
    assert sum(found.unit_histogram) == 20


def test_a_diverging_site_can_still_be_described() -> None:
    values = torch.tensor([[1.0, math.inf], [2.0, math.nan], [3.0, 1e38]])
    found = describe(Record(Site("pre", "nc", (2,)), values))
    assert found.unit_histogram is not None
    assert sum(found.unit_histogram) == 3
