"""Which code a Result is made with: from git in a checkout, and in a copy of one from the note that it brings along.

The note, `source.json`, names the commit and the SHA-256 of each file that can move a number. It is believed only where
all of these files are as it says.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from reproduce.errors import UserError
from reproduce.experiment.folder import METHODS, ROOT

NOTE = "source.json"
CODE = ("reproduce", METHODS.name, "datasets", "pyproject.toml")  # what Runs are made from
UNKNOWN = ("unknown", True)


class Source(BaseModel):
    """What `source.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    commit: str
    dirty: bool  # tracked files differed from the commit
    files: dict[str, str]  # by path in the tree, SHA-256


@functools.cache
def git_state(root: Path = ROOT) -> tuple[str, bool]:
    """The code's commit, and whether tracked files differ from it; ("unknown", True) where nothing tells."""
    if not (root / "pyproject.toml").is_file():  # installed, perhaps inside the checkout of something else
        return UNKNOWN
    if not (root / ".git").exists():  # a copy, perhaps inside the checkout of something else
        source = read_source(root)
        return (source.commit, source.dirty) if source and not differences(source, root) else UNKNOWN
    try:
        return _git(root, "rev-parse", "HEAD"), bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def current_source(root: Path = ROOT) -> Source:
    """What a note on the checkout at ``root`` has to say.

    Raises:
        UserError: no checkout, or no git.
    """
    commit, dirty = git_state(root)
    if not (root / ".git").exists() or commit == UNKNOWN[0]:
        raise UserError(f"{root}: not a git checkout, so its code has no commit to note: clone the repository")
    return Source(commit=commit, dirty=dirty, files={name: _digest(root / name) for name in code_files(root)})


def code_files(root: Path = ROOT) -> list[str]:
    """The tracked files that can move a number: neither tests nor cards of methods can."""
    return [
        name
        for name in tracked_files(root, *CODE)
        if not name.endswith(".md") and not name.rpartition("/")[2].startswith("test_")
    ]


def tracked_files(root: Path, *within: str) -> list[str]:
    """Tracked files that are there, by path in the tree; all, or those within these files and folders."""
    names = _git(root, "ls-files", "-z", "--", *within).split("\0")
    return [name for name in names if name and (root / name).is_file()]


def read_source(root: Path) -> Source | None:
    """The note in a copy of the tree, if there is one that reads."""
    try:
        return Source.model_validate_json((root / NOTE).read_bytes())
    except (OSError, ValidationError):
        return None


def differences(source: Source, root: Path) -> list[str]:
    """The files that are not as the note says, missing ones too."""
    return [
        name for name, digest in source.files.items() if not (root / name).is_file() or _digest(root / name) != digest
    ]


def check_copy(root: Path = ROOT) -> None:
    """See, before anything is trained, that a copy of the tree holds the code that its note names.

    Raises:
        UserError: a file differs, or the note does not read.
    """
    if (root / ".git").exists() or not (root / NOTE).exists():
        return
    source = read_source(root)
    if source is None:
        raise UserError(f"{root / NOTE}: not a note of `reproduce pack --source`: make it anew, or remove it")
    changed = differences(source, root)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(
            f"{changed[0]}{more}: not as {root / NOTE} says, from commit {source.commit[:12]}: copy the code anew, "
            f"or remove {NOTE} to train with its commit unknown"
        )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
