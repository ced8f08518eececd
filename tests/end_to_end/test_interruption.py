"""Ctrl-C and `kill -9` at bad moments: nothing is lost, and the sealed numbers are those of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = ("run", "per", "--jobs", "1", "--device", "cpu", "--runs", "disturbed")


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """All of a Result but what tells when and how long."""
    kept = {key: value for key, value in result.items() if key not in ("environment", "seal")}
    for record in kept["epochs"]:
        del record["seconds_per_step"]
    return kept


def test_numbers_survive_interruption_and_death(
    checkout: Any,
    undisturbed: Any,
    sealed_in: Callable[[Path], dict[str, Any]],
    watch: Callable[[subprocess.Popen[str], Callable[[], bool]], None],
    group_of: Callable[[int], list[int]],
    groups: list[subprocess.Popen[str]],
) -> None:
    assert undisturbed.code == 0, undisturbed
    expected = sealed_in(checkout.path / "runs")
    assert len(expected) == 2
    runs = checkout.path / "disturbed"

    # Ctrl-C in a terminal reaches every process of the group, here while the worker is only starting.
    first = checkout.start(*COMMAND)
    groups.append(first)
    watch(first, lambda: len(group_of(first.pid)) >= 3)
    os.killpg(first.pid, signal.SIGINT)
    _, stderr = first.communicate(timeout=300)
    assert first.returncode == 130
    assert stderr == "stopped; the same command goes on from the checkpoints\n"
    checkpoints = sorted(runs.glob("*/checkpoint.pt"))
    assert checkpoints
    assert sealed_in(runs) == {}
    left = [Path(f"/proc/{process}/cmdline") for process in group_of(first.pid)]
    assert not [path for path in left if path.exists() and b"spawn_main" in path.read_bytes()]  # no worker

    # Death in the middle of training, the parent and its worker at once.
    before = {path: path.stat().st_mtime_ns for path in checkpoints}
    second = checkout.start(*COMMAND)
    groups.append(second)
    watch(second, lambda: any(path.stat().st_mtime_ns != time for path, time in before.items() if path.exists()))
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate(timeout=300)
    assert second.returncode == -signal.SIGKILL
    assert len(sealed_in(runs)) < 2

    last = checkout.run(*COMMAND)
    assert (last.code, last.stderr) == (0, "")
    found = sealed_in(runs)
    assert found.keys() == expected.keys()
    resumed = [result["environment"]["resumed"] for result in found.values()]
    assert max(resumed) >= 2
    assert [result["environment"]["resumed"] for result in expected.values()] == [0, 0]
    assert {name: numbers(result) for name, result in found.items()} == {
        name: numbers(result) for name, result in expected.items()
    }
    assert list(runs.glob("*/checkpoint.pt")) == []
