"""Checkpoints: whole or not at all, tensors and plain values only, one clear line when they cannot be continued."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from reproduce.training import checkpoints
from reproduce.training.checkpoints import FORMAT, CheckpointError, read_checkpoint, write_checkpoint

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


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "checkpoint.pt", "run-a") is None


def test_of_another_run(path: Path) -> None:
    assert "belongs to run run-a, expected run-b" in error_of(path, "run-b")


def test_of_another_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", "1.2")
    assert f"checkpoint format {FORMAT}, expected 1.2" in error_of(path)


def test_of_something_else(path: Path) -> None:
    torch.save([1, 2], path)
    assert "checkpoint format list" in error_of(path)


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


def test_runs_no_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    torch.save({"format": FORMAT, "id": "run-a", "payload": Payload()}, path)
    assert "not a readable checkpoint" in error_of(path)
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    assert "not a readable checkpoint" in error_of(path)
    assert not Path("touched").exists()


def test_a_crash_while_writing_leaves_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", crash)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(path, "run-a", {"step": 8})
    content = read_checkpoint(path, "run-a")
    assert content is not None
    assert content["step"] == 7
    write_checkpoint(path, "run-a", {"step": 8})
    assert (read_checkpoint(path, "run-a") or {})["step"] == 8
