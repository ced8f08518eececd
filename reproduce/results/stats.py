"""How sure: means and gaps with intervals, from the scatter that a table's points share, and families of tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reproduce.results.scatter import Scatter, SeedScatter, quantile, scatter, two_sided_p

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05  # of a p value
UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True)
class Interval:
    """Both ends of a confidence interval, in the unit of the mean."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def meets(self, low: float, high: float) -> bool:
        """Whether the interval and [low, high] have a point in common."""
        return self.low <= high and low <= self.high

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds, or the gap between two such means, and how sure it is.

    Nothing is known of the spread, and ``interval``, ``error`` and ``run`` are None, for n = 1 and where all values
    are equal with no other point beside them.
    """

    mean: float
    n: int  # of a gap, the seeds of the arm that has fewer
    deviation: float | None  # standard deviation with n - 1; None for n = 1
    interval: Interval | None
    error: Scatter | None = None  # of the mean: its squared standard error
    run: float | None = None  # the variance of one more run, or of the gap between one and one

    def within(self, confidence: float) -> Interval | None:
        """The t interval at another confidence."""
        if self.error is None:
            return None
        reach = quantile(self.error.degrees, (1 + confidence) / 2) * math.sqrt(self.error.variance)
        return Interval(self.mean - reach, self.mean + reach)

    def foresees(self, runs: int, confidence: float = CONFIDENCE) -> Interval | None:
        """Where the mean of so many further runs of the same thing lies: a prediction interval.

        mean +- t sqrt(run / runs + error), as Patil, Peng & Leek (2016), "What should researchers expect when they
        replicate studies?", equation in section "Defining and quantifying replication", with t for the normal law.
        """
        if self.error is None or self.run is None:
            return None
        spread = math.sqrt(self.run / runs + self.error.variance)
        reach = quantile(self.error.degrees, (1 + confidence) / 2) * spread
        return Interval(self.mean - reach, self.mean + reach)


@dataclass(frozen=True)
class Difference:
    """One arm minus another: the gap between their means, or the mean of gaps paired by seed."""

    estimate: Estimate
    paired: bool
    p_value: float | None  # two-sided, of "no difference"; None where there is no interval


def mean_estimate(
    values: Sequence[float],
    seeds: SeedScatter | None = None,
    bounds: tuple[float, float] = UNBOUNDED,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Mean with a two-sided t interval, mean +- t_d s / sqrt(n).

    s^2 is the variance of the values, moderated by the table's where ``seeds`` has it; d its degrees of freedom. An
    interval that would leave the metric's bounds is taken on the scale of log((y - low) / (high - y)), or of
    log(y - low) without an upper bound, with s scaled by the derivative there.

    Raises:
        ValueError: no values, or a value that is not finite.
    """
    data = _finite(values)
    n = len(data)
    mean = float(np.mean(data))
    if n == 1:
        return Estimate(mean, 1, None, None)
    own = scatter(data.tolist())
    spread = _moderated(own, mean, seeds)
    deviation = math.sqrt(own.variance)
    if spread is None:
        return Estimate(mean, n, deviation, None)
    error = Scatter(spread.variance / n, spread.degrees)
    reach = quantile(error.degrees, (1 + confidence) / 2) * math.sqrt(error.variance)
    return Estimate(mean, n, deviation, _inside(mean, reach, bounds), error, spread.variance)


def difference(
    arm: Mapping[int, float],
    over: Mapping[int, float],
    seeds: SeedScatter | None = None,
    confidence: float = CONFIDENCE,
) -> Difference | None:
    """``arm`` minus ``over``, by seed; None where one of them has no value.

    The gap between the means, each with its own moderated variance:

        se^2 = s_a^2 / n_a + s_b^2 / n_b,    d = min(d_a, d_b)

    The fewer degrees of freedom, not Welch's more: with his, two moderated variances told an arm from a baseline in
    6 % of simulated tables without a gap (docs/verdicts.md).

    Where the table's arms go together over seeds, with a correlation of rho or more, and 2 (1 - rho) / n of the shared
    seeds is less than 1 / n_a + 1 / n_b, it is the mean of the differences by seed and their variance.
    """
    if not arm or not over:
        return None
    shared = sorted(set(arm) & set(over))
    if seeds is not None and seeds.pairs(len(shared), len(arm), len(over)):
        gaps = mean_estimate([arm[seed] - over[seed] for seed in shared], seeds.of_gaps())
        return _tested(gaps.mean, len(shared), gaps.deviation, gaps.error, gaps.run, True, confidence)
    one, other = (mean_estimate(list(values.values()), seeds) for values in (arm, over))
    gap, n = one.mean - other.mean, min(one.n, other.n)
    if one.error is None or other.error is None or one.run is None or other.run is None:
        return Difference(Estimate(gap, n, None, None), False, None)
    parts = one.error, other.error
    error = Scatter(sum(part.variance for part in parts), min(part.degrees for part in parts))
    return _tested(gap, n, None, error, one.run + other.run, False, confidence)


def _tested(
    gap: float,
    n: int,
    deviation: float | None,
    error: Scatter | None,
    run: float | None,
    paired: bool,
    confidence: float,
) -> Difference:
    if error is None:
        return Difference(Estimate(gap, n, deviation, None), paired, None)
    standard_error = math.sqrt(error.variance)
    reach = quantile(error.degrees, (1 + confidence) / 2) * standard_error
    estimate = Estimate(gap, n, deviation, Interval(gap - reach, gap + reach), error, run)
    return Difference(estimate, paired, two_sided_p(gap / standard_error, error.degrees))


def _moderated(own: Scatter, mean: float, seeds: SeedScatter | None) -> Scatter | None:
    """None where the values are equal, to rounding, and nothing else tells how far seeds scatter."""
    found = own if seeds is None else seeds.prior.moderate(own)
    return found if found.variance > (1e-12 * mean) ** 2 else None


def _inside(mean: float, reach: float, bounds: tuple[float, float]) -> Interval:
    low, high = bounds
    plain = Interval(mean - reach, mean + reach)
    if (low <= plain.low and plain.high <= high) or not low < mean < high:
        return Interval(max(low, plain.low), min(high, plain.high))
    if math.isinf(high):
        factor = math.exp(reach / (mean - low))
        return Interval(low + (mean - low) / factor, low + (mean - low) * factor)
    if math.isinf(low):
        factor = math.exp(reach / (high - mean))
        return Interval(high - (high - mean) * factor, high - (high - mean) / factor)
    odds = (mean - low) / (high - mean)
    factor = math.exp(reach * (high - low) / ((mean - low) * (high - mean)))
    return Interval(*(low + (high - low) * each / (1 + each) for each in (odds / factor, odds * factor)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over those that are not None: max over j <= i of (m - j + 1) p_(j), at most 1.

    Written out because statsmodels collects garbage in every call, which took a third of a page's time.

    Raises:
        ValueError: a p outside [0, 1].
    """
    known = [p for p in p_values if p is not None]
    if any(not 0 <= p <= 1 for p in known):
        raise ValueError(f"p values lie in [0, 1]; got {known}")
    adjusted: dict[float, float] = {}
    largest = 0.0
    for smaller, p in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - smaller) * p))
        adjusted.setdefault(p, largest)
    return [None if p is None else adjusted[p] for p in p_values]


def _finite(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"a statistic needs one or more finite values; got {list(values)}")
    return data
