"""An index of the sealed Results on this machine: what planning needs of each, so that thousands are read in a second.

To read a Result takes its seal, its id and all its statistics; to plan takes its configuration and its final numbers.
The index keeps those, under the file's place and what the file system says of it. It is never the truth: what is not in
it, or has been touched since, is read from the sealed file, and pages are made from sealed files alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from reproduce.results.cache import digest_of, kept_folder
from reproduce.results.memory import collector_paused
from reproduce.results.record import Result
from reproduce.results.store import ResultError, read_result

PACKAGE = Path(__file__).parents[1]
# A file that was written in the same tick of the clock after it was read would look as before: it is not kept yet.
SETTLED = 2.0  # seconds
MOST = 4  # indexes, of as many versions of the code
TABLE = "CREATE TABLE IF NOT EXISTS results (path TEXT PRIMARY KEY, state TEXT, brief TEXT, checksum TEXT)"


def read_briefly(paths: Iterable[Path]) -> tuple[dict[Path, Result], list[str]]:
    """All readable Results by their files, and one line for each file that is not.

    Of each evaluation a Result has only when it was, its loss and how long its steps took.
    """
    listed = sorted(paths)
    known = _known(listed)
    results: dict[Path, Result] = {}
    problems: list[str] = []
    new: list[tuple[str, str, str]] = []
    with collector_paused():
        for path in listed:
            key, state = os.path.abspath(path), _state(path)
            result = _revived(known[key][1]) if key in known and known[key][0] == state else None
            if result is None:
                try:
                    result = brief(read_result(path))
                except ResultError as error:
                    problems.append(str(error))
                    continue
                if state == _state(path) and _is_settled(path):
                    new.append((key, state, result.model_dump_json(exclude_defaults=True)))
            results[path] = result
    _keep(new)
    return results, problems


def brief(result: Result) -> Result:
    """A Result without what its evaluations measured."""
    nothing: dict[str, dict[str, object] | None] = {"validation": {}, "test": {}, "sites": {}, "kernels": None}
    return result.model_copy(update={"epochs": tuple(epoch.model_copy(update=nothing) for epoch in result.epochs)})


def _revived(text: str) -> Result | None:
    try:
        return Result.model_validate_json(text)
    except ValidationError:
        return None


def _state(path: Path) -> str:
    """What changes when a file is written, replaced or moved; the time of its last change cannot be set."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _is_settled(path: Path) -> bool:
    return time.time() - path.stat().st_ctime > SETTLED


def _known(paths: list[Path]) -> dict[str, tuple[str, str]]:
    """Of these files, by their absolute paths, the state in which they were read and their brief Results."""
    if not paths:
        return {}
    names = {os.path.abspath(path) for path in paths}
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    with contextlib.suppress(sqlite3.Error, OSError), _connected() as database:
        rows = database.execute(
            "SELECT path, state, brief, checksum FROM results WHERE path >= ? AND path < ?",
            (os.path.join(folder, ""), os.path.join(folder, "\U0010ffff")),
        ).fetchall()
        gone = [(path,) for path, *_ in rows if path not in names and not os.path.exists(path)]
        if gone:
            database.executemany("DELETE FROM results WHERE path = ?", gone)
        return {
            path: (state, text)
            for path, state, text, checksum in rows
            if path in names and checksum == _checksum(path, state, text)
        }
    return {}


def _keep(rows: list[tuple[str, str, str]]) -> None:
    """Where the index cannot be written, the next command reads the sealed files again."""
    if not rows:
        return
    with contextlib.suppress(sqlite3.Error, OSError, UnicodeEncodeError), _connected() as database:
        database.executemany(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", [(*row, _checksum(*row)) for row in rows]
        )


@contextlib.contextmanager
def _connected() -> Iterator[sqlite3.Connection]:
    """The database of this code's Results; one that is damaged is begun anew, and a busy one is not waited for long.

    Raises:
        OSError, sqlite3.Error: there is no place for it, or it cannot be read or written now.
    """
    folder = kept_folder("results")
    if folder is None:
        raise OSError("no home")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_code()}.sqlite"
    if not path.exists():
        for old in sorted(folder.glob("*.sqlite"), key=lambda one: one.stat().st_mtime)[: 1 - MOST]:
            old.unlink(missing_ok=True)
    database = sqlite3.connect(path, timeout=1.0)
    try:
        with database:
            database.execute(TABLE)
            yield database
    except sqlite3.OperationalError:  # busy, or read-only
        raise
    except sqlite3.DatabaseError:
        path.unlink(missing_ok=True)
        raise
    finally:
        database.close()


def _checksum(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """A hash of what decides how a Result is read."""
    rooms = [path for room in ("results", "experiment") for path in (PACKAGE / room).glob("*.py")]
    return digest_of(rooms, PACKAGE)[:16]
