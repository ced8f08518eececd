"""A pilot: some steps and one evaluation of a Run, timed and thrown away."""

from __future__ import annotations

import time

import torch

from reproduce.method.rng import Generators
from reproduce.training.capture import WARM_UP_STEPS, recording_in
from reproduce.training.estimate import StepTime, Work
from reproduce.training.host import build_task
from reproduce.training.plan import PlannedRun
from reproduce.training.run import RunSettings, load_data, own_stream, torch_device
from reproduce.training.site_statistics import site_statistics
from reproduce.training.step import Step

WARM_STEPS = WARM_UP_STEPS + 2  # buffers are made, kernels chosen, and where steps are captured, one is recorded
STEPS = 20


def pilot(run: PlannedRun, settings: RunSettings) -> StepTime:
    """Time a Run's steps and an evaluation; nothing is written.

    Raises:
        UserError: what the Task or the method refuses.
    """
    torch.set_num_threads(settings.threads)
    device = torch_device(settings.device)
    with own_stream(device):
        return _timed(run, settings, device)


def _timed(run: PlannedRun, settings: RunSettings, device: torch.device) -> StepTime:
    config = run.config
    generators = Generators.seeded(config.seed, device)
    loaded = load_data(config.task.datasets, settings.root, settings.cache)
    task = build_task(config.task, config.recipe, loaded, generators, device)
    method = run.method()
    step = Step(task, method, config.recipe, generators, device, recording_in(settings.mode, generators))

    def timed(n_steps: int, first: int) -> float:
        started = _now(device)
        for number in range(first, first + n_steps):
            if number % task.steps_per_epoch == 0:
                task.start_epoch()
            step()
        return _now(device) - started

    timed(WARM_STEPS, 0)
    seconds = timed(STEPS, WARM_STEPS) / STEPS
    started = _now(device)
    task.evaluate()
    site_statistics(task, generators, step.trace)
    work = Work.of(config)
    return StepTime(
        problem=work.problem,
        way=work.way,
        seconds=seconds,
        steps_per_epoch=task.steps_per_epoch,
        evaluation_seconds=_now(device) - started,
        threads=settings.threads,
        at_once=settings.at_once if device.type == "cuda" else 1,
    )


def _now(device: torch.device) -> float:
    """Seconds on the clock when all that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # not the device: another run may be captured
    return time.perf_counter()
