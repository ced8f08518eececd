"""Files that a power cut leaves old or new: what is written is flushed to the disk before anything depends on it."""

from __future__ import annotations

import os
from pathlib import Path


def write_flushed(path: Path, content: bytes) -> None:
    """Write a file, and wait until the disk has it: a rename alone may reach the disk before the content does."""
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)  # half of it would only take room
        error.filename = error.filename or str(path)  # which a full disk does not say
        raise


def move_flushed(source: Path, target: Path) -> None:
    """Rename a file in its folder, over what lies there, and wait until the disk has the folder."""
    source.replace(target)
    flush_folder(target.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries; where a folder cannot be opened (Windows), that is not possible."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
