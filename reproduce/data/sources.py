"""Where files come from: local folder first, then the project's own cache; every file checked before use."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from filelock import FileLock, Timeout

from reproduce.errors import is_full
from reproduce.experiment.dataset_card import DataError, DatasetCard, File, matches

HUB = "https://huggingface.co"  # where HF_ENDPOINT names no other
NETWORK_SECONDS = 4.0  # after which there is no network: libraries would try for half a minute
LOCK_SECONDS = 2.0  # after which it is said what is waited for


class LocalFiles(NamedTuple):
    """Checked files of a card, by their path on the card, and the folder that holds them."""

    folder: Path
    files: dict[str, list[Path]]
    origin: str


def find_files(card: DatasetCard, files: dict[str, File], root: Path | None, cache: Path) -> LocalFiles | None:
    """The first of ``root`` and ``cache`` that holds all ``files``, each checked; None where neither does.

    Files in the cache that torchvision cut off count as absent, since it downloads them again.

    Raises:
        DataError: ``root`` holds some of the files only, or a checksum is wrong.
    """
    for folder in _folders(root, cache):
        here = {pattern: matches(folder, pattern) for pattern in files}
        if all(here.values()):
            try:
                for pattern, paths in here.items():
                    for path in paths:
                        verify(path, files[pattern], card)
            except DataError:
                if folder == cache != root and card.torchvision:
                    return None  # a download that was cut off: torchvision repeats it
                raise
            return LocalFiles(folder, here, f"local files in {folder}")
        if folder == root and any(here.values()):
            raise missing(card, [pattern for pattern, paths in here.items() if not paths], root, cache)
    return None


def obtain(card: DatasetCard, root: Path | None, cache: Path, save: Callable[[Any, Path], None]) -> LocalFiles:
    """Local files, else those that ``save`` makes in the cache from the tables of Hugging Face.

    Args:
        save: writes one table (a `datasets.Dataset`) as the file of that split.

    Raises:
        DataError: nothing local and no download, or files that are not those of the card.
    """
    found = find_files(card, card.files, root, cache)
    if found is not None:
        return found
    with locked(cache):
        if find_files(card, card.files, None, cache) is None:
            _download(card, root, cache, save)
        found = find_files(card, card.files, None, cache)
    if found is None:
        raise missing(card, list(card.files), root, cache)
    return found._replace(origin=f"downloaded with Hugging Face datasets into {cache}")


def _download(card: DatasetCard, root: Path | None, cache: Path, save: Callable[[Any, Path], None]) -> None:
    place = card.hugging_face
    if place is None:
        raise missing(card, list(card.files), root, cache)
    if not is_reachable(endpoint := os.environ.get("HF_ENDPOINT") or HUB):
        reason = f"download failed: {urlsplit(endpoint).hostname} cannot be reached"
        raise missing(card, list(card.files), root, cache, reason)
    try:
        from datasets import load_dataset  # type: ignore[attr-defined]  # seconds to import

        hub = str(cache / "hub")
        tables = load_dataset(place.repository, place.configuration, revision=place.revision, cache_dir=hub)
    except Exception as error:  # its own, the hub's, the network's
        if is_unwritable(error):
            raise unwritable(cache, error) from error
        raise missing(card, list(card.files), root, cache, f"download failed: {one_line(error)}") from error
    for pattern, file in card.files.items():
        target = cache / pattern.replace("*", "00000-of-00001")
        partial = writable(target.parent) / f"{target.name}.part"
        theirs = place.splits[file.split] if file.split else ""
        try:
            save(tables[theirs], partial)
            partial.replace(target)
        except OSError as error:
            raise unwritable(target.parent, error) from error
        except KeyError as error:
            reason = f"{place.repository} has no {error}"
            raise missing(card, list(card.files), root, cache, reason) from error


def verify(path: Path, expected: File, card: DatasetCard) -> None:
    """Compare a file with its checksums.

    Raises:
        DataError: names file, expected and found checksum, and how to get the right file.
    """
    for algorithm, wanted in (("md5", expected.md5), ("sha256", expected.sha256)):
        if wanted is None:
            continue
        found = digest(path, algorithm)
        if found != wanted:
            raise DataError(
                f"{path}: {algorithm} is {found}, expected {wanted} (damaged, cut off or another version): "
                f"replace it; {card.remedy}"
            )


def digest(path: Path, algorithm: str) -> str:
    """Checksum of a file (hex).

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def missing(card: DatasetCard, names: list[str], root: Path | None, cache: Path, reason: str = "") -> DataError:
    """The error for files that are nowhere, or could not be downloaded."""
    looked = ", ".join(str(folder) for folder in _folders(root, cache))
    why = f"; {reason}" if reason else ""
    return DataError(f"{card.name}: missing {', '.join(names)} (looked in {looked}){why}; {card.remedy}")


def one_line(error: BaseException) -> str:
    """An exception of another library as part of one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def writable(folder: Path) -> Path:
    """Make a folder of the cache.

    Raises:
        DataError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".write"
        trial.touch()
        trial.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def unwritable(folder: Path, error: BaseException) -> DataError:
    """The error for a cache that cannot be written."""
    reason = getattr(error, "strerror", None) or one_line(error)
    remedy = "make room there" if is_full(error) else "give a folder you may write to"
    return DataError(f"{folder}: the data cache cannot be written ({reason}); {remedy}")


def is_unwritable(error: BaseException | None) -> bool:
    """Whether it comes of a folder that is full or read-only, and not of what is read."""
    if is_full(error):
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.EROFS:
            return True
        if (
            isinstance(error, PermissionError)
            and error.filename
            and not os.access(Path(error.filename).parent, os.W_OK)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_reachable(address: str, seconds: float = NETWORK_SECONDS) -> bool:
    """Whether a server of the web answers there; where a proxy stands between, that is for the proxy to say.

    In a thread, since a name that nobody knows is looked up for longer.
    """
    parts = urlsplit(address)
    if parts.scheme in urllib.request.getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return True
    answered = threading.Event()

    def ask() -> None:
        try:
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
        except (OSError, KeyError, ValueError):
            done.set()
            return
        answered.set()
        done.set()

    done = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    done.wait(seconds)
    return answered.is_set()


@contextmanager
def impatient(seconds: float = 2 * NETWORK_SECONDS) -> Iterator[None]:
    """Servers that say nothing for so long are given up; without this, urllib waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def locked(cache: Path) -> Iterator[Path]:
    """The cache for one process at a time: runs side by side unpack and decode once."""
    lock = FileLock(writable(cache) / ".lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        print(f"waiting for another process, which prepares data in {cache}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield cache
    finally:
        lock.release()


def link(source: Path, target: Path) -> None:
    """Let ``target`` in the cache be ``source``, which may lie in a read-only folder."""
    writable(target.parent)
    if target.exists() and target.samefile(source):
        return
    try:
        target.unlink(missing_ok=True)
        target.symlink_to(source.resolve())
    except OSError as error:
        raise unwritable(target.parent, error) from error


def _folders(root: Path | None, cache: Path) -> list[Path]:
    return [cache] if root is None else [root, cache]


def permutation(seed: int | None, length: int) -> np.ndarray:
    """Argsort of raw words: unlike `permutation`, their stream is the same in every version of numpy."""
    return np.argsort(np.random.PCG64(seed).random_raw(length), kind="stable")
