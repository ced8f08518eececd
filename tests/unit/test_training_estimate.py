"""How long Runs take, from what was measured; on made-up numbers, and of a pilot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.errors import UserError
from reproduce.experiment.cells import cells
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.results.record import Result, device_kind
from reproduce.training.estimate import Estimates, StepTime, Work, read_step_times, step_time, write_step_times
from reproduce.training.pilot import pilot
from reproduce.training.plan import PlannedRun, plan
from reproduce.training.run import RunSettings

DIGITS = TaskSpec(
    kind="image_classification",
    dataset="digits",
    model="mlp",
    model_options={"width": 4, "depth": 1},
    train_examples=40,
)
RECIPE = Recipe(epochs=4, batch_size=20, learning_rate=0.1, probe_examples=10, evaluate_every=2)
GPU = "NVIDIA H100"


def planned(arm: Arm | None = None, task: TaskSpec = DIGITS, **recipe: Any) -> PlannedRun:
    experiment = Experiment(
        title="t",
        scale="quick",
        source="s",
        seeds=(0,),
        tasks={"digits": task},
        recipe=RECIPE.model_copy(update=recipe),
        arms={"arm": arm or Arm()},
    )
    return plan({"table": experiment}, None)[0]


def work_of(arm: Arm | None = None, task: TaskSpec = DIGITS, **recipe: Any) -> Work:
    return Work.of(planned(arm, task, **recipe).config)


def timed(work: Work, seconds: float, **known: Any) -> StepTime:
    standard = {"steps_per_epoch": 100.0, "evaluation_seconds": 2.0}
    return StepTime(problem=work.problem, way=work.way, seconds=seconds, **(standard | known))


def estimates(*times: StepTime, device: str = GPU) -> Estimates:
    found = Estimates()
    for time in times:
        found.add(device, time)
    return found


OTHER = DIGITS.model_copy(update={"train_examples": 60})
SLICED = Arm(method="per", params={"mode": "sliced", "strength": 0.1})


def test_steps_and_evaluations_are_counted() -> None:
    vanilla = work_of()
    known = estimates(timed(vanilla, 0.01), timed(vanilla, 0.03), timed(vanilla, 0.02))
    assert known.seconds(vanilla, GPU) == pytest.approx(400 * 0.02 + 2 * 2.0)
    assert known.seconds(work_of(evaluate_every=3), GPU) == pytest.approx(400 * 0.02 + 2 * 2.0)  # after 3, and the end
    assert known.seconds(work_of(epochs=None, steps=250), GPU) == pytest.approx(250 * 0.02 + 2 * 2.0)
    assert known.seconds(vanilla, "another GPU") is None


def test_what_moves_no_time_is_the_same_work_and_what_does_is_not() -> None:
    known = estimates(timed(work_of(SLICED), 0.01))
    weaker = Arm(method="per", params={"mode": "sliced", "strength": 0.2})
    assert known.seconds(work_of(weaker, learning_rate=0.5, epochs=1), GPU) == pytest.approx(100 * 0.01 + 2.0)
    fewer = Arm(method="per", params={"mode": "sliced", "strength": 0.1, "n_slices": 3})
    for other in (work_of(fewer), work_of(SLICED, OTHER), work_of(SLICED, batch_size=10), work_of()):
        assert known.seconds(other, GPU) is None


def test_another_method_on_the_same_task_is_scaled_by_what_both_cost_elsewhere() -> None:
    """Vanilla is known here, and both there: what PER costs beside vanilla there is taken to hold here."""
    there = timed(work_of(task=OTHER), 0.02), timed(work_of(SLICED, OTHER), 0.05)
    known = estimates(timed(work_of(), 0.01), *there)
    assert known.seconds(work_of(SLICED), GPU) == pytest.approx(400 * 0.025 + 2 * 2.0)
    assert known.seconds(work_of(Arm(method="batchnorm")), GPU) is None  # its cost is known nowhere
    bare = [time.model_copy(update={"steps_per_epoch": None, "evaluation_seconds": None}) for time in there]
    known = estimates(timed(work_of(), 0.01), *bare)  # as a bench has them: they scale, and say nothing of epochs
    assert known.seconds(work_of(SLICED), GPU) == pytest.approx(400 * 0.025 + 2 * 2.0)
    assert known.seconds(work_of(SLICED, OTHER), GPU) is None


def test_a_gpu_shared_by_more_runs_than_were_timed_is_shared_evenly() -> None:
    vanilla = work_of(evaluate_every=100)
    alone, four = timed(vanilla, 0.01), timed(vanilla, 0.02, at_once=4)
    assert estimates(alone).seconds(vanilla, GPU, at_once=4) == pytest.approx(400 * 0.04 + 2.0)
    assert estimates(alone, four).seconds(vanilla, GPU, at_once=4) == pytest.approx(400 * 0.02 + 2.0)
    assert estimates(four).seconds(vanilla, GPU, at_once=1) == pytest.approx(400 * 0.02 + 2.0)  # at most
    one, two = timed(vanilla, 0.03), timed(vanilla, 0.02, threads=2)
    assert estimates(one, two).seconds(vanilla, GPU, threads=2) == pytest.approx(400 * 0.02 + 2.0)


def test_a_result_says_what_its_steps_and_evaluations_took(
    make_experiment: Callable[..., Experiment], make_result: Callable[..., Result]
) -> None:
    cell = cells(make_experiment())[0]
    result = make_result(cell, 7.0)  # 8 evaluations, 37 steps of 1 ms before each, in 12.5 s
    found = step_time(result)
    assert (found.seconds, found.steps_per_epoch) == (0.001, 37)
    assert found.evaluation_seconds == pytest.approx((12.5 - 8 * 0.037) / 8)
    assert Estimates([result]).seconds(Work.of(result.config), "cpu") == pytest.approx(12.5)
    assert Estimates([result.model_copy(update={"epochs": ()})]).devices == []


def test_kinds_of_devices() -> None:
    assert device_kind("cuda:1 (NVIDIA H100 80GB HBM3)") == "NVIDIA H100 80GB HBM3"
    assert device_kind("cpu (Intel(R) Xeon(R) Processor)") == "Intel(R) Xeon(R) Processor"
    assert device_kind("cpu") == "cpu"


def test_step_times_of_a_device_are_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "h100.json"
    vanilla, sliced = timed(work_of(), 0.01), timed(work_of(SLICED), 0.02)
    for time in (vanilla, sliced):
        write_step_times(path, {"device": "cuda (NVIDIA H100)", "kind": GPU}, [time])
    assert read_step_times(path) == (GPU, [vanilla, sliced])
    assert Estimates(files=[path]).seconds(work_of(SLICED), GPU) == pytest.approx(400 * 0.02 + 2 * 2.0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "no file of step times"),
        ('{"steps": []}', "no file of step times"),
        ("[]", "no file of step times"),
        ('{"machine": {"kind": "x"}, "steps": [{"way": "y", "seconds": 1}]}', "steps: problem: missing key"),
    ],
)
def test_a_file_that_holds_no_step_times_is_one_line(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content, "utf-8")
    with pytest.raises(UserError, match=f"x.json: {expected}") as caught:
        Estimates(files=[tmp_path / "x.json"])
    assert "\n" not in str(caught.value)


def test_a_pilot_times_steps_and_an_evaluation_and_writes_nothing(tmp_path: Path) -> None:
    settings = RunSettings(runs=tmp_path / "runs", root=None, cache=tmp_path / "cache", device="cpu", threads=1)
    run = planned(Arm(method="batchnorm"))
    found = pilot(run, settings)
    assert (found.problem, found.way) == (Work.of(run.config).problem, Work.of(run.config).way)
    assert found.steps_per_epoch == 2
    assert found.seconds > 0
    assert (found.evaluation_seconds or 0) > 0
    assert json.loads(found.model_dump_json())["threads"] == 1
    assert not (tmp_path / "runs").exists()
