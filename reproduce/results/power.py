"""How many seeds a claim needs before a verdict can be expected: from how far the seeds that ran scatter."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import special

from reproduce.experiment.schema import Claim
from reproduce.results.judge import Verdict
from reproduce.results.scatter import quantile
from reproduce.results.stats import CONFIDENCE, Estimate

POWER = 0.8
MOST = 1000  # seeds: beyond them nobody waits


def seeds_needed(claim: Claim, ours: Estimate | None, power: float = POWER) -> int | None:
    """The fewest seeds, of each arm, at which a true claim is called reproduced with this probability.

    With V the variance of one run, or of the gap between one and one, the mean of n seeds is taken as normal around the
    published number with variance V / n, and its interval reaches t sqrt(V / n), t at the degrees of freedom that V has
    now. A claim of direction gives no size: ours is put in its place. None: nothing is known of V, the published number
    cannot be reproduced so (a direction against ours), or more than ``MOST`` would be needed.
    """
    if ours is None or ours.run is None or ours.error is None or ours.run <= 0:
        return None
    t = quantile(ours.error.degrees, (1 + CONFIDENCE) / 2)
    one = math.sqrt(ours.run)
    if claim.direction is not None:
        sign = 1 if claim.direction == "higher" else -1
        return _fewest(lambda spread: _normal(sign * ours.mean / spread - t), one, power)
    if claim.value is None or claim.tolerance is None:
        return None
    tolerance = claim.tolerance
    if claim.over is None or claim.value == 0:
        return _fewest(lambda spread: _within(tolerance / spread) if t * spread <= tolerance else 0.0, one, power)
    size = abs(claim.value)

    def reproduced(spread: float) -> float:
        """On the published side by more than the reach, and no further from the published size than the tolerance."""
        low = max(t * spread - size, -tolerance)
        return max(0.0, _normal(tolerance / spread) - _normal(low / spread))

    return _fewest(reproduced, one, power)


def seeds_of(verdict: Verdict) -> int | None:
    """`seeds_needed` of a claim as it was judged: for the gap that was seen at reduced scale, where sizes differ."""
    claim, ours = verdict.claim, verdict.ours
    if verdict.word == "reduced scale" and ours is not None:
        side = "higher" if ours.mean > 0 else "lower"
        claim = claim.model_copy(update={"value": None, "tolerance": None, "direction": side})
    return seeds_needed(claim, ours)


def is_open(verdict: Verdict) -> bool:
    """Whether more seeds may decide it: what two or more say is undecided."""
    undecided = verdict.word == "inconclusive" or verdict.direction == "undecided"
    return undecided and verdict.ours is not None and verdict.ours.interval is not None


def seeds_text(verdict: Verdict) -> str:
    """How many seeds an undecided claim needs, in words; "" of others, and where that cannot be said."""
    if not is_open(verdict):
        return ""
    needed = seeds_of(verdict)
    if needed is None:
        return "" if verdict.claim.direction is not None else f"more than {MOST} seeds needed"
    of_what = "a gap of this size" if verdict.word == "reduced scale" or verdict.claim.direction else "it"
    return f"to tell {of_what} takes {needed} seeds an arm ({100 * POWER:.0f} % power)"


def _fewest(power_at: Callable[[float], float], one: float, power: float) -> int | None:
    """By bisection over n: power grows with the number of seeds."""
    low, high = 1, MOST
    if power_at(one / math.sqrt(high)) < power:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_at(one / math.sqrt(middle)) >= power else (middle, high)
    return high


def _normal(z: float) -> float:
    return float(special.ndtr(z))


def _within(z: float) -> float:
    """P(|Z| <= z)."""
    return _normal(z) - _normal(-z)
