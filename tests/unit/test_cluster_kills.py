"""Nodes and workers of a Ray cluster that die while a grid trains, and the local engine's numbers all the same.

REPRODUCE_GRID: so many runs in the grid; REPRODUCE_KILLS: so many kills of each kind (`make soak`).
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from reproduce.experiment.schema import Arm
from reproduce.results.store import read_result
from reproduce.training import workers
from reproduce.training.agenda import Agenda
from reproduce.training.cluster.connection import Cluster, Request, connected
from reproduce.training.cluster.engine import RayEngine
from reproduce.training.engines import Processes
from reproduce.training.loop import CHECKPOINT, Event
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, result_path
from reproduce.training.side_by_side import Room
from reproduce.training.workers import run_all
from tests.unit.ray_runs import (
    ToldOfEach,
    is_alive,
    parent_of,
    pids_of,
    raylet_of,
    room_on,
    saving_often,
    two_nodes,
    wait_until,
)
from tests.unit.small_runs import RECIPE, Told, numbers, planned

pytestmark = pytest.mark.slow
GRID = int(os.environ.get("REPRODUCE_GRID") or 12)
KILLS = int(os.environ.get("REPRODUCE_KILLS") or 1)

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LONGER = {"steps": 3000}  # the two in the middle, so that one is at work there, with a checkpoint, when its node dies
ARMS = {
    "vanilla": Arm(),
    **{f"norm {s}": Arm(method="activity_norm", params={"kind": "l2", "strength": s}) for s in STRENGTHS},
    "vanilla, longer": Arm(recipe=LONGER),
    "batchnorm, longer": Arm(method="batchnorm", recipe=LONGER),
    **{f"per {s}": Arm(method="per", params={"mode": "sliced", "strength": s}) for s in STRENGTHS[1:]},
}


@pytest.fixture
def nodes() -> Iterator[Any]:
    with two_nodes() as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    monkeypatch.setattr(workers, "train_one", saving_often())
    return RunSettings(tmp_path / "runs", None, tmp_path / "cache", "cpu", threads=1, at_once=2)


TRAIN_ONE = workers.train_one  # before `settings` puts another in its place


def sealed(runs: list[PlannedRun], settings: RunSettings) -> dict[str, dict[str, Any]]:
    """The numbers that lie in the store; a run without its Result is an error."""
    assert sorted(settings.runs.glob("*/result.json")) == sorted(result_path(settings.runs, one.config) for one in runs)
    return {one.id: numbers(read_result(result_path(settings.runs, one.config))) for one in runs}


def on_local_engine(runs: list[PlannedRun], settings: RunSettings, folder: Path) -> dict[str, dict[str, Any]]:
    """The same runs in one worker process of this machine, without Ray."""
    here = replace(settings, runs=folder)
    with pytest.MonkeyPatch.context() as undone:
        undone.setattr(workers, "train_one", TRAIN_ONE)
        results, failures = run_all(Agenda(runs), here, Processes(1), Room(1), Told())
    assert (len(results), failures) == (len(runs), [])
    return sealed(runs, here)


@pytest.mark.fault(
    what="with `--engine ray`: a node is lost in the middle of a grid",
    injected="of two local nodes, the one that trains beside the driver's is killed when half of the runs are sealed",
    promise="every run of the grid is sealed once, with the local engine's numbers ([Ray](ray.md))",
)
def test_a_grid_is_sealed_whole_though_one_of_two_nodes_is_killed_midway(
    nodes: Any, settings: RunSettings, tmp_path: Path, seen: Callable[[str], None]
) -> None:
    n_seeds = -(-GRID // len(ARMS))
    recipe = RECIPE.model_copy(update={"steps": 300, "evaluate_every": 50})
    runs = planned(ARMS, recipe, seeds=tuple(range(n_seeds)))[:GRID]
    assert len({run.id for run in runs}) == GRID
    (other,) = nodes.worker_nodes
    raylet, killed_after = raylet_of(other), []

    def kill_midway(run: PlannedRun, event: Event) -> None:
        n_sealed = len(told.of("finished"))
        is_saved = (result_path(settings.runs, run.config).parent / CHECKPOINT).exists()
        if not killed_after and n_sealed >= GRID // 2 and is_saved and parent_of(pids_of(run, told)[-1]) == raylet:
            killed_after.append(n_sealed)
            nodes.remove_node(other, allow_graceful=False)

    told = ToldOfEach(when_advanced=kill_midway)
    began = time.monotonic()
    with connected(nodes.address) as found:
        results, failures = run_all(Agenda(runs), settings, RayEngine(found, Request()), room_on(found), told)
        wait_until(lambda: found.room_for(Request()) == 1)  # once the node is missed
    assert failures == []
    assert n_lost(told) == 1
    assert sum(result.environment.resumed for result in results) == 1
    assert len(results) == len({result.id for result in results}) == GRID
    assert sealed(runs, settings) == on_local_engine(runs, settings, tmp_path / "local")
    seconds = time.monotonic() - began
    seen(
        f"{GRID} runs, a node killed after {killed_after[0]} of them: {len(results)} sealed, each equal to the local "
        f"engine's; the run that it trained went on from its checkpoint; {seconds:.0f} s with both engines"
    )


PAIR = planned({"vanilla": ARMS["vanilla"], "per": ARMS["per 0.001"]}, RECIPE.model_copy(update=LONGER))


def trained(
    settings: RunSettings, cluster: Cluster, after: float = 0.0, kill: Callable[[Told], None] = lambda told: None
) -> tuple[Told, float]:
    """What was told of the pair, and its seconds.

    Args:
        after: so many seconds, ``kill`` is called.
    """
    told, began = Told(), time.monotonic()
    timer = Timer(after, kill, [told])
    timer.start()
    try:
        _, failures = run_all(Agenda(PAIR), settings, RayEngine(cluster, Request()), room_on(cluster), told)
    finally:
        timer.cancel()
        timer.join()
    assert failures == []
    return told, time.monotonic() - began


def n_lost(told: Told) -> int:
    """How often a run was lost."""
    return sum(line.endswith("it goes on from its last checkpoint") for line in told.of("noted"))


@pytest.mark.fault(
    what="with `--engine ray`: a worker is killed at any moment",
    injected="`kill -9` of a process that trains, at random moments",
    promise="its run goes on from its last checkpoint in another process, with the local engine's numbers",
)
def test_of_a_worker(nodes: Any, settings: RunSettings, tmp_path: Path, seen: Callable[[str], None]) -> None:
    expected = on_local_engine(PAIR, settings, tmp_path / "local")
    moments, killed, lost = random.Random(2), 0, 0

    def kill(told: Told) -> None:
        nonlocal killed
        at_work = [pid for run in PAIR if run.id not in told.of("finished") for pid in pids_of(run, told)[-1:]]
        for pid in [*filter(is_alive, at_work)][:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1

    with connected(nodes.address) as found:
        trained(replace(settings, runs=tmp_path / "cold"), found)  # with all that nodes load before
        _, seconds = trained(replace(settings, runs=tmp_path / "warm"), found)
        for number in range(KILLS):
            here = replace(settings, runs=tmp_path / f"runs{number}")
            told, _ = trained(here, found, moments.uniform(0.1, 0.8) * seconds, kill)
            lost += n_lost(told)
            assert sealed(PAIR, here) == expected
            seen(f"{killed} kills: {lost} runs lost and tried again, all sealed with the same numbers")
    assert lost <= killed


@pytest.mark.fault(
    what="with `--engine ray`: a node is killed at any moment",
    injected="`kill -9` of all that one of two local nodes runs, at random moments from the first start of its workers",
    promise="what it trained goes on on the other, with the local engine's numbers; a node that comes is used",
)
def test_of_a_node(nodes: Any, settings: RunSettings, tmp_path: Path, seen: Callable[[str], None]) -> None:
    expected = on_local_engine(PAIR, settings, tmp_path / "local")
    moments, lost = random.Random(3), 0

    def kill(told: Told) -> None:
        for node in list(nodes.worker_nodes):
            nodes.remove_node(node, allow_graceful=False)

    with connected(nodes.address) as found:
        _, seconds = trained(replace(settings, runs=tmp_path / "cold"), found)
        for number in range(KILLS):
            here = replace(settings, runs=tmp_path / f"runs{number}")
            told, _ = trained(here, found, moments.uniform(0.0, 0.9) * seconds, kill)
            lost += n_lost(told)
            assert sealed(PAIR, here) == expected
            seen(f"{number + 1} kills: {lost} runs lost and tried again, all sealed with the same numbers")
            kill(told)  # where all was done before
            nodes.add_node(num_cpus=1)
            nodes.wait_for_nodes()
            wait_until(lambda: found.room_for(Request()) == 2)
