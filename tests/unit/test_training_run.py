"""One Run and its folder: what lies there already, a disk that is full, a lock that is held."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from reproduce.errors import UserError
from reproduce.experiment.schema import Arm
from reproduce.results.record import SCHEMA_VERSION
from reproduce.results.store import read_result
from reproduce.training import loop
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunBusy, RunSettings, execute, result_path
from tests.unit.small_runs import RECIPE, numbers, planned, resealed


@pytest.fixture
def runs() -> list[PlannedRun]:
    return planned({"vanilla": Arm(), "batchnorm": Arm(method="batchnorm")})


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    torch.set_num_threads(1)
    return RunSettings(tmp_path / "runs", None, tmp_path / "cache", "cpu", threads=1)


@pytest.mark.fault(
    what="a newer suite has sealed the run",
    injected="a sealed Result of the next schema version lies in the run's folder",
    promise="it is not overwritten; one line says to update, or to take another folder",
)
def test_the_result_of_a_newer_suite_stays(runs: list[PlannedRun], settings: RunSettings) -> None:
    execute(runs[0], settings)
    path = result_path(settings.runs, runs[0].config)
    theirs = resealed(path, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(UserError, match="a newer suite has sealed it; update this one, or choose other --runs"):
        execute(runs[0], settings)
    assert path.read_bytes() == theirs
    assert [file.name for file in path.parent.glob("result*")] == ["result.json"]


@pytest.mark.fault(
    what="another run's Result in a run's folder",
    injected="a sealed file is copied there",
    promise="it passes as no Result of this run and is not lost; one line names both ids",
)
def test_the_result_of_another_run_is_not_this_ones(runs: list[PlannedRun], settings: RunSettings) -> None:
    other = execute(runs[1], settings)
    path = result_path(settings.runs, runs[0].config)
    path.parent.mkdir(parents=True)
    path.write_bytes(result_path(settings.runs, runs[1].config).read_bytes())
    with pytest.raises(UserError, match=f"holds the Result of run {other.id}, expected {runs[0].id}"):
        execute(runs[0], settings)
    assert read_result(path).id == other.id


@pytest.mark.fault(
    what="a damaged Result in a run's folder",
    injected="its middle is cut out",
    promise="it is moved aside, one line says so, and the run is trained anew to the same numbers",
)
def test_a_damaged_result_is_moved_aside(runs: list[PlannedRun], settings: RunSettings) -> None:
    first = execute(runs[0], settings)
    path = result_path(settings.runs, runs[0].config)
    damaged = path.read_bytes()[:100] + path.read_bytes()[-100:]
    path.write_bytes(damaged)
    noted: list[str] = []
    again = execute(runs[0], settings, note=noted.append)
    assert numbers(again) == numbers(first)
    assert path.with_name("result.damaged.json").read_bytes() == damaged
    (line,) = noted
    assert "moved to result.damaged.json, and trained anew" in line
    assert "\n" not in line


@pytest.fixture
def fails_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Lets the n-th wait for the disk fail as on a full one, once, and counts them; 0: none fails."""
    flush = os.fsync

    def arrange(number: int) -> list[int]:
        count = [0]

        def flushing(descriptor: int) -> None:
            count[0] += 1
            if count[0] == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", flushing)
        return count

    return arrange


@pytest.mark.fault(
    what="a disk that is full at any write of a run",
    injected="each write of a checkpoint and of the Result in turn fails once, as on a full disk",
    promise="one line that names the folder; repeated with room, the same command ends with the same numbers",
)
def test_a_full_disk_at_every_write(
    runs: list[PlannedRun],
    settings: RunSettings,
    tmp_path: Path,
    fails_at: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
    seen: Callable[[str], None],
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # after every step
    count = fails_at(0)
    whole = numbers(execute(runs[0], settings))
    writes = count[0]
    assert writes >= 2 * (RECIPE.steps or 0)
    for number in range(1, writes + 1):
        there = RunSettings(tmp_path / f"runs{number}", None, tmp_path / "cache", "cpu", threads=1)
        fails_at(number)
        path = result_path(there.runs, runs[0].config)
        with pytest.raises(UserError, match="No space left on device: make room there") as said:
            execute(runs[0], there)
        assert "\n" not in str(said.value)
        assert str(path.parent) in str(said.value)
        if path.exists():  # all that failed is the wait for its folder
            assert numbers(read_result(path)) == whole
        fails_at(0)
        assert numbers(execute(runs[0], there)) == whole
    seen(f"{writes} of {writes} writes: the same numbers after it")


def test_a_run_that_another_process_trains_is_busy(runs: list[PlannedRun], settings: RunSettings) -> None:
    folder = result_path(settings.runs, runs[0].config).parent
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"), pytest.raises(RunBusy, match="another process is training this run"):
        execute(runs[0], settings)
