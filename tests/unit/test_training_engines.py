"""Processes and threads alike: what Runs come to, one that fails, bad input, Ctrl-C; and what threads share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from filelock import FileLock

from reproduce.experiment.folder import ROOT
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.results.failed import FAILED, read_failed, write_failed
from reproduce.results.record import Result
from reproduce.training import host, side_by_side, workers
from reproduce.training import run as run_module
from reproduce.training.agenda import Agenda
from reproduce.training.engines import Processes, Threads, engine_for, signals_blocked, stopped_by_signals
from reproduce.training.loop import Event, Interrupted
from reproduce.training.plan import PlannedRun, plan
from reproduce.training.run import RunSettings, execute, load_data, own_stream, result_path
from reproduce.training.side_by_side import Room, SideBySide
from reproduce.training.tape import Tape
from reproduce.training.workers import DEATHS, Engine, News, Work, run_all

RECIPE = Recipe(steps=6, batch_size=20, learning_rate=0.1, probe_examples=10)
DIGITS = TaskSpec(
    kind="image_classification",
    dataset="digits",
    model="mlp",
    model_options={"width": 4, "depth": 2, "dropout": 0.2},
    train_examples=60,
)
ARMS = {
    "vanilla": Arm(),
    "batchnorm": Arm(method="batchnorm"),
    "per": Arm(method="per", params={"mode": "sliced", "strength": 0.1}),  # draws, and keeps constants
    "bfloat16": Arm(method="vcl", recipe={"precision": "bfloat16"}),
}


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


def planned(arms: dict[str, Arm], recipe: Recipe = RECIPE) -> list[PlannedRun]:
    experiment = Experiment(
        title="t", scale="quick", source="s", seeds=(0,), recipe=recipe, tasks={"digits": DIGITS}, arms=arms
    )
    return plan({"table1": experiment}, None)


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


class Told:
    """A reporter that remembers, and may do something at what it is told."""

    def __init__(
        self,
        when_started: Callable[[], object] = lambda: None,
        when_advanced: Callable[[], object] = lambda: None,
        when_finished: Callable[[], object] = lambda: None,
    ) -> None:
        self.lines: list[tuple[str, ...]] = []
        self._when_started, self._when_advanced, self._when_finished = when_started, when_advanced, when_finished

    def started(self, run: PlannedRun) -> None:
        self.lines.append(("started", run.id))
        self._when_started()

    def advanced(self, run: PlannedRun, event: Event) -> None:
        self.lines.append(("advanced", run.id))
        self._when_advanced()

    def finished(self, run: PlannedRun, result: Result) -> None:
        self.lines.append(("finished", run.id))
        self._when_finished()

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.lines.append(("failed", run.id))

    def noted(self, line: str) -> None:
        self.lines.append(("noted", line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def of(self, kind: str) -> list[str]:
        return [words[0] for what, *words in self.lines if what == kind]


def numbers(result: Result) -> dict[str, Any]:
    """All of a Result but when, how long, and with whom."""
    kept = result.model_dump(exclude={"environment", "seal"})
    for record in kept["epochs"]:
        del record["seconds_per_step"]
    return kept


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


class Staged:
    """An engine without workers: what is started ends when the test's script comes to it."""

    def __init__(self, script: Callable[[list[str]], tuple[str, Any] | None]) -> None:
        self.script = script
        self.running: dict[str, Future[Any]] = {}
        self.most = 0
        self.starts: list[str] = []

    def start(self, work: Work[Any], run: PlannedRun, settings: RunSettings) -> Future[Any]:
        future = self.running[run.id] = Future()
        self.starts.append(run.id)
        self.most = max(self.most, len(self.running))
        self._turn()
        return future

    def _turn(self) -> None:
        if (step := self.script([*self.running])) is not None:
            run_id, outcome = step
            future = self.running.pop(run_id)
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def news(self) -> Iterator[News]:
        yield from [(run_id, "settled") for run_id in self.running][:1]
        self._turn()

    def stop(self) -> None:
        for future in self.running.values():
            future.set_exception(Interrupted())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return


def free_memory(*gib: float) -> Callable[[], int]:
    told = iter(gib)
    return lambda: int(next(told) * 2**30)


def test_the_first_run_is_measured_alone_and_as_many_follow_as_fit(settings: RunSettings) -> None:
    runs = planned(ARMS)
    first_alone: list[list[str]] = []

    def script(running: list[str]) -> tuple[str, Any] | None:
        first_alone.append(running)
        return (running[0], SimpleNamespace(id=running[0])) if len(first_alone) > 3 and running else None

    engine, told = Staged(script), Told()
    results, failures = run_all(Agenda(runs), settings, engine, Room(4, free_memory(40, 25)), told)
    assert (len(results), failures) == (4, [])
    assert first_alone[0] == [runs[0].id]
    assert engine.most == 2  # 15 GiB taken, and 25 left: one more with some headroom
    assert told.of("noted") == [
        "2 instead of 4 runs side by side: the first one took 15.0 GiB of 40.0 GiB of free memory"
    ]


@pytest.mark.fault(
    what="no memory for several runs side by side on a GPU",
    injected="an allocation that fails while another run trains",
    promise="fewer run at once, and those that lacked it begin again; alone without memory, a run has failed",
)
def test_a_run_without_memory_begins_again_when_another_has_ended(settings: RunSettings) -> None:
    runs = planned(ARMS)
    shortages = 0

    def script(running: list[str]) -> tuple[str, Any] | None:
        nonlocal shortages
        if not running:
            return None
        if len(running) > 2:
            shortages += 1
            return running[-1], torch.OutOfMemoryError("CUDA out of memory")
        return (running[0], SimpleNamespace(id=running[0])) if shortages else None

    engine, told = Staged(script), Told()
    results, failures = run_all(Agenda(runs), settings, engine, Room(3), told)
    assert {result.id for result in results} == {run.id for run in runs}
    assert (shortages, failures) == (1, [])
    assert len(engine.starts) == len(runs) + 1
    assert told.of("noted") == ["out of memory with 3 runs side by side: 2 from here on"]


def test_runs_that_lack_memory_together_all_begin_again(settings: RunSettings) -> None:
    """Each counts the others, and none is taken for one that was alone."""
    runs = planned(ARMS)
    together: list[Future[Any]] = []

    class Crowded(Staged):
        def start(self, work: Work[Any], run: PlannedRun, settings: RunSettings) -> Future[Any]:
            future: Future[Any] = Future()
            if len(together) < 3:
                together.append(future)
                if len(together) == 3:
                    for one in together:
                        one.set_exception(torch.OutOfMemoryError("CUDA out of memory"))
            else:
                future.set_result(SimpleNamespace(id=run.id))
            return future

    told = Told()
    results, failures = run_all(Agenda(runs), settings, Crowded(lambda running: None), Room(3), told)
    assert ({result.id for result in results}, failures) == ({run.id for run in runs}, [])
    assert set(told.of("noted")) == {"out of memory with 3 runs side by side: 2 from here on"}


def test_a_run_that_has_no_memory_alone_has_failed(settings: RunSettings) -> None:
    engine = Staged(lambda running: (running[0], torch.OutOfMemoryError("CUDA out of memory")) if running else None)
    results, failures = run_all(Agenda(planned({"vanilla": Arm()})), settings, engine, Room(1), Told())
    assert results == []
    assert [*map(str, failures)] == ["table1 / vanilla / seed 0: OutOfMemoryError: CUDA out of memory"]


def in_threads(n: int, function: Callable[[], Any]) -> list[Any]:
    """What the function returns in n threads that begin at once."""
    together = threading.Barrier(n)

    def call() -> Any:
        together.wait()
        return function()

    with ThreadPoolExecutor(n) as pool:
        return [future.result() for future in [pool.submit(call) for _ in range(n)]]


def test_threads_load_data_once_and_share_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loads: list[tuple[str, bool]] = []

    def load(name: str, root: Path | None, cache: Path) -> object:
        loads.append((name, run_module._loading.locked()))
        return object()

    monkeypatch.setattr(run_module.data, "load", load)
    run_module._loaded.cache_clear()
    found = in_threads(4, lambda: load_data(("digits",), None, tmp_path))
    run_module._loaded.cache_clear()
    assert loads == [("digits", True)]
    assert all(one is found[0] for one in found)


def test_threads_train_a_host_once_and_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, bool]] = []

    def train(run_id: str, *given: Any, **options: Any) -> Any:
        trained.append((run_id, host._one_at_a_time.locked()))
        return SimpleNamespace(diverged_step=None)

    monkeypatch.setattr(host, "train", train)
    monkeypatch.setattr(host, "_last", None)
    monkeypatch.setattr(host.tasks, "build_host", lambda *given: None)
    monkeypatch.setattr(host.tasks, "read_host", lambda *given: object())
    data: Any = object()
    found = in_threads(4, lambda: host.trained_host(DIGITS, RECIPE, data, 3, torch.device("cpu")))
    assert trained == [("host-3", True)]
    assert all(one is found[0] for one in found)


def test_a_thread_keeps_its_stream_and_shares_it_with_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """With streams that are made up: torch has 32, so no Run may take another one."""
    made: list[object] = []
    used = threading.local()

    def new_stream(device: torch.device) -> object:
        made.append(object())
        return made[-1]

    def use(stream: object) -> Any:
        used.streams = [*getattr(used, "streams", []), stream]
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())

    def three_runs() -> list[object]:
        for _ in range(3):
            with own_stream(torch.device("cuda:0")):
                pass
        return used.streams

    streams = in_threads(4, three_runs)
    assert len(made) == 4
    assert all(len(of_thread) == 3 and len({id(stream) for stream in of_thread}) == 1 for of_thread in streams)
    assert {id(of_thread[0]) for of_thread in streams} == {id(stream) for stream in made}


def test_no_part_of_a_run_waits_for_the_whole_device() -> None:
    """Another thread may capture a step meanwhile, and CUDA would fail both; a wait for one's own stream is allowed."""
    rooms = [
        ROOT / "methods",
        *(ROOT / "reproduce" / room for room in ("data", "method", "models", "tasks", "training")),
    ]
    sources = [path for room in rooms for path in room.rglob("*.py")]
    assert len(sources) > 50
    assert [path for path in sources if "cuda.synchronize(" in path.read_text("utf-8")] == []


def test_an_error_in_a_thread_lets_its_tensors_go(settings: RunSettings) -> None:
    class Large:
        gone = threading.Event()

        def __del__(self) -> None:
            self.gone.set()

    def work(run: PlannedRun, given: RunSettings, desk: Any) -> None:
        large = Large()
        assert given.shares_process
        raise ValueError(f"no memory for {type(large).__name__}")

    with Threads(2) as engine:
        error = engine.start(work, planned({"vanilla": Arm()})[0], settings).exception(timeout=10)
    assert isinstance(error, ValueError)
    assert Large.gone.is_set()


def test_nothing_is_kept_of_casts_in_a_thread(settings: RunSettings) -> None:
    """The table of casts is the process's: another thread would empty it in the middle of a step."""
    with Threads(2) as engine:
        run = planned({"vanilla": Arm()})[0]
        kept = engine.start(lambda run, given, desk: torch.is_autocast_cache_enabled(), run, settings).result(10)
    assert (kept, torch.is_autocast_cache_enabled()) == (False, True)


def test_a_processor_says_whether_it_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, expected in (("fma avx2", False), ("avx2 avx512_bf16", True), ("amx_bf16", True), (None, True)):
        monkeypatch.setattr(run_module, "_of_processor", {"flags": flags}.get)
        assert run_module.multiplies_bfloat16(cpu) is expected
    assert run_module.multiplies_bfloat16(torch.device("cuda:0"))
    assert side_by_side.RUNS_ON_A_GPU <= side_by_side.STREAMS
