"""Statistics against simulated truth, scipy's own, and values computed by hand."""

import math

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from reproduce.results.scatter import seed_scatter
from reproduce.results.stats import Interval, difference, holm, mean_estimate


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_truth_as_often_as_it_says(n):
    samples = np.random.default_rng(n).normal(7.0, 0.3, (2000, n))
    covered = sum(mean_estimate(sample).interval.contains(7.0) for sample in samples)
    assert abs(covered / 2000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 2000)


def table(generator, points, n, shared=0.0):
    values = shared * generator.normal(size=(1, n)) + generator.normal(size=(points, n))
    return [dict(enumerate(row)) for row in values]


@pytest.mark.parametrize("shared", [0.0, 3.0])
def test_a_gap_covers_the_truth_and_pairing_makes_it_shorter_where_seeds_go_together(shared):
    generator = np.random.default_rng(0)
    covered, paired, width = 0, 0, 0.0
    for _ in range(800):
        points = table(generator, 8, 5, shared)
        found = difference(points[0], points[1], seed_scatter(points))
        covered += found.estimate.interval.contains(0.0)
        paired += found.paired
        width += found.estimate.interval.half_width / 800
    assert abs(covered / 800 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 800)
    assert paired / 800 > 0.9 if shared else paired / 800 < 0.1
    assert width < 2.2  # unpaired it would be three times as wide where seeds go together


def test_mean_interval_equals_scipy():
    values = [7.2, 7.6, 6.9, 7.1]
    estimate = mean_estimate(values)
    low, high = scipy_stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    assert (estimate.interval.low, estimate.interval.high) == pytest.approx((low, high), rel=1e-12)
    assert estimate.deviation == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_at_another_confidence_the_interval_equals_scipy_too(confidence):
    values = [7.2, 7.6, 6.9, 7.1]
    expected = scipy_stats.t.interval(confidence, 3, loc=np.mean(values), scale=scipy_stats.sem(values))
    later, at_once = mean_estimate(values).within(confidence), mean_estimate(values, confidence=confidence).interval
    assert (later.low, later.high) == pytest.approx(expected, rel=1e-12)
    assert (at_once.low, at_once.high) == pytest.approx(expected, rel=1e-12)


def test_three_values_by_hand():
    estimate = mean_estimate([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.interval.half_width == pytest.approx(4.302652729749 / math.sqrt(3))


def test_without_a_table_a_gap_is_of_two_means_and_careful():
    """The same standard error as Welch's, with the fewer degrees of freedom of the two."""
    arm, over = {0: 6.6, 1: 6.9, 2: 6.5}, {0: 7.1, 1: 7.2, 2: 7.3, 9: 7.7}
    found = difference(arm, over)
    expected = scipy_stats.ttest_ind(list(arm.values()), list(over.values()), equal_var=False)
    assert found.estimate.mean == pytest.approx(6.6666667 - 7.325)
    assert found.p_value == pytest.approx(2 * scipy_stats.t.sf(abs(expected.statistic), 2))
    assert found.p_value > expected.pvalue
    assert found.estimate.n == 3
    assert not found.paired


def test_a_gap_foresees_one_more_run_of_each_arm():
    arm, over = {0: 6.6, 1: 6.9, 2: 6.5}, {0: 7.1, 1: 7.2, 2: 7.3, 9: 7.7}
    foreseen = difference(arm, over).estimate.foresees(1)
    one, other = np.var(list(arm.values()), ddof=1), np.var(list(over.values()), ddof=1)
    spread = math.sqrt((one + other) + (one / 3 + other / 4))  # of the runs to come, and of the means that are known
    expected = scipy_stats.t.interval(0.95, 2, loc=6.6666666667 - 7.325, scale=spread)
    assert (foreseen.low, foreseen.high) == pytest.approx(expected)


def test_paired_by_seed_it_is_the_paired_t_test():
    arm, over = {0: 6.62, 1: 6.93, 2: 6.5, 7: 6.1}, {2: 7.1, 1: 7.5, 0: 7.2, 7: 6.7}
    seeds = seed_scatter([arm, over])
    found = difference(arm, over, seeds)
    assert found.paired
    expected = scipy_stats.ttest_rel([arm[seed] for seed in over], list(over.values()))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.estimate.mean == pytest.approx(np.mean([arm[seed] - over[seed] for seed in over]))


def test_a_longer_baseline_makes_a_gap_surer():
    generator = np.random.default_rng(5)
    points = table(generator, 12, 3)
    many = dict(enumerate(generator.normal(size=13)))
    seeds = seed_scatter([many, *points])
    few = difference(points[0], dict(list(many.items())[:3]), seeds)
    assert difference(points[0], many, seeds).estimate.interval.half_width < 0.8 * few.estimate.interval.half_width


def test_one_seed_gives_no_interval():
    estimate = mean_estimate([3.0])
    assert (estimate.interval, estimate.deviation, estimate.n) == (None, None, 1)
    found = difference({4: 1.0}, {4: 3.0})
    assert found.estimate.mean == -2.0
    assert (found.p_value, found.estimate.interval) == (None, None)
    assert difference({}, {0: 1.0}) is None


def test_arms_that_share_no_seed_still_have_a_gap():
    found = difference({0: 1.0, 1: 1.2}, {5: 2.0, 6: 2.1})
    assert found.estimate.mean == pytest.approx(-0.95)
    assert found.estimate.interval is not None


def test_equal_values_with_nothing_beside_them_are_not_certain():
    same = mean_estimate([2.5, 2.5])
    assert (same.mean, same.interval, same.error) == (2.5, None, None)
    assert mean_estimate([0.0, 0.0]).interval is None
    found = difference({0: 2.5, 1: 2.5}, {0: 3.0, 1: 3.0})
    assert (found.p_value, found.estimate.interval) == (None, None)


def test_one_example_of_a_small_test_set_is_not_certain_for_being_the_same_at_every_seed():
    """Errors in steps of 1/237: the differences are equal but for rounding, and a paired t test's p would be 1e-30."""
    over = {seed: 100 * wrong / 237 for seed, wrong in enumerate((16, 19, 27))}
    arm = {seed: 100 * wrong / 237 for seed, wrong in enumerate((15, 18, 26))}
    assert len({arm[seed] - over[seed] for seed in over}) > 1
    found = difference(arm, over, seed_scatter([arm, over]))
    assert found.estimate.mean == pytest.approx(-100 / 237)
    assert found.p_value is None or found.p_value > 0.01


@pytest.mark.parametrize(
    ("values", "bounds"),
    [([0.1, 0.2, 1.5], (0, 100)), ([99.9, 98.0, 99.8], (0, 100)), ([1.1, 1.2, 4.0], (1, math.inf))],
)
def test_an_interval_stays_inside_the_bounds_of_its_metric(values, bounds):
    low, high = bounds
    plain = mean_estimate(values).interval
    assert plain.low < low or plain.high > high
    kept = mean_estimate(values, bounds=bounds).interval
    assert low < kept.low < np.mean(values) < kept.high < high


@pytest.mark.parametrize(
    ("values", "bounds", "forth", "slope", "back"),
    [
        ([1.1, 1.2, 4.0], (1, math.inf), lambda y: np.log(y - 1), lambda y: 1 / (y - 1), lambda z: 1 + np.exp(z)),
        ([-1.1, 1.9, 1.8], (-math.inf, 2), lambda y: np.log(2 - y), lambda y: 1 / (2 - y), lambda z: 2 - np.exp(z)),
        (
            [1.2, 1.3, 3.5],
            (1, 4),
            lambda y: special.logit((y - 1) / 3),
            lambda y: 1 / (y - 1) + 1 / (4 - y),
            lambda z: 1 + 3 * special.expit(z),
        ),
    ],
)
def test_next_to_a_bound_the_interval_is_that_of_the_logarithm(values, bounds, forth, slope, back):
    mean = np.mean(values)
    on_the_scale = scipy_stats.t.interval(0.95, 2, loc=forth(mean), scale=slope(mean) * scipy_stats.sem(values))
    found = mean_estimate(values, bounds=bounds).interval
    assert (found.low, found.high) == pytest.approx(tuple(sorted(back(np.array(on_the_scale)))))


@pytest.mark.parametrize("mean", [-0.2, 0.0])
def test_a_mean_that_is_not_inside_the_bounds_has_the_plain_interval_cut_off(mean):
    values = [mean - 0.1, mean, mean + 0.1]
    kept = mean_estimate(values, bounds=(0, math.inf)).interval
    assert (kept.low, kept.high) == (0, mean_estimate(values).interval.high)


def test_where_no_bound_is_near_the_interval_is_the_plain_one():
    values = [7.2, 7.6, 6.9]
    assert mean_estimate(values, bounds=(0, 100)).interval == mean_estimate(values).interval


def test_bounded_intervals_cover_small_error_rates():
    generator = np.random.default_rng(2)
    held = plain = changed = 0
    for _ in range(1500):
        values = generator.gamma(2.0, 0.4, 3)  # mean 0.8, skewed, next to zero
        kept, free = mean_estimate(values, bounds=(0, 100)).interval, mean_estimate(values).interval
        held, plain, changed = held + kept.contains(0.8), plain + free.contains(0.8), changed + (kept != free)
    assert changed > 300
    assert held >= plain
    assert held / 1500 > 0.9


def test_a_prediction_interval_holds_one_more_run_as_often_as_it_says():
    generator = np.random.default_rng(4)
    held = sum(mean_estimate(v[:4]).foresees(1).contains(v[4]) for v in generator.normal(size=(3000, 5)))
    several = sum(mean_estimate(v[:4]).foresees(5).contains(v[4:].mean()) for v in generator.normal(size=(3000, 9)))
    for count in (held, several):
        assert abs(count / 3000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 3000)


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
