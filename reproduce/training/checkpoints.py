"""Checkpoints: tensors and plain values, written whole or not at all, read with ``weights_only=True``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from reproduce.errors import UserError
from reproduce.experiment.identity import LOOP_VERSION

FORMAT = f"1.{LOOP_VERSION}"


class CheckpointError(UserError):
    """A checkpoint that cannot be continued."""


def write_checkpoint(path: Path, run_id: str, content: dict[str, Any]) -> None:
    """Write to a temporary name, flush to disk, rename: ``kill -9`` leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "id": run_id, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path, run_id: str) -> dict[str, Any] | None:
    """The checkpoint of this run, or None when there is none.

    Raises:
        CheckpointError: damaged, of another format version, or of another run.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise anything, from IndexError to UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason}); {_REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: checkpoint format {found}, expected {FORMAT}; {_REMEDY}")
    if content["id"] != run_id:
        raise CheckpointError(f"{path}: belongs to run {content['id']}, expected {run_id}; {_REMEDY}")
    return content


_REMEDY = "delete that file to start the run anew, or check out the version that wrote it to go on"
