"""How long a campaign takes on many devices of one kind, from the times of its runs on one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.cli.durations import duration, last_end, runs_text
from reproduce.errors import UserError

MOST_DEVICES = 100_000
NO_SOONER = 1.05  # times as long as the longest run: from there on more devices save next to nothing


@dataclass(frozen=True)
class Fleet:
    """So many devices of a kind, as `Estimates` names it."""

    devices: int
    kind: str


@dataclass(frozen=True)
class Schedule:
    """Runs one after the other on the device that is free first, each on one device, in the campaign's order.

    Args:
        idle_share: of the devices' time until the last run ends.
        enough_devices: with so many, the campaign takes `NO_SOONER` times as long as its longest run.
    """

    devices: int
    seconds: float
    idle_share: float
    longest: float
    enough_devices: int


def parse_fleet(text: str, kinds: Sequence[str]) -> Fleet:
    """So many devices of the one kind whose name holds what is asked for, as "64xH100"; a name alone is one device.

    Args:
        kinds: of which step times are known.

    Raises:
        UserError: no number of devices, or a name that none or several of the kinds hold.
    """
    found = re.fullmatch(r"(?:(\d{1,9}) *[x*] *)?(\S.*)", text.strip())
    count = int(found[1] or 1) if found else 0
    if found is None or not 1 <= count <= MOST_DEVICES:
        raise UserError(
            f"--on {text!r}: expected a number of devices and their kind, as 8xH100, at most {MOST_DEVICES}"
        )
    held = [kind for kind in kinds if found[2].lower() in kind.lower()]
    if len(held) != 1:
        known = "; ".join(held or kinds) or "none"
        said = "several kinds are called so" if held else "no step was timed on such a device"
        raise UserError(
            f"--on {text!r}: {said}: there are {known}. On a machine that has one, `plan --pilot` times some steps of "
            "each kind, and what it writes into runs/pilots/ is read everywhere from reports/bench/"
        )
    return Fleet(count, held[0])


def schedule(seconds: Sequence[float], devices: int) -> Schedule:
    """The campaign on so many devices.

    Args:
        seconds: of each run on one device, in the order in which they start.

    >>> schedule([3.0, 1.0, 1.0, 1.0], 2)
    Schedule(devices=2, seconds=3.0, idle_share=0.0, longest=3.0, enough_devices=2)
    """
    longest, whole = max(seconds, default=0.0), last_end([0.0] * devices, seconds)
    idle = 1 - sum(seconds) / (devices * whole) if whole else 0.0
    return Schedule(devices, whole, idle, longest, _enough_devices(seconds, NO_SOONER * longest))


def _enough_devices(seconds: Sequence[float], wanted: float) -> int:
    """The fewest found by halving: with one more, a schedule in a fixed order seldom takes longer, and never much."""
    few, many = 1, max(1, len(seconds))
    while few < many:
        middle = (few + many) // 2
        if last_end([0.0] * middle, seconds) <= wanted:
            many = middle
        else:
            few = middle + 1
    return many


def fleet_lines(estimates: Sequence[float | None], fleet: Fleet) -> list[str]:
    """The campaign on it, in a few lines; runs of unknown length are counted and left out."""
    known = [seconds for seconds in estimates if seconds is not None]
    unknown = len(estimates) - len(known)
    left_out = [f"  {runs_text(unknown)} of unknown length left out"] if unknown else []
    if not known:
        return [f"{fleet.devices} x {fleet.kind}: nothing to train whose time is known there", *left_out]
    found = schedule(known, fleet.devices)
    return [
        f"{fleet.devices} x {fleet.kind}: {duration(found.seconds)} for {runs_text(len(known))}, "
        f"{100 * found.idle_share:.0f} % of the devices' time idle",
        f"  more than {found.enough_devices} would end no sooner: the longest run takes {duration(found.longest)}",
        *left_out,
    ]
