"""The index of sealed Results: the same answer with it and without, and never one that the files no longer give."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from reproduce.results import index
from reproduce.results.index import brief, read_briefly
from reproduce.results.record import Result
from reproduce.results.store import read_result

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = sorted((ROOT / "reports" / "evidence").glob("mnist-*.json"))[:6]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Some sealed files that count as settled, and a cache folder with nothing in it."""
    assert len(EVIDENCE) == 6
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "SETTLED", -1.0)
    (tmp_path / "runs").mkdir()
    return [Path(shutil.copy(path, tmp_path / "runs" / path.name)) for path in EVIDENCE]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sealed files that are opened."""
    opened: list[Path] = []

    def reading(path: Path) -> Result:
        opened.append(path)
        return read_result(path)

    monkeypatch.setattr(index, "read_result", reading)
    return opened


def test_a_second_look_opens_no_file_and_finds_the_same(store: list[Path], reads: list[Path]) -> None:
    first = read_briefly(store)
    assert reads == sorted(store)
    assert read_briefly(store) == first
    assert len(reads) == len(store)
    assert first == ({path: brief(read_result(path)) for path in store}, [])


def test_a_brief_result_lacks_nothing_but_what_evaluations_measured(store: list[Path]) -> None:
    read_briefly(store)
    found = read_briefly(store)[0][store[0]]
    whole = read_result(store[0])
    assert any(epoch.sites for epoch in whole.epochs)
    assert found.model_copy(update={"epochs": ()}) == whole.model_copy(update={"epochs": ()})
    for one, epoch in zip(found.epochs, whole.epochs, strict=True):
        assert (one.epoch, one.step, one.seconds_per_step) == (epoch.epoch, epoch.step, epoch.seconds_per_step)


def edited(path: Path) -> None:
    """Another number, of the same length, and the times that the file had."""
    before, text = path.stat(), path.read_text("utf-8")
    at = text.index('"wall_seconds":') + len('"wall_seconds":')
    other = "1" if text[at] != "1" else "2"
    path.write_text(text[:at] + other + text[at + 1 :], "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def truncated(path: Path) -> None:
    path.write_text(path.read_text("utf-8")[:-9], "utf-8")


def replaced(path: Path) -> None:
    os.replace(shutil.copy(EVIDENCE[1], path.with_suffix(".new")), path)


@pytest.mark.parametrize("change", [edited, truncated, replaced, Path.unlink])
def test_what_has_changed_is_read_from_the_sealed_file(
    store: list[Path], reads: list[Path], change: Callable[[Path], None]
) -> None:
    read_briefly(store)
    change(store[0])
    found, problems = read_briefly(store)
    assert reads[len(store) :] == [store[0]]
    if change is replaced:
        assert (found[store[0]].id, problems) == (read_result(EVIDENCE[1]).id, [])
    else:
        assert store[0] not in found
        assert [problem.partition(":")[0] for problem in problems] == [str(store[0])]


def test_a_file_that_was_just_written_is_not_kept_yet(
    store: list[Path], reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "SETTLED", 1e6)
    read_briefly(store)
    read_briefly(store)
    assert len(reads) == 2 * len(store)


def kept_at(store: list[Path]) -> Path:
    (path,) = (store[0].parents[1] / "cache").rglob("*.sqlite")
    return path


@pytest.mark.fault(
    what="a damaged index of Results",
    injected="its file is overwritten",
    promise="it is begun anew from the sealed files, which alone are the truth",
)
@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_index_is_begun_anew(store: list[Path], reads: list[Path], content: bytes) -> None:
    first = read_briefly(store)
    kept_at(store).write_bytes(content)
    assert read_briefly(store) == first
    read_briefly(store)
    assert read_briefly(store) == first
    assert len(reads) <= 3 * len(store)


def test_a_damaged_row_is_not_believed(store: list[Path], reads: list[Path]) -> None:
    first = read_briefly(store)
    with sqlite3.connect(kept_at(store)) as database:
        database.execute("UPDATE results SET brief = replace(brief, '\"seed\":', '\"seed\":1')")
    assert read_briefly(store) == first
    assert len(reads) == 2 * len(store)


def test_an_index_that_is_busy_or_cannot_be_written_stops_nothing(
    store: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_briefly(store)
    with sqlite3.connect(kept_at(store)) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert read_briefly(store) == first
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert read_briefly(store) == first


def test_rows_of_files_that_are_gone_are_removed(store: list[Path]) -> None:
    read_briefly(store)
    store[0].unlink()
    read_briefly(store[1:3])
    with sqlite3.connect(kept_at(store)) as database:
        kept = {path for (path,) in database.execute("SELECT path FROM results")}
    assert kept == {str(path) for path in store[1:]}
