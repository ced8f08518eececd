"""One evaluation: whatever is written in a command, each experiment is matched once, and a Result is asked for once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reproduce.cli import campaign, chosen, commands, pages
from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Arm, Claim, Experiment, TaskSpec
from reproduce.results import evaluate
from reproduce.results.columns import columns
from reproduce.results.match import ResultIndex
from reproduce.results.record import Result
from reproduce.results.store import write_result
from reproduce.training import workers
from reproduce.training.agenda import Agenda
from reproduce.training.plan import PlannedRun


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The experiments that were matched, and the cells whose Results were asked for, one by one."""

    class Counted:
        matched: list[str] = []
        asked: list[Cell] = []

    match, of = evaluate.match, ResultIndex.of

    def counting_match(experiment: Experiment, results: ResultIndex) -> Any:
        Counted.matched.append(experiment.title)
        return match(experiment, results)

    def counting_of(index: ResultIndex, cell: Cell) -> list[Result]:
        Counted.asked.append(cell)
        return of(index, cell)

    monkeypatch.setattr(evaluate, "match", counting_match)
    monkeypatch.setattr(ResultIndex, "of", counting_of)
    return Counted


@pytest.fixture
def methods(
    make_experiment: Callable[..., Experiment], write_card: Callable[[Path], Path], tmp_path: Path
) -> dict[MethodFolder, dict[str, Experiment]]:
    """Two methods with a table each, and two columns of the matrix, of which one has two tasks."""
    task = TaskSpec(kind="image_classification", dataset="digits", model="mlp")
    two = {"digits": task, "few": task.model_copy(update={"train_examples": 100})}
    made = {}
    for name in ("batchnorm", "per"):
        arms = {"vanilla": Arm(label="none"), name: Arm(method=name, params={})}
        column: dict[str, Any] = {"arms": arms, "claims": (), "figures": ()}
        experiments = {
            "table9": make_experiment(title=f"{name}, table"),
            "matrix_images": make_experiment(title="images", **column),
            "matrix_words": make_experiment(title="words", tasks=two, **column),
        }
        made[MethodFolder(name, write_card(tmp_path / "methods" / name))] = experiments
    return made


def test_pages_index_and_matrix_evaluate_each_experiment_once(
    methods: Any, make_results: Any, counted: Any, tmp_path: Path
) -> None:
    results = {result.id: result for experiments in methods.values() for result in make_results(experiments["table9"])}
    written = pages.write_pages(methods, results.values(), [], tmp_path / "out")
    assert sorted(path.name for path in written) == ["batchnorm.html", "index.html", "per.html"]
    assert "12 of 12 planned runs done" in (tmp_path / "out" / "per.html").read_text("utf-8")
    assert (tmp_path / "out" / "matrix.csv").exists()
    # A column has the arms of both methods, whose pages show their part of it.
    assert sorted(counted.matched) == ["batchnorm, table", "images", "per, table", "words"]
    n_cells = len(counted.asked)
    merged = columns({folder.name: experiments for folder, experiments in methods.items()}, ResultIndex())
    everything = [experiments["table9"] for experiments in methods.values()]
    everything += {column.file: column.experiment for column in merged}.values()
    assert n_cells == sum(len(cells(experiment, seeds=(0,))) for experiment in everything) > 0


def test_a_run_reads_no_result_twice_and_evaluates_once(
    make_result: Any, counted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Some Runs are sealed; the others are trained, one over a damaged file; one that is of no use stays damaged."""
    runs = tmp_path / "runs"
    planned = campaign.planned_runs(chosen.chosen_experiments("per", "quick", "quick_digits"), "", "")
    made = {run.id: result_of(run, make_result) for run in planned}
    for run in planned[:3]:
        write_result(made[run.id], runs / run.config.folder / "result.json")
    for folder in (planned[3].config.folder, "elsewhere"):
        (runs / folder).mkdir()
        (runs / folder / "result.json").write_text("{", "utf-8")

    def train(agenda: Agenda, *given: Any) -> tuple[list[Result], list[str]]:
        assert {run.id for run in agenda.waiting} == {run.id for run in planned[3:]}
        return [made[run.id] for run in agenda.waiting], []

    reads: list[int] = []
    read_results = chosen.read_results

    def counting(paths: Any) -> Any:
        listed = list(paths)
        reads.append(len(listed))
        return read_results(listed)

    monkeypatch.setattr(chosen, "read_results", counting)
    monkeypatch.setattr(workers, "run_all", train)
    command = ["run", "per", "--only", "quick_digits", "--device", "cpu", "--runs", str(runs)]
    answer = CliRunner().invoke(commands.app, command)
    assert answer.exit_code == 0, answer.output
    assert reads == [5]
    assert len(counted.matched) == 1
    page = (runs / "report" / "per.html").read_text("utf-8")
    assert f"{len(planned)} of {len(planned)} planned runs done" in page
    assert "1 Result files could not be read" in page
    assert "elsewhere" in page
    assert planned[3].config.folder not in page
    shown = CliRunner().invoke(commands.app, [*command, "--json"])
    assert list(json.loads(shown.stdout)["results"]) == [run.id for run in sorted(planned, key=by_folder)]


def by_folder(run: PlannedRun) -> str:
    return run.config.folder


def result_of(run: PlannedRun, make_result: Any) -> Result:
    config = run.config
    cell = Cell(
        task_name="digits",
        arm_name="arm",
        task=config.task,
        recipe=config.recipe,
        method=config.method,
        params={},
        seed=config.seed,
    )
    result: Result = make_result(cell, 7.0 + config.seed, 7.0)
    return result.model_copy(update={"config": config, "id": config.id, "defaults": run.defaults})


def test_one_comparison_has_one_p(make_experiment: Callable[..., Experiment], make_results: Any) -> None:
    """That of its row, beside a claim as well; claims of other gaps have their own family."""
    plain = make_experiment()
    (task,) = plain.tasks
    claims = tuple(
        Claim(task=task, arm="per", over=over, metric="test.error", direction="lower", source="Table 1")
        for over in ("vanilla", "batchnorm")
    )
    experiment = make_experiment(claims=claims)
    found = evaluate.evaluate("t", experiment, ResultIndex(make_results(experiment)))
    own, others = 0, 0
    for verdict in found.verdicts:
        claim = verdict.claim
        if claim.over is None or verdict.p_adjusted is None:
            continue
        row = found.tasks[claim.task].row(claim.metric, claim.arm)
        if claim.over == experiment.baseline:
            assert verdict.p_adjusted == row.p_holm
            own += 1
        else:
            others += 1
    assert own
    assert others
