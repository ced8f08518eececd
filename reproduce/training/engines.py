"""Where Runs train: in worker processes, or in threads of this one."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
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

ORPHAN_SECONDS = 0.5  # between an idle worker's looks for its parent


def engine_for(how: SideBySide, n_runs: int) -> Engine:
    """Threads or processes, as arranged, and no more of them than there are Runs."""
    n_workers = max(1, min(how.jobs, n_runs))
    return Threads(n_workers) if how.in_threads else Processes(n_workers)


@dataclass
class _Worker:
    """A pool of one process, and the queue by which it tells news: what dies takes nobody's lock with it."""

    pool: ProcessPoolExecutor
    news: Any
    given: Future[Any] | None = None  # the last thing to do

    @property
    def is_free(self) -> bool:
        return self.given is None or self.given.done()

    @property
    def is_dead(self) -> bool:
        if self.given is None or not self.given.done() or self.given.cancelled():
            return False
        return isinstance(self.given.exception(), BrokenExecutor)


class Processes:
    """An Engine of worker processes, each with its share of the cores.

    Each is a pool of its own, since Python's pools end all their processes when one has died; and it shares no lock
    with the others, which one that is killed would take with it.
    """

    def __init__(self, n_workers: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.RawValue("b", 0)
        self._workers = [self._worker() for _ in range(n_workers)]

    def _worker(self) -> _Worker:
        """It starts its process when it is first given something to do."""
        news = self._context.Queue()
        arguments = news, self._stop, os.getpid()
        return _Worker(ProcessPoolExecutor(1, self._context, initializer=_start_process, initargs=arguments), news)

    def start(self, work: Work[Found], run: PlannedRun, settings: RunSettings) -> Future[Found]:
        place = next(place for place, worker in enumerate(self._workers) if worker.is_free)
        if self._workers[place].is_dead:
            self._replace(place)
        with signals_blocked():  # a process may be started for it
            try:
                future = self._workers[place].pool.submit(_in_process, work, run, settings)
            except BrokenExecutor:  # its process died with nothing to do
                self._replace(place)
                future = self._workers[place].pool.submit(_in_process, work, run, settings)
        self._workers[place].given = future
        return future

    def _replace(self, place: int) -> None:
        self._workers[place].pool.shutdown(wait=False)
        self._workers[place] = self._worker()

    def news(self) -> Iterator[News]:
        for worker in self._workers:
            yield from _read(worker.news)

    def stop(self) -> None:
        self._stop.value = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            worker.pool.shutdown(wait=True, cancel_futures=True)


def _read(news: Any) -> Iterator[News]:
    """What lies in a queue."""
    while True:
        try:
            yield news.get_nowait()
        except queue.Empty:
            return


@dataclass
class _Process:
    """What a worker process knows of its parent."""

    desk: Desk
    parent: int
    is_idle: bool = True

    def orphaned(self) -> bool:
        return os.getppid() != self.parent

    def end_with_parent(self) -> None:
        """An idle worker waits for work in a system call; one that trains writes its checkpoint first."""
        while not (self.orphaned() and self.is_idle):
            time.sleep(ORPHAN_SECONDS)
        os._exit(1)


_process: _Process | None = None


def _start_process(news: Any, stop: Any, parent: int) -> None:
    global _process
    keep_freed_memory()
    _process = _Process(Desk(news.put, lambda: bool(stop.value) or os.getppid() != parent), parent)
    threading.Thread(target=_process.end_with_parent, daemon=True).start()


def _in_process(work: Work[Found], run: PlannedRun, settings: RunSettings) -> Found:
    if _process is None:
        raise RuntimeError("a worker process was not initialised")
    _process.is_idle = False
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
    finally:
        _process.is_idle = True


class Threads:
    """An Engine of threads of this process: on a GPU, a Run's thread mostly waits in the driver, without Python's lock.

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
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._stop = threading.Event()
        starts: dict[str, Any] = {"initializer": torch.set_autocast_cache_enabled, "initargs": (False,)}
        self.pool = ThreadPoolExecutor(n_workers, "run", **starts)
        self.desk = Desk(self._news.put, self._stop.is_set)
        self.shared = n_workers > 1

    def start(self, work: Work[Found], run: PlannedRun, settings: RunSettings) -> Future[Found]:
        here = replace(settings, shares_process=self.shared)
        return self.pool.submit(_in_thread, functools.partial(work, run, here, self.desk))

    def news(self) -> Iterator[News]:
        return _read(self._news)

    def stop(self) -> None:
        self._stop.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


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


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, a scheduler's stop, a closed terminal


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """In here, what asks a process to stop interrupts it as Ctrl-C does; what it was told to ignore, it ignores."""
    taken = {one: signal.getsignal(one) for one in STOPPING}

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(number, lambda number, frame: None)  # it is stopping already
        raise KeyboardInterrupt

    for one, handler in taken.items():
        if handler is signal.SIG_DFL:
            signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one, handler in taken.items():
            signal.signal(one, handler)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that ask to stop in the processes that are started in here.

    They reach a whole process group, and the parent stops its workers after a whole step. What this process ignores, as
    one that `nohup` or a shell's background started, it ignores here too.

    Raises:
        KeyboardInterrupt: at the end, when one of them reached this process meanwhile.
    """
    received: list[int] = []
    heard = [one for one in STOPPING if signal.getsignal(one) is not signal.SIG_IGN]
    previous = {one: signal.signal(one, lambda number, frame: received.append(number)) for one in heard}
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # what a child inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        for one, handler in previous.items():
            signal.signal(one, handler)
    if received:
        raise KeyboardInterrupt
