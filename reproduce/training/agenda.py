"""Which Run starts next; under a budget of wall time, only one that will finish within it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from reproduce.training.estimate import Work
from reproduce.training.plan import PlannedRun


@dataclass(frozen=True)
class Job:
    """What a worker is to do: train a Run, or time some steps of it, since nothing like it is known."""

    run: PlannedRun
    pilot: bool = False


class Agenda:
    """Runs in the order in which they start.

    Args:
        runs: in that order.
        budget: seconds from now; after them nothing starts. None: no end.
        seconds_of: a Run's estimated seconds, None where nothing like it was timed; asked under a budget only.
        clock: in seconds.
    """

    def __init__(
        self,
        runs: Iterable[PlannedRun],
        budget: float | None = None,
        seconds_of: Callable[[PlannedRun], float | None] = lambda run: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting = list(runs)
        self.left: list[PlannedRun] = []  # what does not fit
        self.n_started = 0
        self.seconds_of = seconds_of
        self._clock = clock
        self._end = None if budget is None else clock() + budget
        self._piloted: dict[tuple[str, str], bool] = {}  # by problem and way: whether the pilot is back

    def take(self) -> Job | None:
        """The next to start; None: none can, now or, when no pilot is under way, ever.

        A Run that does not fit is left, and a shorter one after it may start in its place.
        """
        if self._end is None:
            return self._start(self.waiting[0]) if self.waiting else None
        for run in list(self.waiting):
            remaining = self._end - self._clock()
            seconds = self.seconds_of(run) if remaining > 0 else None
            if seconds is not None and seconds <= remaining:
                return self._start(run)
            state = self._piloted.get(_alike(run)) if seconds is None and remaining > 0 else True
            if state is None:
                self._piloted[_alike(run)] = False
                return Job(run, pilot=True)
            if state:
                self.waiting.remove(run)
                self.left.append(run)
        return None

    def piloted(self, run: PlannedRun) -> None:
        """The pilot is back, and what it found, if anything, is in the estimates."""
        self._piloted[_alike(run)] = True

    def put_back(self, job: Job) -> None:
        """It could not be done beside the others: it is the next one."""
        if job.pilot:
            self._piloted.pop(_alike(job.run))
        else:
            self.waiting.insert(0, job.run)
            self.n_started -= 1

    def put_last(self, job: Job) -> None:
        """It cannot be done now: all that waits comes before it."""
        self.put_back(job)
        if not job.pilot:
            self.waiting.append(self.waiting.pop(0))

    def _start(self, run: PlannedRun) -> Job:
        self.waiting.remove(run)
        self.n_started += 1
        return Job(run)


def _alike(run: PlannedRun) -> tuple[str, str]:
    work = Work.of(run.config)
    return work.problem, work.way


def rehearsed(
    runs: Iterable[PlannedRun], budget: float, seconds_of: Callable[[PlannedRun], float | None], workers: int
) -> set[str]:
    """Ids of the Runs that would start under a budget if every estimate held; those without an estimate are not."""
    now = 0.0
    known = [run for run in runs if seconds_of(run) is not None]
    agenda = Agenda(known, budget, seconds_of, lambda: now)
    started: set[str] = set()
    ends: list[float] = []
    while True:
        while len(ends) < workers and (job := agenda.take()) is not None:
            started.add(job.run.id)
            heapq.heappush(ends, now + (seconds_of(job.run) or 0.0))
        if not ends:
            return started
        now = heapq.heappop(ends)
