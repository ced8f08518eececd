"""What is kept between commands: text under a hash of everything that it follows from, in the user's cache folder.

Kept text is used only where its key and its own checksum hold: none is stale, and what
is damaged is made anew.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from pathlib import Path

from reproduce.experiment.identity import canonical_json
from reproduce.results.cache import files_digest

PACKAGE = Path(__file__).parents[1]
MOST = 2000  # files in a folder; a report has about a hundred figures


def read_kept(path: Path) -> str | None:
    """The kept text; None where there is none, or not as it was written."""
    try:
        checksum, _, text = path.read_text("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return text if checksum == _checksum(path.name, text) else None


def keep(path: Path, text: str) -> None:
    """Keep a text, if that can be written: without a cache, a command takes longer."""
    try:
        replace_text(path, f"{_checksum(path.name, text)}\n{text}")
    except OSError:
        return


def remove_oldest(folder: Path) -> None:
    try:
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in files[:-MOST]:
            path.unlink(missing_ok=True)
    except OSError:
        return


def _checksum(key: str, text: str) -> str:
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a text as `replace_bytes` does."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever reads it, and whatever ends this process, finds the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@functools.cache
def code() -> str:
    """A hash of this package, of Python's version and of those of all that is installed."""
    # Folders called by name and version; to read what they hold takes half a second.
    packages = sorted(one.name for folder in map(Path, sys.path) for one in folder.glob("*-info"))
    return key_of([files_digest(PACKAGE), sys.version, packages])


def key_of(content: object) -> str:
    """A hash of what JSON can spell."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()
