"""No target of the Makefile is ever up to date, whatever files and folders bear its name."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from reproduce.experiment.folder import ROOT, all_methods

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = re.findall(r"(?m)^([a-z][a-z-]*):", MAKEFILE)
FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Makefile, with an environment that is ready, and a file or folder in the way of every target."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "Makefile", folder)
    for name in {*FOLDERS, "data", "runs"}:
        (folder / name).mkdir()
    for name in {*TARGETS, "reproduce-per", "reproduce-all"} - {path.name for path in folder.iterdir()}:
        (folder / name).touch()
    for name in all_methods():
        (folder / "methods" / name).mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    for environment in (".venv", ".venv-oldest"):
        (folder / environment).mkdir()
        (folder / environment / ".ready").touch()
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", sorted({*TARGETS, *FOLDERS, "reproduce-per", "data", "runs"} - {"setup"}))
def test_a_target_always_does_something(checkout: Path, target: str) -> None:
    done = make(checkout, "-n", target)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" not in done.stdout
    assert "up to date" not in done.stdout
    assert done.stdout.strip()


def test_bare_reproduce_says_what_to_type(checkout: Path) -> None:
    done = make(checkout, "reproduce")
    assert done.returncode == 2
    assert done.stdout.startswith("which method? make reproduce-per, say, or make reproduce-all; there are:\n")
    assert set(done.stdout.partition("are:")[2].split()) == set(all_methods())
    assert all(len(line) < 81 for line in done.stdout.splitlines())


def test_a_folder_that_is_no_target_says_so(checkout: Path) -> None:
    done = make(checkout, "data")
    assert done.returncode == 2
    assert done.stdout == "data is a folder, and no target: make help lists what can be made\n"


def test_help_lists_every_target_with_a_description() -> None:
    said = make(ROOT, "help").stdout
    described = re.findall(r"(?m)^([a-z][a-z-]*):.*## ", MAKEFILE)
    assert {f"make {name}" in said for name in described} == {True}
