"""What a node of the cluster does for a Run: it trains in a folder of its own, and hands news and files on."""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from reproduce.errors import UserError
from reproduce.experiment.dataset_card import checksum, joint_checksum, read_card
from reproduce.experiment.folder import MORE_METHODS, WORKING_FOLDER, find_method
from reproduce.results.source import git_state
from reproduce.training.checkpoints import previous
from reproduce.training.cluster.post import Letter
from reproduce.training.cluster.stores import RESULT, SharedStore, open_store
from reproduce.training.loop import CHECKPOINT
from reproduce.training.malloc import keep_freed_memory
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings
from reproduce.training.workers import Desk, News, Work

POST_SECONDS = 0.25
CHECKPOINTS = (CHECKPOINT, previous(Path(CHECKPOINT)).name)
LOGS = "events.out.tfevents.*"  # TensorBoard's
DATA = "REPRODUCE_DATA"  # names a node's own folder with datasets, where the driver's is not there


@dataclass(frozen=True)
class Errand:
    """What a node is sent for."""

    attempt: int
    work: Work[Any]
    run: PlannedRun
    settings: RunSettings
    commit: str  # of the driver's code
    more_methods: str  # the driver's folder of them
    files: Mapping[str, bytes]  # of the Run's folder, to begin with
    store: str = ""  # that driver and nodes share; "": files travel with the letters


@dataclass
class Answer:
    """What became of it: either was found, or went wrong."""

    last: Letter  # what was not handed in yet
    found: Any = None
    error: BaseException | None = None


def on_node(errand: Errand, hand_in: Callable[[Letter], bool]) -> Answer:
    """Do the work, wherever code, data and room for temporary files are on this node.

    What is raised is part of the answer, so that the driver gets it as it is.

    Args:
        hand_in: gives a letter to the driver, and says whether to stop.
    """
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch:
        answer = Answer(Letter(errand.attempt))
        post = _Post(errand.attempt, Path(scratch) / errand.run.config.folder, hand_in)
        try:
            run, settings = _here(errand, Path(scratch))
            post.lay(errand.files)
            if errand.store:
                post.share(open_store(errand.store))
            with post:
                answer.found = errand.work(run, settings, Desk(post.news.append, post.stopping.is_set))
        except BaseException as error:
            answer.error = _that_travels(error)
        try:
            answer.last = post.letter(at_end=True)
        except Exception as error:
            answer.error = answer.error or OSError(f"its shared store cannot be written: {error}")
    _forget()
    return answer


class _Post:
    """A thread that hands in what is new while a Run trains, and asks whether to stop."""

    def __init__(self, attempt: int, folder: Path, hand_in: Callable[[Letter], bool]) -> None:
        self.news: list[News] = []
        self.stopping = threading.Event()
        self._attempt, self._folder, self._hand_in = attempt, folder, hand_in
        self._store: SharedStore | None = None
        self._sent: dict[str, tuple[int, int]] = {}  # by name: time of change, size
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_handing_in, daemon=True)

    def lay(self, files: Mapping[str, bytes]) -> None:
        """What the driver sent along: it need not be sent back."""
        self._folder.mkdir(parents=True)
        for name, content in files.items():
            (self._folder / name).write_bytes(content)
            self._sent[name] = _state(self._folder / name)

    def share(self, store: SharedStore) -> None:
        """Files go there, and what is there is what the Run goes on from."""
        self._store = store
        found = {name: store.read(self._folder.name, name) for name in (*CHECKPOINTS, RESULT)}
        for name, content in found.items():
            if content is not None:
                (self._folder / name).write_bytes(content)
                self._sent[name] = _state(self._folder / name)

    def letter(self, at_end: bool = False) -> Letter:
        """What is new since the last one; of files, where they are shared, the Result alone.

        Args:
            at_end: what a shared store does not take then is an error; before, it is tried again.
        """
        news, self.news[:] = list(self.news), []
        files = {}
        for name, (content, state) in self._new_files().items():
            try:
                if self._store is not None:
                    self._store.write(self._folder.name, name, content)
            except Exception:
                if at_end:
                    raise
                continue
            if self._store is None or name == RESULT:
                files[name] = content
            self._sent[name] = state
        return Letter(self._attempt, [pickle.dumps(news)] if news else [], files)

    def __enter__(self) -> Self:
        if self._hand_in(Letter(self._attempt)):  # it waited for a place, and is not wanted any more
            self.stopping.set()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _keep_handing_in(self) -> None:
        while not self._over.wait(POST_SECONDS):
            try:
                stops = self._hand_in(self.letter())
            except Exception:  # nobody is there to train for
                stops = True
            if stops:
                self.stopping.set()

    def _new_files(self) -> dict[str, tuple[bytes, tuple[int, int]]]:
        """Logs come before the checkpoint that they belong to; the checkpoint before it is kept where it goes to."""
        found = {}
        for path in [*sorted(self._folder.glob(LOGS)), self._folder / CHECKPOINT, self._folder / RESULT]:
            try:
                state = _state(path)
                if self._sent.get(path.name) != state:
                    found[path.name] = path.read_bytes(), state
            except FileNotFoundError:  # not yet, or not any more
                continue
        return found


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _here(errand: Errand, scratch: Path) -> tuple[PlannedRun, RunSettings]:
    """Run and settings with this node's folders.

    Raises:
        UserError: code or data are not the driver's.
    """
    config, settings = errand.run.config, errand.settings
    commit, _ = git_state()
    if commit != errand.commit:
        raise UserError(f"{_node()}: its code is of commit {commit}, the driver's of {errand.commit}: install the same")
    if errand.more_methods:
        os.environ[MORE_METHODS] = errand.more_methods
    run = replace(errand.run, folder=find_method(config.method))
    root, cache = _root(settings.root), WORKING_FOLDER / "data"
    found = joint_checksum([checksum(read_card(name), root, cache) for name in config.task.datasets])
    if found != config.dataset_checksum:
        raise UserError(
            f"{_node()}: dataset {' with '.join(config.task.datasets)} is another one than the driver's "
            f"(checksum {found[:12]}, expected {config.dataset_checksum[:12]}): "
            f"copy the driver's files, and let {DATA} name their folder"
        )
    return run, replace(settings, runs=scratch, root=root, cache=cache)


def _root(of_driver: Path | None) -> Path | None:
    if of_driver is not None and of_driver.is_dir():
        return of_driver
    own = os.environ.get(DATA)
    return Path(own) if own and Path(own).is_dir() else None


def _node() -> str:
    return f"node {os.uname().nodename}"


def _that_travels(error: BaseException) -> BaseException:
    """The error itself where it can be pickled and read again, else its text."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _forget() -> None:
    """Free what the Run took of the device: the next Run there may be in another process."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
