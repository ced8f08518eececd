"""The Ray engine, where Ray is installed: the local engine's numbers, deaths of workers and nodes, Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

from reproduce.experiment.schema import Arm, Experiment, Recipe, TaskSpec
from reproduce.results.record import Result
from reproduce.results.store import read_result
from reproduce.training.agenda import Agenda
from reproduce.training.cluster.connection import Cluster, Request, connected
from reproduce.training.cluster.engine import RayEngine
from reproduce.training.loop import Event
from reproduce.training.plan import PlannedRun, plan
from reproduce.training.run import RunSettings, execute, result_path
from reproduce.training.side_by_side import Room
from reproduce.training.workers import run_all

RECIPE = Recipe(steps=6, batch_size=20, learning_rate=0.1, probe_examples=10)
DIGITS = TaskSpec(
    kind="image_classification",
    dataset="digits",
    model="mlp",
    model_options={"width": 4, "depth": 2, "dropout": 0.2},
    train_examples=60,
)


def planned(arms: dict[str, Arm], recipe: Recipe = RECIPE) -> list[PlannedRun]:
    experiment = Experiment(
        title="t", scale="quick", source="s", seeds=(0,), recipe=recipe, tasks={"digits": DIGITS}, arms=arms
    )
    return plan({"table1": experiment}, None)


class Told:
    """A reporter that remembers, and may do something at what it is told."""

    def __init__(self, when_advanced: Callable[[PlannedRun, Event], object] = lambda run, event: None) -> None:
        self.lines: list[tuple[str, str]] = []
        self._when_advanced = when_advanced

    def started(self, run: PlannedRun) -> None:
        self.lines.append(("started", run.id))

    def advanced(self, run: PlannedRun, event: Event) -> None:
        self.lines.append(("advanced", run.id))
        self._when_advanced(run, event)

    def finished(self, run: PlannedRun, result: Result) -> None:
        self.lines.append(("finished", run.id))

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.lines.append(("failed", reason))

    def noted(self, line: str) -> None:
        self.lines.append(("noted", line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return

    def of(self, kind: str) -> list[str]:
        return [word for what, word in self.lines if what == kind]


def numbers(result: Result) -> dict[str, Any]:
    """All of a Result but when, how long, and with whom."""
    kept = result.model_dump(exclude={"environment", "seal"})
    for record in kept["epochs"]:
        del record["seconds_per_step"]
    return kept


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected("") as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return RunSettings(tmp_path / "runs", None, tmp_path / "cache", "cpu", threads=1, at_once=2)


def test_numbers_are_the_local_ones_and_one_that_fails_stops_no_other(
    cluster: Cluster, settings: RunSettings, tmp_path: Path
) -> None:
    bad = Arm(method="activity_norm", params={"kind": "ar_tar"})  # which needs a recurrent layer
    runs = planned({"vanilla": Arm(), "bad": bad, "per": Arm(method="per", params={"mode": "sliced", "strength": 0.1})})
    told = Told()
    results, failures = run_all(Agenda(runs), settings, RayEngine(cluster, Request()), Room(2), told)
    (failure,) = failures
    assert str(failure).startswith("table1 / bad / seed 0: ValueError: the model recorded no 'dropped' Site")
    good = [run for run in runs if "bad" not in run.label]
    assert {result.id for result in results} == {run.id for run in good} == set(told.of("finished"))
    assert set(told.of("started")) == {run.id for run in runs}
    assert told.of("noted") == []
    for result in results:
        (run,) = (run for run in good if run.id == result.id)
        alone = execute(run, replace(settings, runs=tmp_path / "alone"))
        assert numbers(result) == numbers(alone)
        assert read_result(result_path(settings.runs, run.config)) == result
        assert list(result_path(settings.runs, run.config).parent.glob("events.out.tfevents.*"))
    assert not list(settings.runs.rglob("checkpoint*"))
