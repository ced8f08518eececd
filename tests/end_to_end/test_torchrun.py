"""`torchrun`: two processes train one run at a time, and the command is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.results.store import read_result
from reproduce.training.loop import CHECKPOINT

pytestmark = pytest.mark.slow
PATIENCE = 300.0  # seconds, for a busy machine
ENDS = 30.0  # seconds, until what a dead process has started has noticed
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

Watch = Callable[[subprocess.Popen[str], Callable[[], bool]], None]


def command(runs: str, *more: str) -> list[str]:
    return ["run", "per", "--device", "cpu", "--runs", runs, *more]


@pytest.fixture(scope="module")
def whole(checkout: Any) -> Any:
    """The tiny experiment from beginning to end, by two processes."""
    return checkout.run(*command("together"), by=TORCHRUN)


def test_each_run_is_sealed_once_by_the_id_it_has_anywhere(
    checkout: Any, whole: Any, undisturbed: Any, sealed_in: Callable[[Path], dict[str, Any]]
) -> None:
    assert whole.code == 0, whole
    alone, together = sealed_in(checkout.path / "runs"), sealed_in(checkout.path / "together")
    assert together.keys() == alone.keys()
    for name, content in together.items():
        result = read_result(checkout.path / "together" / name / "result.json")
        assert result.id == alone[name]["id"]
        assert (result.environment.processes, result.environment.mode) == (2, "eager")
        assert result.environment.device.endswith(", 2 processes)")
        assert "processes" not in alone[name]["environment"]
        for record, own in zip(content["epochs"][:1], alone[name]["epochs"][:1], strict=True):
            assert record["penalty"] == pytest.approx(own["penalty"], rel=0.02, abs=1e-9)
            assert record["train_loss"] == pytest.approx(own["train_loss"], rel=0.02)
        assert [*(checkout.path / "together" / name).glob("events*")] != []


def test_one_process_speaks(whole: Any) -> None:
    assert whole.stdout.count("2 processes train one run at a time, each its part of every batch") == 1
    assert whole.stdout.count("page: ") == 1
    assert "Traceback" not in whole.stderr


@pytest.mark.fault(
    what="with `torchrun`: it is asked to stop or killed, or one of its processes is",
    injected="SIGTERM to torchrun; `kill -9` of torchrun, and of its second process",
    promise="all stop after the same step, and one checkpoint is written; a dead process ends the others; the same "
    "command goes on from the checkpoint, with the numbers of an undisturbed one",
)
@pytest.mark.parametrize("how", ["SIGTERM", "kill -9", "kill -9 of one"])
def test_what_was_stopped_goes_on(
    how: str,
    checkout: Any,
    whole: Any,
    sealed_in: Callable[[Path], dict[str, Any]],
    numbers: Callable[[dict[str, Any]], dict[str, Any]],
    watch: Watch,
    groups: list[subprocess.Popen[str]],
) -> None:
    runs = checkout.path / how.replace(" ", "_")
    process = checkout.start(*command(runs.name), by=TORCHRUN)
    groups.append(process)
    watch(process, lambda: any(runs.glob(f"*/{CHECKPOINT}")))
    if how == "SIGTERM":
        process.terminate()
    else:
        os.kill(process.pid if how == "kill -9" else ranks_in(checkout.path)[1], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    until = time.monotonic() + ENDS
    while ranks_in(checkout.path):
        assert time.monotonic() < until, "a process works on without the others"
        time.sleep(0.1)
    assert len([*runs.glob(f"*/{CHECKPOINT}")]) == 1, (stdout, stderr)
    folder = next(runs.glob(f"*/{CHECKPOINT}")).parent
    assert not (folder / "result.json").exists()
    if how == "SIGTERM":
        alone = checkout.run(*command(runs.name, "--jobs", "1"))
        assert alone.code == 1
        assert "began with 2 processes, and this is 1, which would move numbers" in alone.stderr
    again = checkout.run(*command(runs.name), by=TORCHRUN)
    assert again.code == 0, again
    expected, found = numbers(sealed_in(checkout.path / "together")), numbers(sealed_in(runs))
    assert found[folder.name] == expected[folder.name]
    assert read_result(folder / "result.json").environment.resumed == 1


def ranks_in(folder: Path) -> dict[int, int]:
    """The processes by their ranks: torchrun gives each a session of its own."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(one.partition(b"=")[::2] for one in (process / "environ").read_bytes().split(b"\0"))
            if b"RANK" in variables and (process / "cwd").resolve() == folder.resolve():
                found[int(variables[b"RANK"])] = int(process.name)
        except OSError:  # of somebody else, or ended while we looked
            continue
    return found


REFUSED = {
    "--jobs 2: the processes of torchrun train one run at a time": ["--jobs", "2"],
    "--mode captured: steps of several processes are eager": ["--mode", "captured"],
    "--budget times single steps in one process": ["--budget", "9m"],
    "--engine ray starts its own processes": ["--engine", "ray"],
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_several_processes_do_not_do_is_said_once(checkout: Any, reason: str) -> None:
    answer = checkout.run(*command("refused", *REFUSED[reason]), by=TORCHRUN)
    assert answer.code == 1  # torchrun's own
    assert answer.stderr.count(f"error: {reason}") == 1


def test_a_batch_without_equal_parts_and_a_task_of_another_kind(checkout: Any, tiny: str) -> None:
    folder = checkout.path / "methods" / "per" / "experiments"
    uneven = tiny.replace("batch_size = 20", "batch_size = 25")
    (folder / "uneven.toml").write_text(uneven, "utf-8")
    other = tiny.replace('"image_classification"', '"regression"').replace('model = "mlp"', 'model = "rectified_mlp"')
    other = other.replace(", dropout = 0.2", "").replace("mixup = 0.4\n", "").replace('augment = "crop_flip"\n', "")
    other = other.replace("test.error", "test.mse")
    (folder / "regression.toml").write_text(other, "utf-8")
    try:
        answer = checkout.run(*command("refused", "--only", "uneven,regression"), by=TORCHRUN)
    finally:
        for name in ("uneven", "regression"):
            (folder / f"{name}.toml").unlink()
    assert answer.stderr.count("batch_size 25 cannot be cut into 2 equal parts: start a number of processes") == 1
    assert answer.stderr.count("regression trains in one process, and torchrun has started 2: leave torchrun out") == 1
    assert "4 of 4 runs failed" in answer.stderr
