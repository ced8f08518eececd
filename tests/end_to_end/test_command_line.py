"""`python -m reproduce` in a checkout of its own: what it trains, prints, writes and refuses, and survives."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.cli.run_json import RunAnswer
from reproduce.experiment.files import read_experiment
from reproduce.training.plan import plan

RUN = ["run", "per", "--jobs", "1", "--device", "cpu"]


def without_progress(answer: Any) -> list[str]:
    """What is printed, but for the line a minute that a busy machine sees."""
    return [line for line in answer.stdout.splitlines() if " %, loss " not in line]


def test_run_trains_seals_and_writes_a_page(
    checkout: Any, undisturbed: Any, sealed_in: Callable[[Path], dict[str, Any]]
) -> None:
    assert (undisturbed.code, undisturbed.stderr) == (0, "")
    lines = without_progress(undisturbed)
    assert lines[0] == "2 runs, 0 sealed, 2 to train on cpu"
    assert lines[1].startswith("[1/2] tiny / batchnorm / seed 0: error ")
    assert lines[2].startswith("[2/2] tiny / per / seed 0: error ")
    assert lines[-1] == "page: runs/report/per.html"
    page = (checkout.path / "runs" / "report" / "per.html").read_text("utf-8")
    results = sealed_in(checkout.path / "runs")
    assert len(results) == 2
    for result in results.values():
        assert result["status"] == "completed"
        assert [record["epoch"] for record in result["epochs"]] == [40, 80]
        assert f"{result['final']['test']['error']:.2f}" in page
    assert "Digits in a moment" in page
    assert not list((checkout.path / "runs").glob("*/checkpoint.pt"))
    assert list((checkout.path / "runs").glob("*/events.out.tfevents.*"))


OF_ALL = [
    ["list"],
    ["plan", "all"],
    ["status", "all"],
    ["publish", "all", "--scale", "quick", "--output", "published_of_all"],
    ["pack", "all", "--results", "runs", "--output", "packed"],
    ["report", "--results", "runs", "--output", "pages_of_all"],
]


@pytest.fixture(scope="module")
def answers(checkout: Any, undisturbed: Any, tiny: str, on_mnist: str) -> dict[str, Any]:
    """Every command below, in one process: the sound ones first, then the bad input."""
    assert undisturbed.code == 0, undisturbed
    evidence = checkout.path / "published"
    broken = "methods/activity_norm/experiments/broken.toml"
    reads = {broken: tiny}  # mended again for the commands that follow
    mnist = "methods/batchnorm/experiments/on_mnist.toml"
    raw = "data_folder/MNIST/raw"
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    first = plan({"tiny": read_experiment(checkout.path / "methods/per/experiments/tiny.toml")}, None)[0]
    folder = f"elsewhere/{first.config.folder}"
    (checkout.path / folder).mkdir(parents=True)
    (checkout.path / folder / "checkpoint.pt").write_bytes(b"reproduce checkpoint 0.7 x\n")
    commands: dict[str, tuple[list[str], dict[str, str]]] = {
        "list": (["list"], {}),
        "list json": (["list", "--json"], {}),
        "plan": (["plan", "per", "--seeds", "2"], {}),
        "plan json": (["plan", "per", "--seeds", "2", "--json"], {}),
        "again": (RUN, {}),
        "again json": ([*RUN, "--json"], {}),
        "budget": ([*RUN, "--runs", "budgeted", "--budget", "20m", "--arms", "per"], {}),
        "status": (["status"], {}),
        "status json": (["status", "--json"], {}),
        "publish": (["publish", "per", "--scale", "quick", "--output", str(evidence)], {}),
        "publish again": (["publish", "per", "--scale", "quick", "--seeds", "2", "--output", str(evidence)], {}),
        "report": (["report", "per", "--results", str(evidence), "--output", "pages"], {}),
        # damaged Results are named, skipped and counted
        "damaged status": (["status", "--runs", "copies"], {"copies/a/result.json": '{"schema_version": 1'}),
        "damaged report": (
            ["report", "per", "--results", str(evidence), "--output", "pages2"],
            {str(evidence / "torn.json"): "{"},
        ),
        # bad input
        "unknown method": (["run", "par"], {}),
        "unknown experiment": (["run", "per", "--only", "tinny"], {}),
        "unknown experiment of all": (["run", "all", "--only", "tiny,tinny"], {}),
        "unknown scale": (["run", "per", "--scale", "fast"], {}),
        "unknown key": (["run", "activity_norm"], {broken: tiny.replace("epochs", "epoch")}),
        "wrong type": (["plan", "activity_norm"], {broken: tiny.replace("batch_size = 20", "batch_size = 'x'")}),
        "claim without source": (["run", "activity_norm"], {broken: tiny.replace('source = "nowhere"\n', "")}),
        "not toml": (["list"], {broken: "title = = 1"}),
        **{f"one broken of all: {words[0]}": (words, {broken: "title = = 1"}) for words in OF_ALL},
        "unknown parameter": (["run", "activity_norm"], {broken: tiny.replace("n_slices", "slices")}),
        "no data folder": (["run", "per", "--data", "nowhere"], reads),
        "no results folder": (["report", "per", "--results", "nowhere"], {}),
        "no such gpu": (["run", "per", "--device", "cuda:99"], {}),
        "unknown device": (["run", "per", "--device", "gpu"], {}),
        "seeds": (["run", "per", "--seeds", "0,x"], {}),
        "jobs": (["run", "per", "--jobs", "-1"], {}),
        "runs in a file": ([*RUN, "--runs", "a_file"], {"a_file": ""}),
        "page in a file": (["report", "per", "--results", str(evidence), "--output", "a_file/x"], {}),
        "damaged data": (
            ["run", "batchnorm", "--jobs", "1", "--device", "cpu", "--data", "data_folder"],
            {mnist: on_mnist, **{f"{raw}/{name}": "cut off" for name in names}},
        ),
        "no time": ([*RUN, "--runs", "no_time", "--budget", "0.01s"], {}),
        "other checkpoint": ([*RUN, "--runs", "elsewhere", "--arms", "batchnorm"], {}),
    }
    return dict(zip(commands, checkout.commands(*commands.values()), strict=True))


def test_list(answers: dict[str, Any]) -> None:
    assert answers["list"].code == 0
    lines = answers["list"].stdout.splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("per "))
    assert lines[row + 1].split() == ["quick", "tiny"]
    rows = json.loads(answers["list json"].stdout)
    assert {row["method"]: row["experiments"] for row in rows} == {
        "activity_norm": {},
        "batchnorm": {},
        "per": {"tiny": "quick"},
        "vanilla": {},
    }


def test_plan(answers: dict[str, Any]) -> None:
    lines = answers["plan"].stdout.splitlines()
    assert lines[0] == "4 runs, 2 to train"
    assert re.search(r": about (\d+|under 1) s of one worker$", lines[1])
    rows = lines[lines.index("") + 2 :]
    assert [line.split("  ")[-1].strip() for line in rows[:4]] == [
        f"tiny / {arm} / seed {seed}" for seed in (0, 1) for arm in ("batchnorm", "per")
    ]
    assert ["sealed" in line for line in rows[:4]] == [True, True, False, False]
    assert re.fullmatch(r"tiny: \d+ claims?, 2 seeds planned: .+", rows[4])
    rows = json.loads(answers["plan json"].stdout)
    assert [row["sealed"] for row in rows] == [True, True, False, False]
    assert all(row["estimated_seconds"] > 0 for row in rows)
    assert len({row["id"] for row in rows}) == 4


def test_a_second_run_trains_nothing(answers: dict[str, Any], undisturbed: Any) -> None:
    again = answers["again"]
    assert again.code == 0
    assert again.stdout.splitlines()[0] == "2 runs, 2 sealed, 0 to train on cpu"
    assert again.stdout.splitlines()[1:] == without_progress(undisturbed)[3:]  # the same table


def test_a_budget_is_spent_on_what_a_pilot_says_will_finish(answers: dict[str, Any], checkout: Any) -> None:
    assert (answers["budget"].code, answers["budget"].stderr) == (0, "")
    lines = without_progress(answers["budget"])
    assert lines[0] == "1 run, 0 sealed, 1 to train on cpu"
    assert lines[1].startswith("[1/1] tiny / per / seed 0: error ")
    (pilots,) = (checkout.path / "budgeted" / "pilots").glob("*.json")
    (step,) = json.loads(pilots.read_text("utf-8"))["steps"]
    assert step["seconds"] > 0
    assert len(list((checkout.path / "budgeted").glob("*/result.json"))) == 1


def test_run_json(answers: dict[str, Any], checkout: Any, sealed_in: Callable[[Path], dict[str, Any]]) -> None:
    content = json.loads(answers["again json"].stdout)
    assert (answers["again json"].code, content["failures"]) == (0, [])
    assert content["pages"] == ["runs/report/per.html"]
    results = sealed_in(checkout.path / "runs")
    assert content["results"] == {result["id"]: result["final"] for result in results.values()}
    RunAnswer.model_validate_json(answers["again json"].stdout, strict=True)
    rows = {row["path"]: row for row in content["runs"]}
    assert rows.keys() == {f"runs/{folder}/result.json" for folder in results}
    assert {row["status"] for row in rows.values()} == {"completed"}
    assert [place["arm"] for row in content["runs"] for place in row["places"]] == ["batchnorm", "per"]
    (verdict,) = content["verdicts"]
    assert (verdict["address"], verdict["verdict"], verdict["n"]) == ("nowhere", "reduced scale", 1)


def test_status(answers: dict[str, Any], checkout: Any, sealed_in: Callable[[Path], dict[str, Any]]) -> None:
    assert answers["status"].stdout == "2 sealed (0 diverged), 0 interrupted, 0 unreadable\n"
    content = json.loads(answers["status json"].stdout)
    ids = {result["id"] for result in sealed_in(checkout.path / "runs").values()}
    assert {row["id"]: row["status"] for row in content["sealed"]} == dict.fromkeys(ids, "completed")
    assert (content["interrupted"], content["unreadable"]) == ([], [])


def test_publish_copies_once(
    answers: dict[str, Any], checkout: Any, sealed_in: Callable[[Path], dict[str, Any]]
) -> None:
    assert answers["publish"].stdout.startswith("2 Results published to ")
    assert answers["publish"].stdout.endswith(", 0 already there, 0 not trained yet\n")
    assert answers["publish again"].stdout.startswith("0 Results published to ")
    assert answers["publish again"].stdout.endswith(", 2 already there, 2 not trained yet\n")
    for name in sealed_in(checkout.path / "runs"):
        published = (checkout.path / "published" / f"{name}.json").read_bytes()
        assert published == (checkout.path / "runs" / name / "result.json").read_bytes()


def test_report_is_made_of_published_results(answers: dict[str, Any], checkout: Any) -> None:
    assert answers["report"].stdout == "2 Results, 0 unreadable; 1 pages in pages\n"
    assert "Digits in a moment" in (checkout.path / "pages" / "per.html").read_text("utf-8")


def test_damaged_results_are_named_skipped_and_counted(answers: dict[str, Any], checkout: Any) -> None:
    status = answers["damaged status"]
    assert (status.code, status.stdout.splitlines()[0]) == (0, "0 sealed (0 diverged), 0 interrupted, 1 unreadable")
    assert "copies/a/result.json: not a readable Result" in status.stdout
    report = answers["damaged report"]
    assert (report.code, report.stdout) == (0, "2 Results, 1 unreadable; 1 pages in pages2\n")
    assert report.stderr.startswith(f"skipped: {checkout.path / 'published' / 'torn.json'}: not a readable Result")
    assert "torn.json" in (checkout.path / "pages2" / "per.html").read_text("utf-8")


REFUSED = {
    "unknown method": ["unknown method 'par': did you mean per?"],
    "unknown experiment": ["has no experiment 'tinny'", "tiny"],
    "unknown experiment of all": ["no method has an experiment 'tinny': did you mean tiny?"],
    "unknown scale": ["unknown scale 'fast'", "there are quick, reduced, paper"],
    "unknown key": ["broken.toml:13: recipe.epoch: unknown key"],
    "wrong type": ["broken.toml:14: recipe.batch_size: ", "integer", "found 'x'"],
    "claim without source": ["broken.toml:27: claims.0.source: missing key"],
    "not toml": ["broken.toml: not valid TOML: ", "line 1"],
    "unknown parameter": ["broken", "per", "slices"],
    "no data folder": ["--data nowhere: no such folder"],
    "no results folder": ["--results nowhere: no such folder"],
    "no such gpu": ["'cuda:99' asked for, but torch finds", "--device cpu"],
    "unknown device": ["unknown device 'gpu'", "cuda:N"],
    "seeds": ["--seeds '0,x'", "expected"],
    "jobs": ["--jobs -1: expected 0 or more"],
    "runs in a file": ["a_file", "exists"],
    "page in a file": ["a_file", "Not a directory"],
    "damaged data": [
        f"data_folder/MNIST/raw/train-images-idx3-ubyte.gz: md5 is {hashlib.md5(b'cut off').hexdigest()}, expected",
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "torchvision download them",
    ],
    "no time": ["--budget 0.01s: none of the 2 runs to train would finish in it"],
    "other checkpoint": ["checkpoint.pt: checkpoint format 0.7, expected 2.1; delete that file"],
}


@pytest.mark.fault(
    what="bad input, of any command",
    injected="twenty kinds of it",
    promise="one line on standard error, exit code 2, and nothing is lost",
)
@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(name: str, answers: dict[str, Any]) -> None:
    answer = answers[name]
    assert answer.code == 2
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.endswith("\n")
    for words in REFUSED[name]:
        assert words in answer.stderr


@pytest.mark.fault(
    what="a method whose files do not read",
    injected="broken TOML in one folder",
    promise="the others are listed, planned, trained and reported; it is named at the end",
)
@pytest.mark.parametrize("command", [words[0] for words in OF_ALL])
def test_a_method_that_does_not_read_stops_no_other(command: str, answers: dict[str, Any], checkout: Any) -> None:
    """What can be done is done for the others; the one is named in a line, and the exit code says so."""
    answer = answers[f"one broken of all: {command}"]
    assert answer.code == 2
    assert answer.stderr.splitlines()[-1].startswith("error: ")
    assert answer.stderr.count("broken.toml: not valid TOML") == answer.stderr.count("\n") == 1
    done = {
        "list": "tiny",
        "plan": "2 runs, 0 to train",
        "status": "nothing left to train",
        "publish": "2 Results published to published_of_all",
        "pack": "2 Results packed, 0 skipped",
        "report": "pages in pages_of_all",
    }
    assert done[command] in answer.stdout


def test_bad_input_loses_nothing(
    answers: dict[str, Any], checkout: Any, sealed_in: Callable[[Path], dict[str, Any]]
) -> None:
    assert set(REFUSED) < set(answers)
    assert len(sealed_in(checkout.path / "runs")) == 2
    (checkpoint,) = (checkout.path / "elsewhere").glob("*-batchnorm-*/checkpoint.pt")
    assert checkpoint.read_bytes() == b"reproduce checkpoint 0.7 x\n"
    kept = (checkout.path / "data_folder" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").read_text("utf-8")
    assert kept == "cut off"


def test_a_report_imports_no_torch(answers: dict[str, Any], checkout: Any) -> None:
    arguments = ["report", "per", "--results", "runs", "--output", "pages3"]
    said = checkout.python(
        "import sys\n"
        "from reproduce.cli.commands import app\n"
        f"app({arguments}, standalone_mode=False)\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'torch', 'torchvision', 'datasets', 'reproduce'}))\n"
    )
    assert said.splitlines()[-1] == "['reproduce']"
    assert (checkout.path / "pages3" / "per.html").exists()


# Ctrl-C and `kill -9` at bad moments: nothing is lost, and the sealed numbers are those of an undisturbed run. In this
# file, since the files of tests go to workers of pytest as a whole, and each worker would train undisturbed anew.

DISTURBED = [*RUN, "--runs", "disturbed"]


@pytest.mark.fault(
    what="Ctrl-C, or `kill -9` of driver and worker at once",
    injected="a signal to the whole group, while the worker starts and in the middle of training",
    promise="Ctrl-C: every run that trains writes a checkpoint, exit code 130. Killed: at most the time since "
    "the last checkpoint is lost (they are half a minute apart). The same command goes on and ends "
    "with the same numbers, bit for bit on one CPU with the same number of threads",
)
@pytest.mark.slow
def test_numbers_survive_interruption_and_death(
    checkout: Any,
    undisturbed: Any,
    sealed_in: Callable[[Path], dict[str, Any]],
    numbers: Callable[[dict[str, Any]], dict[str, Any]],
    watch: Callable[[subprocess.Popen[str], Callable[[], bool]], None],
    group_of: Callable[[int], list[int]],
    groups: list[subprocess.Popen[str]],
) -> None:
    assert undisturbed.code == 0, undisturbed
    expected = sealed_in(checkout.path / "runs")
    assert len(expected) == 2
    runs = checkout.path / "disturbed"

    # Ctrl-C in a terminal reaches every process of the group, here while the worker is only starting.
    first = checkout.start(*DISTURBED)
    groups.append(first)
    watch(first, lambda: len(group_of(first.pid)) >= 3)
    os.killpg(first.pid, signal.SIGINT)
    _, stderr = first.communicate(timeout=300)
    assert first.returncode == 130
    assert stderr == "stopped; the same command goes on from the checkpoints\n"
    checkpoints = sorted(runs.glob("*/checkpoint.pt"))
    assert checkpoints
    assert sealed_in(runs) == {}
    left = [Path(f"/proc/{process}/cmdline") for process in group_of(first.pid)]
    assert not [path for path in left if path.exists() and b"spawn_main" in path.read_bytes()]  # no worker

    # Death in the middle of training, the parent and its worker at once.
    before = {path: path.stat().st_mtime_ns for path in checkpoints}
    second = checkout.start(*DISTURBED)
    groups.append(second)
    watch(second, lambda: any(path.stat().st_mtime_ns != time for path, time in before.items() if path.exists()))
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate(timeout=300)
    assert second.returncode == -signal.SIGKILL
    assert len(sealed_in(runs)) < 2

    last = checkout.run(*DISTURBED)
    assert (last.code, last.stderr) == (0, "")
    found = sealed_in(runs)
    assert found.keys() == expected.keys()
    resumed = [result["environment"]["resumed"] for result in found.values()]
    assert max(resumed) >= 2
    assert [result["environment"]["resumed"] for result in expected.values()] == [0, 0]
    assert numbers(found) == numbers(expected)
    assert list(runs.glob("*/checkpoint.pt")) == []
