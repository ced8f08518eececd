"""A Task's host network: trained first, in the same loop, and handed to the Task that reads its activations."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from reproduce import tasks
from reproduce.data import Data
from reproduce.errors import UserError
from reproduce.experiment.schema import HostSpec, Recipe, TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators, derived_seed
from reproduce.training.loop import train

_KEPT: list[tuple[tuple[str, int, str], Data, Any]] = []


def build_task(spec: TaskSpec, recipe: Recipe, data: Data, generators: Generators, device: torch.device) -> tasks.Task:
    """The Task, with its host trained first where it has one.

    Raises:
        UserError: what the Task refuses, a host that diverges, or a Site that it has not.
    """
    tasks.check_fields(spec)
    host = None
    if spec.host is not None:
        host = trained_host(spec, spec.host, data, generators.initialisation.initial_seed(), device)
    return tasks.build(spec, recipe, data, generators, device, host)


def trained_host(spec: TaskSpec, chosen: HostSpec, data: Data, seed: int, device: torch.device) -> Any:
    """The host of a seed. Runs that differ in the Task's own model alone follow each other and share it.

    An interrupted host begins anew; what it costs is no part of the Run's steps.
    """
    key = (chosen.model_dump_json() + str(spec.train_examples), seed, str(device))
    for kept_key, kept_data, host in _KEPT:
        if kept_key == key and kept_data is data:
            return host
    _KEPT.clear()  # one host and its activations at a time
    generators = Generators.seeded(derived_seed(seed, "host"), device)
    task = tasks.build_host(spec, data, generators, device)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train(f"host-{seed}", chosen.recipe, task, Unregularized(), generators, device, Path(folder))
    if outcome.diverged_step is not None:
        raise UserError(f"task.host diverged at step {outcome.diverged_step}: lower its learning rate")
    host = tasks.read_host(spec, task)
    _KEPT.append((key, data, host))
    return host
