"""`plan` and `run` under a budget: what they take, refuse and say. Nothing is trained here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reproduce.cli import campaign, chosen, commands, estimates, pages
from reproduce.cli import plan as plan_command
from reproduce.cli import run as run_command
from reproduce.cli.durations import duration
from reproduce.errors import UserError
from reproduce.results.record import device_kind
from reproduce.training import workers as engine
from reproduce.training.agenda import Agenda
from reproduce.training.estimate import Estimates, StepTime, Work
from reproduce.training.run import device_name, torch_device

EVIDENCE = chosen.EVIDENCE
QUICK = ["per", "--only", "quick_digits", "--device", "cpu", "--jobs", "1"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("9m", 540.0), ("1.5h", 5400.0), ("", None)])
def test_budgets(text: str, seconds: float | None) -> None:
    assert campaign.parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["9", "m", "-9m", "0s", "9 minutes", "nan"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(UserError, match=r"expected a time .*like 90s, 9m or 1\.5h$"):
        campaign.parse_budget(text)


@pytest.fixture
def each_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Call a command as if every Run were known to take so many seconds, on a simulated clock."""

    def call(seconds: float, *arguments: str) -> Any:
        kind = device_kind(device_name(torch_device("cpu")))
        experiments = chosen.chosen_experiments("per", "quick", "quick_digits")
        known = Estimates()
        for run in campaign.planned_runs(experiments, "", ""):
            work = Work.of(run.config)
            steps = work.steps or (work.epochs or 1) * 10
            known.add(
                kind,
                StepTime(problem=work.problem, way=work.way, seconds=seconds / steps, steps_per_epoch=10),
            )

        def one_after_another(to_do: Agenda, *given: Any) -> tuple[list[Any], list[str]]:
            now = to_do._clock()
            to_do._clock = lambda: now
            while to_do.take() is not None:
                now += seconds
            return [], []

        some = tmp_path / "evidence"  # all that is committed would be read each time, and says nothing of quick runs
        some.mkdir(exist_ok=True)
        for path in sorted(EVIDENCE.glob("mnist-mlp-*.json"))[:5]:
            shutil.copy(path, some)
        monkeypatch.setattr(chosen, "EVIDENCE", some)
        monkeypatch.setattr(plan_command, "known_times", lambda *given: known)
        monkeypatch.setattr(run_command, "known_times", lambda *given: known)
        monkeypatch.setattr(pages, "write_pages", lambda *given, **options: [])
        monkeypatch.setattr(engine, "run_all", one_after_another)
        return CliRunner().invoke(commands.app, [*arguments, "--runs", str(tmp_path / "runs")])

    return call


def test_a_budget_shorter_than_any_run_is_one_line(each_takes: Callable[..., Any], tmp_path: Path) -> None:
    answer = each_takes(3600.0, "run", *QUICK, "--budget", "9m")
    assert answer.exit_code == 2
    assert answer.stderr.startswith("error: --budget 9m: none of the ")
    assert answer.stderr.endswith(" runs to train would finish in it: the shortest is estimated at 60 min\n")
    assert answer.stderr.count("\n") == 1


def test_what_did_not_fit_is_said(each_takes: Callable[..., Any]) -> None:
    """The first run takes 500 of 540 seconds; then none of the others fits."""
    answer = each_takes(500.0, "run", *QUICK, "--budget", "9m")
    assert answer.exit_code == 0, answer
    n_runs = int(answer.stdout.split()[0])
    assert f"{n_runs - 1} runs did not fit into 9m: the same command goes on with them" in answer.stdout


def test_plan_shows_what_starts_in_a_budget(each_takes: Callable[..., Any]) -> None:
    rows = json.loads(each_takes(100.0, "plan", *QUICK, "--budget", "450s", "--json").stdout)
    assert [row["in_budget"] for row in rows] == [True] * 4 + [False] * (len(rows) - 4)
    assert len(rows) > 4
    lines = each_takes(100.0, "plan", *QUICK, "--budget", "450s").stdout.splitlines()
    assert "4 would start within 450s on 1 workers" in lines[: lines.index("")]  # sums first
    assert sum("after the budget" in line for line in lines) == len(rows) - 4
    assert "100 s" in lines[lines.index("") + 2]
    unlimited = json.loads(each_takes(100.0, "plan", *QUICK, "--json").stdout)
    assert {row["in_budget"] for row in unlimited} == {None}
    assert [row["id"] for row in unlimited] == [row["id"] for row in rows]


def test_plan_says_hours_by_kind_of_device(each_takes: Callable[..., Any]) -> None:
    lines = each_takes(3600.0, "plan", *QUICK, "--seeds", "1").stdout.splitlines()
    kind = device_kind(device_name(torch_device("cpu")))
    n_runs = int(lines[0].split()[0])
    assert lines[1] == f"{kind}: about {n_runs} h of one worker"


def test_plan_says_what_is_unknown_and_no_time_of_it(each_takes: Callable[..., Any]) -> None:
    """Of two experiments, one was timed here: the other's length is unknown, and counts in no sum."""
    some = ["--only", "quick_digits,table3_ptb", "--seeds", "1", "--device", "cpu", "--jobs", "2"]
    answer = each_takes(90.0, "plan", "per", *some)
    lines = answer.stdout.splitlines()
    table = {line.split()[0]: line.split() for line in lines if line.startswith(("quick_digits ", "table3_ptb "))}
    n_timed, n_untimed = (int(table[name][1]) for name in ("quick_digits", "table3_ptb"))
    assert table["quick_digits"][2:] == [str(n_timed), f"{n_timed * 1.5:.0f}", "min"]
    assert table["table3_ptb"][2:] == [str(n_untimed), "unknown"]
    kind = device_kind(device_name(torch_device("cpu")))
    assert lines[1:4] == [
        f"{kind}: about {n_timed * 1.5:.0f} min of one worker, {duration(n_timed * 45)} of 2 for {n_timed} runs",
        f"  {n_untimed} runs of unknown length",
        "  `plan --pilot` times some steps of each kind",
    ]
    assert lines[:4] == lines[-4:]  # said again below a table that is longer than a screen
    nothing = each_takes(90.0, "plan", "per", "--only", "table3_ptb", "--seeds", "1", "--device", "cpu")
    assert f"{kind}: {n_untimed} runs of unknown length" in nothing.stdout.splitlines()
    assert "about" not in nothing.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "vanila"], "--arms 'vanila': no chosen experiment has one of this name: did you mean vanilla?"),
        (["--tasks", "zzz"], "--tasks 'zzz': no chosen experiment has one of this name: there are "),
        (["--budget", "9"], "--budget '9': expected a time like 90s, 9m or 1.5h"),
    ],
)
@pytest.mark.parametrize("name", ["run", "plan"])
def test_bad_options_are_one_line(name: str, arguments: list[str], message: str) -> None:
    answer = CliRunner().invoke(commands.app, [name, *QUICK, *arguments])
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert answer.stderr.count("\n") == 1


def test_arms_and_tasks_are_chosen_by_name() -> None:
    experiments = chosen.chosen_experiments("per", "paper", "table3_ptb")
    everything = campaign.planned_runs(experiments, "1", "")
    some = campaign.planned_runs(experiments, "1", "", arms="vanilla", tasks="")
    assert {run.config.method for run in some} == {"vanilla"}
    assert 0 < len(some) < len(everything)


@pytest.mark.parametrize("name", ["run", "plan"])
def test_help_states_the_order(name: str) -> None:
    answer = CliRunner().invoke(commands.app, [name, "--help"], env={"COLUMNS": "300", "NO_COLOR": "1"})
    assert "one seed of everything before a second" in " ".join(answer.stdout.split())


def test_files_of_pilots_are_named_after_the_kind_of_device(tmp_path: Path) -> None:
    assert estimates.pilot_file(tmp_path, "NVIDIA H100 80GB HBM3") == tmp_path / "pilots" / "nvidia-h100-80gb-hbm3.json"


def test_make_passes_the_options_on() -> None:
    root = Path(__file__).resolve().parents[2]
    options = ["BUDGET=9m", "ARMS=a,b", "TASKS=t"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    said = subprocess.run(
        ["make", "-n", "reproduce-per", *options], cwd=root, env=outside, check=True, capture_output=True, text=True
    ).stdout
    assert said.splitlines()[-1].endswith(" --arms='a,b' --tasks='t' --budget='9m'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "9x"], "--budget '9x': expected a time like 90s, 9m or 1.5h"),
        (["--budget", "0s"], "--budget '0s': expected a time above zero"),
        (["--budget", "\u0663m"], "--budget '\u0663m': expected a time like"),  # a digit, and none of ours
        (["--arms", ","], "--arms ',': expected names, comma-separated"),
        (["--arms", "nope"], "--arms 'nope': no chosen experiment has one of this name"),
        (["--mode", "fast"], "--mode fast: expected eager or captured"),
        (["--jobs", "-3"], "--jobs -3: expected 0 or more"),
        (["--device", "tpu"], "unknown device 'tpu': use cpu, cuda or cuda:N"),
    ],
)
@pytest.mark.parametrize("command_line", [["run", "per"], ["bundle", "per"]], ids=["run", "bundle"])
def test_what_run_does_not_take_is_one_line_before_anything_else(
    command_line: list[str], arguments: list[str], message: str, tmp_path: Path
) -> None:
    where = (
        ["--output", str(tmp_path / "bundle")] if command_line[0] == "bundle" else ["--runs", str(tmp_path / "runs")]
    )
    answer = CliRunner().invoke(commands.app, [*command_line, "--only", "quick_digits", *arguments, *where])
    assert answer.exit_code == 2
    assert answer.stderr.startswith(f"error: {message}")
    assert answer.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_arms_and_tasks_that_do_not_meet_are_said() -> None:
    experiments = chosen.chosen_experiments("per", "paper", "")
    with pytest.raises(UserError, match=r"^--arms 'vcl' --tasks 'lstm': nothing to train: "):
        campaign.planned_runs(experiments, "", "", "vcl", "lstm")


def test_a_damaged_file_of_step_times_is_said_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "BENCHES", tmp_path)
    (tmp_path / "device.json").write_text("{", "utf-8")
    for _ in range(2):
        assert estimates.known_times([], tmp_path / "runs").devices == []
    said = capsys.readouterr().err
    assert said.count("passed over:") == said.count("\n") == 1
    assert "device.json: no file of step times" in said


def test_experiments_of_one_name_are_each_told_of() -> None:
    """Two methods have an experiment of this name, with other claims; names that are one method's stand alone."""
    experiments = {
        **chosen.chosen_experiments("orthogonal", "paper", "sequential_mnist"),
        **chosen.chosen_experiments("recurrent_batchnorm", "paper", "sequential_mnist,character_ptb"),
    }
    counts = {
        line.partition(": ")[0]: int(line.partition(": ")[2].split()[0])
        for line in campaign.claims_outlook(experiments, [])
        if "seeds planned" in line
    }
    assert counts == {
        (name if name == "character_ptb" else f"{folder.name} {name}"): len(experiment.claims)
        for folder, found in experiments.items()
        for name, experiment in found.items()
    }
    assert len(counts) == 3
