"""`kill -9` at random moments: of the driver, and of a worker. Each run ends sealed once, with its own numbers.

REPRODUCE_KILLS: so many of each in place of one (`make soak`).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.results.store import read_result

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("REPRODUCE_KILLS") or 1)
PATIENCE = 300.0  # seconds, for a busy machine
ENDS = 30.0  # seconds, until what a dead driver has started has noticed

Watch = Callable[[subprocess.Popen[str], Callable[[], bool]], None]


def workers_of(group: list[int]) -> list[int]:
    """Those processes that train."""
    found = []
    for process in group:
        try:
            if b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
        except OSError:  # ended while we looked
            continue
    return found


@pytest.fixture(scope="module")
def seconds(undisturbed: Any) -> float:
    """How long the command takes undisturbed."""
    assert undisturbed.code == 0, undisturbed
    return float(undisturbed.seconds)


def command(runs: str) -> list[str]:
    return ["run", "per", "--jobs", "1", "--device", "cpu", "--runs", runs]


@pytest.mark.fault(
    what="the driver is killed at any moment",
    injected="`kill -9` of the driver alone, at random moments from its start to its end",
    promise="what it started ends within half a minute; whatever lies there as a Result reads; the same command ends "
    "with every run sealed once, with the numbers of an undisturbed one",
)
def test_of_the_driver(
    checkout: Any,
    undisturbed: Any,
    seconds: float,
    sealed_in: Callable[[Path], dict[str, Any]],
    numbers: Callable[[dict[str, Any]], dict[str, Any]],
    group_of: Callable[[int], list[int]],
    groups: list[subprocess.Popen[str]],
    seen: Callable[[str], None],
) -> None:
    expected = numbers(sealed_in(checkout.path / "runs"))
    moments, n_amid = random.Random(0), 0
    for number in range(KILLS):
        runs = checkout.path / f"driver{number}"
        process = checkout.start(*command(runs.name))
        groups.append(process)
        time.sleep(moments.uniform(0.1, 1.0) * seconds)
        n_amid += process.poll() is None
        process.kill()
        process.communicate(timeout=PATIENCE)
        until = time.monotonic() + ENDS
        while group_of(process.pid):
            assert time.monotonic() < until, "a worker works on without its driver"
            time.sleep(0.1)
        for path in runs.glob("*/result.json"):
            read_result(path)
        again = checkout.run(*command(runs.name))
        assert again.code == 0, again
        assert numbers(sealed_in(runs)) == expected
        seen(f"{n_amid} kills amid the work: {n_amid} ended with the same numbers, none left a process")


@pytest.mark.fault(
    what="a worker is killed at any moment",
    injected="`kill -9` of the process that trains, at random moments",
    promise="the driver goes on by itself from the last checkpoint, and ends with the numbers of an undisturbed one",
)
def test_of_a_worker(
    checkout: Any,
    undisturbed: Any,
    seconds: float,
    sealed_in: Callable[[Path], dict[str, Any]],
    numbers: Callable[[dict[str, Any]], dict[str, Any]],
    watch: Watch,
    group_of: Callable[[int], list[int]],
    groups: list[subprocess.Popen[str]],
    seen: Callable[[str], None],
) -> None:
    expected = numbers(sealed_in(checkout.path / "runs"))
    moments, n_killed = random.Random(1), 0
    for number in range(KILLS):
        runs = checkout.path / f"worker{number}"
        process = checkout.start(*command(runs.name))
        groups.append(process)
        watch(process, lambda of=process: bool(workers_of(group_of(of.pid))))  # type: ignore[misc]
        time.sleep(moments.uniform(0.0, 0.7) * seconds)
        for worker in workers_of(group_of(process.pid))[:1]:
            os.kill(worker, signal.SIGKILL)
            n_killed += 1
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        assert "Traceback" not in said
        assert numbers(sealed_in(runs)) == expected
        seen(f"{n_killed} kills: {n_killed} ended with the same numbers in the same command")
