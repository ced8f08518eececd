"""A campaign on many devices: against schedules that can be written down, and bounds that hold for every one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproduce.cli.fleet import NO_SOONER, Fleet, fleet_lines, parse_fleet, schedule
from reproduce.errors import UserError

KINDS = ["AMD EPYC", "NVIDIA H100 80GB HBM3", "NVIDIA H200"]
some_runs = st.lists(st.floats(1, 1e6), min_size=1, max_size=60)


def test_runs_of_one_length_are_shared_evenly() -> None:
    found = schedule([60.0] * 10, 4)
    assert (found.seconds, found.longest, found.enough_devices) == (180.0, 60.0, 10)
    assert found.idle_share == pytest.approx(2 / 12)  # two of twelve places stay empty


def test_the_longest_run_is_where_it_stops() -> None:
    found = schedule([100.0, *[10.0] * 30], 64)
    assert (found.seconds, found.longest) == (100.0, 100.0)
    assert found.enough_devices == 4  # 100 beside three times ten tens
    assert schedule([100.0, *[10.0] * 30], 3).seconds == 140.0  # twenty tens beside the long one, then ten on three


@given(some_runs, st.integers(1, 80))
def test_bounds_of_list_scheduling(seconds: list[float], devices: int) -> None:
    """Graham 1966, theorem on list scheduling: at most (2 - 1/m) times the best, which no schedule undercuts."""
    found = schedule(seconds, devices)
    best = max(max(seconds), sum(seconds) / devices)
    assert best * (1 - 1e-12) <= found.seconds <= sum(seconds) / devices + (1 - 1 / devices) * max(seconds) + 1e-6
    assert -1e-12 <= found.idle_share < 1
    assert schedule(seconds, found.enough_devices).seconds <= NO_SOONER * max(seconds) * (1 + 1e-12)


@pytest.mark.parametrize(
    ("text", "fleet"),
    [
        ("64xH100", Fleet(64, KINDS[1])),
        ("8 x h200", Fleet(8, KINDS[2])),
        ("EPYC", Fleet(1, KINDS[0])),
    ],
)
def test_a_fleet_is_a_number_and_a_kind(text: str, fleet: Fleet) -> None:
    assert parse_fleet(text, KINDS) == fleet


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("8xNVIDIA", "several kinds are called so: there are NVIDIA H100 80GB HBM3; NVIDIA H200"),
        ("8xTPU", "no step was timed on such a device: there are AMD EPYC; NVIDIA H100 80GB HBM3; NVIDIA H200"),
        ("0xH100", "expected a number of devices and their kind, as 8xH100"),
        ("9999999xH100", "at most 100000"),
        (" ", "expected a number of devices"),
    ],
)
def test_what_is_no_fleet_is_refused_in_a_line(text: str, words: str) -> None:
    with pytest.raises(UserError, match="--on") as refusal:
        parse_fleet(text, KINDS)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_lines_say_hours_idle_and_what_is_left_out() -> None:
    assert fleet_lines([3600.0, 3600.0, 7200.0, None], Fleet(2, "NVIDIA H200")) == [
        "2 x NVIDIA H200: 3 h for 3 runs, 33 % of the devices' time idle",
        "  more than 3 would end no sooner: the longest run takes 2 h",
        "  1 run of unknown length left out",
    ]
    assert fleet_lines([None], Fleet(8, "NVIDIA H200"))[0].endswith("nothing to train whose time is known there")
