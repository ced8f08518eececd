"""What starts under a budget, on a simulated clock."""

from __future__ import annotations

from typing import Any

import pytest

from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.training.agenda import Agenda, Job, rehearsed
from reproduce.training.plan import PlannedRun, plan

SECONDS = {"vanilla": 100.0, "batchnorm": 300.0, "per": 50.0}


def planned(seeds: tuple[int, ...] = (0,)) -> list[PlannedRun]:
    task = TaskSpec(kind="image_classification", dataset="digits", model="mlp", model_options={"width": 4, "depth": 1})
    experiment = Experiment(
        title="t",
        scale="quick",
        source="s",
        seeds=seeds,
        tasks={"digits": task},
        recipe=Recipe(epochs=1, batch_size=20, learning_rate=0.1),
        arms={name: Arm(method=name) for name in SECONDS},
    )
    return plan({"table": experiment}, None)


def seconds_of(run: PlannedRun) -> float:
    return SECONDS[run.config.method]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def methods(runs: list[PlannedRun]) -> list[str]:
    return [run.config.method for run in runs]


def taken(agenda: Agenda) -> str | None:
    job = agenda.take()
    return None if job is None else f"{'pilot of ' if job.pilot else ''}{job.run.config.method}"


def test_without_a_budget_all_start_in_order() -> None:
    agenda = Agenda(planned((0, 1)))
    assert [taken(agenda) for _ in range(7)] == [*SECONDS, *SECONDS, None]
    assert (agenda.left, agenda.n_started) == ([], 6)


def test_only_what_will_finish_starts_and_a_shorter_one_fills_the_rest() -> None:
    clock = Clock()
    agenda = Agenda(planned((0, 1)), 260.0, seconds_of, clock)
    assert taken(agenda) == "vanilla"
    clock.now += 100
    assert taken(agenda) == "per"  # 160 s are left: too few for batchnorm
    clock.now += 50
    assert taken(agenda) == "vanilla"  # of the second seed; 110 s are left
    clock.now += 100
    assert taken(agenda) is None
    assert methods(agenda.left) == ["batchnorm", "batchnorm", "per"]
    assert agenda.n_started == 3


def test_at_the_budget_nothing_starts() -> None:
    clock = Clock()
    agenda = Agenda(planned(), 1000.0, seconds_of, clock)
    clock.now += 1000
    assert taken(agenda) is None
    assert methods(agenda.left) == list(SECONDS)


def test_a_run_that_takes_all_of_the_budget_fits() -> None:
    assert taken(Agenda(planned(), 100.0, seconds_of, Clock())) == "vanilla"


def test_what_is_not_known_is_piloted_once() -> None:
    """Both seeds of batch normalisation wait for one pilot, while others start; then they are judged by it."""
    clock, known = Clock(), {"vanilla": 100.0, "per": 500.0}
    agenda = Agenda(planned((0, 1)), 350.0, lambda run: known.get(run.config.method), clock)
    assert taken(agenda) == "vanilla"
    job = agenda.take()
    assert job == Job(planned()[1], pilot=True)
    assert taken(agenda) == "vanilla"  # of the second seed; the first PER does not fit, and batchnorm is not known yet
    assert taken(agenda) is None
    assert methods(agenda.waiting) == ["batchnorm", "batchnorm"]
    known["batchnorm"] = 300.0
    agenda.piloted(job.run)
    assert taken(agenda) == "batchnorm"
    clock.now += 300
    assert taken(agenda) is None
    assert sorted(methods(agenda.left)) == ["batchnorm", "per", "per"]


def test_a_pilot_that_failed_is_not_made_again() -> None:
    agenda = Agenda(planned((0, 1))[:1], 350.0, lambda run: None, Clock())
    assert taken(agenda) == "pilot of vanilla"
    agenda.piloted(planned()[0])
    assert taken(agenda) is None
    assert methods(agenda.left) == ["vanilla"]


@pytest.mark.parametrize(
    ("budget", "workers", "expected"),
    [
        (99.0, 1, ["per"]),
        (100.0, 2, ["vanilla", "per", "per"]),
        (150.0, 1, ["vanilla", "per"]),
        (310.0, 1, ["vanilla", "per", "vanilla", "per"]),
        (310.0, 2, ["vanilla", "batchnorm", "per", "vanilla", "per"]),
    ],
)
def test_what_plan_says_of_a_budget(budget: float, workers: int, expected: list[Any]) -> None:
    runs = planned((0, 1))
    found = rehearsed(runs, budget, seconds_of, workers)
    assert [run.config.method for run in runs if run.id in found] == expected


def test_plan_does_not_count_on_what_is_not_known() -> None:
    runs = planned()
    assert rehearsed(runs, 1e6, lambda run: 1.0 if run.config.method == "per" else None, 1) == {runs[2].id}
