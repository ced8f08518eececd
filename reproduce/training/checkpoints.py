"""Checkpoints: tensors and plain values under a checksum, written whole or not at all, read with ``weights_only=True``.

The one before is kept until the next, so that damage to a file costs half a minute and not the run.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reproduce.errors import UserError
from reproduce.experiment.identity import LOOP_VERSION
from reproduce.results.durable import move_flushed, write_flushed

FORMAT = f"2.{LOOP_VERSION}"
REMEDY = "delete that file to start the run anew, or check out the version that wrote it to go on"
_MARK = b"reproduce checkpoint"


class CheckpointError(UserError):
    """A checkpoint that cannot be continued."""


def write_checkpoint(path: Path, run_id: str, content: dict[str, Any]) -> None:
    """Write to a temporary name, flush to disk, rename: ``kill -9`` or a power cut leaves the old one or the new one.

    The file is a line with the format and a SHA-256, and then what ``torch.save`` writes: a flipped bit in a tensor
    would load as another number.
    """
    written = io.BytesIO()
    torch.save({"format": FORMAT, "id": run_id, **content}, written)
    payload = written.getvalue()
    place_checkpoint(path, b" ".join([_MARK, FORMAT.encode(), _digest(payload)]) + b"\n" + payload)


def place_checkpoint(path: Path, file: bytes) -> None:
    """Put what is, or was elsewhere, the content of a checkpoint's file to ``path``, and keep the one before it."""
    temporary = path.with_suffix(".tmp")
    write_flushed(temporary, file)
    if path.exists():
        _keep(path)
    move_flushed(temporary, path)


def _keep(path: Path) -> None:
    """Give a checkpoint its second name before the next takes its first one: there is always one of that."""
    second = path.with_suffix(".kept")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without hard links
        path.replace(second)
    second.replace(previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at ``path`` lies."""
    return path.with_stem(f"{path.stem}.previous")


def remove_checkpoint(path: Path) -> None:
    """That one and the one before it."""
    for one in (path, previous(path)):
        one.unlink(missing_ok=True)


def read_checkpoint(path: Path, run_id: str, note: Callable[[str], None] = lambda line: None) -> dict[str, Any] | None:
    """The checkpoint of this run, or the one before it where that is damaged; None when there is none.

    Args:
        note: is told in one line what was damaged, where the one before is whole.

    Raises:
        CheckpointError: all that are there are damaged, of another format version, or of another run.
    """
    first: CheckpointError | None = None
    for candidate in (path, previous(path)):
        try:
            found = _read(candidate, run_id)
        except CheckpointError as error:
            first = first or error
            continue
        if found is not None:
            if first is not None:
                note(f"{str(first).removesuffix(f'; {REMEDY}')}: goes on from the checkpoint before it")
            return found
    if first is not None:
        raise first
    return None


def _read(path: Path, run_id: str) -> dict[str, Any] | None:
    try:
        header, _, payload = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error.strerror}); {REMEDY}") from error
    mark, _, rest = header.partition(_MARK + b" ")
    version, _, digest = rest.partition(b" ")
    if mark or not rest:
        raise CheckpointError(f"{path}: not a readable checkpoint, or one of before format {FORMAT}; {REMEDY}")
    if version != FORMAT.encode():
        found = version.decode(errors="replace")
        raise CheckpointError(f"{path}: checkpoint format {found}, expected {FORMAT}; {REMEDY}")
    if digest != _digest(payload):
        raise CheckpointError(f"{path}: not a readable checkpoint (damaged: its checksum does not hold); {REMEDY}")
    try:
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # whole, and yet nothing that this program wrote
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}); {REMEDY}") from error
    if not isinstance(content, dict) or content.get("id") != run_id:
        owner = content.get("id") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: belongs to run {owner}, expected {run_id}; {REMEDY}")
    return content


def _digest(payload: bytes) -> bytes:
    return hashlib.sha256(payload).hexdigest().encode()
