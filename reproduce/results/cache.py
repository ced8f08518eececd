"""The user's cache folder, and hashes of files: what is kept there follows from something, and says from what.

It can be removed at any time: a command then takes longer and says the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def kept_folder(name: str) -> Path | None:
    """The user's folder of that name; None where there is no home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return root / "activation-reproductions" / name


def files_digest(folder: Path) -> str:
    """A hash of all files in a folder and below it, but compiled ones."""
    inside = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return digest_of(inside, folder)


def digest_of(files: Iterable[Path], folder: Path) -> str:
    """A hash of these files: of their places in the folder, and of their content."""
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
