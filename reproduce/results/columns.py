"""Columns of the cross-method matrix: one experiment from what every method adds to one workload.

The experiments of one name are merged into one that has the arms of all methods, and that one is evaluated:
differences, choices and Holm's adjustment are those of any other table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from reproduce.errors import UserError
from reproduce.experiment.files import COLUMN
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Arm, Experiment
from reproduce.results.evaluate import ArmRow, Finding, MethodFindings, TaskFinding, evaluate, finding
from reproduce.results.match import ArmRuns, ResultIndex

OWN = {"arms", "deviations"}  # what the files of one column may differ in

Experiments = Mapping[str, Experiment]


@dataclass(frozen=True)
class Column:
    """One task with the arms of every method; in ``methods`` an arm's method folder, the baseline's apart."""

    finding: Finding
    task: TaskFinding
    methods: Mapping[str, str]
    home: str  # the method in whose file the baseline is looked up; all have it

    @property
    def file(self) -> str:
        return self.finding.name

    @property
    def experiment(self) -> Experiment:
        return self.finding.experiment

    @property
    def metric(self) -> str:
        """The task's own, on the test set."""
        return self.task.metrics[0]

    @property
    def baseline(self) -> ArmRuns:
        return self.task.runs.arms[self.experiment.baseline or ""]

    def place(self, arm: str) -> tuple[str, str]:
        """The method in whose file an arm stands, and what it is called there."""
        method = self.methods.get(arm, self.home)
        return method, arm.removeprefix(f"{method}.")

    @property
    def rows(self) -> dict[str, ArmRow]:
        """Of the column's metric, by arm."""
        return {row.arm: row for row in self.task.tables[self.metric]}


def columns(methods: Mapping[str, Experiments], results: ResultIndex) -> list[Column]:
    """The columns in the order of their files' names; none where no method has such a file.

    Args:
        methods: by name, all experiments of a method.

    Raises:
        UserError: files of one column that disagree in their task, budget, seeds or baseline, or a task that names a
            dataset without a card.
    """
    files = sorted({file for experiments in methods.values() for file in experiments if file.startswith(COLUMN)})
    found = []
    for file in files:
        parts = {name: experiments[file] for name, experiments in methods.items() if file in experiments}
        merged, owners = _merged(file, parts)
        whole = evaluate(file, merged, results)
        baseline = merged.arms[merged.baseline or ""].method
        home = baseline if baseline in parts else next(iter(parts))
        found += [Column(whole, task, owners, home) for task in whole.tasks.values()]
    return found


def find_all(
    methods: Mapping[MethodFolder, Experiments], known: Mapping[str, Experiments], results: ResultIndex
) -> tuple[list[MethodFindings], list[Column]]:
    """What was found in the experiments of ``methods``, and their columns, with the arms of all methods ``known``.

    Raises:
        UserError: as `columns`.
    """
    files = {file for experiments in methods.values() for file in experiments}
    needed = {
        method: {file: one for file, one in of_method.items() if file in files} for method, of_method in known.items()
    }
    crossed = columns(needed, results)
    whole = {column.file: column.finding for column in crossed}
    found = [
        MethodFindings(
            folder,
            tuple(
                share_of(whole[name], folder.name, experiment)
                if name in whole and experiments.get(name) == known.get(folder.name, {}).get(name)
                else evaluate(name, experiment, results)
                for name, experiment in experiments.items()
            ),
        )
        for folder, experiments in methods.items()
    ]
    return found, crossed


def share_of(column: Finding, method: str, experiment: Experiment) -> Finding:
    """What a method's own file of a column comes to: its arms and the baseline, with the numbers of the whole column.

    One comparison then has one interval and one p, wherever it stands.
    """
    names = {name if name == experiment.baseline else f"{method}.{name}": name for name in experiment.arms}
    return finding(column.name, experiment, {key: _part(task, names, experiment) for key, task in column.tasks.items()})


def _part(task: TaskFinding, names: Mapping[str, str], experiment: Experiment) -> TaskFinding:
    """The arms that have a new name."""
    arms = {name: replace(task.runs.arms[key], name=name) for key, name in names.items() if key in task.runs.arms}
    methods = {arm.arm.method for arm in arms.values()}
    superseded = tuple(result for result in task.runs.superseded if result.config.method in methods)
    runs = replace(task.runs.part(arms), experiment=experiment, superseded=superseded)
    tables = {
        metric: tuple(replace(row, runs=arms[names[row.arm]]) for row in rows if row.arm in names)
        for metric, rows in task.tables.items()
    }
    return replace(task, runs=runs, tables=tables)


def _merged(file: str, parts: Experiments) -> tuple[Experiment, dict[str, str]]:
    """One experiment with the baseline and then every method's arms, and the method of each arm."""
    frames = {name: _frame(f"{file}: methods/{name}", experiment) for name, experiment in parts.items()}
    (first, expected), *others = frames.items()
    for name, frame in others:
        wrong = [key for key in expected if frame[key] != expected[key]]
        if wrong:
            raise UserError(f"{file}: methods/{name} and methods/{first} differ in {', '.join(wrong)}: one for all")
    baseline = parts[first].baseline or ""
    arms: dict[str, Arm] = {baseline: parts[first].arms[baseline]}
    owners = {}
    for name, experiment in parts.items():
        for arm_name, arm in experiment.arms.items():
            if arm_name != baseline:
                arms[f"{name}.{arm_name}"] = arm
                owners[f"{name}.{arm_name}"] = name
    deviations = [text if name not in owners.values() else f"{name}: {text}" for name, text in _deviations(parts)]
    return parts[first].model_copy(update={"arms": arms, "deviations": tuple(deviations)}), owners


def _deviations(parts: Experiments) -> list[tuple[str, str]]:
    """What the files of one column say of themselves, by method; first those of methods that add no arm."""
    pairs = [(name, text) for name, experiment in parts.items() for text in experiment.deviations]
    return sorted(pairs, key=lambda pair: len(parts[pair[0]].arms) > 1)


def _frame(where: str, experiment: Experiment) -> dict[str, Any]:
    """What every file of a column must share."""
    if experiment.baseline is None:
        raise UserError(f"{where} names no baseline: a column of the matrix needs one")
    shared = experiment.model_dump(exclude=OWN)
    return {**shared, "the baseline's arm": experiment.arms[experiment.baseline].model_dump()}
