"""What of the experiments stands: each cell on each seed done, training, stopped or not begun yet."""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reproduce.experiment.identity import run_key
from reproduce.results.record import Result

if TYPE_CHECKING:
    from reproduce.cli.estimates import Timer
    from reproduce.training.plan import PlannedRun

State = Literal["done", "diverged", "running", "interrupted", "missing"]
STATES: tuple[State, ...] = ("done", "running", "interrupted", "diverged", "missing")
ALL = "all"  # of the row over every experiment
TO_TRAIN: frozenset[State] = frozenset({"running", "interrupted", "missing"})


@dataclass(frozen=True)
class Coverage:
    """One experiment, or all of them together."""

    method: str  # "" where all are taken together
    experiment: str
    cells: int
    seeds: str  # "3", or "3-13" where arms differ
    states: Mapping[str, int]  # by STATES
    seconds_left: tuple[float | None, ...]  # of what is to be trained, one by one; None: unknown

    @property
    def planned(self) -> int:
        return sum(self.states.values())

    @property
    def content(self) -> dict[str, Any]:
        """For JSON. Hours are of one worker, and of what is known; null: nothing is."""
        known = [seconds for seconds in self.seconds_left if seconds is not None]
        hours = None if self.seconds_left and not known else sum(known) / 3600
        counts = {
            "method": self.method,
            "experiment": self.experiment,
            "cells": self.cells,
            "seeds": self.seeds,
            "planned": self.planned,
        }
        unknown = len(self.seconds_left) - len(known)
        return {**counts, **self.states, "hours_left": hours, "unknown_length": unknown}


def by_experiment(planned: Iterable[PlannedRun]) -> dict[tuple[str, str], list[PlannedRun]]:
    """The Runs of each method's each experiment, method by method; those that several share are in each of them."""
    found: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in planned:
        for key in dict.fromkeys((place.method, place.experiment) for place in run.places):
            found.setdefault(key, []).append(run)
    return {key: found[key] for key in sorted(found, key=lambda key: key[0])}


def states_of(planned: Iterable[PlannedRun], results: Iterable[Result], runs: Path) -> dict[str, State]:
    """By a Run's id, what became of it."""
    sealed = {result.id: result for result in results}
    return {run.id: state_of(runs / run.config.folder, sealed.get(run.id)) for run in planned}


def coverage(planned: Sequence[PlannedRun], states: Mapping[str, State], timer: Timer) -> list[Coverage]:
    """A row for each experiment, and one over all where there are several: there, what they share counts once."""
    grouped = by_experiment(planned)
    if len(grouped) > 1:
        grouped["", ALL] = list(planned)
    return [_row(*key, of_one, states, timer) for key, of_one in grouped.items()]


def _row(
    method: str, experiment: str, planned: Sequence[PlannedRun], states: Mapping[str, State], timer: Timer
) -> Coverage:
    counted = Counter(states[run.id] for run in planned)
    seeds = Counter(run_key(run.config) for run in planned).values()
    low, high = min(seeds, default=0), max(seeds, default=0)
    return Coverage(
        method=method,
        experiment=experiment,
        cells=len(seeds),
        seeds=str(low) if low == high else f"{low}-{high}",
        states={state: counted[state] for state in STATES},
        seconds_left=tuple(timer.seconds_of(run) for run in planned if states[run.id] in TO_TRAIN),
    )


def state_of(folder: Path, result: Result | None) -> State:
    """What became of the Run whose folder this is; it is running while a process holds its lock."""
    if result is not None:
        return "diverged" if result.status == "diverged" else "done"
    if is_locked(folder / ".lock"):
        return "running"
    return "interrupted" if (folder / "checkpoint.pt").exists() else "missing"


def is_locked(path: Path) -> bool:
    """Whether a process holds this lock file, which is neither made nor changed by asking."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
