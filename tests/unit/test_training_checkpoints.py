"""Checkpoints: whole or not at all, tensors and plain values only, one clear line when they cannot be continued."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from reproduce.training import checkpoints
from reproduce.training.checkpoints import (
    FORMAT,
    CheckpointError,
    previous,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)

CONTENT = {"step": 7, "model": {"weight": torch.arange(300.0)}, "epochs": [{"train_loss": float("nan")}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, "run-a", CONTENT)
    return path


def error_of(path: Path, run_id: str = "run-a") -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, run_id)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert "delete that file" in message
    return message


def test_comes_back(path: Path) -> None:
    content = read_checkpoint(path, "run-a")
    assert content is not None
    assert content["step"] == 7
    assert torch.equal(content["model"]["weight"], torch.arange(300.0))
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.fault(
    what="a damaged checkpoint",
    injected="the newest one is cut off",
    promise="the one before stands in, and one line says so",
)
def test_the_one_before_is_kept_and_stands_in_for_a_damaged_one(path: Path) -> None:
    write_checkpoint(path, "run-a", {"step": 8})
    assert sorted(file.name for file in path.parent.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]
    write_checkpoint(path, "run-a", {"step": 9})
    told: list[str] = []
    assert (read_checkpoint(path, "run-a", told.append) or {})["step"] == 9
    assert told == []
    path.write_bytes(b"torn")
    assert (read_checkpoint(path, "run-a", told.append) or {})["step"] == 8
    assert told == [
        f"{path}: not a readable checkpoint, or one of before format {FORMAT}: goes on from the checkpoint before it"
    ]
    previous(path).write_bytes(b"torn too")
    error_of(path)
    remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.fault(
    what="a flipped bit in a checkpoint",
    injected="bits all over the file, one at a time",
    promise="it is never read: its checksum does not hold",
)
def test_no_flipped_bit_loads_as_another_number(path: Path) -> None:
    """Without a checksum nine of ten do."""
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(400):
        place, bit = generator.randrange(len(whole)), generator.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        error_of(path)


@pytest.mark.fault(
    what="a power cut",
    injected="system calls are traced",
    promise="file, rename, folder: each is flushed to the disk before the next depends on it; the same for Results",
)
def test_it_is_on_the_disk_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the folder after it: a rename that reaches the disk first would leave a file of no bytes."""
    calls: list[tuple[str, str]] = []
    flush, replace = os.fsync, Path.replace

    def flushing(descriptor: int) -> None:
        calls.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))
        flush(descriptor)

    def replacing(source: Path, target: Path) -> Path:
        calls.append(("rename to", str(target)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(Path, "replace", replacing)
    write_checkpoint(path, "run-a", {"step": 8})
    assert calls == [
        ("flush", str(path.with_suffix(".tmp"))),
        ("rename to", str(previous(path))),
        ("rename to", str(path)),
        ("flush", str(path.parent)),
    ]


def test_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    write_checkpoint(path, "run-a", {"step": 8})
    assert (read_checkpoint(path, "run-a") or {})["step"] == 8
    assert (read_checkpoint(previous(path), "run-a") or {})["step"] == 7


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "checkpoint.pt", "run-a") is None


def test_of_another_run(path: Path) -> None:
    assert "belongs to run run-a, expected run-b" in error_of(path, "run-b")


def test_of_another_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", "2.9")
    assert f"checkpoint format {FORMAT}, expected 2.9" in error_of(path)


def test_of_before_there_was_a_checksum(path: Path) -> None:
    torch.save({"format": "1.1", "id": "run-a"}, path)
    assert f"one of before format {FORMAT}" in error_of(path)


def test_truncated_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for length in [0, 1, 3, 4, 10, 100, *range(200, len(whole) - 1, 211), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "not a readable checkpoint" in error_of(path)


@pytest.mark.parametrize(
    "content", [b"no checkpoint", b"\x80", bytes(range(256)) * 8, b"PK\x03\x04" + bytes(64), b"\x80\x02}q\x00."]
)
def test_of_other_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "checkpoint" in error_of(path)


class Payload:
    """What a pickle may do and a checkpoint may not."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched"),))  # type: ignore[return-value]


@pytest.mark.fault(
    what="a checkpoint that somebody else has made",
    injected="a pickle that would run a command",
    promise="it runs no code",
)
def test_runs_no_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    write_checkpoint(path, "run-a", {"payload": Payload()})  # its checksum holds
    previous(path).unlink()
    assert "not a readable checkpoint" in error_of(path)
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    assert "not a readable checkpoint" in error_of(path)
    assert not Path("touched").exists()


@pytest.mark.fault(
    what="a crash while a checkpoint is written",
    injected="the write ends in the middle",
    promise="the earlier one stays whole",
)
def test_a_crash_while_writing_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(file: Path, content: bytes) -> None:
        file.write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "write_flushed", crash)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(path, "run-a", {"step": 8})
    content = read_checkpoint(path, "run-a")
    assert content is not None
    assert content["step"] == 7
    write_checkpoint(path, "run-a", {"step": 8})
    assert (read_checkpoint(path, "run-a") or {})["step"] == 8
