"""Statistics against simulated truth, scipy's own, and values computed by hand."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from reproduce.results.stats import Interval, holm, mean_estimate, paired_difference


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(n):
    samples = np.random.default_rng(n).normal(7.0, 0.3, (2000, n))
    covered = sum(mean_estimate(sample).interval.contains(7.0) for sample in samples)
    assert abs(covered / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_paired_difference_covers_the_truth_though_seeds_vary_more_than_the_gap():
    generator = np.random.default_rng(0)
    covered, excluded = 0, 0
    for _ in range(1500):
        shared = generator.normal(0, 3.0, 5)
        over = dict(enumerate(7 + shared))
        arm = dict(enumerate(6.5 + shared + generator.normal(0, 0.1, 5)))
        interval = paired_difference(arm, over).estimate.interval
        covered += interval.contains(-0.5)
        excluded += interval.high < 0
    assert abs(covered / 1500 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1500)
    assert excluded > 1490


def test_mean_interval_equals_scipy():
    values = [7.2, 7.6, 6.9, 7.1]
    estimate = mean_estimate(values)
    low, high = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (estimate.interval.low, estimate.interval.high) == pytest.approx((low, high), rel=1e-12)
    assert estimate.deviation == pytest.approx(np.std(values, ddof=1))


def test_three_values_by_hand():
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.interval.half_width == pytest.approx(4.302652729749 / math.sqrt(3))


def test_paired_p_equals_scipy_on_the_shared_seeds():
    arm, over = {0: 6.6, 1: 6.9, 2: 6.5, 7: 1.0}, {2: 7.1, 1: 7.2, 0: 7.3, 9: 99.0}
    difference = paired_difference(arm, over)
    assert difference.seeds == (0, 1, 2)
    expected = scipy_stats.ttest_rel([6.6, 6.9, 6.5], [7.3, 7.2, 7.1])
    assert difference.p_value == pytest.approx(expected.pvalue)


def test_one_seed_gives_no_interval():
    estimate = mean_estimate([3.0])
    assert (estimate.interval, estimate.deviation, estimate.n) == (None, None, 1)
    difference = paired_difference({4: 1.0}, {4: 3.0})
    assert difference.estimate.mean == -2.0
    assert difference.p_value is None


def test_no_shared_seed_gives_no_difference():
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (-0.5, None)])
def test_equal_differences_are_a_point_not_a_nan(gap, p):
    difference = paired_difference({0: 2.0 + gap, 1: 4.0 + gap}, {0: 2.0, 1: 4.0})
    assert difference.p_value == p
    assert difference.estimate.interval == Interval(gap, gap)


def test_one_example_of_a_small_test_set_is_not_certain_for_being_the_same_at_every_seed():
    """Errors in steps of 1/237: the differences are equal but for rounding, and scipy's p would be 1e-30."""
    over = {seed: 100 * wrong / 237 for seed, wrong in enumerate((16, 19, 27))}
    arm = {seed: 100 * wrong / 237 for seed, wrong in enumerate((15, 18, 26))}
    assert len({arm[seed] - over[seed] for seed in over}) > 1
    difference = paired_difference(arm, over)
    assert difference.p_value is None
    assert difference.estimate.mean == pytest.approx(-100 / 237)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 2.0]])
def test_values_that_are_no_data_are_refused(values):
    with pytest.raises(ValueError, match="finite values"):
        mean_estimate(values)


def test_holm_by_hand_and_around_gaps():
    # sorted .01 .02 .04 -> .01*3, max(.03, .02*2), max(.04, .04*1)
    assert holm([0.04, None, 0.01, 0.02]) == pytest.approx([0.04, None, 0.03, 0.04])
    assert holm([None, None]) == [None, None]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_equals_statsmodels():
    p_values = np.random.default_rng(1).uniform(0, 0.3, 40).round(2).tolist()  # rounded, so that some are equal
    assert len(set(p_values)) < 40
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.1, 1.2])


def test_intervals_meet():
    interval = Interval(1.0, 2.0)
    assert interval.meets(2.0, 3.0)
    assert interval.meets(1.2, 1.3)
    assert not interval.meets(2.1, 3.0)
