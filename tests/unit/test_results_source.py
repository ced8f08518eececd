"""Which code a Result is made with: a copy of the tree without .git has the commit of its note, if it is that code."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.experiment.folder import ROOT
from reproduce.results.source import (
    NOTE,
    UNKNOWN,
    check_copy,
    code_files,
    current_source,
    differences,
    git_state,
    tracked_files,
)

FILES = {
    "pyproject.toml": "[project]\n",
    "reproduce/loop.py": "rate = 0.1\n",
    "reproduce/workloads/words.toml": "seeds = [0]\n",
    "methods/a/method.py": "strength = 1\n",
    "methods/a/test_method.py": "",
    "methods/a/card.md": "# A\n",
    "datasets/digits.toml": "",
    "docs/page.md": "",
}
THAT_COUNT = {name for name in FILES if not name.endswith((".md", "test_method.py"))}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    return subprocess.check_output(["git", "-C", str(folder), *identity, *arguments], text=True).strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def copy_of(checkout: Path, target: Path) -> Path:
    """As it goes to a machine without git: the note along, .git not, and none of what no Run needs."""
    (checkout / NOTE).write_text(current_source(checkout).model_dump_json())
    shutil.copytree(checkout, target, ignore=shutil.ignore_patterns(".git", "docs", "test_*", "card.md"))
    git_state.cache_clear()
    return target


def test_a_checkout_has_the_state_of_git(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == (commit, False)
    (checkout / "new.py").write_text("")
    git_state.cache_clear()
    assert git_state(checkout) == (commit, False)
    (checkout / "docs/page.md").write_text("changed\n")
    git_state.cache_clear()
    assert git_state(checkout) == (commit, True)


def test_a_note_has_the_hash_of_each_file_that_can_move_a_number(checkout: Path) -> None:
    noted = current_source(checkout)
    assert noted.files == {name: hashlib.sha256(FILES[name].encode()).hexdigest() for name in THAT_COUNT}
    assert (noted.commit, noted.dirty) == git_state(checkout)


def test_this_checkout_notes_its_code() -> None:
    names = set(code_files(ROOT))
    assert {"reproduce/training/loop.py", "methods/vanilla/method.py", "pyproject.toml"} <= names
    assert {name.partition("/")[0] for name in names} == {"reproduce", "methods", "datasets", "pyproject.toml"}
    assert names < set(tracked_files(ROOT))


@pytest.mark.parametrize("is_dirty", [False, True])
def test_a_copy_has_the_commit_of_its_note(checkout: Path, tmp_path: Path, is_dirty: bool) -> None:
    if is_dirty:
        (checkout / "reproduce/loop.py").write_text("rate = 0.2\n")
    copy = copy_of(checkout, tmp_path / "copy")
    assert git_state(copy) == (git(checkout, "rev-parse", "HEAD"), is_dirty)
    check_copy(copy)


@pytest.mark.parametrize("inside", ["checkout/copy", "elsewhere"])
def test_a_copy_with_other_code_is_unknown(checkout: Path, tmp_path: Path, inside: str) -> None:
    """Inside another checkout too, whose commit is not that of the copy."""
    copy = copy_of(checkout, tmp_path / inside)
    (copy / "reproduce/loop.py").write_text("rate = 0.3\n")
    (copy / "datasets/digits.toml").unlink()
    assert git_state(copy) == UNKNOWN
    assert differences(current_source(checkout), copy) == ["datasets/digits.toml", "reproduce/loop.py"]
    with pytest.raises(
        UserError, match=r"^datasets/digits.toml and 1 more: not as .*source.json says, from commit [0-9a-f]{12}"
    ):
        check_copy(copy)
    (copy / NOTE).unlink()
    check_copy(copy)
    git_state.cache_clear()
    assert git_state(copy) == UNKNOWN


def test_a_note_that_does_not_read_is_told(checkout: Path, tmp_path: Path) -> None:
    copy = copy_of(checkout, tmp_path / "copy")
    (copy / NOTE).write_text("{}")
    assert git_state(copy) == UNKNOWN
    with pytest.raises(UserError, match=r"source.json: not a note of `reproduce pack --source`"):
        check_copy(copy)


def test_in_a_checkout_no_note_counts(checkout: Path, tmp_path: Path) -> None:
    copy_of(checkout, tmp_path / "copy")
    (checkout / "reproduce/loop.py").write_text("rate = 0.4\n")
    check_copy(checkout)
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), True)


def test_what_is_installed_has_no_commit(checkout: Path) -> None:
    """Without a pyproject.toml it is site-packages, which may lie inside the checkout of something else."""
    assert git_state(checkout / "reproduce") == UNKNOWN
    with pytest.raises(UserError, match="not a git checkout, so its code has no commit to note"):
        current_source(checkout / "reproduce")


@pytest.fixture(autouse=True)
def _forget() -> None:
    git_state.cache_clear()
