"""Moderated variances against simulated truth, scipy, and analysis of variance written as loops."""

import math

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from reproduce.results.scatter import (
    Scatter,
    VariancePrior,
    fit_prior,
    quantile,
    scatter,
    seed_scatter,
    two_sided_p,
)


@pytest.mark.parametrize(("degrees", "own"), [(4.0, 2), (10.0, 3), (10.0, 9)])
def test_the_fit_finds_the_law_that_variances_were_drawn_from(degrees, own):
    generator = np.random.default_rng(int(degrees) + own)
    truth = 0.3**2 * degrees / generator.chisquare(degrees, 20000)
    points = [Scatter(float(v * c / own), own) for v, c in zip(truth, generator.chisquare(own, 20000), strict=True)]
    prior = fit_prior(points)
    assert prior.variance == pytest.approx(0.09, rel=0.05)
    assert prior.degrees == pytest.approx(degrees, rel=0.15)
    assert prior.available == 20000 * own


def test_points_of_one_variance_are_pooled():
    points = [Scatter(1.0, 2), Scatter(1.1, 2), Scatter(0.9, 4)]
    prior = fit_prior(points)
    assert math.isinf(prior.degrees)
    assert prior.variance == pytest.approx((2 * 1.0 + 2 * 1.1 + 4 * 0.9) / 8)
    assert prior.moderate(Scatter(2.0, 2)) == Scatter(prior.variance, 8)
    assert prior.moderate(Scatter(50.0, 2)) == Scatter(50.0, 2)


def test_moderated_by_hand():
    prior = VariancePrior(variance=2.0, degrees=6.0, available=40)
    assert prior.moderate(Scatter(5.0, 2)) == Scatter((6 * 2.0 + 2 * 5.0) / 8, 8)
    assert prior.moderate(Scatter(0.0, 2)).variance == pytest.approx(1.5)
    few = VariancePrior(variance=2.0, degrees=6.0, available=4)
    assert few.moderate(Scatter(5.0, 2)).degrees == 4


def test_without_other_points_a_variance_stays_its_own():
    for prior in (fit_prior([]), fit_prior([Scatter(3.0, 2)]), fit_prior([Scatter(0.0, 2), Scatter(0.0, 2)])):
        assert prior.moderate(Scatter(3.0, 2)) == Scatter(3.0, 2)


def test_seeds_that_agree_to_a_whole_example_are_not_certain():
    step = 100 / 259
    points = [dict(enumerate(np.array(wrong) * step)) for wrong in ([52, 52, 52], [51, 52, 52], [53, 52, 53])]
    moderated = seed_scatter(points).prior.moderate(scatter([52 * step] * 3))
    assert moderated.variance >= step**2 / 12 * 0.99


def test_a_point_without_spread_does_not_end_the_fit():
    prior = fit_prior([Scatter(0.0, 2), *(Scatter(1.0 + 0.1 * i, 2) for i in range(8))])
    assert 0 < prior.variance < 2


def test_the_fit_is_the_likeliest():
    """Against scipy's F and its optimiser."""
    generator = np.random.default_rng(5)
    degrees = [1] * 12 + [5] * 6 + [12]
    truth = 2.0 * 3.0 / generator.chisquare(3.0, len(degrees))
    points = [Scatter(float(v * generator.chisquare(d) / d), d) for v, d in zip(truth, degrees, strict=True)]

    def unlikely(place):
        common, prior_degrees = np.exp(place)
        return -sum(scipy_stats.f.logpdf(p.variance / common, p.degrees, prior_degrees) - place[0] for p in points)

    best = optimize.minimize(unlikely, [0.0, 1.0], method="Nelder-Mead")
    prior = fit_prior(points)
    assert math.log(prior.degrees) == pytest.approx(best.x[1], abs=0.03)
    assert math.log(prior.variance) == pytest.approx(best.x[0], abs=0.01)
    assert -unlikely([math.log(prior.variance), math.log(prior.degrees)]) == pytest.approx(-best.fun, abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_the_likeliest_variance_is_a_fixed_point(seed):
    """Where the derivative of F's likelihood by s_0^2 is zero, to many digits, however uneven the points are."""
    generator = np.random.default_rng(seed)
    degrees = generator.integers(1, 13, 25)
    truth = 10.0**seed * 1.5 / generator.chisquare(1.5, 25)
    variances = truth * generator.chisquare(degrees) / degrees
    prior = fit_prior([Scatter(float(v), int(d)) for v, d in zip(variances, degrees, strict=True)])
    assert math.isfinite(prior.degrees)
    usual = np.array([not prior.is_apart(Scatter(float(v), int(d))) for v, d in zip(variances, degrees, strict=True)])
    assert usual.sum() >= 24
    variances, degrees = variances[usual], degrees[usual]
    weights = degrees / (degrees * variances + prior.degrees * prior.variance)
    assert prior.variance == pytest.approx(float((weights * variances).sum() / weights.sum()), rel=1e-10)


def test_one_arm_that_scatters_much_does_not_widen_the_others():
    """As in the matrix: many points of two seeds that only choose, arms of six, one of which falls apart."""
    generator = np.random.default_rng(7)
    points = [Scatter(float(0.3 * generator.chisquare(1)), 1) for _ in range(35)]
    points += [Scatter(float(0.3 * generator.chisquare(5) / 5), 5) for _ in range(19)]
    prior = fit_prior([*points, Scatter(60.0, 5)])
    assert prior.moderate(Scatter(0.3, 12)).variance == pytest.approx(0.3, rel=0.15)
    assert prior.moderate(Scatter(60.0, 5)) == Scatter(60.0, 5)  # nor do they make it surer
    assert fit_prior(points) == prior


def test_points_of_one_law_are_rarely_taken_for_another():
    generator = np.random.default_rng(8)
    left_out = 0
    for _ in range(400):
        truth = 4.0 / generator.chisquare(4.0, 20)
        points = [Scatter(float(v * generator.chisquare(2) / 2), 2) for v in truth]
        prior = fit_prior(points)
        left_out += any(prior.is_apart(point) for point in points)
    assert left_out / 400 < 0.04


def test_correlation_equals_analysis_of_variance_by_loops():
    generator = np.random.default_rng(3)
    table = generator.normal(size=(5, 4)) + 0.8 * generator.normal(size=(1, 4))
    found = seed_scatter([dict(enumerate(row)) for row in table])
    spreads = [found.prior.moderate(scatter(row.tolist())).variance for row in table]
    centred = [[(x - sum(row) / 4) / math.sqrt(v) for x in row] for row, v in zip(table, spreads, strict=True)]
    means = [sum(row[s] for row in centred) / 5 for s in range(4)]
    between = 5 * sum(m**2 for m in means) / 3
    rest = sum((centred[p][s] - means[s]) ** 2 for p in range(5) for s in range(4)) / (4 * 3)
    assert found.correlation == pytest.approx((between - rest) / (between + 4 * rest))
    ratio = between / rest / scipy_stats.f.ppf(0.95, 3, 12)
    assert found.at_least == pytest.approx(max(0.0, (ratio - 1) / (ratio + 4)))


def test_two_points_paired_are_the_paired_t_test():
    over = {0: 7.5, 1: 8.0, 2: 8.5}
    arm = {seed: value + gap for (seed, value), gap in zip(over.items(), (-0.4, -0.5, -0.6), strict=True)}
    seeds = seed_scatter([over, arm])
    assert seeds.pairs(3, 3, 3)
    gaps = seeds.of_gaps().prior.moderate(scatter([arm[s] - over[s] for s in over]))
    assert gaps.degrees == pytest.approx(2)
    assert gaps.variance == pytest.approx(0.01)


def test_independent_seeds_are_paired_no_oftener_than_the_level():
    generator = np.random.default_rng(0)
    paired = 0
    for _ in range(800):
        table = generator.normal(size=(10, 3))
        paired += seed_scatter([dict(enumerate(row)) for row in table]).pairs(3, 3, 3)
    assert paired / 800 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 800)


def test_seeds_that_go_together_are_found_and_only_pay_where_they_are_shared():
    generator = np.random.default_rng(1)
    table = 2 * generator.normal(size=(1, 6)) + generator.normal(size=(12, 6))
    seeds = seed_scatter([dict(enumerate(row)) for row in table])
    assert 0.4 < seeds.correlation < 1
    assert 0 < seeds.at_least < seeds.correlation
    assert seeds.pairs(6, 6, 6)
    assert not seeds.pairs(2, 6, 30)  # four of six seeds would be thrown away
    assert not seeds.pairs(1, 1, 1)


def test_quantiles_and_p_equal_scipy():
    assert quantile(3.5, 0.975) == pytest.approx(scipy_stats.t.ppf(0.975, 3.5))
    assert quantile(math.inf, 0.975) == pytest.approx(1.959963984540054)
    assert two_sided_p(-2.1, 4.0) == pytest.approx(2 * scipy_stats.t.sf(2.1, 4))
    assert two_sided_p(1.959963984540054, math.inf) == pytest.approx(0.05)
