"""Runs that could not be trained: a sealed note of each, beside where its Result is to lie.

It is no Result: a Result is what a config comes to, and stays; what made a Run fail may be mended, and then it is
trained. So schema and seals of Results are as they were, and what reads Results sees none.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from reproduce.results.durable import move_flushed, write_flushed
from reproduce.results.store import seal_of

FAILED = "failed.json"


class FailedRun(BaseModel):
    """Why a Run has no Result. ``seal`` is the hash of everything else."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    id: str
    label: str
    status: Literal["failed"] = "failed"
    reason: str  # one line
    tries: int
    finished: str  # UTC, ISO 8601
    seal: str = ""


def write_failed(folder: Path, run_id: str, label: str, reason: str, tries: int) -> FailedRun:
    """Seal what became of a Run, and put it into the Run's folder, onto the disk."""
    found = FailedRun(id=run_id, label=label, reason=reason, tries=tries, finished=_now())
    sealed = found.model_copy(update={"seal": seal_of(found.model_dump(mode="json"))})
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FAILED}.tmp"
    write_flushed(temporary, (json.dumps(sealed.model_dump(mode="json"), indent=1) + "\n").encode())
    move_flushed(temporary, folder / FAILED)
    return sealed


def read_failed(folder: Path) -> FailedRun | None:
    """What lies in a Run's folder; None where there is nothing, or nothing whose seal holds."""
    try:
        content = json.loads((folder / FAILED).read_bytes())
        found = FailedRun.model_validate(content)
        return found if found.seal == seal_of(content) else None
    except (OSError, ValueError, ValidationError, RecursionError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
