"""Experiment x task x arm x seed, resolved to complete configs with ids; nothing is trained here."""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reproduce import models, tasks
from reproduce.data import counted
from reproduce.errors import Location, UserError, explained, located
from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.dataset_card import DatasetCard, checksum, joint_checksum, read_card
from reproduce.experiment.folder import WORKING_FOLDER, MethodFolder, find_method
from reproduce.experiment.identity import RunConfig, Start, run_key
from reproduce.experiment.places import place_of
from reproduce.experiment.schema import Experiment, TaskSpec
from reproduce.method import Method
from reproduce.method.started import Started
from reproduce.results.match import ResultIndex, cells_to_train
from reproduce.results.record import Result
from reproduce.training.measured import Measured, check_metrics


@dataclass(frozen=True)
class Place:
    """Where a Run is asked for."""

    method: str  # whose experiment it is; the Run may be of another, as a baseline is
    experiment: str
    task: str
    arm: str


@dataclass(frozen=True)
class PlannedRun:
    """A complete config, the method that it names, and where it was asked for."""

    config: RunConfig
    folder: MethodFolder
    defaults: dict[str, Any]
    label: str  # "figure1 / batchnorm / seed 0"
    places: tuple[Place, ...]  # one, or several where experiments or arms share it
    seed_place: int = 0  # of its seed among those of its experiment
    baseline: bool = False  # of an experiment that asks for it
    published: bool = False  # the paper gives a number of its arm on its task

    @cached_property
    def id(self) -> str:
        return self.config.id

    def method(self) -> Method:
        """What it trains with."""
        return method_of(self.config, self.folder)


def method_of(config: RunConfig, folder: MethodFolder) -> Method:
    """The method of a complete config, which lies in ``folder``; on the network of its start, where it has one."""
    method = folder.load().model_validate_json(json.dumps(config.params))
    if config.start is None:
        return method
    start = find_method(config.start.method).load().model_validate_json(json.dumps(config.start.params))
    return Started(start=start, method=method)


class Planner:
    """Completes cells to configs. What many cells share is read and checked once: cards, methods, tasks."""

    def __init__(self, root: Path | None) -> None:
        """``root``: the user's data folder, where datasets lie whose checksum depends on local files."""
        self._dataset = cache(lambda name: _dataset(name, root))
        self.folder = cache(find_method)
        self._defaults = cache(_defaults)
        # By task, spelled out: what is measured of it, its options, and how many examples there are to train on.
        self._tasks: dict[str, tuple[Measured, tasks.TaskOptions, int | None]] = {}
        self._params: dict[tuple[str, str], dict[str, Any]] = {}  # complete, by method and those that are given

    def resolve(self, cell: Cell, folder: MethodFolder) -> tuple[RunConfig, dict[str, Any]]:
        """Fill in the defaults of the cell's method and the dataset's checksum; the complete config, and the defaults.

        Raises:
            UserError: unknown model, task or dataset, a parameter or option that it does not take, or a recipe that
                needs a validation split where there is none.
        """
        method_class, defaults = self._defaults(folder)
        params = self._complete(cell, folder, method_class)
        with located("dataset"):
            checksums = [self._dataset(name)[1] for name in cell.task.datasets]
        measured, options, n_train = self._looked_at(cell.task)
        options.check_recipe(cell.recipe, n_train)
        tasks.check_validation(cell.recipe, measured.validation, cell.task.dataset)
        start = None
        if cell.start is not None:
            with located("start"):
                start_class, own = self._defaults(self.folder(cell.start))
            start = Start(method=cell.start, version=start_class.version, params=own)
        config = RunConfig(
            task=cell.task,
            dataset_checksum=joint_checksum(checksums),
            recipe=cell.recipe,
            method=folder.name,
            method_version=method_class.version,
            params=params,
            start=start,
            seed=cell.seed,
        )
        return config, defaults

    def _complete(self, cell: Cell, folder: MethodFolder, method_class: type[Method]) -> dict[str, Any]:
        """The cell's parameters with the defaults of the others; seeds of an arm have the same."""
        given = json.dumps(cell.params, default=str)  # dates, which JSON has not
        key = str(folder.path), given
        if key not in self._params:
            try:
                self._params[key] = method_class.model_validate_json(given).model_dump(mode="json")
            except ValidationError as error:
                owner = f"arm {cell.arm_name!r}: method {folder.name}"
                refused = explained(error, cell.params, owner, method_class)
                refused.location = ("params", *refused.location)
                raise refused from error
        return copy.deepcopy(self._params[key])

    def measured(self, task: TaskSpec) -> Measured:
        """What is measured of the task, whose options and model are taken by their kinds."""
        return self._looked_at(task)[0]

    def _looked_at(self, task: TaskSpec) -> tuple[Measured, tasks.TaskOptions, int | None]:
        key = task.model_dump_json()
        if key not in self._tasks:
            options = tasks.check_options(task)
            models.check_options(task.model, dict(task.model_options))
            card, _, n_train = self._dataset(task.dataset)
            tasks.check_data(task, options, card)
            options.check_card(card, n_train)
            measured = Measured(task.kind, options.metrics, options.holds_out(card), options.test_metrics)
            self._tasks[key] = measured, options, n_train
        return self._tasks[key]


def resolve(cell: Cell, folder: MethodFolder, root: Path | None) -> tuple[RunConfig, dict[str, Any]]:
    """`Planner.resolve` of a single cell."""
    return Planner(root).resolve(cell, folder)


def _dataset(name: str, root: Path | None) -> tuple[DatasetCard, str, int | None]:
    """The card, what identifies the data, and how many examples are there to train on, where that is known."""
    card = read_card(name)
    cache = WORKING_FOLDER / "data"
    return card, checksum(card, root, cache), counted(card, root, cache).get("train")


def _defaults(folder: MethodFolder) -> tuple[type[Method], dict[str, Any]]:
    """The method's class, and its own defaults; a parameter without one is given by every arm.

    A field that came later, and that is left out of the dump while it means "as before", is left out here too.
    """
    method_class = folder.load()
    defaults = {}
    for name, field in method_class.model_fields.items():
        if field.is_required():
            continue
        default = field.get_default(call_default_factory=True)
        if field.exclude_if is None or not field.exclude_if(default):
            defaults[name] = json.loads(json.dumps(default))
    return method_class, defaults


def plan(
    experiments: dict[str, Experiment],
    root: Path | None,
    seeds: tuple[int, ...] | None = None,
    arm_names: Container[str] | None = None,
    task_names: Container[str] | None = None,
    results: ResultIndex | None = None,
    method: str = "",
    before: str = "",
) -> list[PlannedRun]:
    """Every Run that the experiments need, once each: arms shared by several experiments are trained once.

    Args:
        results: of what is chosen on seeds of its own, they say what is chosen; None: all that may be.
        seeds: in place of the experiments' own.
        arm_names: only these; None: all. Likewise ``task_names``.
        method: whose experiments these are.
        before: what labels begin with.
    """
    planner = Planner(root)
    planned: dict[str, PlannedRun] = {}
    for name, experiment in experiments.items():
        every = cells(experiment, seeds) if seeds or results is None else cells_to_train(experiment, results)
        wanted = chosen_cells(every, arm_names, task_names)
        for run in plan_cells(name, experiment, wanted, planner, seeds, method, before):
            planned[run.id] = merged(planned[run.id], run) if run.id in planned else run
    return list(planned.values())


def chosen_cells(
    cells: Iterable[Cell], arm_names: Container[str] | None, task_names: Container[str] | None
) -> list[Cell]:
    """Those of these arms and tasks; None stands for all."""
    return [
        cell
        for cell in cells
        if (arm_names is None or cell.arm_name in arm_names) and (task_names is None or cell.task_name in task_names)
    ]


def plan_cells(
    name: str,
    experiment: Experiment,
    wanted: Iterable[Cell],
    planner: Planner,
    seeds: tuple[int, ...] | None = None,
    method: str = "",
    before: str = "",
) -> list[PlannedRun]:
    """The Runs of these cells of an experiment of ``method``, in their order; their labels begin with ``before``.

    Raises:
        UserError: a cell that cannot be completed, with the experiment's name.
    """
    places = {seed: place for place, seed in enumerate(seeds or experiment.all_seeds)}
    published = _published(experiment)
    found, measured = [], {}
    for cell in wanted:
        try:
            with located("method"):
                folder = planner.folder(cell.method)
            config, defaults = planner.resolve(cell, folder)
            measured[cell.task_name, cell.arm_name] = planner.measured(cell.task)
        except UserError as error:
            where = _place(cell, error.location, name, method, planner)
            raise UserError(f"{where or f'experiment {name}'}: {error}") from error
        point = ", ".join(f"{key}={cell.point[key]}" for key in experiment.arms[cell.arm_name].choices)
        task = f"{cell.task_name} / " if len(experiment.tasks) > 1 else ""
        label = f"{before}{name} / {task}{cell.arm_name}{f' ({point})' if point else ''} / seed {cell.seed}"
        found.append(
            PlannedRun(
                config=config,
                folder=folder,
                defaults=defaults,
                label=label,
                places=(Place(method, name, cell.task_name, cell.arm_name),),
                seed_place=places.get(cell.seed, cell.seed),
                baseline=cell.arm_name == experiment.baseline,
                published=(cell.task_name, cell.arm_name) in published,
            )
        )
    check_metrics(name, experiment, measured, planner.folder(method) if method else None)
    return found


def _place(cell: Cell, location: Location, experiment: str, method: str, planner: Planner) -> str:
    """Where the file says it, as ``file:line``: of what an arm may say in a task's place, the arm comes first."""
    if not method:
        return ""
    at_arm, at_task = ("arms", cell.arm_name), ("tasks", cell.task_name)
    candidates: list[Location] = [(*at_arm, *location), (*at_task, *location), location]
    if location[:1] == ("params",):
        candidates.insert(1, (*at_arm, "grid", *location[1:]))
    return place_of(planner.folder(method), experiment, candidates)


def merged(first: PlannedRun, again: PlannedRun) -> PlannedRun:
    """One Run of two experiments: it is called as in the first, and counts as in the one where it counts more."""
    return replace(
        first,
        places=tuple(dict.fromkeys((*first.places, *again.places))),
        seed_place=min(first.seed_place, again.seed_place),
        baseline=first.baseline or again.baseline,
        published=first.published or again.published,
    )


def _published(experiment: Experiment) -> set[tuple[str, str]]:
    """Tasks and arms of which the paper gives a number."""
    return {
        (claim.task, arm)
        for claim in experiment.claims
        if claim.value is not None
        for arm in (claim.arm, claim.over)
        if arm is not None
    }


def most_valuable_first(runs: Iterable[PlannedRun], results: Iterable[Result]) -> list[PlannedRun]:
    """The order in which Runs are trained, so that wherever the time ends, what stands can be compared.

    One seed of everything before a second; of one seed, the baselines of all tasks first; then what a paper gives a
    number of and no Result, of any seed, stands beside yet; else as the experiments have it.
    """
    known = {run_key(result.config) for result in results}

    def rank(run: PlannedRun) -> tuple[int, bool, bool]:
        waits = run.published and run_key(run.config) not in known
        return run.seed_place, not run.baseline, not waits

    return sorted(runs, key=rank)
