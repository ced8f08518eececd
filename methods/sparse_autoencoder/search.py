"""The coefficient at which about so many units of a code are active: bisection over short runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class FoundCoefficient(NamedTuple):
    """What `coefficient_for_active_units` found, and every short run that it took."""

    coefficient: float
    active: float  # at that coefficient
    runs: tuple[tuple[float, float], ...]  # (coefficient, active units), in the order in which they were trained


def coefficient_for_active_units(
    active_units: Callable[[float], float],
    wanted: float,
    low: float,
    high: float,
    tolerance: float = 0.5,
    most_runs: int = 12,
) -> FoundCoefficient:
    """The coefficient of a sparsity penalty with ``wanted`` active units, by bisection of its logarithm.

    The cost is one short training for each call of ``active_units``: both ends, then one for each halving of
    ``log(high / low)``, until a count is within ``tolerance`` or ``most_runs`` are spent; the nearest is returned.
    A count of short runs is not that of long ones: take as many epochs as the count needs to settle.

    Args:
        active_units: trains at a coefficient, from the same start each time, and returns the mean number of units
            that are not zero (`l0`). It should fall as the coefficient rises.
        wanted: how many units shall be active on average.
        low, high: coefficients between which the wanted one lies.
        tolerance: in units.
        most_runs: at least 2.

    Raises:
        ValueError: ends that do not rise from above zero; fewer than two runs; a count that is not finite; or ends
            whose counts do not have the wanted one between them.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"coefficients must rise from above zero, got low {low} and high {high}")
    if most_runs < 2:
        raise ValueError(f"bisection trains at both ends first: most_runs must be at least 2, got {most_runs}")
    runs: list[tuple[float, float]] = []

    def count(coefficient: float) -> float:
        active = float(active_units(coefficient))
        if not math.isfinite(active):
            raise ValueError(f"coefficient {coefficient:.3g} gave {active} active units: the run diverged")
        runs.append((coefficient, active))
        return active

    most, fewest = count(low), count(high)
    if not fewest - tolerance <= wanted <= most + tolerance:
        raise ValueError(
            f"{wanted:g} active units lie outside what {low:g} and {high:g} give, {most:.1f} and {fewest:.1f}: "
            f"{'lower low' if wanted > most else 'raise high'}"
        )
    while min(abs(active - wanted) for _, active in runs) > tolerance and len(runs) < most_runs:
        middle = math.sqrt(low * high)
        if count(middle) > wanted:
            low = middle
        else:
            high = middle
    coefficient, active = min(runs, key=lambda run: abs(run[1] - wanted))
    return FoundCoefficient(coefficient, active, tuple(runs))
