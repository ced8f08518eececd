"""Where in its files an experiment says something, so that what is found wrong later is shown there. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from reproduce.errors import Location
from reproduce.experiment.files import COLUMN, WORKLOADS, read_columns, table_for, tasks_spanned
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Claim
from reproduce.experiment.toml import TomlFile, open_toml


def place_of(folder: MethodFolder, experiment: str, locations: Sequence[Location]) -> str:
    """``file:line`` of the first of these keys that stands in the experiment's files, or else of what comes nearest.

    Args:
        folder: whose experiment it is.
        locations: keys as of an `Experiment`; tasks under their own names, where a table spans several.
    """
    best, found = 0, ""
    for file, below in files_of(folder, experiment):
        found = found or str(file.path)
        for location in locations:
            for spelled in _spelled(file.content, (*below, *location)):
                depth = _depth(file.content, spelled)
                if depth - len(below) > best:
                    best, found = depth - len(below), file.place(spelled[:depth])
    return found


def place_of_claim(folder: MethodFolder, experiment: str, claim: Claim) -> str:
    """``file:line`` of the metric of a claim, or of the row of the published table that it follows from."""
    for file, below in files_of(folder, experiment):
        content = _inside(file.content, below)
        rows = content.get("published", {}).get("rows", ())
        for keys, tables in ((("claims",), content.get("claims", ())), (("published", "rows"), rows)):
            for index, table in enumerate(tables):
                if table.get("metric") == claim.metric and table.get("task") == claim.task:
                    return file.place((*below, *keys, index, "metric"))
    return place_of(folder, experiment, [("claims",)])


def files_of(folder: MethodFolder, experiment: str) -> list[tuple[TomlFile, Location]]:
    """The files that an experiment is read from, and below which keys it stands in each: the method's own, then the
    workload's.
    """
    found: list[tuple[TomlFile, Location]] = []
    path, matrix, workload = folder.path / "experiments" / f"{experiment}.toml", folder.path / "matrix.toml", experiment
    if path.exists():
        found.append((open_toml(path), ()))
        workload = found[0][0].content.get("workload", "")
    elif matrix.exists():
        file, columns = open_toml(matrix), read_columns(WORKLOADS, {})
        column = columns.get(experiment)
        table = table_for(experiment.removeprefix(COLUMN), column, file.content) if column else ""
        found += [(file, (table,))] if table else []
    shared = WORKLOADS / f"{workload}.toml"
    return [*found, (open_toml(shared), ())] if shared.exists() else found


def _spelled(content: dict[str, Any], location: Location) -> Iterator[Location]:
    """The same keys, with the table that spans a task in place of the task."""
    yield location
    if "tasks" not in location[:-1]:
        return
    at = location.index("tasks") + 1
    for name, table in _inside(content, location[:at]).items():
        if any(task == location[at] for task, point in tasks_spanned(name, table) if point):
            yield (*location[:at], name, *location[at + 1 :])


def _inside(content: Any, location: Location) -> dict[str, Any]:
    for part in location:
        content = content.get(part, {}) if isinstance(content, dict) else {}
    return content if isinstance(content, dict) else {}


def _depth(content: Any, location: Location) -> int:
    """How many of these keys, one inside the other, there are."""
    for depth, part in enumerate(location):
        inside = range(len(content)) if isinstance(content, tuple) else content
        if not isinstance(inside, dict | range) or part not in inside:
            return depth
        content = content[part]
    return len(location)
