"""`status`: what of the experiments is done, running, interrupted, diverged and missing."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from reproduce.cli import campaign, chosen, commands
from reproduce.cli.coverage import is_locked
from reproduce.experiment.cells import Cell
from reproduce.experiment.folder import ROOT
from reproduce.results.record import Result
from reproduce.results.store import write_result
from reproduce.training.plan import PlannedRun

CHOICE = ["per", "--only", "quick_digits"]
PATIENCE = 120.0  # seconds, for a busy machine


pytestmark = pytest.mark.usefixtures("no_evidence")


def asked(runs: Path, *arguments: str) -> Any:
    return CliRunner().invoke(commands.app, ["status", *arguments, "--runs", str(runs)], env={"COLUMNS": "80"})


def result_of(run: PlannedRun, make_result: Callable[..., Result], diverged: bool = False) -> Result:
    config = run.config
    cell = Cell(
        task_name="task",
        arm_name="arm",
        task=config.task,
        recipe=config.recipe,
        method=config.method,
        params={},
        seed=config.seed,
    )
    made = make_result(cell, 6.0, diverged=diverged)
    return made.model_copy(update={"id": config.id, "config": config, "defaults": run.defaults})


@pytest.fixture
def some(tmp_path: Path, make_result: Callable[..., Result]) -> Iterator[tuple[list[PlannedRun], Path]]:
    """A folder of runs: two completed, one diverged, one training, one stopped, and the others not begun."""
    planned = campaign.planned_runs(chosen.chosen_experiments("per", "quick", "quick_digits"), "", "")
    runs = tmp_path / "runs"
    folders = [runs / run.config.folder for run in planned]
    for place, run in enumerate(planned[:3]):
        write_result(result_of(run, make_result, diverged=place == 2), folders[place] / "result.json")
    for folder in folders[3:6]:
        folder.mkdir()
    (folders[3] / "checkpoint.pt").write_bytes(b"")
    (folders[4] / "checkpoint.pt").write_bytes(b"")
    with FileLock(folders[3] / ".lock"):
        yield planned, runs


def test_coverage_counts_each_planned_run_once(some: Any) -> None:
    planned, runs = some
    content = json.loads(asked(runs, *CHOICE, "--json").stdout)
    (row,) = content["coverage"]
    states = {name: row[name] for name in ("done", "running", "interrupted", "diverged", "missing")}
    assert states == {"done": 2, "running": 1, "interrupted": 1, "diverged": 1, "missing": len(planned) - 5}
    assert (row["experiment"], row["planned"]) == ("quick_digits", len(planned))
    assert row["cells"] * int(row["seeds"]) == len(planned)
    assert row["unknown_length"] <= len(planned) - 3
    assert content["running"] == [planned[3].config.folder]
    assert content["interrupted"] == [planned[4].config.folder]
    assert [entry["status"] for entry in content["sealed"]].count("diverged") == 1


def test_the_table_fits_a_terminal_and_keeps_the_summary(some: Any) -> None:
    planned, runs = some
    lines = asked(runs, *CHOICE).stdout.splitlines()
    assert lines[0] == "3 sealed (1 diverged), 1 running, 1 interrupted, 0 unreadable"
    assert lines[1:3] == [f"  running: {planned[3].config.folder}", f"  interrupted: {planned[4].config.folder}"]
    table = lines[3:]
    assert max(map(len, table)) <= 80
    (row,) = (line.split() for line in table if line.startswith("quick_digits"))
    n_cells, n_seeds = int(row[1]), int(row[2])
    assert n_cells * n_seeds == len(planned)
    assert row[3:8] == ["2", "1", "1", "1", str(len(planned) - 5)]


def test_without_a_method_nothing_is_planned(some: Any) -> None:
    _, runs = some
    assert "coverage" not in json.loads(asked(runs, "--json").stdout)
    assert asked(runs).stdout.splitlines()[0].startswith("3 sealed (1 diverged)")


def test_all_that_several_experiments_share_counts_once_in_the_sum(tmp_path: Path) -> None:
    content = json.loads(asked(tmp_path, "per", "--scale", "paper", "--seeds", "1", "--json").stdout)
    *rows, every = content["coverage"]
    assert every["experiment"] == "all"
    assert len(rows) > 3
    assert max(row["planned"] for row in rows) < every["planned"] <= sum(row["planned"] for row in rows)
    assert every["missing"] == every["planned"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["par"], "unknown method 'par': did you mean per?"),
        (["per", "--scale", "fast"], "unknown scale 'fast': there are quick, reduced, paper"),
        (["per", "--only", "quick_digit"], "method per has no experiment 'quick_digit': did you mean quick_digits"),
        (["per", "--seeds", "0,x"], "--seeds '0,x': expected '0,1,2' or a number of seeds"),
        (["--seeds", "3"], "--scale, --seeds and --only choose among a method's experiments: name it, or say all"),
        (["--every", "3"], "--every 3: it is a time between looks: say --watch as well"),
        (["--watch", "--every", "0.1"], "--every 0.1: expected a number of seconds, 0.5 or more"),
        (["--watch", "--every", "nan"], "--every nan: expected a number of seconds, 0.5 or more"),
        (["--watch", "--json"], "--watch redraws a screen, and --json prints once: leave one of them out"),
        (["--watch"], "--watch redraws a screen, and this is none: leave it out, or ask for --json now and then"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    answer = asked(tmp_path, *arguments)
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert answer.stderr.count("\n") == 1


def test_a_lock_is_asked_for_without_being_taken_or_made(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path)
    assert not path.exists()
    with FileLock(path):
        assert is_locked(path)
    assert not is_locked(path)
    with FileLock(path, timeout=0):
        assert path.exists()


@pytest.fixture
def training(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`run` in the background, of one run of digits."""
    some = ["--arms", "vanilla", "--seeds", "0,", "--jobs", "1", "--device", "cpu", "--runs", str(tmp_path / "runs")]
    process = started(["run", *CHOICE, *some], subprocess.DEVNULL)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def started(arguments: list[str], output: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "80"}
    return subprocess.Popen(
        [sys.executable, "-m", "reproduce", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_training_in_the_background_is_running_and_then_interrupted(
    training: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"

    def states() -> tuple[int, int, int]:
        content = json.loads(asked(runs, "--json").stdout)
        return len(content["sealed"]), len(content["running"]), len(content["interrupted"])

    ends = time.monotonic() + PATIENCE

    def trains() -> bool:
        """Whether it takes steps: its log is opened before the first one."""
        return states() == (0, 1, 0) and any(runs.glob("*/events.out.tfevents.*"))

    while not trains():
        assert training.poll() is None
        assert time.monotonic() < ends
        time.sleep(0.1)
    training.send_signal(signal.SIGINT)
    assert training.wait(PATIENCE) == 130
    assert states() == (0, 0, 1)
    (row,) = json.loads(asked(runs, *CHOICE, "--seeds", "0,", "--json").stdout)["coverage"]
    assert (row["running"], row["interrupted"], row["missing"]) == (0, 1, row["planned"] - 1)


def test_watching_redraws_until_ctrl_c_which_ends_it_well(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = started(["status", "--watch", "--every", "0.5", "--runs", str(tmp_path)], theirs)
    os.close(theirs)
    seen = b""
    ends = time.monotonic() + PATIENCE
    while seen.count(b"0 interrupted") < 3:
        assert time.monotonic() < ends
        seen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0
    os.set_blocking(ours, False)
    while True:
        try:
            more = os.read(ours, 4096)
        except (BlockingIOError, OSError):
            break
        if not more:
            break
        seen += more
    os.close(ours)
    assert b"Ctrl-C ends it" in seen
    assert b"Traceback" not in seen
