"""Processes and threads alike: what Runs come to, one that fails, bad input, Ctrl-C, killed workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

from reproduce.experiment.folder import ROOT
from reproduce.experiment.schema import Arm
from reproduce.results.failed import FAILED, read_failed, write_failed
from reproduce.training import run as run_module
from reproduce.training import workers
from reproduce.training.agenda import Agenda
from reproduce.training.engines import Processes, Threads, engine_for, signals_blocked, stopped_by_signals
from reproduce.training.loop import Interrupted
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, execute, result_path
from reproduce.training.side_by_side import Room, SideBySide
from reproduce.training.tape import Tape
from reproduce.training.workers import DEATHS, Engine, News, Work, run_all
from tests.unit.small_runs import ARMS, RECIPE, Staged, Told, numbers, planned


class KeptProcesses(Processes):
    """Two worker processes for several tests, since each loads torch anew: left, they have nothing to do, and stay."""

    def __init__(self) -> None:
        super().__init__(2)
        self._given: dict[str, Future[Any]] = {}

    def start(self, work: Work[Any], run: PlannedRun, settings: RunSettings) -> Future[Any]:
        self._given[run.id] = super().start(work, run, settings)
        return self._given[run.id]

    def news(self) -> Iterator[News]:
        """But of Runs of an earlier test, which may come late."""
        return (one for one in super().news() if one[0] in self._given)

    def __exit__(self, *exception: object) -> None:
        wait(self._given.values())
        self._given.clear()
        self._stop.value = 0

    def close(self) -> None:
        """As any engine is left."""
        super().__exit__()


@pytest.fixture(scope="module")
def kept() -> Iterator[KeptProcesses]:
    engine = KeptProcesses()
    yield engine
    engine.close()
    assert multiprocessing.active_children() == []


@pytest.fixture(params=["processes", "threads"])
def two_workers(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue("kept") if request.param == "processes" else Threads(2)


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return RunSettings(tmp_path / "runs", None, tmp_path / "cache", "cpu", threads=1, at_once=2)


def test_numbers_are_those_of_a_run_alone_and_one_that_fails_stops_no_other(
    two_workers: Engine, settings: RunSettings, tmp_path: Path
) -> None:
    """At one thread of the CPU each, to the bit."""
    torch.set_num_threads(1)
    bad = Arm(method="activity_norm", params={"kind": "ar_tar"})  # which needs a recurrent layer
    runs = planned({"vanilla": Arm(), "bad": bad, **ARMS})
    told = Told()
    results, failures = run_all(Agenda(runs), settings, two_workers, Room(2), told)
    (failure,) = failures
    assert str(failure).startswith("table1 / bad / seed 0: ValueError: the model recorded no 'dropped' Site")
    good = [run for run in runs if "bad" not in run.label]
    assert {result.id for result in results} == {run.id for run in good} == set(told.of("finished"))
    assert told.of("failed") == [run.id for run in runs if "bad" in run.label]
    assert set(told.of("started")) == {run.id for run in runs}
    assert told.of("noted") == []
    alone = {run.id: execute(run, replace(settings, runs=tmp_path / "alone")) for run in good}
    for result in results:
        assert numbers(result) == numbers(alone[result.id])
        assert result.environment.runs_on_device == 2
        if isinstance(two_workers, Threads):
            assert result.environment.peak_memory_of == "process"
    assert not list(settings.runs.rglob("checkpoint.pt"))


def test_captured_steps_in_threads_give_the_numbers_of_eager_ones_alone(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tape in place of a graph. What records and replays in one thread is no business of another."""
    torch.set_num_threads(1)
    monkeypatch.setattr(run_module, "recording_in", lambda mode, generators: Tape)
    runs = planned(ARMS, RECIPE.model_copy(update={"steps": 12}))
    results, failures = run_all(Agenda(runs), replace(settings, mode="captured"), Threads(4), Room(4), Told())
    assert failures == []
    assert {result.environment.mode for result in results} == {"captured"}
    alone = {run.id: execute(run, replace(settings, runs=tmp_path / "alone")) for run in runs}
    assert {result.id: numbers(result) for result in results} == {name: numbers(one) for name, one in alone.items()}


def test_a_run_says_once_that_it_has_taken_its_memory(settings: RunSettings) -> None:
    (run,) = planned({"vanilla": Arm()})
    told: list[str] = []
    stopping = iter([False] * 4 + [True])  # asked for the fifth time after the fifth step
    with pytest.raises(Interrupted, match="stopped at step 5 of 6"):
        execute(run, settings, should_stop=lambda: next(stopping), on_settled=lambda: told.append("settled"))
    assert told == ["settled"]
    execute(run, settings, on_settled=lambda: told.append("settled"))  # one step is left
    assert told == ["settled"]


@pytest.mark.fault(
    what="a closed terminal, a scheduler's stop, Ctrl-C",
    injected="SIGHUP, SIGTERM and SIGINT to the driver, in processes and in threads",
    promise="a checkpoint of every run that trains, and nobody is left at work",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_asks_to_stop_leaves_checkpoints(
    two_workers: Engine, settings: RunSettings, number: signal.Signals
) -> None:
    """Ctrl-C, a scheduler, a closed terminal."""
    if number == signal.SIGHUP and isinstance(two_workers, Threads):
        pytest.skip("as SIGTERM")
    runs = planned(ARMS, RECIPE.model_copy(update={"steps": 10**7}))  # longer than anybody waits
    told = Told(when_started=lambda: signal.raise_signal(number))
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # which `nohup` would have ignored
    try:
        with pytest.raises(KeyboardInterrupt), stopped_by_signals():
            run_all(Agenda(runs), settings, two_workers, Room(2), told)
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, before)
    begun = [run for run in runs if (result_path(settings.runs, run.config).parent / "checkpoint.pt").exists()]
    assert 1 <= len(begun) <= 2
    assert told.of("finished") == told.of("failed") == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("run_")]


def test_a_signal_that_is_to_be_ignored_stays_so() -> None:
    """`nohup` has SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
            with signals_blocked():  # while a worker is started
                signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault(
    what="a worker is killed, as by the out-of-memory killer",
    injected="`kill -9` of one of two workers",
    promise="its run is tried again from its checkpoint; no other loses anything",
)
@pytest.mark.slow
def test_a_killed_worker_costs_its_run_half_a_minute_and_no_other_anything(
    kept: KeptProcesses, settings: RunSettings, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    runs = planned({"vanilla": Arm(), "batchnorm": ARMS["batchnorm"]}, RECIPE.model_copy(update={"steps": 1000}))
    killed: list[int] = []

    def kill() -> None:
        if not killed:
            killed.append(worker_pids(kept)[0])
            os.kill(killed[0], signal.SIGKILL)

    told = Told(when_advanced=kill)
    results, failures = run_all(Agenda(runs), settings, kept, Room(2), told)
    assert failures == []
    assert len(killed) == 1
    (line,) = told.of("noted")
    assert line.endswith("its worker process died; it goes on from its last checkpoint")
    assert len(told.of("started")) == 3
    alone = {run.id: execute(run, replace(settings, runs=tmp_path / "alone")) for run in runs}
    assert {result.id: numbers(result) for result in results} == {name: numbers(one) for name, one in alone.items()}


def worker_pids(engine: Processes) -> list[int]:
    return [pid for worker in engine._workers for pid in worker.pool._processes or {}]


def test_a_worker_that_died_idle_is_replaced(kept: KeptProcesses, settings: RunSettings) -> None:
    (run,) = planned({"vanilla": Arm()})
    (idle, *_) = worker_pids(kept)
    os.kill(idle, signal.SIGKILL)
    results, failures = run_all(Agenda([run]), settings, kept, Room(1), Told())
    assert ([result.id for result in results], failures) == ([run.id], [])
    assert idle not in worker_pids(kept)


@pytest.mark.fault(
    what="a run that kills every worker that takes it",
    injected="a staged engine says three times that the worker died",
    promise="after the third it is sealed as failed with the reason, and the others go on",
)
def test_a_run_that_kills_its_workers_is_given_up(settings: RunSettings) -> None:
    runs = planned({"vanilla": Arm(), "batchnorm": ARMS["batchnorm"]})

    def script(running: list[str]) -> tuple[str, Any] | None:
        if not running:
            return None
        died = running[0] == runs[0].id
        return running[0], BrokenProcessPool("killed") if died else SimpleNamespace(id=running[0])

    engine, told = Staged(script), Told()
    results, (failure,) = run_all(Agenda(runs), settings, engine, Room(1), told)
    assert [result.id for result in results] == [runs[1].id]
    assert str(failure).startswith(f"{runs[0].label}: RuntimeError: its worker process died {DEATHS} times")
    assert engine.starts == [runs[0].id] * DEATHS + [runs[1].id]
    noted = read_failed(result_path(settings.runs, runs[0].config).parent)
    assert noted is not None
    assert (noted.id, noted.label, noted.tries, noted.reason) == (runs[0].id, runs[0].label, DEATHS, failure.reason)
    healed = Staged(lambda running: (running[0], SimpleNamespace(id=running[0])) if running else None)
    assert run_all(Agenda(runs[:1]), settings, healed, Room(1), Told())[1] == []
    assert read_failed(result_path(settings.runs, runs[0].config).parent) is None


def test_a_note_of_a_failed_run_that_was_edited_says_nothing(tmp_path: Path) -> None:
    write_failed(tmp_path, "0" * 16, "table1 / vanilla / seed 0", "its node died 3 times", 3)
    noted = read_failed(tmp_path)
    assert noted is not None
    assert noted.reason == "its node died 3 times"
    (tmp_path / FAILED).write_text((tmp_path / FAILED).read_text().replace("died", "lived"))
    assert read_failed(tmp_path) is None


@pytest.mark.fault(
    what="two drivers on one store",
    injected="another process holds a run's lock",
    promise="each run is trained once: the driver goes on with the others and comes back",
)
def test_a_run_that_another_process_trains_is_come_back_to(
    two_workers: Engine, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "AGAIN_SECONDS", 0.1)
    runs = planned(ARMS)
    folder = result_path(settings.runs, runs[0].config).parent
    folder.mkdir(parents=True)
    lock = FileLock(folder / ".lock")
    lock.acquire()
    told = Told(when_finished=lambda: lock.release() if len(told.of("finished")) == len(runs) - 1 else None)
    results, failures = run_all(Agenda(runs), settings, two_workers, Room(2), told)
    assert ({result.id for result in results}, failures) == ({run.id for run in runs}, [])
    assert told.of("finished")[-1] == runs[0].id
    assert told.of("noted") == [f"{runs[0].label}: another process is training it; it is asked for again later"]


@pytest.mark.fault(
    what="the driver dies",
    injected="`kill -9` of the driver while its worker waits",
    promise="the worker ends too",
)
def test_an_idle_worker_ends_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "idle.py").write_text("def work(run, settings, desk):\n    return run\n")
    code = (
        "import os, signal\n"
        "from idle import work\n"
        "from reproduce.training.engines import Processes\n"
        "if __name__ == '__main__':\n"
        "    engine = Processes(1)\n"
        "    assert engine.start(work, 7, None).result() == 7\n"
        "    print(*(pid for one in engine._workers for pid in one.pool._processes), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "driver.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "driver.py"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":  # nobody has asked for it yet
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.fault(
    what="a run that cannot go on",
    injected="its checkpoint is not readable",
    promise="the others are sealed; the failed one is named at the end, and the exit code is 1",
)
def test_bad_input_of_a_run_stops_no_other(two_workers: Engine, settings: RunSettings) -> None:
    first, *others = planned(ARMS)
    checkpoint = result_path(settings.runs, first.config).parent / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"no checkpoint")
    told = Told()
    results, (failure,) = run_all(Agenda([first, *others]), settings, two_workers, Room(2), told)
    assert {result.id for result in results} == {run.id for run in others}
    assert (failure.label, failure.is_bad_input) == (first.label, True)
    assert failure.reason.startswith(f"{checkpoint}: not a readable checkpoint")
    assert told.of("failed") == [first.id]
    assert checkpoint.read_bytes() == b"no checkpoint"


def test_the_engine_is_the_arranged_one_and_no_larger_than_the_work() -> None:
    for in_threads, kind in ((True, Threads), (False, Processes)):
        engine = engine_for(SideBySide(8, 1, in_threads), n_runs=3)
        assert isinstance(engine, kind)
        n_workers = engine.pool._max_workers if isinstance(engine, Threads) else len(engine._workers)
        assert n_workers == 3
    assert not Threads(1).shared
