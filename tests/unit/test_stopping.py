"""Ctrl-C while libraries load: one line, however often it is pressed. And a resumed run keeps its threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reproduce.experiment.folder import ROOT
from reproduce.training.checkpoints import write_checkpoint
from reproduce.training.run import RunSettings, _as_begun

PROGRAM = "from reproduce import stopping; stopping.end_at_once(); print('ready', flush=True)\n"
PROGRAM += "from reproduce.__main__ import main; main()"


@pytest.mark.fault(
    what="Ctrl-C in the first seconds, also several times",
    injected="signals while libraries load",
    promise="one line, exit code 130, no traceback",
)
@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("times", [1, 10])
def test_ctrl_c_while_libraries_load(seconds: float, times: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "run", "per", "--device", "cpu", "--jobs", "1", "--runs", "runs"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        time.sleep(seconds)
        for _ in range(times):
            program.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, said = program.communicate(timeout=60)
    assert program.returncode == 130
    assert said.splitlines()[-1].startswith("stopped")
    assert "Traceback" not in said
    assert "ignored" not in said


@pytest.mark.fault(
    what="another number of `--jobs` after a stop",
    injected="a run is stopped with one number of threads and goes on with another",
    promise="it keeps the threads that it began with, and so its bits",
)
def test_a_resumed_run_keeps_the_threads_that_it_began_with(tmp_path: Path) -> None:
    settings = RunSettings(tmp_path, None, tmp_path, "cpu", threads=1)
    told: list[str] = []
    path = tmp_path / "checkpoint.pt"
    assert _as_begun(path, "run", settings, told.append) == settings
    write_checkpoint(path, "run", {"step": 1, "threads": 1})
    assert _as_begun(path, "run", settings, told.append) == settings
    assert told == []
    write_checkpoint(path, "run", {"step": 1, "threads": 2})
    assert _as_begun(path, "run", settings, told.append).threads == 2
    assert told == ["goes on with 2 threads, as it began, and not 1: another number would move numbers"]
