"""How far seeds scatter: each point's variance, moderated by the variances of all points of its table.

Three seeds say little of their own spread, the twenty points of a table say much of it together. Smyth (2004), "Linear
models and empirical Bayes methods for assessing differential expression in microarray experiments", section 3, takes
the true variances of the points as draws of one scaled inverse chi-squared law, with s_0^2 and d_0:

    1 / sigma_g^2 ~ chi^2_{d_0} / (d_0 s_0^2),    s~_g^2 = (d_0 s_0^2 + d_g s_g^2) / (d_0 + d_g)

and t with the moderated s~_g has d_0 + d_g degrees of freedom (section 4).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

FEWEST = 2  # points of which a prior can be fitted
PRIOR_DEGREES = (0.25, 1000.0)  # d_0 is looked for between these
APART = 0.01  # at most so often one of a table's points is left out that belongs to it


@dataclass(frozen=True)
class Scatter:
    """A variance, in the squared unit of the values, and how many degrees of freedom it rests on."""

    variance: float
    degrees: float


@dataclass(frozen=True)
class VariancePrior:
    """What the points of one table have in common; no degrees of freedom where nothing can be said."""

    variance: float = 0.0  # s_0^2
    degrees: float = 0.0  # d_0; infinite where the points look as if they had one variance
    available: float = math.inf  # of all points together: what is moderated has no more
    least: float = 0.0  # a variance below this is rounding of a coarse metric
    apart: float = 0.0  # how unlikely a point's variance is that is none of these; 0: all are

    def is_apart(self, own: Scatter) -> bool:
        """Whether the point scatters so much more than the others that they say nothing of it."""
        if not self.apart or own.degrees <= 0:
            return False
        if math.isinf(self.degrees):
            bound = float(special.chdtri(own.degrees, self.apart)) / own.degrees
        else:
            bound = float(special.fdtri(own.degrees, self.degrees, 1 - self.apart))
        return own.variance > bound * self.variance

    def moderate(self, own: Scatter) -> Scatter:
        """The point's variance drawn towards the common one: equations (1) and (4) of the source."""
        if self.is_apart(own):
            return own
        variance = max(own.variance, self.least)
        if math.isinf(self.degrees):
            return Scatter(self.variance, self.available)
        degrees = self.degrees + own.degrees
        pooled = (self.degrees * self.variance + own.degrees * variance) / degrees
        return Scatter(pooled, min(degrees, self.available))


NOTHING_KNOWN = VariancePrior()


def scatter(values: Sequence[float]) -> Scatter:
    """Variance of two or more values with n - 1 degrees of freedom."""
    return Scatter(float(np.var(values, ddof=1)), len(values) - 1)


def fit_prior(points: Iterable[Scatter], least: float = 0.0) -> VariancePrior:
    """Fit s_0^2 and d_0 by maximum likelihood: s_g^2 / s_0^2 follows F with d_g and d_0 degrees of freedom.

    The source takes moments of log s_g^2 (section 6.2), which weighs points of two seeds and of thirteen alike: their
    noise then hides that one point of the table scatters a hundred times as much as the others, and all are drawn to
    the mean that it makes. Points that are so far apart are left out of a second fit, and keep their own variance (as
    Phipson et al. 2016 have it, with a bound in place of their probability). Where one variance for all is as likely
    as any other law, d_0 is infinite and s_0^2 the pooled variance.

    Args:
        points: of every point of the table with two or more seeds, those that a grid did not choose included.
        least: the smallest variance to be believed, such as that of rounding, step^2 / 12, for an error that comes in
            steps of one example; seeds that agree by such rounding would otherwise claim to be certain.
    """
    found = [point for point in points if point.degrees > 0]
    prior = _likeliest(found, least)
    usual = [point for point in found if not prior.is_apart(point)]
    return prior if len(usual) == len(found) else _likeliest(usual, least)


def _likeliest(points: Sequence[Scatter], least: float) -> VariancePrior:
    degrees = np.array([point.degrees for point in points], dtype=np.float64)
    variances = np.array([point.variance for point in points], dtype=np.float64)
    if len(points) < FEWEST or not variances.any():
        return VariancePrior(least=least)
    available = float(degrees.sum())
    apart = APART / len(points)
    # As the source's authors' own code does, a point without any spread counts as one with next to none.
    variances = np.maximum(variances, max(least, 1e-5 * float(np.median(variances[variances > 0]))))
    pooled = float(degrees @ variances / available)
    coarse = np.geomspace(*PRIOR_DEGREES, 24)
    _, likelihoods = _profile(coarse, variances, degrees)
    at = int(likelihoods.argmax())
    fine = np.geomspace(coarse[max(at - 1, 0)], coarse[min(at + 1, len(coarse) - 1)], 25)
    common, likelihoods = _profile(fine, variances, degrees)
    at = int(likelihoods.argmax())
    of_one = float((-degrees / 2 * (math.log(2 * pooled) + variances / pooled)).sum())  # where d_0 is infinite
    if likelihoods[at] <= of_one:
        return VariancePrior(pooled, math.inf, available, least, apart)
    return VariancePrior(float(common[at]), float(fine[at]), available, least, apart)


def _profile(prior_degrees: np.ndarray, variances: np.ndarray, degrees: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each d_0 the likeliest s_0^2, and the log likelihood there but for what depends on the data alone.

    The likeliest is the mean of all s_g^2 with weights ``w_g = d_g / (d_g s_g^2 + d_0 s_0^2)``, its only fixed point:
    Newton's method on the difference of logarithms, halved where a step leaves what is known to hold it.
    """
    d_0 = prior_degrees[:, None]
    logs, parts = np.log(variances), degrees * variances
    low, high = np.full_like(d_0, logs.min()), np.full_like(d_0, logs.max())
    place = np.full_like(d_0, np.median(logs))
    for _ in range(14):
        prior_part = d_0 * np.exp(place)
        weights = 1 / (parts + prior_part)
        above, below = weights @ parts, weights @ degrees
        rest = np.log(above / below)[:, None] - place
        squares = weights**2 * prior_part
        slope = 1 + (squares @ parts / above - squares @ degrees / below)[:, None]
        low, high = np.where(rest > 0, place, low), np.where(rest > 0, high, place)
        step = place + rest / slope
        place = np.where((step < low) | (step > high), (low + high) / 2, step)
    s_0 = np.exp(place)
    terms = (
        special.gammaln((degrees + d_0) / 2)
        - special.gammaln(d_0 / 2)
        - degrees / 2 * np.log(d_0 * s_0)
        - (degrees + d_0) / 2 * np.log1p(parts / (d_0 * s_0))
    )
    return s_0[:, 0], terms.sum(1)


def quantile(degrees: float, probability: float) -> float:
    """Of Student's t; of the normal law for infinite degrees of freedom."""
    if math.isinf(degrees):
        return float(special.ndtri(probability))
    return float(special.stdtrit(degrees, probability))


def two_sided_p(t: float, degrees: float) -> float:
    """P(|T| >= |t|)."""
    if math.isinf(degrees):
        return float(2 * special.ndtr(-abs(t)))
    return float(2 * special.stdtr(degrees, -abs(t)))


@dataclass(frozen=True)
class SeedScatter:
    """What all points of one table under one metric say together of how seeds scatter."""

    prior: VariancePrior  # of values
    correlation: float | None = None  # rho of two points over the seeds they share; None where nothing can be said
    at_least: float = 0.0  # rho with 95 % confidence: what pairing may count on
    prior_of_gaps: VariancePrior = NOTHING_KNOWN  # of differences by seed

    def pairs(self, shared: int, one: int, other: int) -> bool:
        """Whether pairing by seed makes the gap surer than all seeds of both arms do."""
        if self.at_least <= 0 or shared < 2:
            return False
        return 2 * (1 - self.at_least) / shared < 1 / one + 1 / other

    def of_gaps(self) -> SeedScatter:
        """The same of differences by seed."""
        return SeedScatter(self.prior_of_gaps)


def seed_scatter(points: Sequence[Mapping[int, float]]) -> SeedScatter:
    """Fit what the points of one table share: values by seed of each point, unchosen ones included.

    Each point is centred and divided by its moderated deviation. With P points, MS_s between seeds, MS_e the rest and
    F = MS_s / MS_e of a two-way analysis of variance (Shrout & Fleiss 1979, ICC(3, 1) and its interval):

        rho = (F - 1) / (F + P - 1),    at least (F / F_95 - 1) / (F / F_95 + P - 1)

    What is left of each point, its seeds' common part taken out, gives the variances of differences.
    """
    values = [list(point.values()) for point in points if len(point) > 1]
    least = _rounding(values)
    prior = fit_prior([scatter(each) for each in values], least)
    table = _complete(points)
    spreads = np.array([prior.moderate(scatter(row.tolist())).variance for row in table])
    if len(table) < FEWEST or spreads.min() <= 0:
        return SeedScatter(prior)
    n_points, n_seeds = table.shape
    scaled = (table - table.mean(axis=1, keepdims=True)) / np.sqrt(spreads)[:, None]
    common = scaled.mean(axis=0)
    degrees = (n_points - 1) * (n_seeds - 1)
    between = n_points * float((common**2).sum()) / (n_seeds - 1)
    rest = (scaled - common) ** 2
    if not rest.any():
        return SeedScatter(prior)
    ratio = between / (float(rest.sum()) / degrees)
    surely = ratio / float(special.fdtri(n_seeds - 1, degrees, 0.95))
    rho, at_least = ((each - 1) / (each + n_points - 1) for each in (ratio, surely))
    own = 2 * spreads * rest.sum(axis=1) / (degrees / n_points)  # a gap has the variances of two points
    gaps = fit_prior([Scatter(float(variance), degrees / n_points) for variance in own], 2 * least)
    return SeedScatter(prior, rho, max(0.0, at_least), gaps)


def _complete(points: Sequence[Mapping[int, float]]) -> np.ndarray:
    """The points that have all seeds that most points have: a row each, and a column a seed."""
    counted = Counter(seed for point in points if len(point) > 1 for seed in point)
    most = max(counted.values(), default=0)
    seeds = [seed for seed, count in counted.items() if 2 * count > most]
    rows = [[point[seed] for seed in seeds] for point in points if len(seeds) > 1 and set(seeds) <= set(point)]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(seeds))


def _rounding(values: Sequence[Sequence[float]]) -> float:
    """step^2 / 12, where all values of the table lie on steps, such as whole examples of a test set."""
    flat = np.unique([value for each in values for value in each])
    least = 1e-9 * float(np.abs(flat).max(initial=0.0))
    step = 0.0
    for difference in np.diff(flat):
        step = _common_step(float(difference), step, least)
    return step**2 / 12 if step > least else 0.0


def _common_step(one: float, other: float, least: float) -> float:
    """Euclid's greatest common divisor of two lengths, to rounding."""
    while other > least:
        rest = one % other
        one, other = other, min(rest, other - rest)
    return one
