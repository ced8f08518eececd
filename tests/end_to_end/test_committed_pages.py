"""The pages in reports/ are those of the evidence beside them, byte for byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from reproduce.report.block import BLOCK, CHOICE, refreshed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pages as they are made of nothing but the committed evidence."""
    folder = tmp_path_factory.mktemp("made")
    command = [sys.executable, "-m", "reproduce", "report", "--output", str(folder / "reports")]
    nothing_kept = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=nothing_kept)
    return folder / "reports"


def files(folder: Path) -> dict[str, Path]:
    """Those of the pages and of data/, by their places."""
    inside = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in inside}
    return {name: path for name, path in found.items() if "/" not in name or name.startswith("data/")}


@pytest.mark.slow
def test_the_committed_pages_are_those_of_the_committed_evidence(made: Path) -> None:
    """What changes a page rebuilds it: `make report`. A refactor changes none."""
    new, committed = files(made), files(ROOT / "reports")
    assert new.keys() == committed.keys()
    changed = sorted(name for name, path in committed.items() if not same(new[name], path))
    assert not changed, f"not as `make report` makes them: {', '.join(changed)}"


def same(new: Path, committed: Path) -> bool:
    """To the byte; a Parquet file names the version of pyarrow that wrote it, so there it is what it holds."""
    if new.suffix != ".parquet":
        return new.read_bytes() == committed.read_bytes()
    one, other = parquet.read_table(new), parquet.read_table(committed)
    return one.schema.equals(other.schema) and repr(one.to_pydict()) == repr(other.to_pydict())


@pytest.mark.slow
def test_the_readme_shows_the_answer_of_the_committed_evidence(made: Path) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    shown = refreshed(readme, (made / "README.md").read_text("utf-8"), "reports")
    assert readme == shown, "README.md shows another answer than the evidence gives: `make report` renews it"
    links = re.findall(r'\]\((reports/[^)]+)\)|(?:src|srcset)="([^"]+)"', BLOCK.findall(readme)[0])
    assert len(links) > 10
    assert [link for pair in links for link in pair if link and not (ROOT / link).is_file()] == []


@pytest.mark.slow
def test_the_cookbook_shows_the_choice_of_the_committed_evidence(made: Path) -> None:
    cookbook = (ROOT / "docs" / "cookbook.md").read_text("utf-8")
    shown = refreshed(cookbook, (made / "README.md").read_text("utf-8"), "../reports", CHOICE, "cookbook.md")
    assert cookbook == shown, "docs/cookbook.md shows another choice than the evidence gives: `make report` renews it"
