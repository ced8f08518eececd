"""How far an axis goes: as far as all intervals on it, but for those that lie far beyond the others."""

from __future__ import annotations

from collections.abc import Iterable

from reproduce.results.stats import Estimate

FAR = 2.0  # an interval whose middle lies beyond so many times the reach of all others is left out
MOST = 0.25  # but at most this share of them

Ends = tuple[float, float]


def ends_of(estimate: Estimate) -> Ends:
    """Of its interval; its mean twice where it has none."""
    return (estimate.interval.low, estimate.interval.high) if estimate.interval else (estimate.mean, estimate.mean)


def in_reach(estimates: Iterable[Estimate]) -> list[Ends]:
    """The ends of those that an axis shows, the ones farthest from zero last."""
    ends = sorted(map(ends_of, estimates), key=_farthest)
    least = len(ends) * (1 - MOST)
    while len(ends) - 1 >= least and _middle(ends[-1]) > FAR * _farthest(ends[-2]) > 0:
        ends.pop()
    return ends


def reach(estimates: Iterable[Estimate]) -> float:
    """How far from zero an axis with zero in its middle goes; 0 where nothing stands on it."""
    shown = in_reach(estimates)
    return _farthest(shown[-1]) if shown else 0.0


def _farthest(ends: Ends) -> float:
    return max(map(abs, ends))


def _middle(ends: Ends) -> float:
    return abs(sum(ends)) / 2
