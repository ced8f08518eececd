"""Where Runs train: in worker processes, or in threads of this one."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from reproduce.training.loop import Interrupted
from reproduce.training.malloc import keep_freed_memory
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings
from reproduce.training.side_by_side import SideBySide
from reproduce.training.workers import Desk, Engine, Found, News, Work


def engine_for(how: SideBySide, n_runs: int) -> Engine:
    """Threads or processes, as arranged, and no more of them than there are Runs."""
    n_workers = max(1, min(how.jobs, n_runs))
    return Threads(n_workers) if how.in_threads else Processes(n_workers)


class _Pool:
    """An Engine on one of Python's pools: the pool's workers reach this process by a queue and an event."""

    def __init__(self, pool: Executor, news: Any, stop: Any) -> None:
        self.pool, self._news, self._stop = pool, news, stop

    def news(self) -> Iterator[News]:
        while True:
            try:
                yield self._news.get_nowait()
            except queue.Empty:
                return

    def stop(self) -> None:
        self._stop.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


class Processes(_Pool):
    """A worker process each, with its share of the cores."""

    def __init__(self, n_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        news, stop = context.Queue(), context.Event()
        arguments = news, stop, os.getpid()
        pool = ProcessPoolExecutor(n_workers, context, initializer=_start_process, initargs=arguments)
        super().__init__(pool, news, stop)

    def start(self, work: Work[Found], run: PlannedRun, settings: RunSettings) -> Future[Found]:
        with sigint_blocked():  # a process may be started for it
            return self.pool.submit(_in_process, work, run, settings)


@dataclass(frozen=True)
class _Process:
    """What a worker process knows of its parent."""

    desk: Desk
    parent: int

    def orphaned(self) -> bool:
        return os.getppid() != self.parent


_process: _Process | None = None


def _start_process(news: Any, stop: Any, parent: int) -> None:
    global _process
    keep_freed_memory()
    _process = _Process(Desk(news.put, lambda: stop.is_set() or os.getppid() != parent), parent)


def _in_process(work: Work[Found], run: PlannedRun, settings: RunSettings) -> Found:
    if _process is None:
        raise RuntimeError("a worker process was not initialised")
    try:
        return work(run, settings, _process.desk)
    except Interrupted:
        if _process.orphaned():  # nobody is left to report to
            os._exit(1)
        raise
    except torch.OutOfMemoryError as error:
        _let_go(error)
        gc.collect()
        torch.cuda.empty_cache()  # the other processes cannot reach what this one keeps for later
        raise


class Threads(_Pool):
    """A thread of this process each: for a GPU, where a Run's thread mostly waits in the driver, without Python's lock.

    What threads of one process share, and who sees to it:

    - The number of threads is the calling thread's own (OpenMP's): `execute` sets it in each.
    - Data and a Task's host are loaded and trained once, under locks, and shared.
    - Each thread has a CUDA stream (`own_stream`), each Run its generators, writer, lock file and graph; one capture
      at a time.
    - Peak memory is that of the process, and so does a Result call it.
    - autocast keeps casts of weights in one table for the process, and a thread that leaves autocast empties it. A
      weight that is used twice would then be cast once or twice, by chance, and its gradient differ in its last bits;
      so nothing is kept here. A weight that is used once does not notice.
    - An error in a CUDA kernel (an illegal address) ends the process's use of the device, and so every Run in it; each
      has a checkpoint that is half a minute old at most.
    """

    def __init__(self, n_workers: int) -> None:
        pool = ThreadPoolExecutor(n_workers, "run", initializer=torch.set_autocast_cache_enabled, initargs=(False,))
        super().__init__(pool, queue.SimpleQueue(), threading.Event())
        self.desk = Desk(self._news.put, self._stop.is_set)
        self.shared = n_workers > 1

    def start(self, work: Work[Found], run: PlannedRun, settings: RunSettings) -> Future[Found]:
        here = replace(settings, shares_process=self.shared)
        return self.pool.submit(_in_thread, functools.partial(work, run, here, self.desk))


def _in_thread(work: Callable[[], Found]) -> Found:
    try:
        return work()
    except BaseException as error:
        _let_go(error)
        if isinstance(error, torch.OutOfMemoryError):
            gc.collect()  # a Step and its recording know each other; its neighbours need the memory now
        raise


def _let_go(error: BaseException | None) -> None:
    """Drop the variables of the frames that an error came through: they would hold a Run's tensors as long as it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


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
