"""Experiment x task x arm x seed, resolved to complete configs with ids; nothing is trained here."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reproduce import models, tasks
from reproduce.errors import UserError, explained
from reproduce.experiment.dataset_card import checksum, read_card
from reproduce.experiment.folder import MethodFolder, find_method
from reproduce.experiment.identity import RunConfig
from reproduce.experiment.schema import Cell, Experiment, cells
from reproduce.results.record import Result


@dataclass(frozen=True)
class PlannedRun:
    """A complete config, the method that it names, and where it was asked for."""

    config: RunConfig
    folder: MethodFolder
    defaults: dict[str, Any]
    label: str  # "figure1 / batchnorm / seed 0"
    experiment: str

    @property
    def id(self) -> str:
        return self.config.id


def resolve(cell: Cell, folder: MethodFolder, root: Path | None) -> tuple[RunConfig, dict[str, Any]]:
    """Fill in the defaults of the cell's method and the dataset's checksum; the complete config, and the defaults.

    Raises:
        UserError: unknown model, task or dataset, a parameter or option that it does not take, or a recipe that
            needs a validation split where there is none.
    """
    method_class = folder.load()
    try:
        method = method_class.model_validate_json(json.dumps(cell.params, default=str))  # dates, which JSON has not
        defaults = _defaults(folder)
    except ValidationError as error:
        owner = f"arm {cell.arm_name!r}: method {folder.name}"
        raise UserError(explained(error, cell.params, owner, method_class.model_fields)) from error
    card = read_card(cell.task.dataset)
    options = tasks.check_options(cell.task)
    tasks.check_validation(cell.recipe, options.holds_out(card), cell.task.dataset)
    models.check_options(cell.task.model, dict(cell.task.model_options))
    config = RunConfig(
        task=cell.task,
        dataset_checksum=checksum(card, root),
        recipe=cell.recipe,
        method=folder.name,
        method_version=method_class.version,
        params=method.model_dump(mode="json"),
        seed=cell.seed,
    )
    return config, defaults


def _defaults(folder: MethodFolder) -> dict[str, Any]:
    """The method's own defaults; a parameter without one is given by every arm."""
    fields = folder.load().model_fields
    return {
        name: json.loads(json.dumps(field.get_default(call_default_factory=True)))
        for name, field in fields.items()
        if not field.is_required()
    }


def plan(
    experiments: dict[str, Experiment], root: Path | None, seeds: tuple[int, ...] | None = None
) -> list[PlannedRun]:
    """Every Run that the experiments need, once each: arms shared by several experiments are trained once."""
    planned: dict[str, PlannedRun] = {}
    for name, experiment in experiments.items():
        for cell in cells(experiment, seeds):
            try:
                folder = find_method(cell.method)
                config, defaults = resolve(cell, folder, root)
            except UserError as error:
                raise UserError(f"experiment {name}: {error}") from error
            point = ", ".join(f"{key}={cell.params[key]}" for key in experiment.arms[cell.arm_name].grid)
            task = f"{cell.task_name} / " if len(experiment.tasks) > 1 else ""
            label = f"{name} / {task}{cell.arm_name}{f' ({point})' if point else ''} / seed {cell.seed}"
            planned.setdefault(config.id, PlannedRun(config, folder, defaults, label, name))
    return list(planned.values())


def estimated_seconds(run: PlannedRun, results: Iterable[Result]) -> float | None:
    """Wall seconds of the most similar finished Runs: same task and recipe, same method if possible."""
    similar = [r for r in results if r.config.task == run.config.task and r.config.recipe == run.config.recipe]
    same = [result for result in similar if result.config.method == run.config.method] or similar
    return statistics.median(result.environment.wall_seconds for result in same) if same else None
