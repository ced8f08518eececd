"""What `run --json` prints is what docs/run_json.md and docs/run_schema.json say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reproduce.cli import campaign, chosen, commands
from reproduce.cli.run_json import RunAnswer, RunPlace, RunRow, VerdictRow
from reproduce.experiment.cells import Cell
from reproduce.results.record import Result
from reproduce.results.store import write_result
from reproduce.training import workers
from reproduce.training.agenda import Agenda
from reproduce.training.plan import PlannedRun
from reproduce.training.workers import Failure

DOCS = Path(__file__).parents[2] / "docs"
ONLY = "quick_two_units"  # it has claims


def test_the_committed_schema_is_that_of_the_code() -> None:
    """Where it is not: `make references`."""
    assert json.loads((DOCS / "run_schema.json").read_text("utf-8")) == RunAnswer.model_json_schema(
        mode="serialization"
    )


@pytest.mark.parametrize("model", [RunAnswer, RunRow, RunPlace, VerdictRow])
def test_every_name_is_documented(model: Any) -> None:
    documented = set(re.findall(r"`(\w+)`", (DOCS / "run_json.md").read_text("utf-8")))
    assert model.model_fields.keys() <= documented


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_result: Callable[..., Result]) -> Any:
    """What is printed where of the planned runs the first is sealed, the last fails, and the others have waited."""
    experiments = chosen.chosen_experiments("activity_prior", "quick", ONLY)
    planned = campaign.planned_runs(experiments, "", "")
    ended = [run for run in planned if run is not planned[-1]][: len(planned) - 2]
    runs = tmp_path / "runs"
    for run in ended:
        write_result(result_of(run, make_result), runs / run.config.folder / "result.json")
    (runs / planned[-2].config.folder).mkdir(parents=True)
    (runs / planned[-2].config.folder / "checkpoint.pt").write_bytes(b"half a minute old")

    def train(agenda: Agenda, *given: Any) -> tuple[list[Result], list[Failure]]:
        return [], [Failure(planned[-1].label, "OSError: the disk is full")]

    monkeypatch.setattr(workers, "run_all", train)
    options = ["--only", ONLY, "--device", "cpu", "--runs", str(runs), "--json"]
    answer = CliRunner().invoke(commands.app, ["run", "activity_prior", *options])
    assert answer.exit_code == 1, answer.output  # one failed
    return planned, json.loads(answer.stdout), answer.stdout


def test_what_is_printed_has_the_types_that_are_documented(printed: Any) -> None:
    planned, content, text = printed
    RunAnswer.model_validate_json(text, strict=True)
    assert content["version"] == 1
    assert [row["id"] for row in content["runs"]] == [
        run.id for run in sorted(planned, key=lambda run: run.config.folder)
    ]


def test_each_run_says_where_it_was_asked_for_and_what_became_of_it(printed: Any) -> None:
    planned, content, _ = printed
    rows = {row["id"]: row for row in content["runs"]}
    states = [rows[run.id]["status"] for run in planned]
    assert states == ["completed"] * (len(planned) - 2) + ["interrupted", "failed"]
    first, failed = rows[planned[0].id], rows[planned[-1].id]
    assert {place["experiment"] for place in first["places"]} == {ONLY}
    assert {place["method"] for place in first["places"]} == {"activity_prior"}
    assert (first["method"], first["seed"]) == (planned[0].config.method, planned[0].config.seed)
    assert first["params"] == planned[0].config.params
    assert first["final"]["test"]["mse"] == pytest.approx(6.0)
    assert Path(first["path"]).exists()
    assert (failed["final"], failed["path"]) == (None, None)
    assert content["results"] == {row["id"]: row["final"] for row in content["runs"] if row["final"]}
    assert content["failures"] == [f"{planned[-1].label}: OSError: the disk is full"]


def test_each_claim_has_its_verdict(printed: Any) -> None:
    _, content, _ = printed
    (folder,) = chosen.chosen_experiments("activity_prior", "quick", ONLY)
    claims = folder.experiments()[ONLY].claims
    assert [row["address"] for row in content["verdicts"]] == [claim.source for claim in claims]
    for row, claim in zip(content["verdicts"], claims, strict=True):
        assert (row["arm"], row["over"], row["metric"], row["ours"]) == (
            claim.arm,
            claim.over,
            claim.metric,
            claim.ours,
        )
        assert row["verdict"] == "reduced scale"
        assert row["low"] <= row["mean"] <= row["high"]
        assert 0 <= row["p"] <= row["p_adjusted"] <= 1
        assert row["n"] in (2, 3)


def result_of(run: PlannedRun, make_result: Callable[..., Result]) -> Result:
    """A Result of this very config; the metrics that the claims are on differ from arm to arm and seed to seed."""
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
    made = make_result(cell, 6.0)
    assert made.final is not None
    number = 0.1 * len(run.label) + 0.01 * config.seed * len(run.places[0].arm)
    final = made.final.model_copy(update={"test": {"mse": 6.0, "histogram_distance": number}})
    return made.model_copy(
        update={"id": config.id, "config": config, "defaults": run.defaults, "metric": "mse", "final": final}
    )
