"""A Task's host network: trained first, in the same loop, and handed to the Task that reads its activations."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reproduce import tasks
from reproduce.data import Data
from reproduce.errors import UserError
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators, derived_seed
from reproduce.training.loop import train

_one_at_a_time = threading.Lock()  # Runs that share a host, in threads of one process, wait for the first of them
_last: tuple[tuple[TaskSpec, int, torch.device], Data, Any] | None = None  # one host and its activations at a time


def build_task(
    spec: TaskSpec,
    recipe: Recipe,
    data: Data,
    generators: Generators,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> tasks.Task:
    """The Task, with its host trained first where it has one.

    Raises:
        UserError: what the Task refuses, a host that diverges, or a Site that it has not.
        Interrupted: ``should_stop()`` turned true while the host trained.
    """
    tasks.check_options(spec)
    host = None
    if spec.host is not None:
        seed = generators.initialisation.initial_seed()
        host = trained_host(spec, spec.host.recipe, data, seed, device, should_stop)
    return tasks.build(spec, recipe, data, generators, device, host)


def trained_host(
    spec: TaskSpec,
    recipe: Recipe,
    data: Data,
    seed: int,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> Any:
    """The host of ``spec``, trained by its own recipe from a seed.

    Runs that differ in the Task's own model alone follow each other, so the last host is kept and shared. An
    interrupted host begins anew; what it costs is no part of the Run's steps.
    """
    with _one_at_a_time:
        return _trained_host(spec, recipe, data, seed, device, should_stop)


def _trained_host(
    spec: TaskSpec, recipe: Recipe, data: Data, seed: int, device: torch.device, should_stop: Callable[[], bool]
) -> Any:
    global _last
    key = (spec.model_copy(update={"model": "", "model_options": {}}), seed, device)
    if _last is not None and _last[0] == key and _last[1] is data:
        return _last[2]
    _last = None  # before the next one takes its memory
    generators = Generators.seeded(derived_seed(seed, "host"), device)
    task = tasks.build_host(spec, data, generators, device)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(
            f"host-{seed}", recipe, task, Unregularized(), generators, device, Path(folder), should_stop=should_stop
        )
    if outcome.diverged_step is not None:
        raise UserError(f"task.host diverged at step {outcome.diverged_step}: lower its learning rate")
    host = tasks.read_host(spec, task)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # other threads read the activations on their own streams
    _last = (key, data, host)
    return host
