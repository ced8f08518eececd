"""Seconds of a step on the networks of the papers, beside what it cannot do without."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from reproduce.bench.counting import operations_of
from reproduce.bench.stepper import Stepper
from reproduce.bench.timing import timed
from reproduce.bench.workloads import Workload
from reproduce.experiment.recipe import Recipe
from reproduce.method import Method
from reproduce.training.capture import WARM_UP_STEPS, Mode
from reproduce.training.estimate import StepTime, problem_of, way_of
from reproduce.training.run import own_stream

ROUNDS = 3
SECONDS_PER_ROUND = 0.15  # or one step, where that takes longer


@dataclass(frozen=True)
class TimedStep:
    """One measured step, with the numbers from which its floors follow."""

    workload: str
    method: str
    variant: str
    precision: str
    mode: Mode
    seconds: float  # the median over a few rounds
    operations: int  # aten operations that compute: each is started on its own where the step is eager
    bytes: int  # read and written by them
    estimate: StepTime  # what `plan` reads

    def floor(self, bandwidth: float) -> float:
        """Seconds that moving its bytes takes at ``bandwidth`` bytes a second."""
        return self.bytes / bandwidth


@dataclass(frozen=True)
class Candidate:
    """What is to be timed."""

    workload: Workload
    method_name: str
    variant: str
    method: Method
    precision: str

    def __str__(self) -> str:
        return f"{self.method_name} {self.variant} on {self.workload.name}, {self.precision}"


def in_precision(workload: Workload, precision: str) -> Workload:
    recipe = Recipe.model_validate({**workload.recipe.model_dump(exclude_none=True), "precision": precision})
    return replace(workload, recipe=recipe)


def step_times(
    candidate: Candidate, device: torch.device, modes: tuple[Mode, ...]
) -> tuple[list[TimedStep], list[str]]:
    """The step in each mode, and a line where a step that was to be captured was not.

    Raises:
        ValueError: the method refuses the workload's model.
    """
    workload = in_precision(candidate.workload, candidate.precision)
    problem = problem_of(workload.task, workload.recipe)
    way = way_of(candidate.method_name, candidate.method.model_dump(mode="json"))
    found, problems = [], []
    with own_stream(device):
        counted = operations_of(Stepper(workload, candidate.method, device))
        for mode in modes:
            stepper = Stepper(workload, candidate.method, device, captured=mode == "captured")
            for _ in range(WARM_UP_STEPS + 1 if mode == "captured" else 1):
                stepper()
            if stepper.step.mode != mode:
                problems.append(f"{candidate}: its steps cannot be captured")
                continue
            seconds = steady_seconds(stepper, device)
            found.append(
                TimedStep(
                    workload.name, candidate.method_name, candidate.variant, candidate.precision, mode, seconds,
                    counted.count, counted.bytes, StepTime(problem=problem, way=way, seconds=seconds),
                )
            )  # fmt: skip
    return found, problems


def steady_seconds(function: Callable[[], None], device: torch.device) -> float:
    """Seconds a call, the median over a few rounds of many calls."""
    once = timed(function, device)
    repeats = max(1, math.floor(SECONDS_PER_ROUND / once))
    return statistics.median(timed(function, device, repeats) for _ in range(ROUNDS))
