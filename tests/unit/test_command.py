"""Which experiments a command takes, what `run` hands to the engine, which is not started here, and `calibrate`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from reproduce.cli import campaign, chosen, commands, pages
from reproduce.cli import run as run_command
from reproduce.cli.options import as_typed
from reproduce.errors import UserError
from reproduce.experiment import folder as folders
from reproduce.experiment.folder import ROOT
from reproduce.training import run as run_module
from reproduce.training import side_by_side
from reproduce.training import workers as local
from reproduce.training.agenda import Agenda
from reproduce.training.engines import Threads
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings
from reproduce.training.side_by_side import Room

CORES = 4


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Call `run` with so many of its runs still to train; returns the settings and the number of workers."""

    def call(n_missing: int, *arguments: str) -> tuple[RunSettings, int, int]:
        received: list[tuple[RunSettings, int, int]] = []

        def run_all(
            agenda: Agenda, settings: RunSettings, engine: Any, room: Room, *given: Any
        ) -> tuple[list[Any], list[str]]:
            received.append((settings, room.places, len(agenda.waiting)))
            return [], []

        planned = campaign.planned_runs(chosen.chosen_experiments("per", "quick", "quick_digits"), "", "")
        assert len(planned) > n_missing
        sealed = [SimpleNamespace(id=run.id, config=run.config, epochs=()) for run in planned[n_missing:]]
        monkeypatch.setattr(run_command, "local_results", lambda runs: (sealed, []))
        monkeypatch.setattr(pages, "write_pages", lambda *given, **options: [])
        monkeypatch.setattr(local, "run_all", run_all)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(CORES))
        answer = CliRunner().invoke(
            commands.app,
            ["run", "per", "--only", "quick_digits", "--device", "cpu", "--runs", str(tmp_path / "runs"), *arguments],
        )
        assert answer.exit_code == 0, answer
        (found,) = received
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


def run_digits(monkeypatch: pytest.MonkeyPatch, runs: Path, trained: list[Any]) -> Any:
    """`run` on the CPU, with an engine that is not started; ``trained`` receives it."""

    def run_all(agenda: Agenda, settings: RunSettings, engine: Any, room: Room, *given: Any) -> Any:
        trained.append((engine, room, settings))
        return [], []

    monkeypatch.setattr(pages, "write_pages", lambda *given, **options: [])
    monkeypatch.setattr(local, "run_all", run_all)
    command_line = ["run", "per", "--only", "quick_digits", "--device", "cpu", "--jobs", "2", "--runs", str(runs)]
    return CliRunner().invoke(commands.app, command_line)


def test_a_gpu_without_mps_trains_in_threads_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = side_by_side.DeviceFacts("cuda:0", CORES, free_bytes=lambda: 2**30)
    monkeypatch.setattr(side_by_side.DeviceFacts, "of", lambda device: facts)
    trained: list[Any] = []
    answer = run_digits(monkeypatch, tmp_path / "runs", trained)
    assert answer.exit_code == 0, answer
    ((engine, room, settings),) = trained
    assert isinstance(engine, Threads)
    assert (room.places, settings.at_once, settings.threads) == (1, 2, CORES // 2)
    assert answer.stdout.splitlines()[1].startswith("up to 2 runs side by side on cuda:0 in threads, no MPS daemon")


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_on_a_processor_without_it_is_warned_of(
    fast: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def in_bfloat16(*given: Any) -> list[PlannedRun]:
        return [
            replace(run, config=run.config.model_copy(update={"recipe": recipe}))
            for run in planned_runs(*given)
            for recipe in [run.config.recipe.model_copy(update={"precision": "bfloat16"})]
        ]

    planned_runs = campaign.planned_runs
    monkeypatch.setattr(run_command, "planned_runs", in_bfloat16)
    monkeypatch.setattr(run_module, "multiplies_bfloat16", lambda device: fast)
    answer = run_digits(monkeypatch, tmp_path / "runs", [])
    assert answer.exit_code == 0, answer
    warning = "warning: this processor computes bfloat16 by emulation, slower than float32\n"
    assert answer.stderr == ("" if fast else warning)


def test_only_names_experiments_of_any_method() -> None:
    found_in_all = chosen.chosen_experiments("all", "quick", "table3_ptb, matrix_wor*")
    by_name = {folder.name: list(found) for folder, found in found_in_all.items()}
    assert by_name["per"] == ["matrix_words", "table3_ptb"]
    assert by_name["vcl"] == ["matrix_words"]
    alone = chosen.chosen_experiments("all", "quick", "table3_ptb")
    assert {folder.name: list(found) for folder, found in alone.items()} == {"per": ["table3_ptb"]}


@pytest.mark.parametrize(
    ("method", "only", "expected"),
    [
        ("all", "table3_ptb,table3_pbt", "no method has an experiment 'table3_pbt': did you mean table3_ptb"),
        ("all", "nothing*", f"no method has an experiment 'nothing*': `{as_typed()} list` names them"),
        ("vcl", "table3_ptb", "method vcl has no experiment 'table3_ptb': it has matrix_images, "),
    ],
)
def test_unknown_experiments_are_one_line(method: str, only: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        chosen.chosen_experiments(method, "quick", only)
    assert str(caught.value).startswith(expected)


def calibrated(*arguments: str) -> Any:
    return CliRunner().invoke(commands.app, ["calibrate", "vcreg", "quick_digits", "--steps", "2", *arguments])


def test_calibrate_prints_a_ratio_for_each_strength_and_the_grid_around_some_hundredths() -> None:
    as_json = calibrated("--json", "--strengths", "1e-3,1e-2")
    assert as_json.exit_code == 0, as_json
    rows = json.loads(as_json.stdout)
    assert {(row["weight"], row["strength"]) for row in rows} >= {
        ("variance_strength", 1e-3),
        ("variance_strength", 1e-2),
    }
    assert rows[1]["ratio"] == pytest.approx(10 * rows[0]["ratio"], rel=1e-3)
    felt = 0.03 / rows[0]["ratio"] * rows[0]["strength"]  # from the ratio measured, the strength that gives 0.03

    table = calibrated("--strengths", f"{felt},{20 * felt}")
    assert table.exit_code == 0, table
    assert f"{felt:.3g}" in table.stdout
    grid = ", ".join(f"{strength:.3g}" for strength in (felt / 10, felt, 10 * felt))
    assert f"{rows[0]['task']} / {rows[0]['arm']}: grid = {{ {rows[0]['weight']} = [{grid}] }}" in table.stdout

    unfelt = calibrated("--strengths", "1e-12")
    assert "no strength here has a ratio from 0.01 to 0.1: give others with --strengths" in unfelt.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vcreg", "matrix_pictures"], "method vcreg has no experiment 'matrix_pictures': did you mean matrix_"),
        (["vcreg", "nothing"], "method vcreg has no experiment 'nothing': it has matrix_images, "),
        (["vcreg", "quick_digit"], "method vcreg has no experiment 'quick_digit': did you mean quick_digits"),
        (["vcregg", "quick_digits"], "unknown method 'vcregg': did you mean vcreg?"),
        (["vcreg", "quick_digits", "--strengths", "1,two"], "--strengths '1,two': expected numbers, comma-separated"),
        (["vcreg", "quick_digits", "--strengths", "1,0"], "--strengths '1,0': expected positive numbers"),
        (["vcreg", "quick_digits", "--strengths", "nan"], "--strengths 'nan': expected positive numbers"),
        (["vcreg", "quick_digits", "--device", "abacus"], "unknown device 'abacus'"),
    ],
)
def test_calibrate_refuses_in_one_line(arguments: list[str], message: str) -> None:
    answer = CliRunner().invoke(commands.app, ["calibrate", *arguments])
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "run METHOD: expected a method's name, or 'all'"),
        (["plan", "--scale", "paper"], "plan METHOD: expected a method's name, or 'all'"),
        (["schema"], "schema NAME: expected the kind of file: experiment, matrix, variants, card"),
        (["calibrate", "vcreg"], "calibrate WORKLOAD: expected one of its experiments: a column of the matrix, say"),
    ],
)
def test_a_missing_argument_is_said_with_what_it_is(arguments: list[str], message: str) -> None:
    answer = CliRunner().invoke(commands.app, arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert answer.stderr == f"error: {as_typed()} {message}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "peer"], "unknown method 'peer': did you mean per?"),
        (["plan", "per", "--scale", "papr"], "unknown scale 'papr': did you mean paper?"),
        (
            ["run", "per", "--only", "quick_digit"],
            "method per has no experiment 'quick_digit': did you mean quick_digits",
        ),
        (["calibrate", "per", "quick_digit"], "method per has no experiment 'quick_digit': did you mean quick_digits"),
    ],
)
def test_a_wrong_name_is_said_before_torch_is_loaded(arguments: list[str], message: str) -> None:
    """With an import of torch that fails."""
    program = "import sys; sys.modules['torch'] = None; from reproduce.__main__ import main; main()"
    answer = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert answer.stderr.startswith(f"error: {message}")
    assert answer.returncode == 2


COLUMN_OF_ONES_OWN = """\
title = "Mine"
scale = "quick"
source = "ours"
seeds = [0]
baseline = "vanilla"
[tasks.mine]
kind = "image_classification"
dataset = "digits"
model = "mlp"
model_options = { width = 8, depth = 1 }
[recipe]
epochs = 1
batch_size = 50
learning_rate = 0.1
[arms.vanilla]
label = "vanilla"
"""


@pytest.mark.parametrize("method", ["all", "vanilla"])
def test_a_column_that_no_method_joins_is_said(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workloads = Path(shutil.copytree(folders.WORKLOADS, tmp_path / "workloads"))
    monkeypatch.setattr(folders, "WORKLOADS", workloads)
    file = workloads / "matrix_mine.toml"
    file.write_text(COLUMN_OF_ONES_OWN, "utf-8")
    ask = ["plan", method, "--only", "matrix_mine", "--runs", str(tmp_path / "runs")]
    alone = CliRunner().invoke(commands.app, ask)
    assert alone.exit_code == 0, alone
    assert alone.stdout.startswith("1 run, 1 to train")
    assert alone.stderr == (
        "matrix_mine: no method has a table [mine] in its matrix.toml, so the baseline trains alone; "
        'arms_of = "images" in matrix_mine.toml takes the arms that methods have there\n'
    )
    file.write_text('arms_of = "images"\n' + COLUMN_OF_ONES_OWN, "utf-8")
    joined = CliRunner().invoke(commands.app, ask)
    assert joined.stderr == ""
    n_runs = int(joined.stdout.partition(" run")[0])
    assert n_runs == 1 if method == "vanilla" else n_runs > 30
