"""How long Runs will take: from step times that Results, pilots and benches measured, on each kind of device."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from reproduce.errors import UserError, first_problem
from reproduce.experiment.identity import RunConfig, canonical_json
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.results.record import Result, device_kind

# What of a recipe a step's or an evaluation's time hangs on; all else, rates and lengths, moves numbers and no time.
TIMED = {"batch_size", "optimizer", "clip", "augment", "mixup", "cutmix", "window", "precision"}
TIMED |= {"eval_batch_size", "probe_examples", "augmented_loss"}


@dataclass(frozen=True)
class Work:
    """What decides how long a Run takes: its problem, the way its method computes, and how often both are done."""

    problem: str
    way: str
    epochs: int | None
    steps: int | None
    evaluate_every: int

    @classmethod
    def of(cls, config: RunConfig) -> Work:
        recipe, way = config.recipe, way_of(config.method, config.params)
        return cls(problem_of(config.task, recipe), way, recipe.epochs, recipe.steps, recipe.evaluate_every)


def problem_of(task: TaskSpec, recipe: Recipe) -> str:
    """A task, and its recipe as far as it is TIMED; the folds of one table are one problem."""
    return canonical_json(
        [
            task.model_dump(mode="json", exclude_none=True, exclude={"fold"}),
            recipe.model_dump(mode="json", exclude_none=True, include=TIMED),
        ]
    )


def way_of(method: str, params: dict[str, Any]) -> str:
    """A method with what of its parameters chooses between computations: flags, names and counts.

    Numbers with a fraction only weigh what is computed.
    """
    return canonical_json([method, {name: value for name, value in params.items() if not isinstance(value, float)}])


class StepTime(BaseModel):
    """One measurement. What a bench cannot know of a training, the length of an epoch and of an evaluation, is None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: str
    way: str
    seconds: float  # of a step
    steps_per_epoch: float | None = None
    evaluation_seconds: float | None = None
    threads: int = 1
    at_once: int = 1  # Runs that shared the GPU; CPU workers share no core


class Estimates:
    """Step times by kind of device, and what follows from them."""

    def __init__(self, results: Iterable[Result] = (), files: Iterable[Path] = ()) -> None:
        """``files``: of pilots and benches, as `read_step_times` takes them."""
        self._times: dict[str, dict[str, dict[str, list[StepTime]]]] = {}  # by device, problem and way
        self._factors: dict[tuple[str, str, str], float | None] = {}
        for result in results:
            if result.epochs:
                self.add(device_kind(result.environment.device), step_time(result))
        for file in sorted(files):
            device, times = read_step_times(file)
            for time in times:
                self.add(device, time)

    @property
    def devices(self) -> list[str]:
        """Kinds of devices of which something is known."""
        return sorted(self._times)

    def add(self, device: str, time: StepTime) -> None:
        self._times.setdefault(device, {}).setdefault(time.problem, {}).setdefault(time.way, []).append(time)
        self._factors.clear()

    def seconds(self, work: Work, device: str, threads: int = 1, at_once: int = 1) -> float | None:
        """Seconds of the training, without its start; None: nothing like it was measured on this kind of device.

        From the same problem and method, where they were timed. Else from the same problem with another method, times
        what the method costs beside that one where both were timed (the median, over problems and over methods).
        """
        times = self._times.get(device, {}).get(work.problem, {})
        same = times.get(work.way, [])
        if any(time.steps_per_epoch for time in same):
            return _training_seconds(work, same, _seconds(same, threads, at_once))
        guesses = []
        for way, others in times.items():
            factor = self._factor(device, work.way, way)
            if factor is not None and any(time.steps_per_epoch for time in others):
                guesses.append(_training_seconds(work, others, factor * _seconds(others, threads, at_once)))
        return statistics.median(guesses) if guesses else None

    def _factor(self, device: str, way: str, other: str) -> float | None:
        """How many times as long a step takes in one way as in another, where both were timed on one problem."""
        key = device, way, other
        if key not in self._factors:
            both = [times for times in self._times[device].values() if way in times and other in times]
            ratios = [_median_seconds(found[way]) / _median_seconds(found[other]) for found in both]
            self._factors[key] = statistics.median(ratios) if ratios else None
        return self._factors[key]


def _median_seconds(times: list[StepTime]) -> float:
    return statistics.median(time.seconds for time in times)


def _seconds(times: list[StepTime], threads: int, at_once: int) -> float:
    """Of a step under these conditions; a GPU that more Runs share than were timed is shared evenly at the worst."""
    alike = [time for time in times if (time.threads, time.at_once) == (threads, at_once)]
    if alike:
        return _median_seconds(alike)
    return statistics.median(time.seconds * max(1.0, at_once / time.at_once) for time in times)


def _training_seconds(work: Work, times: list[StepTime], step_seconds: float) -> float:
    steps_per_epoch = statistics.median(time.steps_per_epoch for time in times if time.steps_per_epoch)
    evaluations = [time.evaluation_seconds for time in times if time.evaluation_seconds is not None]
    steps = work.steps or (work.epochs or 1) * steps_per_epoch
    n_evaluations = math.ceil(round(steps / steps_per_epoch, 6) / work.evaluate_every)
    return steps * step_seconds + n_evaluations * (statistics.median(evaluations) if evaluations else 0.0)


def step_time(result: Result) -> StepTime:
    """What a Result says of its steps; what its training took beside them, it took for its evaluations."""
    work, environment = Work.of(result.config), result.environment
    ends = [record.step for record in result.epochs]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    stepping = sum(n * record.seconds_per_step for n, record in zip(lengths, result.epochs, strict=True))
    first = result.epochs[0]  # the last one may end within an epoch
    return StepTime(
        problem=work.problem,
        way=work.way,
        seconds=statistics.median(record.seconds_per_step for record in result.epochs),
        steps_per_epoch=first.step / first.epoch,
        evaluation_seconds=max(0.0, environment.wall_seconds - stepping) / len(ends),
        threads=environment.threads,
        at_once=1 if environment.device.startswith("cpu") else environment.runs_on_device or 1,
    )


def read_step_times(path: Path) -> tuple[str, list[StepTime]]:
    """The kind of device and the step times of a file that `reproduce bench`, or a pilot, has written.

    Raises:
        UserError: it is none.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        times = [StepTime.model_validate(time) for time in content["steps"]]
        return str(content["machine"]["kind"]), times
    except ValidationError as error:
        location, message = first_problem(error, {})
        raise UserError(f"{path}: steps: {'.'.join(map(str, location))}: {message}; delete or mend it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no file of step times ({type(error).__name__}: {error}); delete it") from error


def write_step_times(path: Path, machine: dict[str, Any], times: Iterable[StepTime]) -> None:
    """Add step times to a file of one machine, which is made where there is none."""
    known = read_step_times(path)[1] if path.exists() else []
    content = {"machine": machine, "steps": [time.model_dump() for time in (*known, *times)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
