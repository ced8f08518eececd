"""Runs side by side on one device: memory that is short, and what threads of one process share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from reproduce.experiment.folder import ROOT
from reproduce.experiment.schema import Arm
from reproduce.training import host, side_by_side
from reproduce.training import run as run_module
from reproduce.training.agenda import Agenda
from reproduce.training.engines import Threads
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, load_data, own_stream
from reproduce.training.side_by_side import Room
from reproduce.training.workers import Work, run_all
from tests.unit.small_runs import ARMS, DIGITS, RECIPE, Staged, Told, planned


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return RunSettings(tmp_path / "runs", None, tmp_path / "cache", "cpu", threads=1, at_once=2)


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
