"""A store that driver and nodes share, behind a URL of fsspec: a folder, a bucket."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.results.store import ResultError, copy_result
from reproduce.training.checkpoints import previous
from reproduce.training.loop import CHECKPOINT

RESULT = "result.json"
LEASE = "lease.json"
LEASE_SECONDS = 120.0  # without a renewal, after which its owner is taken to be dead
PREVIOUS = previous(Path(CHECKPOINT)).name


def open_store(url: str) -> SharedStore:
    """
    Raises:
        UserError: no such kind of file system, a package that it needs is missing, or it cannot be reached.
    """
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
        files.makedirs(root, exist_ok=True)
    except Exception as error:  # each kind has its own
        said = " ".join(str(error).split())[:200]
        raise UserError(f"--store {url}: cannot be opened ({type(error).__name__}: {said})") from error
    return SharedStore(files, root)


class SharedStore:
    """A folder for each Run, as in ``runs``."""

    def __init__(self, files: Any, root: str) -> None:
        self._files, self._root = files, root.rstrip("/")

    def _path(self, folder: str, name: str) -> str:
        return f"{self._root}/{folder}/{name}"

    def read(self, folder: str, name: str) -> bytes | None:
        try:
            self._files.invalidate_cache()
            return self._files.cat_file(self._path(folder, name))
        except FileNotFoundError:
            return None

    def write(self, folder: str, name: str, content: bytes) -> None:
        """In one step, as its readers see it; of checkpoints the one before is kept."""
        path = self._path(folder, name)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        if name == CHECKPOINT and self._files.exists(path):
            self._files.mv(path, self._path(folder, PREVIOUS))
        if _is_local(self._files):  # where a file is seen while it is written
            self._files.pipe_file(f"{path}.tmp", content)
            self._files.mv(f"{path}.tmp", path)
        else:
            self._files.pipe_file(path, content)
        if name == RESULT:
            self.remove(folder, CHECKPOINT)
            self.remove(folder, PREVIOUS)

    def remove(self, folder: str, name: str) -> None:
        try:
            self._files.rm_file(self._path(folder, name))
        except FileNotFoundError:
            return

    def sealed(self) -> Iterator[str]:
        """Folders with a Result."""
        self._files.invalidate_cache()
        for path in self._files.glob(f"{self._root}/*/{RESULT}"):
            yield path.split("/")[-2]

    def fetch_results(self, runs: Path) -> list[str]:
        """Copy the Results that ``runs`` lacks; a line for each that does not read."""
        problems = []
        for folder in self.sealed():
            target = runs / folder / RESULT
            if target.exists() or (content := self.read(folder, RESULT)) is None:
                continue
            received = target.with_name("received.json")
            received.parent.mkdir(parents=True, exist_ok=True)
            received.write_bytes(content)
            try:
                copy_result(received, target, of_run=folder.rpartition("-")[2])
            except ResultError as error:
                problems.append(f"{self._path(folder, RESULT)}: {str(error).removeprefix(f'{received}: ')}")
            finally:
                received.unlink()
        return problems


class Lease:
    """The right of one driver to a Run in a shared store, for as long as it is renewed.

    It is taken by making a file that must not be there, which object stores can promise as local files do. One that
    was not renewed for `LEASE_SECONDS` is taken over. Two drivers that take over at the same moment both train: the
    Run's numbers are the same, and so is what is sealed.
    """

    def __init__(self, store: SharedStore, folder: str) -> None:
        self._store, self._folder = store, folder
        self._owner = uuid.uuid4().hex

    def take(self) -> bool:
        """Whether it is had now."""
        if self._make():
            return True
        if self._until() > time.time():
            return False
        self._store.remove(self._folder, LEASE)
        return self._make()

    def renew(self) -> None:
        self._store.write(self._folder, LEASE, self._content())

    def release(self) -> None:
        held = self._read()
        if held is not None and held["owner"] == self._owner:
            self._store.remove(self._folder, LEASE)

    def _make(self) -> bool:
        files, path = self._store._files, self._store._path(self._folder, LEASE)
        try:
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            if _is_local(files):
                with files.open(path, "xb") as file:
                    file.write(self._content())
            else:
                files.pipe_file(path, self._content(), mode="create")
        except FileExistsError:
            return False
        return True

    def _content(self) -> bytes:
        return json.dumps({"owner": self._owner, "until": time.time() + LEASE_SECONDS}).encode()

    def _until(self) -> float:
        if (held := self._read()) is not None:
            return held["until"]
        try:  # half written, or by a hand
            changed = self._store._files.modified(self._store._path(self._folder, LEASE))
        except FileNotFoundError:
            return 0.0
        return changed.timestamp() + LEASE_SECONDS

    def _read(self) -> dict[str, Any] | None:
        content = self._store.read(self._folder, LEASE)
        try:
            held = json.loads(content or b"")
            return {"owner": str(held["owner"]), "until": float(held["until"])}
        except (ValueError, LookupError, TypeError):
            return None


def _is_local(files: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(files, LocalFileSystem)
