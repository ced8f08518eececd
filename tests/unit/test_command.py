"""What `run` hands to the engine, which is not started here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from reproduce.cli import commands as command
from reproduce.cli import pages
from reproduce.training import workers as local
from reproduce.training.plan import PlannedRun
from reproduce.training.run import Workplace

CORES = 4


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call `run` with so many of its runs still to train; returns the workplace and the number of workers."""

    def call(n_missing: int, *arguments: str) -> tuple[Workplace, int, int]:
        heard: list[tuple[Workplace, int, int]] = []

        def engine(runs: list[PlannedRun], place: Workplace, jobs: int, reporter: Any) -> tuple[list[Any], list[str]]:
            heard.append((place, jobs, len(runs)))
            return [], []

        planned = command.planned_runs("per", "quick", "", "", "quick_digits")
        assert len(planned) > n_missing
        sealed = [SimpleNamespace(id=run.id) for run in planned[n_missing:]]
        monkeypatch.setattr(command, "local_results", lambda runs: (sealed, []))
        monkeypatch.setattr(pages, "write_pages", lambda *given, **options: [])
        monkeypatch.setattr(local, "run_all", engine)
        monkeypatch.setattr(command.os, "sched_getaffinity", lambda process: range(CORES))
        answer = CliRunner().invoke(
            command.app,
            ["run", "per", "--only", "quick_digits", "--device", "cpu", "--runs", str(tmp_path / "runs"), *arguments],
        )
        assert answer.exit_code == 0, answer
        (found,) = heard
        return found

    return call


def test_a_resumed_command_keeps_its_threads(handed_over: Any) -> None:
    """The number of threads moves the last bits: it may not hang on how much is left to train."""
    many, few = handed_over(9), handed_over(1)
    assert (many[2], few[2]) == (9, 1)
    assert many[0].threads == few[0].threads == 1
    assert many[1] == few[1] == CORES


def test_jobs_share_the_cores(handed_over: Any) -> None:
    assert handed_over(5, "--jobs", "1")[0].threads == CORES
    assert handed_over(5, "--jobs", "2")[0].threads == CORES // 2
    assert handed_over(5, "--jobs", "99")[0].threads == 1
