"""The pages in reports/ are those of the evidence beside them, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_committed_pages_are_those_of_the_committed_evidence(tmp_path: Path) -> None:
    """What changes a page rebuilds it: `make report`. A refactor changes none."""
    command = [sys.executable, "-m", "reproduce", "report", "--output", str(tmp_path / "pages")]
    nothing_kept = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=nothing_kept)
    made = {path.name: path.read_bytes() for path in (tmp_path / "pages").iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / "reports").iterdir() if path.is_file()}
    assert made.keys() == committed.keys()
    changed = sorted(name for name, content in committed.items() if made[name] != content)
    assert not changed, f"not as `make report` makes them: {', '.join(changed)}"
