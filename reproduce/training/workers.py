"""Runs on this machine: `jobs` worker processes, each with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event as StopEvent
from typing import Any, Protocol

from reproduce.errors import UserError
from reproduce.results.record import Result
from reproduce.training.agenda import Agenda, Job
from reproduce.training.estimate import StepTime
from reproduce.training.loop import Event, Interrupted
from reproduce.training.malloc import keep_freed_memory
from reproduce.training.pilot import pilot
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, execute

EVENT_SECONDS = 0.25


class Reporter(Protocol):
    """Is told what becomes of each Run."""

    def started(self, run: PlannedRun) -> None: ...
    def advanced(self, run: PlannedRun, event: Event) -> None: ...
    def finished(self, run: PlannedRun, result: Result) -> None: ...
    def failed(self, run: PlannedRun, reason: str) -> None: ...
    def __enter__(self) -> Reporter: ...
    def __exit__(self, *exception: object) -> None: ...


@dataclass
class _Worker:
    """What a worker process knows of its parent."""

    events: Any
    stop: StopEvent
    parent: int


_worker: _Worker | None = None


def _start_worker(events: Any, stop: StopEvent, parent: int) -> None:
    global _worker
    keep_freed_memory()
    _worker = _Worker(events, stop, parent)


def _work(run: PlannedRun, settings: RunSettings) -> Result:
    worker = _worker
    if worker is None:
        raise RuntimeError("a worker process was not initialised")
    last = 0.0

    def on_event(event: Event) -> None:
        nonlocal last
        if time.monotonic() - last > EVENT_SECONDS:
            last = time.monotonic()
            worker.events.put((run.id, event))

    def should_stop() -> bool:
        return worker.stop.is_set() or os.getppid() != worker.parent

    worker.events.put((run.id, None))
    try:
        return execute(run, settings, on_event, should_stop)
    except Interrupted:
        if os.getppid() != worker.parent:  # orphaned: nobody is left to report to
            os._exit(1)
        raise


def run_all(
    agenda: Agenda,
    settings: RunSettings,
    jobs: int,
    reporter: Reporter,
    learn: Callable[[StepTime], None] = lambda time: None,
) -> tuple[list[Result], list[str]]:
    """Train the agenda's runs; returns the Results and one line for each run that failed.

    A run goes to a worker only when one is free, since a budget decides then whether it starts.

    Args:
        learn: is told what a pilot found, before the agenda is asked again.

    Raises:
        UserError: bad input, which would stop every other run as well.
        KeyboardInterrupt: after every worker has written its checkpoint.
    """
    context = multiprocessing.get_context("spawn")
    events, stop = context.Queue(), context.Event()
    results: list[Result] = []
    failures: list[str] = []
    by_id = {run.id: run for run in agenda.waiting}
    with ProcessPoolExecutor(
        max_workers=min(jobs, len(by_id)),
        mp_context=context,
        initializer=_start_worker,
        initargs=(events, stop, os.getpid()),
    ) as pool:
        pending: dict[Future[Any], Job] = {}
        try:
            while True:
                while len(pending) < jobs and (job := agenda.take()) is not None:
                    with sigint_blocked():  # a worker process may be started for it
                        pending[pool.submit(pilot if job.pilot else _work, job.run, settings)] = job
                if not pending:
                    break
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                _forward(events, by_id, reporter)
                for future in done:
                    job = pending.pop(future)
                    found = _collect(future, job.run, failures, reporter)
                    if isinstance(found, StepTime):
                        learn(found)
                    elif found is not None:
                        results.append(found)
                        reporter.finished(job.run, found)
                    if job.pilot:
                        agenda.piloted(job.run)
        except (KeyboardInterrupt, UserError):
            stop.set()
            for future in pending:
                future.cancel()
            wait(pending, timeout=60)
            raise
    return results, failures


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT (Ctrl-C) in the processes that are started in here: the parent stops them, after a whole step.

    Raises:
        KeyboardInterrupt: at the end, when SIGINT reached this process meanwhile.
    """
    received: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a child inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt


def _collect(
    future: Future[Result | StepTime], run: PlannedRun, failures: list[str], reporter: Reporter
) -> Result | StepTime | None:
    try:
        return future.result()
    except (UserError, KeyboardInterrupt):
        raise
    except BrokenProcessPool:
        raise UserError(f"a worker process died while training {run.label}; run the same command again") from None
    except Exception as error:
        failures.append(f"{run.label}: {type(error).__name__}: {error}")
        reporter.failed(run, failures[-1])
        return None


def _forward(events: Any, by_id: dict[str, PlannedRun], reporter: Reporter) -> None:
    while True:
        try:
            run_id, event = events.get_nowait()
        except queue.Empty:
            return
        if event is None:
            reporter.started(by_id[run_id])
        else:
            reporter.advanced(by_id[run_id], event)
