"""Runs side by side on this machine: which one starts when, and what becomes of it. Where it trains is an Engine's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeVar

import torch

from reproduce.errors import UserError
from reproduce.results.record import Result
from reproduce.training.agenda import Agenda, Job
from reproduce.training.estimate import StepTime
from reproduce.training.loop import Event
from reproduce.training.pilot import pilot
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, execute
from reproduce.training.side_by_side import Room

EVENT_SECONDS = 0.25

News = tuple[str, Event | Literal["started", "settled"]]  # a Run's id, and what it says
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
    return execute(run, settings, on_event, desk.stopping, lambda: desk.tell((run.id, "settled")))


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
) -> tuple[list[Result], list[str]]:
    """Train the agenda's runs; returns the Results and one line for each run that failed. None stops another.

    A run goes to a worker only when one is free, since a budget decides then whether it starts.

    Args:
        learn: is told what a pilot found, before the agenda is asked again.

    Raises:
        UserError: bad input, which would stop every other run as well.
        KeyboardInterrupt: after every Run that trains has written its checkpoint.
    """
    results: list[Result] = []
    failures: list[str] = []
    by_id = {run.id: run for run in agenda.waiting}
    training: dict[Future[Any], Job] = {}
    with engine:
        try:
            while True:
                while len(training) < room.places and (job := agenda.take()) is not None:
                    work: Work[Any] = time_pilot if job.pilot else train_one
                    training[engine.start(work, job.run, settings)] = job
                if not training:
                    break
                done, _ = wait(training, timeout=0.2, return_when=FIRST_COMPLETED)
                _forward(engine.news(), by_id, room, reporter)
                n_training = len(training)  # those that ran out of memory together count each other
                for future in done:
                    job = training.pop(future)
                    shortage = isinstance(future.exception(), torch.OutOfMemoryError)
                    if shortage and (line := room.ran_out(n_training)):
                        reporter.noted(line)
                        agenda.put_back(job)
                        continue
                    found = _collect(future, job.run, failures, reporter)
                    if isinstance(found, StepTime):
                        learn(found)
                    elif found is not None:
                        results.append(found)
                        reporter.finished(job.run, found)
                        _settled(room, reporter)  # it may have been too short to say so
                    if job.pilot:
                        agenda.piloted(job.run)
        except (KeyboardInterrupt, UserError):
            engine.stop()
            for future in training:
                future.cancel()
            wait(training, timeout=60)
            raise
    return results, failures


def _collect(future: Future[Any], run: PlannedRun, failures: list[str], reporter: Reporter) -> Result | StepTime | None:
    try:
        return future.result()
    except (UserError, KeyboardInterrupt):
        raise
    except BrokenExecutor:
        raise UserError(f"a worker process died while training {run.label}; run the same command again") from None
    except Exception as error:
        failures.append(f"{run.label}: {type(error).__name__}: {error}")
        reporter.failed(run, failures[-1])
        return None


def _forward(news: Iterable[News], by_id: dict[str, PlannedRun], room: Room, reporter: Reporter) -> None:
    for run_id, what in news:
        if what == "started":
            reporter.started(by_id[run_id])
        elif what == "settled":
            _settled(room, reporter)
        else:
            reporter.advanced(by_id[run_id], what)


def _settled(room: Room, reporter: Reporter) -> None:
    if line := room.settled():
        reporter.noted(line)
