"""Columns of the cross-method matrix: one experiment from what every method adds to one workload.

The experiments of one name are merged into one that has the arms of all methods, and that one is evaluated:
differences, choices and Holm's adjustment are those of any other table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reproduce.errors import UserError
from reproduce.experiment.files import COLUMN
from reproduce.experiment.schema import Arm, Experiment
from reproduce.results.evaluate import ArmRow, Finding, TaskFinding, evaluate
from reproduce.results.match import ArmRuns, ResultIndex

OWN = {"arms", "deviations"}  # what the files of one column may differ in

Experiments = Mapping[str, Experiment]


@dataclass(frozen=True)
class Column:
    """One task with the arms of every method; in ``methods`` an arm's method folder, the baseline's apart."""

    finding: Finding
    task: TaskFinding
    methods: Mapping[str, str]

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
        finding = evaluate(file, merged, results)
        found += [Column(finding, task, owners) for task in finding.tasks.values()]
    return found


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
