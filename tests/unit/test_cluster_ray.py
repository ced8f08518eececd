"""The Ray engine, where Ray is installed: the local engine's numbers, deaths of workers and nodes, Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reproduce.experiment.schema import Arm
from reproduce.results.failed import read_failed
from reproduce.results.store import read_result
from reproduce.training import workers
from reproduce.training.agenda import Agenda
from reproduce.training.cluster import engine
from reproduce.training.cluster.connection import Cluster, Request, connected
from reproduce.training.cluster.engine import RayEngine
from reproduce.training.loop import CHECKPOINT, Event
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, execute, result_path
from reproduce.training.side_by_side import Room
from reproduce.training.workers import DEATHS, run_all
from tests.unit.ray_runs import (
    LONG,
    ToldOfEach,
    alone,
    family,
    parent_of,
    pids_of,
    raylet_of,
    room_on,
    saving_often,
    two_nodes,
    wait_until,
)
from tests.unit.small_runs import Told, numbers, planned


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected("") as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return RunSettings(tmp_path / "runs", None, tmp_path / "cache", "cpu", threads=1, at_once=2)


def test_numbers_are_the_local_ones_and_one_that_fails_stops_no_other(
    cluster: Cluster, settings: RunSettings, tmp_path: Path
) -> None:
    bad = Arm(method="activity_norm", params={"kind": "ar_tar"})  # which needs a recurrent layer
    runs = planned({"vanilla": Arm(), "bad": bad, "per": Arm(method="per", params={"mode": "sliced", "strength": 0.1})})
    told = Told()
    results, failures = run_all(Agenda(runs), settings, RayEngine(cluster, Request()), Room(2), told)
    (failure,) = failures
    assert str(failure).startswith("table1 / bad / seed 0: ValueError: the model recorded no 'dropped' Site")
    good = [run for run in runs if "bad" not in run.label]
    assert {result.id for result in results} == {run.id for run in good} == set(told.of("finished"))
    assert set(told.of("started")) == {run.id for run in runs}
    assert told.of("noted") == []
    for result in results:
        (run,) = (run for run in good if run.id == result.id)
        alone = execute(run, replace(settings, runs=tmp_path / "alone"))
        assert numbers(result) == numbers(alone)
        assert read_result(result_path(settings.runs, run.config)) == result
        assert list(result_path(settings.runs, run.config).parent.glob("events.out.tfevents.*"))
    assert not list(settings.runs.rglob("checkpoint*"))


def test_a_killed_worker_costs_its_run_what_came_after_its_checkpoint(
    cluster: Cluster, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "train_one", saving_often())
    runs = planned({"vanilla": Arm(), "batchnorm": Arm(method="batchnorm")}, LONG)
    folder = result_path(settings.runs, runs[0].config).parent
    killed: list[int] = []

    def kill(run: PlannedRun, event: Event) -> None:
        if run.id == runs[0].id and not killed and (folder / CHECKPOINT).exists():
            killed.append(pids_of(runs[0], told)[-1])
            os.kill(killed[0], signal.SIGKILL)

    told = ToldOfEach(when_advanced=kill)
    results, failures = run_all(Agenda(runs), settings, RayEngine(cluster, Request()), Room(2), told)
    assert failures == []
    assert len(killed) == 1
    assert [line for line in told.of("noted") if "died" in line] == [
        f"{runs[0].label}: its worker process died; it goes on from its last checkpoint"
    ]
    assert {result.id: result.environment.resumed for result in results} == {runs[0].id: 1, runs[1].id: 0}
    assert {result.id: numbers(result) for result in results} == alone(runs, settings, tmp_path / "alone")


def test_a_run_that_kills_its_workers_is_given_up_and_the_rest_goes_on(
    cluster: Cluster, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = planned({"vanilla": Arm(), "batchnorm": Arm(method="batchnorm")})
    deadly = runs[0].id

    def work(run: PlannedRun, settings: RunSettings, desk: Any) -> Any:
        import os
        import signal

        from reproduce.training import workers

        if run.id == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return workers.train_one(run, settings, desk)

    monkeypatch.setattr(workers, "train_one", work)
    results, (failure,) = run_all(Agenda(runs), settings, RayEngine(cluster, Request()), Room(2), Told())
    assert [result.id for result in results] == [runs[1].id]
    assert str(failure) == f"{runs[0].label}: RuntimeError: its worker process died {DEATHS} times"
    sealed = read_failed(result_path(settings.runs, runs[0].config).parent)
    assert sealed is not None
    assert (sealed.id, sealed.tries) == (runs[0].id, DEATHS)
    assert sealed.reason == failure.reason


def test_ctrl_c_leaves_the_checkpoint_of_the_last_step_and_nobody_at_work(
    cluster: Cluster, settings: RunSettings, tmp_path: Path
) -> None:
    """Of three runs with room for two: the third has not begun."""
    arms = {"vanilla": Arm(), "batchnorm": Arm(method="batchnorm"), "per": Arm(method="per")}
    runs = planned(arms, LONG)

    def interrupt(run: PlannedRun, event: Event) -> None:
        if len(set(told.of("advanced"))) == 2:
            raise KeyboardInterrupt

    told = ToldOfEach(when_advanced=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_all(Agenda(runs), settings, RayEngine(cluster, Request()), Room(3), told)
    assert told.of("finished") == []
    assert sorted(path.parent.name for path in settings.runs.rglob(CHECKPOINT)) == sorted(
        run.config.folder for run in runs if run.id in told.of("advanced")
    )
    wait_until(lambda: cluster.ray.available_resources().get("CPU") == cluster.ray.cluster_resources()["CPU"])
    results, failures = run_all(Agenda(runs), settings, RayEngine(cluster, Request()), Room(2), Told())
    assert failures == []
    assert sorted(result.environment.resumed for result in results) == [0, 1, 1]
    assert {result.id: numbers(result) for result in results} == alone(runs, settings, tmp_path / "alone")


def test_a_run_that_another_process_trains_is_come_back_to(
    cluster: Cluster, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "AGAIN_SECONDS", 0.1)
    (run,) = planned({"vanilla": Arm()})
    folder = result_path(settings.runs, run.config).parent
    folder.mkdir(parents=True)
    lock = FileLock(folder / ".lock")
    lock.acquire()
    told = Told()
    monkeypatch.setattr(told, "noted", lambda line: (told.lines.append(("noted", line)), lock.release()))
    results, failures = run_all(Agenda([run]), settings, RayEngine(cluster, Request()), Room(2), told)
    assert ([result.id for result in results], failures) == ([run.id], [])
    assert told.of("noted") == [f"{run.label}: another process is training it; it is asked for again later"]


def test_other_code_on_a_node_trains_nothing(
    cluster: Cluster, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "git_state", lambda: ("0123abcd", False))
    results, (failure,) = run_all(
        Agenda(planned({"vanilla": Arm()})), settings, RayEngine(cluster, Request()), Room(2), Told()
    )
    assert results == []
    assert failure.is_bad_input
    assert "the driver's of 0123abcd: install the same" in failure.reason


def test_a_node_with_other_data_trains_nothing(cluster: Cluster, settings: RunSettings) -> None:
    (run,) = planned({"vanilla": Arm()})
    other = replace(run, config=run.config.model_copy(update={"dataset_checksum": "0" * 64}))
    results, (failure,) = run_all(Agenda([other]), settings, RayEngine(cluster, Request()), Room(2), Told())
    assert results == []
    assert "dataset digits is another one than the driver's" in failure.reason


def test_a_cluster_of_this_machine_listens_on_loopback_alone(cluster: Cluster) -> None:
    """By what the kernel says of this process and of all below it."""
    assert len(cluster.ray.nodes()) == 1
    processes = family(os.getpid())
    assert any("gcs_server" in command_of(pid) for pid in processes)
    sockets = {inode for pid in processes for inode in sockets_of(pid)}
    listening = [
        address
        for table in ("tcp", "tcp6")
        for address, state, inode in rows(Path(f"/proc/net/{table}"))
        if state == "0A" and inode in sockets
    ]
    assert listening
    loopback = "0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"
    assert {address for address in listening if address not in loopback} == set()


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", errors="replace")
    except OSError:
        return ""


def sockets_of(pid: int) -> list[str]:
    found: list[str] = []
    try:
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # the process has ended
        return found
    for descriptor in descriptors:
        with suppress(OSError):
            found.append(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    return found


def rows(table: Path) -> Iterator[tuple[str, str, str]]:
    for line in table.read_text("ascii").splitlines()[1:]:
        words = line.split()
        yield words[1].partition(":")[0], words[3], words[9]


@pytest.fixture
def nodes() -> Iterator[Any]:
    """In the place of `cluster`."""
    with two_nodes() as found:
        yield found


@pytest.mark.fault(
    what="with `--engine ray`: a node is lost",
    injected="one of two local nodes is killed",
    promise="its run goes on from its last checkpoint on the other, with the local engine's numbers ([Ray](ray.md))",
)
def test_of_two_nodes_one_dies_and_its_run_goes_on_from_its_checkpoint_on_the_other(
    nodes: Any, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "train_one", saving_often())
    runs = planned({"vanilla": Arm(), "batchnorm": Arm(method="batchnorm"), "per": Arm(method="per")}, LONG)
    (other,) = nodes.worker_nodes
    killed: list[str] = []

    def kill(run: PlannedRun, event: Event) -> None:
        saved = result_path(settings.runs, run.config).parent / CHECKPOINT
        if not killed and saved.exists() and parent_of(pids_of(run, told)[-1]) == raylet_of(other):
            killed.append(run.label)
            nodes.remove_node(other, allow_graceful=False)

    told = ToldOfEach(when_advanced=kill)
    with connected(nodes.address) as found:
        assert found.room_for(Request()) == 2
        room = room_on(found)
        results, failures = run_all(Agenda(runs), settings, RayEngine(found, Request()), room, told)
        wait_until(lambda: found.room_for(Request()) == room.places == 1)  # once the node is missed
    assert failures == []
    assert [line for line in told.of("noted") if "goes on" in line] == [
        f"{killed[0]}: its node died; it goes on from its last checkpoint"
    ]
    assert {result.id: numbers(result) for result in results} == alone(runs, settings, tmp_path / "alone")
    assert sum(result.environment.resumed for result in results) == 1
