"""How sure: means with intervals, differences paired by seed, and adjustment for many comparisons.

Student's t throughout: with the three to ten seeds of an experiment a rank test cannot fall below 2^(1-n) and a
bootstrap is too narrow, so neither would decide anything here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05  # of a p value


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
    """A mean over n seeds, and Student's t interval: None for n = 1, where nothing is known of the spread."""

    mean: float
    n: int
    deviation: float | None  # standard deviation with n - 1
    interval: Interval | None


@dataclass(frozen=True)
class Difference:
    """One arm minus another over the seeds that both have: the estimate, and p of "no difference"."""

    estimate: Estimate
    seeds: tuple[int, ...]
    p_value: float | None  # two-sided paired t test; None for n = 1 and for equal differences


def mean_estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean with a two-sided t interval, mean +- t_{n-1} s / sqrt(n).

    Raises:
        ValueError: no values, or a value that is not finite.
    """
    data = _finite(values)
    n = len(data)
    mean = float(np.mean(data))
    if n == 1:
        return Estimate(mean, 1, None, None)
    deviation = float(np.std(data, ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * deviation / math.sqrt(n)
    return Estimate(mean, n, deviation, Interval(mean - reach, mean + reach))


def paired_difference(
    arm: Mapping[int, float], over: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """``arm`` minus ``over``, paired by seed; None when they share no seed.

    The t interval of the differences. Where they are equal at every seed, to rounding, the interval is a point and
    there is no p (or 1 where all are zero): a t test would call the smallest step of a coarse metric, one example
    of a small test set, certain.
    """
    seeds = tuple(sorted(set(arm) & set(over)))
    if not seeds:
        return None
    differences = [arm[seed] - over[seed] for seed in seeds]
    estimate = mean_estimate(differences, confidence)
    if estimate.deviation is None:
        return Difference(estimate, seeds, None)
    rounding = 1e-12 * max(abs(value) for seed in seeds for value in (arm[seed], over[seed]))
    if estimate.deviation <= rounding:
        return Difference(estimate, seeds, 1.0 if abs(estimate.mean) <= rounding else None)
    return Difference(estimate, seeds, float(stats.ttest_1samp(differences, 0.0).pvalue))


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
