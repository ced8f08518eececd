"""How long Runs will take yet: from the first steps of the first one on, and better with each that ends."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reproduce.cli.durations import last_end
from reproduce.results.record import Result
from reproduce.training.estimate import Work
from reproduce.training.loop import Event
from reproduce.training.plan import PlannedRun

if TYPE_CHECKING:
    from reproduce.cli.estimates import Timer


@dataclass
class _Training:
    """A Run that trains, as far as its events tell."""

    work: Work
    started: float  # on this clock, when a worker took it
    first: Event | None = None
    last: Event | None = None
    heard: float = 0.0  # when the last event came

    def hear(self, event: Event, now: float) -> None:
        self.first = self.first or event
        self.last, self.heard = event, now

    @property
    def step_seconds(self) -> float | None:
        """Between the first event and the last, since what comes before holds a start; with one event, of all of it."""
        if self.first is None or self.last is None:
            return None
        steps, seconds = self.last.step - self.first.step, self.last.seconds - self.first.seconds
        if steps > 0:
            return seconds / steps
        return self.last.seconds / max(1, self.last.step - self.last.began_at)

    def whole(self) -> float | None:
        """Seconds of the whole Run, from its first step."""
        rate = self.step_seconds
        return None if rate is None or self.last is None else rate * self.last.total_steps

    def rest(self, now: float) -> float | None:
        rate = self.step_seconds
        if rate is None or self.last is None:
            return None
        return max(0.0, rate * (self.last.total_steps - self.last.step) - (now - self.heard))


class Remaining:
    """Is told what a `Reporter` is told, and answers at any time.

    A Run that trains takes as long as its steps say. One that waits takes as long as those of its kind that were seen
    here; else as step times known from before say, corrected by how far they were off here; else as long as another
    method on the same problem, or as the others at all.

    Args:
        runs: all, in the order in which they start.
        places: how many train side by side, now.
        end: of a budget, on the clock: nothing starts after it.
        clock: in seconds.
    """

    def __init__(
        self,
        runs: Iterable[PlannedRun],
        timer: Timer,
        places: Callable[[], int] = lambda: 1,
        end: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timer, self._places, self._end, self._clock = timer, places, end, clock
        self._waiting = {run.id: run for run in runs}
        self._training: dict[str, _Training] = {}
        self._ended: list[tuple[Work, float]] = []
        self._known: dict[Work, float | None] = {}  # from before
        self._began = clock()

    def started(self, run: PlannedRun) -> None:
        self._waiting.pop(run.id, None)
        work = self._timer.work(run)
        self._known[work] = self._timer.seconds_of(run)
        self._training[run.id] = _Training(work, self._clock())

    def advanced(self, run: PlannedRun, event: Event) -> None:
        if run.id in self._training:
            self._training[run.id].hear(event, self._clock())

    def finished(self, run: PlannedRun, result: Result) -> None:
        self._waiting.pop(run.id, None)
        training = self._training.pop(run.id, None)
        if training is not None and result.final is not None:
            seconds = result.environment.wall_seconds
            if not result.environment.resumed:  # then its start counts as well: the next one has one, too
                seconds = max(seconds, self._clock() - training.started)
            self._ended.append((training.work, seconds))

    def failed(self, run: PlannedRun) -> None:
        self._waiting.pop(run.id, None)
        self._training.pop(run.id, None)

    @property
    def elapsed(self) -> float:
        return self._clock() - self._began

    def of(self, run: PlannedRun) -> float | None:
        """Seconds until this Run, which trains, has ended; None: not known yet."""
        training = self._training.get(run.id)
        return None if training is None else training.rest(self._clock())

    def seconds(self) -> float | None:
        """Until the last Run has ended; None: not known yet."""
        expected = _Expectations(self._seen(), self._known)
        now = self._clock()
        ends: list[float] = []
        for training in self._training.values():
            rest = training.rest(now)
            if rest is None and (whole := expected.seconds(training.work)) is not None:
                rest = max(0.0, whole - (now - training.started))
            if rest is None:
                return None
            ends.append(rest)
        ends += [0.0] * max(0, min(self._places(), len(self._waiting) + len(ends)) - len(ends))
        waiting: list[float] = []
        for run in self._waiting.values():
            work = self._timer.work(run)
            if work not in self._known:
                self._known[work] = self._timer.seconds_of(run)
            seconds = expected.seconds(work)
            if seconds is None:
                return None
            waiting.append(seconds)
        last = last_end(ends, waiting)
        return last if self._end is None else min(last, max(0.0, self._end - now))

    def _seen(self) -> list[tuple[Work, float]]:
        training = [(one.work, whole) for one in self._training.values() if (whole := one.whole()) is not None]
        return [*self._ended, *training]


class _Expectations:
    """Seconds of Runs that wait, from whole Runs that were seen here and from what was known before."""

    def __init__(self, seen: Iterable[tuple[Work, float]], known: dict[Work, float | None]) -> None:
        self._seen = list(seen)
        self._known = known
        off = [seconds / before for work, seconds in self._seen if (before := known.get(work))]
        self._correction = statistics.median(off) if off else 1.0
        self._answers: dict[Work, float | None] = {}

    def seconds(self, work: Work) -> float | None:
        if work not in self._answers:
            self._answers[work] = self._seconds(work)
        return self._answers[work]

    def _seconds(self, work: Work) -> float | None:
        alike = [(other, seconds) for other, seconds in self._seen if other.problem == work.problem]
        same = [(other, seconds) for other, seconds in alike if other.way == work.way]
        before = self._known.get(work)
        if before is not None and not same:
            return before * self._correction
        if alike:
            return statistics.median(seconds * _length(work, other) for other, seconds in same or alike)
        return statistics.median(seconds for _, seconds in self._seen) if self._seen else None


def _length(work: Work, other: Work) -> float:
    """How many times as many steps it has, where both count them alike."""
    if work.steps and other.steps:
        return work.steps / other.steps
    return work.epochs / other.epochs if work.epochs and other.epochs else 1.0
