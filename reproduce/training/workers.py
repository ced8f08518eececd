"""Runs side by side on this machine: which one starts when, and what becomes of it. Where it trains is an Engine's."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import torch

from reproduce.errors import UserError
from reproduce.results.failed import FAILED, write_failed
from reproduce.results.record import Result
from reproduce.training.agenda import Agenda, Job
from reproduce.training.estimate import StepTime
from reproduce.training.loop import Event
from reproduce.training.pilot import pilot
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunBusy, RunSettings, execute, result_path
from reproduce.training.side_by_side import Room

EVENT_SECONDS = 0.25

AGAIN_SECONDS = 5.0  # after which a Run is asked for again that another process was at work on
DEATHS = 3  # of its workers, after which a Run is not tried again


@dataclass(frozen=True)
class Note:
    """A line for the user."""

    text: str


@dataclass(frozen=True)
class Failure:
    """A Run that could not be trained, and why."""

    label: str  # of the Run
    reason: str  # one line
    is_bad_input: bool = False

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}"


class NodeFault(BrokenExecutor):
    """A worker elsewhere or its node died, or could not do what another may; the message says it in a few words."""


News = tuple[str, Event | Note | Literal["started", "settled"]]  # a Run's id, and what it says
Found = TypeVar("Found")


class Reporter(Protocol):
    """Is told what becomes of each Run."""

    def started(self, run: PlannedRun) -> None: ...
    def advanced(self, run: PlannedRun, event: Event) -> None: ...
    def finished(self, run: PlannedRun, result: Result) -> None: ...
    def failed(self, run: PlannedRun, reason: str) -> None: ...
    def noted(self, line: str) -> None: ...
    def __enter__(self) -> Reporter: ...
    def __exit__(self, *exception: object) -> None: ...


@dataclass(frozen=True)
class Desk:
    """How a worker reaches those who sent it."""

    tell: Callable[[News], None]
    stopping: Callable[[], bool]  # asked after every step


Work = Callable[[PlannedRun, RunSettings, Desk], Found]


class Engine(Protocol):
    """Where Runs train. It is entered before the first one starts, and leaving it waits for those that still train."""

    def start(self, work: Work[Found], run: PlannedRun, settings: RunSettings) -> Future[Found]:
        """Have a worker do it. Nobody starts more at once than there are workers."""

    def news(self) -> Iterable[News]:
        """What Runs have said since the last call."""

    def stop(self) -> None:
        """Ask every Run to write its checkpoint and to end: its Future then raises `Interrupted`."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


def train_one(run: PlannedRun, settings: RunSettings, desk: Desk) -> Result:
    """What a worker does for a Run, wherever it is.

    Raises:
        UserError: bad input.
        Interrupted: asked to stop; a checkpoint is there.
    """
    told = 0.0

    def on_event(event: Event) -> None:
        nonlocal told
        if time.monotonic() - told > EVENT_SECONDS:
            told = time.monotonic()
            desk.tell((run.id, event))

    desk.tell((run.id, "started"))
    return execute(
        run,
        settings,
        on_event,
        desk.stopping,
        on_settled=lambda: desk.tell((run.id, "settled")),
        note=lambda line: desk.tell((run.id, Note(line))),
    )


def time_pilot(run: PlannedRun, settings: RunSettings, desk: Desk) -> StepTime:
    """What a worker does for a Run of which nothing is known."""
    return pilot(run, settings)


def run_all(
    agenda: Agenda,
    settings: RunSettings,
    engine: Engine,
    room: Room,
    reporter: Reporter,
    learn: Callable[[StepTime], None] = lambda time: None,
) -> tuple[list[Result], list[Failure]]:
    """Train the agenda's runs; returns the Results, and what failed. None stops another.

    A run goes to a worker only when one is free, since a budget decides then whether it starts. One that another
    process is at work on is asked for again and again, after the others; one whose worker died goes on from its
    checkpoint, up to `DEATHS` times.

    Args:
        learn: is told what a pilot found, before the agenda is asked again.

    Raises:
        KeyboardInterrupt: after every Run that trains has written its checkpoint.
    """
    campaign = _Campaign(agenda, settings.runs, room, reporter, learn)
    training: dict[Future[Any], Job] = {}
    with engine:
        try:
            while True:
                while len(training) < room.places and (job := campaign.take()) is not None:
                    work: Work[Any] = time_pilot if job.pilot else train_one
                    training[engine.start(work, job.run, settings)] = job
                if not training and not campaign.waits:
                    break
                done, _ = _wait(training)
                campaign.hear(engine.news())
                n_training = len(training)  # those that ran out of memory together count each other
                for future in done:
                    campaign.ended(training.pop(future), future, n_training)
        except KeyboardInterrupt:
            engine.stop()
            for future in training:
                future.cancel()
            wait(training, timeout=60)
            raise
    return campaign.results, campaign.failures


def _wait(training: Iterable[Future[Any]]) -> tuple[set[Future[Any]], set[Future[Any]]]:
    if not training:  # others are at work on all that is left
        time.sleep(0.2)
        return set(), set()
    return wait(training, timeout=0.2, return_when=FIRST_COMPLETED)


class _Campaign:
    """What becomes of an agenda's runs."""

    def __init__(
        self, agenda: Agenda, runs: Path, room: Room, reporter: Reporter, learn: Callable[[StepTime], None]
    ) -> None:
        self._agenda, self._runs, self._room, self._reporter, self._learn = agenda, runs, room, reporter, learn
        self._by_id = {run.id: run for run in agenda.waiting}
        self._busy: list[tuple[float, Job]] = []  # when to ask again, and for what
        self._said_busy: set[str] = set()
        self._deaths: Counter[str] = Counter()  # of workers, by run
        self.results: list[Result] = []
        self.failures: list[Failure] = []

    @property
    def waits(self) -> bool:
        """Whether another process is at work on something that is wanted here."""
        return bool(self._busy)

    def take(self) -> Job | None:
        """The next to start; what another process was at work on comes again after all else."""
        while self._busy and self._busy[0][0] <= time.monotonic():
            self._agenda.put_last(self._busy.pop(0)[1])
        return self._agenda.take()

    def hear(self, news: Iterable[News]) -> None:
        for run_id, what in news:
            if what == "started":
                self._reporter.started(self._by_id[run_id])
            elif what == "settled":
                self._settled()
            elif isinstance(what, Note):
                self._reporter.noted(f"{self._by_id[run_id].label}: {what.text}")
            else:
                self._reporter.advanced(self._by_id[run_id], what)

    def ended(self, job: Job, future: Future[Any], n_training: int) -> None:
        """One of so many that were training is done, or could not be."""
        try:
            found = future.result()
        except KeyboardInterrupt:
            raise
        except RunBusy:
            self._ask_again(job)
        except BrokenExecutor as error:
            self._died(job, error)
        except torch.OutOfMemoryError as error:
            if line := self._room.ran_out(n_training):
                self._reporter.noted(line)
                self._agenda.put_back(job)
            else:
                self._failed(job, error)
        except Exception as error:
            self._failed(job, error)
        else:
            self._found(job, found)

    def _found(self, job: Job, found: Result | StepTime) -> None:
        if isinstance(found, StepTime):
            self._learn(found)
            self._agenda.piloted(job.run)
        else:
            self.results.append(found)
            (self._folder(job) / FAILED).unlink(missing_ok=True)
            self._reporter.finished(job.run, found)
            self._settled()  # it may have been too short to say so

    def _failed(self, job: Job, error: Exception) -> None:
        is_bad_input = isinstance(error, UserError)
        reason = str(error) if is_bad_input else f"{type(error).__name__}: {error}"
        is_known = any(failure.reason == reason for failure in self.failures)
        self.failures.append(Failure(job.run.label, reason, is_bad_input))
        self._reporter.failed(job.run, f"{job.run.label}: for the same reason" if is_known else str(self.failures[-1]))
        if job.pilot:
            self._agenda.piloted(job.run)
        elif not is_bad_input:  # which a line says, and no further try would mend
            self._note_failed(job, reason)

    def _note_failed(self, job: Job, reason: str) -> None:
        try:
            write_failed(self._folder(job), job.run.id, job.run.label, reason, max(1, self._deaths[job.run.id]))
        except OSError as error:  # the disk may be what it failed of
            self._reporter.noted(f"{job.run.label}: that it failed could not be noted ({error})")

    def _folder(self, job: Job) -> Path:
        return result_path(self._runs, job.run.config).parent

    def _ask_again(self, job: Job) -> None:
        if job.run.id not in self._said_busy:
            self._said_busy.add(job.run.id)
            self._reporter.noted(f"{job.run.label}: another process is training it; it is asked for again later")
        self._busy.append((time.monotonic() + AGAIN_SECONDS, job))

    def _died(self, job: Job, error: BrokenExecutor) -> None:
        self._deaths[job.run.id] += 1
        how = str(error) if isinstance(error, NodeFault) else "its worker process died"
        if self._deaths[job.run.id] == DEATHS:
            why = "" if isinstance(error, NodeFault) else ": out of memory, perhaps"
            self._failed(job, RuntimeError(f"{how} {DEATHS} times{why}"))
            return
        self._reporter.noted(f"{job.run.label}: {how}; it goes on from its last checkpoint")
        self._agenda.put_back(job)

    def _settled(self) -> None:
        if line := self._room.settled():
            self._reporter.noted(line)
