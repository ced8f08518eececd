"""An Engine whose workers are Ray's tasks: one for a Run, on any node that has what a Run is to have."""

from __future__ import annotations

import itertools
import os
import pickle
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from reproduce.errors import UserError
from reproduce.experiment.folder import MORE_METHODS
from reproduce.results.source import git_state
from reproduce.results.store import copy_result
from reproduce.training.checkpoints import place_checkpoint, remove_checkpoint
from reproduce.training.cluster.connection import Cluster, Request
from reproduce.training.cluster.node import CHECKPOINTS, RESULT, Answer, Errand, on_node
from reproduce.training.cluster.post import Letter, post_office
from reproduce.training.cluster.stores import LEASE_SECONDS, Lease, open_store
from reproduce.training.loop import CHECKPOINT, Interrupted
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunBusy, RunSettings, result_path
from reproduce.training.workers import Found, News, NodeFault, Work

COLLECT_SECONDS = 0.2
LAST_SECONDS = 60.0  # after which a task that was asked to stop is ended


@dataclass
class _Attempt:
    """One task for one Run, whose folder in the driver's store stays locked meanwhile."""

    run: PlannedRun
    folder: Path
    lock: FileLock
    future: Future[Any]
    task: Any = None
    has_begun: bool = False  # it has said something
    lease: Lease | None = None  # the same in a shared store

    def let_go(self) -> None:
        self.lock.release()
        if self.lease is not None:
            with suppress(Exception):  # where it cannot be released, it expires
                self.lease.release()


class RayEngine:
    """Runs as tasks of a cluster. Results and checkpoints come to the driver's ``runs`` while they train.

    A thread of the driver collects what the nodes hand in. Ray itself tries nothing again: `run_all` does, which
    counts the deaths of a Run's workers, and sends the checkpoint along that the driver has.

    Args:
        store: of a URL that driver and nodes reach: checkpoints go there and are read there, Results go to both.
    """

    def __init__(self, cluster: Cluster, request: Request, store: str = "") -> None:
        self._ray = cluster.ray
        self._store_url = store
        self._renewed = time.monotonic()
        self._task = self._ray.remote(max_retries=0, **request.options)(_on_node)
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._attempts: dict[int, _Attempt] = {}
        self._numbers = itertools.count()
        self._left = threading.Event()
        self._collector = threading.Thread(target=self._collect, name="collector", daemon=True)

    def __enter__(self) -> Self:
        self._office = post_office(self._ray)
        self._collector.start()
        return self

    def __exit__(self, *exception: object) -> None:
        left = list(self._attempts.values())
        wait([attempt.future for attempt in left], timeout=LAST_SECONDS)
        for attempt in left:
            if not attempt.future.done():
                self._ray.cancel(attempt.task, force=True)
        self._left.set()
        self._collector.join()
        for attempt in self._attempts.values():
            attempt.let_go()
        self._ray.kill(self._office)

    def start(self, work: Work[Found], run: PlannedRun, settings: RunSettings) -> Future[Found]:
        future: Future[Found] = Future()
        future.set_running_or_notify_cancel()  # from here on it ends by itself, or by `stop`
        folder = result_path(settings.runs, run.config).parent
        try:
            attempt = _Attempt(run, folder, _lock(folder), future)
            if self._store_url:
                attempt.lease = self._lease(attempt)
        except UserError as error:
            future.set_exception(error)
            return future
        number = next(self._numbers)
        errand = Errand(
            attempt=number,
            work=work,
            run=run,
            settings=settings,
            commit=git_state()[0],
            more_methods=os.environ.get(MORE_METHODS, ""),
            files=_begun(folder),
            store=self._store_url,
        )
        attempt.task = self._task.remote(errand, self._office)
        self._attempts[number] = attempt
        return future

    def _lease(self, attempt: _Attempt) -> Lease:
        """
        Raises:
            RunBusy: another driver has it.
            UserError: the store cannot be written.
        """
        lease = Lease(open_store(self._store_url), attempt.folder.name)
        try:
            is_had = lease.take()
        except Exception as error:
            attempt.lock.release()
            raise UserError(
                f"--store {self._store_url}: cannot be written ({type(error).__name__}: {error})"
            ) from error
        if not is_had:
            attempt.lock.release()
            raise RunBusy(f"{attempt.folder.name}: another driver on the store is training this run")
        return lease

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > LEASE_SECONDS / 4:
            self._renewed = time.monotonic()
            for attempt in list(self._attempts.values()):
                with suppress(Exception):  # tried again, before it expires
                    if attempt.lease is not None:
                        attempt.lease.renew()

    def news(self) -> Iterator[News]:
        while True:
            try:
                yield self._news.get_nowait()
            except queue.Empty:
                return

    def stop(self) -> None:
        """Those that train are asked to; those that wait for a node are not needed any more."""
        for attempt in list(self._attempts.values()):  # first: they would begin as soon as the others have ended
            if not attempt.has_begun:
                self._ray.cancel(attempt.task, force=True)
        self._office.stop.remote()

    def _collect(self) -> None:
        """Letters first: all that a node has handed in lies there before its answer does."""
        while not self._left.is_set():
            self._renew()
            training = {attempt.task: number for number, attempt in list(self._attempts.items())}
            try:
                answered = self._answered(list(training))
                for letter in self._ray.get(self._office.collect.remote()):
                    self._read(letter)
            except self._ray.exceptions.RayError:  # the cluster is gone
                answered = list(training)
            for task in answered:
                self._end(training[task])

    def _answered(self, tasks: list[Any]) -> list[Any]:
        if not tasks:
            time.sleep(COLLECT_SECONDS)
            return []
        return self._ray.wait(tasks, num_returns=len(tasks), timeout=COLLECT_SECONDS)[0]

    def _read(self, letter: Letter) -> None:
        attempt = self._attempts.get(letter.attempt)
        if attempt is None:
            return
        attempt.has_begun = True
        for news in letter.news:
            for one in pickle.loads(news):
                self._news.put(one)
        _keep(letter.files, attempt)

    def _end(self, number: int) -> None:
        attempt = self._attempts[number]
        try:
            answer = self._answer_of(attempt)
            self._read(answer.last)
        except Exception as error:
            answer = Answer(Letter(number), error=error)
        del self._attempts[number]
        attempt.let_go()
        if answer.error is None:
            attempt.future.set_result(answer.found)
        else:
            attempt.future.set_exception(answer.error)

    def _answer_of(self, attempt: _Attempt) -> Answer:
        """
        Raises:
            NodeFault: a worker or node died, or had a fault of its own.
            Interrupted: it was ended before its first step.
        """
        exceptions = self._ray.exceptions
        try:
            answer: Answer = self._ray.get(attempt.task, timeout=LAST_SECONDS)
        except exceptions.RayTaskError as error:  # of code around the Run
            raise RuntimeError(_last_line(error)) from None
        except exceptions.TaskCancelledError:
            raise Interrupted("stopped before its first step") from None
        except exceptions.OutOfMemoryError:
            raise NodeFault("its worker was ended since its node had no memory left") from None
        except exceptions.NodeDiedError:
            raise NodeFault("its node died") from None
        except exceptions.RayError as error:
            said = {"WorkerCrashedError": "its worker process died"}
            raise NodeFault(said.get(type(error).__name__, f"its worker was lost ({_last_line(error)})")) from None
        if isinstance(answer.error, OSError):
            answer.error = NodeFault(f"its node could not do it ({answer.error})")
        return answer


def _on_node(errand: Errand, office: Any) -> Answer:
    """The task."""
    import ray

    return on_node(errand, lambda letter: ray.get(office.hand_in.remote(letter)))


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _lock(folder: Path) -> FileLock:
    """The lock of the Run's folder, which any engine takes.

    Raises:
        RunBusy: another process has it.
        UserError: the folder cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunBusy(f"{folder}: another process is training this run; wait for it or stop it") from error
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: choose another folder with --runs") from error
    return lock


def _begun(folder: Path) -> dict[str, bytes]:
    """What a node needs of the Run's folder to go on."""
    return {name: (folder / name).read_bytes() for name in (*CHECKPOINTS, RESULT) if (folder / name).is_file()}


def _keep(files: Mapping[str, bytes], attempt: _Attempt) -> None:
    """Put what a node has handed in to the Run's folder, as the Run would have written it here."""
    for name, content in files.items():
        path = attempt.folder / name
        if name == CHECKPOINT:
            place_checkpoint(path, content)
        elif name == RESULT:
            received = path.with_name("received.json")
            received.write_bytes(content)
            copy_result(received, path, of_run=attempt.run.id)
            received.unlink()
            remove_checkpoint(attempt.folder / CHECKPOINT)
        else:
            path.write_bytes(content)
