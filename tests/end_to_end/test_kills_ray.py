"""`kill -9` of a driver with `--engine ray` at random moments: what it started ends, and the same command goes on.

REPRODUCE_KILLS: so many in place of one (`make soak`).
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.results.store import read_result
from tests.unit.ray_runs import family, is_alive

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("REPRODUCE_KILLS") or 1)
PATIENCE = 300.0  # seconds, for a busy machine
ENDS = 30.0  # seconds, until what trains for a dead driver has noticed
AGENTS_END = 150.0  # seconds, until Ray's own agents have, which look for their node about once a minute


def is_agent(pid: int) -> bool:
    """Whether it is one of the two processes in which Ray answers questions about a node; none of them trains."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # ended while we looked
        return False
    return name.startswith((b"ray::DashboardAgent", b"ray::RuntimeEnvAgent"))


@pytest.mark.fault(
    what="with `--engine ray`: the driver is killed at any moment",
    injected="`kill -9` of the driver alone, at random moments from the start of Ray to its end",
    promise="what trains ends within half a minute, and Ray's own agents within three; the same command ends with "
    "every run sealed once, with the local engine's numbers ([Ray](ray.md))",
)
def test_of_the_driver(
    checkout: Any,
    undisturbed: Any,
    sealed_in: Callable[[Path], dict[str, Any]],
    numbers: Callable[[dict[str, Any]], dict[str, Any]],
    groups: list[subprocess.Popen[str]],
    seen: Callable[[str], None],
) -> None:
    assert undisturbed.code == 0, undisturbed
    expected = numbers(sealed_in(checkout.path / "runs"))

    def command(runs: Path) -> list[str]:
        return ["run", "per", "--jobs", "1", "--device", "cpu", "--engine", "ray", "--runs", runs.name]

    whole = checkout.run(*command(checkout.path / "ray"))
    assert whole.code == 0, whole
    assert numbers(sealed_in(checkout.path / "ray")) == expected
    moments, n_amid = random.Random(4), 0
    for number in range(KILLS):
        runs = checkout.path / f"ray{number}"
        process = checkout.start(*command(runs))
        groups.append(process)
        time.sleep(moments.uniform(0.3, 1.0) * whole.seconds)
        started = family(process.pid)[1:]
        n_amid += process.poll() is None
        process.kill()
        process.wait()
        killed = time.monotonic()
        while any(is_alive(pid) and not is_agent(pid) for pid in started):
            assert time.monotonic() < killed + ENDS, "something works on without its driver"
            time.sleep(0.1)
        while any(map(is_alive, started)):
            assert time.monotonic() < killed + AGENTS_END, "an agent of Ray stays"
            time.sleep(0.1)
        process.communicate(timeout=PATIENCE)
        for path in runs.glob("*/result.json"):
            read_result(path)
        again = checkout.run(*command(runs))
        assert again.code == 0, again
        assert numbers(sealed_in(runs)) == expected
        seen(f"{n_amid} kills amid the work: {n_amid} ended with the local engine's numbers, none left a process")
