"""Times as people say them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

_UNITS = (("min", 60.0, 120.0), ("h", 3600.0, 7200.0), ("days", 86400.0, 2 * 86400.0))  # name, seconds, from there on


def duration(seconds: float) -> str:
    """In the unit that a reader would take: 45 s, 3 min, 2.4 h, 5 days."""
    if seconds < 1:
        return "under 1 s"
    if seconds < _UNITS[0][2]:
        return f"{seconds:.0f} s"
    name, size, _ = next(unit for unit in reversed(_UNITS) if seconds >= unit[2])
    number = seconds / size
    text = f"{number:.0f}" if name == "min" or number >= 10 else f"{number:.1f}".removesuffix(".0")
    return f"{text} {name}"


def count_of(n: int, what: str) -> str:
    """A number of things: 1 run, 2 runs."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def runs_text(n: int) -> str:
    return count_of(n, "run")


def last_end(places: Iterable[float], seconds: Iterable[float]) -> float:
    """When the last has ended of those that start one after the other, each in the place that is free first.

    Args:
        places: when each place is free.
        seconds: how long each takes, in the order in which they start.

    >>> last_end([0.0, 0.0], [3.0, 1.0, 1.0, 1.0])
    3.0
    """
    ends = list(places)
    heapq.heapify(ends)
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends, default=0.0)


def time_text(estimates: Sequence[float | None]) -> str:
    """Of several Runs together: how long, and for how many of them that is known; "" where there are none."""
    if not estimates:
        return ""
    known = [seconds for seconds in estimates if seconds is not None]
    if not known:
        return "unknown"
    return duration(sum(known)) + (f" ({len(known)} of {len(estimates)})" if len(known) < len(estimates) else "")
