"""What tests of the Ray engine share. Where Ray is not installed, importing it skips the test file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("ray") is None:  # asked without importing it: it reads its settings then
    pytest.skip("Ray is not installed: pip install -e '.[ray]'", allow_module_level=True)

from reproduce.training.cluster.connection import Cluster, Request
from reproduce.training.loop import Event
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, execute
from reproduce.training.side_by_side import Room
from reproduce.training.workers import Work
from tests.unit.small_runs import RECIPE, Told, numbers

LONG = RECIPE.model_copy(update={"steps": 1500, "evaluate_every": 100})


class ToldOfEach(Told):
    """May do something at what it is told of a run."""

    def __init__(self, when_advanced: Callable[[PlannedRun, Event], object] = lambda run, event: None) -> None:
        super().__init__()
        self._when_one_advanced = when_advanced

    def advanced(self, run: PlannedRun, event: Event) -> None:
        super().advanced(run, event)
        self._when_one_advanced(run, event)


def saving_often() -> Work[Any]:
    """Training that says its process's id, with many checkpoints. Pickled by value: nodes have no tests."""

    def work(run: PlannedRun, settings: RunSettings, desk: Any) -> Any:
        import os

        from reproduce.training import loop, workers

        loop.CHECKPOINT_SECONDS = 0.2
        desk.tell((run.id, workers.Note(str(os.getpid()))))
        return workers.train_one(run, settings, desk)

    return work


def alone(runs: list[PlannedRun], settings: RunSettings, folder: Path) -> dict[str, dict[str, Any]]:
    """The numbers of each run without any engine."""
    return {run.id: numbers(execute(run, replace(settings, runs=folder))) for run in runs}


def pids_of(run: PlannedRun, told: Told) -> list[int]:
    """Those that its trainings have said, in their order."""
    said = (line.removeprefix(f"{run.label}: ") for line in told.of("noted") if line.startswith(f"{run.label}: "))
    return [int(line) for line in said if line.isdigit()]


def parent_of(pid: int) -> int:
    """0: the process is gone."""
    if not Path(f"/proc/{pid}").exists():
        return 0
    return int(Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2].split()[1])


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for process in found:
        for task in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):  # ended while we looked
                found += map(int, task.read_text("ascii").split())
    return found


def is_alive(pid: int) -> bool:
    """No zombie, which only waits to be asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def raylet_of(node: Any) -> int:
    (process,) = node.all_processes["raylet"]
    return process.process.pid


def wait_until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def room_on(cluster: Cluster) -> Room:
    """For as many runs as its nodes have cores, now."""
    return Room(2**31, capacity=lambda: cluster.room_for(Request()))


@contextmanager
def two_nodes() -> Iterator[Any]:
    """Nodes that somebody else has started, with room for a run each; a cluster that there was before ends."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    ray.shutdown()
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    try:
        yield nodes
    finally:
        nodes.shutdown()
