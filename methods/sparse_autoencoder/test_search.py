"""The search for a coefficient: against a count whose inverse is known, its cost, and what it refuses."""

from __future__ import annotations

import math

import pytest

from methods.sparse_autoencoder.search import coefficient_for_active_units


def soft(coefficient: float) -> float:
    """A count that falls from 100 to 0 and is 10 at a coefficient of 3."""
    return 100 / (1 + 3 * coefficient)


def test_the_coefficient_is_the_inverse_of_the_count() -> None:
    found = coefficient_for_active_units(soft, wanted=10, low=1e-3, high=1e3, tolerance=0.01, most_runs=40)
    assert found.coefficient == pytest.approx(3, rel=0.01)
    assert found.active == soft(found.coefficient)
    assert abs(found.active - 10) <= 0.01


def test_the_cost_is_both_ends_and_one_run_for_each_halving() -> None:
    """log(1e6) halved until the interval is below what half a unit is around a coefficient of 3."""
    width_of_tolerance = math.log((100 / 9.5 - 1) / (100 / 10.5 - 1))
    halvings = math.ceil(math.log2(math.log(1e6) / width_of_tolerance))
    found = coefficient_for_active_units(soft, wanted=10, low=1e-3, high=1e3, tolerance=0.5, most_runs=40)
    assert found.runs[:2] == ((1e-3, soft(1e-3)), (1e3, soft(1e3)))
    assert 2 < len(found.runs) <= 2 + halvings
    assert len({coefficient for coefficient, _ in found.runs}) == len(found.runs)


def test_the_nearest_is_returned_when_the_runs_are_spent() -> None:
    found = coefficient_for_active_units(soft, wanted=10, low=1e-3, high=1e3, tolerance=0.0, most_runs=5)
    assert len(found.runs) == 5
    assert abs(found.active - 10) == min(abs(active - 10) for _, active in found.runs)


def test_an_end_that_fits_costs_no_halving() -> None:
    assert len(coefficient_for_active_units(soft, wanted=10, low=3.0, high=1e3).runs) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"low": 0.0, "high": 1.0}, "rise from above zero, got low 0.0 and high 1.0"),
        ({"low": 2.0, "high": 1.0}, "rise from above zero"),
        ({"low": 1.0, "high": 2.0, "most_runs": 1}, "at least 2, got 1"),
        ({"low": 5.0, "high": 9.0}, "outside what 5 and 9 give, 6.2 and 3.6: lower low"),
        ({"low": 0.1, "high": 0.2}, "outside what 0.1 and 0.2 give, 76.9 and 62.5: raise high"),
    ],
)
def test_what_is_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        coefficient_for_active_units(soft, wanted=10, **options)


def test_a_run_that_diverges_is_said() -> None:
    with pytest.raises(ValueError, match=r"coefficient 0\.1 gave nan active units: the run diverged"):
        coefficient_for_active_units(lambda _: math.nan, wanted=10, low=0.1, high=1)


def test_it_trains_twelve_times_at_most_where_no_number_is_given() -> None:
    assert len(coefficient_for_active_units(soft, wanted=10, low=1e-3, high=1e3, tolerance=0.0).runs) == 12


@pytest.mark.parametrize("tolerance", [0.25, 0.5, 2.0])
def test_an_end_may_miss_by_the_tolerance_and_no_more(tolerance: float) -> None:
    ends = {"low": 0.1, "high": 0.2, "tolerance": tolerance}
    for end, outward in ((0.2, -1), (0.1, 1)):
        found = coefficient_for_active_units(soft, wanted=soft(end) + 0.99 * outward * tolerance, **ends)
        assert found.coefficient == end
        with pytest.raises(ValueError, match="active units lie outside"):
            coefficient_for_active_units(soft, wanted=soft(end) + 1.01 * outward * tolerance, **ends)
