"""Files of experiments, read. What a file says shorter than an `Experiment` is spelled out here; no torch.

- A task with an array in place of a value is an axis: it stands for one task for each element.
- ``[published]`` holds the numbers of a paper's table, from which claims follow.
- ``workload = "name"`` joins the experiment to what several methods share, a file of `workloads/`; and a method's
  ``matrix.toml`` holds what it adds to each of several workloads.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from reproduce.errors import UNKNOWN_KEY, Misplaced, UserError, did_you_mean, told
from reproduce.experiment.published import Published
from reproduce.experiment.schema import Arm, Claim, Experiment, Scalar, TaskSpec
from reproduce.experiment.toml import Strict, TomlFile, open_toml

MOST_TASKS = 10_000  # that one table may stand for
WORKLOADS = Path(__file__).parent / "workloads"
COLUMN = "matrix_"  # how the names of those workloads begin that are columns of the cross-method matrix


class Share(Strict):
    """What one method adds to a workload. All else, its task, recipe, seeds and baseline, is one for all methods."""

    arms: dict[str, Arm] = Field(min_length=1, description="By name: what the method adds beside the baseline.")
    title: str = Field(default="", description="What pages call it. Left out: as the workload.")
    question: str = Field(default="", description="What it asks. Left out: as the workload.")
    source: str = Field(default="", min_length=1, description="The table of the paper. Left out: as the workload.")
    deviations: tuple[str, ...] = Field(default=(), description="How this differs from the paper, one sentence each.")
    claims: tuple[Claim, ...] = Field(default=(), description="What the paper states, each with its address.")


def read_experiment(path: Path, workloads: Path = WORKLOADS) -> Experiment:
    """Read one experiment file strictly.

    Raises:
        UserError: one line with file, line and key.
    """
    file = open_toml(path)
    if "workload" in file.content:
        own = {key: value for key, value in file.content.items() if key != "workload"}
        name, broken = file.content["workload"], dict[str, str]()
        known = read_workloads(workloads, broken)
        if name in broken:
            raise UserError(broken[name])
        return _join(file, (), own, _workload(file, ("workload",), name, known))
    _refuse_arms_of(file)
    return _experiment(file)


def read_workloads(folder: Path = WORKLOADS, broken: dict[str, str] | None = None) -> dict[str, Experiment]:
    """Every workload by its file's name: an experiment with the baseline as its only arm.

    Args:
        broken: told of each that does not read, by name, in a line; None: that is an error.
    """
    found = {}
    for path in sorted(folder.glob("*.toml")):
        with told(broken, path.stem):
            found[path.stem] = _read_workload(path, *_state(path))
    return found


def _state(path: Path) -> tuple[int, int]:
    """What changes with the file: when it was written, and how long it is."""
    with contextlib.suppress(OSError):  # which reading it tells
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    return 0, 0


@lru_cache(maxsize=64)  # every method asks for all of them
def _read_workload(path: Path, changed: int, size: int) -> Experiment:
    file = open_toml(path)
    experiment = _experiment(file)
    if not path.stem.startswith(COLUMN):
        _refuse_arms_of(file)
    for name in experiment.arms:
        if name != experiment.baseline:
            raise file.error(("arms", name), "a workload has one arm, its baseline; the others are the methods'")
    return experiment


def read_columns(folder: Path = WORKLOADS, broken: dict[str, str] | None = None) -> dict[str, Experiment]:
    """The workloads that are columns of the matrix; ``broken`` as in `read_workloads`."""
    workloads = read_workloads(folder, broken)
    found = {name: workload for name, workload in workloads.items() if name.startswith(COLUMN)}
    lenders = [name.removeprefix(COLUMN) for name, column in found.items() if not column.arms_of]
    lenders += [name.removeprefix(COLUMN) for name in broken or ()]
    for name, column in list(found.items()):
        with told(broken, name):
            if column.arms_of and column.arms_of not in lenders:
                del found[name]
                file = open_toml(folder / f"{name}.toml")
                raise file.error(
                    ("arms_of",),
                    f"{column.arms_of!r} is no column with arms of its own: {did_you_mean(column.arms_of, lenders)}",
                )
    return found


def read_matrix(
    path: Path, columns: Mapping[str, Experiment], broken: dict[str, str] | None = None
) -> dict[str, Experiment]:
    """What a method adds to columns: ``[images.arms.x]`` adds an arm to the one called ``matrix_images``.

    It adds the same arms, without the table's words, to a column with ``arms_of = "images"`` that has no table here.
    ``broken`` as in `read_workloads`; what it adds to a column that is told there already is passed over.
    """
    file = open_toml(path)
    known = {name.removeprefix(COLUMN): column for name, column in columns.items()}
    found = {}
    for name, own in file.content.items():
        if COLUMN + name not in (broken or ()):
            with told(broken, COLUMN + name):
                found[COLUMN + name] = _join(file, (name,), own, _workload(file, (name,), name, known))
    for name, column in known.items():
        table = table_for(name, column, file.content)
        if table and table != name:
            arms = {key: value for key, value in file.content[table].items() if key == "arms"}
            with told(broken, COLUMN + name):
                found[COLUMN + name] = _join(file, (table,), arms, column)
    return found


def table_for(name: str, column: Experiment, content: Mapping[str, Any]) -> str:
    """The table of a matrix.toml with the arms for a column of this name, which has no prefix; "": there is none."""
    return next((table for table in (name, column.arms_of) if table and table in content), "")


def _refuse_arms_of(file: TomlFile) -> None:
    if "arms_of" in file.content:
        raise file.error(("arms_of",), f"only a column of the matrix has it, {WORKLOADS.name}/{COLUMN}*.toml")


def _workload(file: TomlFile, where: tuple[str, ...], name: Any, known: Mapping[str, Experiment]) -> Experiment:
    if not isinstance(name, str) or name not in known:
        raise file.error(where, f"unknown workload {name!r}: {did_you_mean(name, known)}")
    return known[name]


def _join(file: TomlFile, where: tuple[str, ...], own: Any, workload: Experiment) -> Experiment:
    """The workload with a method's arms beside the baseline, and the method's words in place of the workload's."""
    share = file.parse(Share, own, where)
    for name in share.arms:
        if name in workload.arms:
            raise file.error((*where, "arms", name), "the workload has an arm of this name")
    given = {key: getattr(share, key) for key in share.model_fields_set}
    content = {**dict(workload), "deviations": (), **given, "arms": {**workload.arms, **share.arms}}
    return file.parse(Experiment, content, where)


def _experiment(file: TomlFile) -> Experiment:
    content = dict(file.content)
    if "axes" in content:
        raise file.error(("axes",), UNKNOWN_KEY)  # it is found here, never given
    published = file.parse(Published, content.pop("published"), ("published",)) if "published" in content else None
    if isinstance(content.get("tasks"), dict):
        content["tasks"], content["axes"] = _spanned(file, content["tasks"])
    experiment = file.parse(Experiment, content)
    if published is None:
        return experiment
    try:
        claims = published.claims(experiment)
    except Misplaced as error:
        raise file.error(("published", *error.location), str(error)) from error
    return experiment.model_copy(update={"claims": (*claims, *experiment.claims)})


def tasks_spanned(table_name: str, table: Any) -> list[tuple[str, dict[str, Any]]]:
    """The names of the tasks that a table stands for, and the values of each on its axes; none for a plain task."""
    given = table if isinstance(table, dict) else {}
    arrays = {key: values for key, values in given.items() if isinstance(values, tuple)}
    if not arrays:
        return [(table_name, {})]
    points = [dict(zip(arrays, values, strict=True)) for values in itertools.product(*arrays.values())]
    return [("_".join(str(v).removeprefix(f"{table_name}_") for v in point.values()), point) for point in points]


def _spanned(file: TomlFile, tables: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Scalar]]]:
    """The tasks that tables stand for, and the values of those with axes.

    The first axis varies slowest. A task is called by its values, without the table's own name where one begins so:
    under ``[tasks.uci]``, ``dataset = ["uci_car"]`` and ``fold = [0, 1]`` are the tasks ``car_0`` and ``car_1``.
    """
    tasks: dict[str, Any] = {}
    axes: dict[str, dict[str, Scalar]] = {}
    for table_name, table in tables.items():
        given = table if isinstance(table, dict) else {}
        for key, values in given.items():
            if values == ():
                raise file.error(("tasks", table_name, key), "an axis without a value")
        n_tasks = math.prod(len(values) for values in given.values() if isinstance(values, tuple))
        if n_tasks > MOST_TASKS:
            raise file.error(("tasks", table_name), f"its axes span {n_tasks} tasks, expected at most {MOST_TASKS}")
        for name, point in tasks_spanned(table_name, table):
            task = table
            if point:
                task = file.parse(TaskSpec, {**given, **point}, ("tasks", table_name))
                named = {k: v.removeprefix(f"{table_name}_") if isinstance(v, str) else v for k, v in point.items()}
                axes[name] = named
            if name in tasks:
                raise file.error(("tasks", table_name), f"two tasks are called {name!r}")
            tasks[name] = task
    return tasks, axes
