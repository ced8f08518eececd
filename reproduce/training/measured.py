"""What an evaluation will give, known before it: claims and columns of anything else are refused by a plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from reproduce.errors import UserError, did_you_mean
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.metrics import place_of_metric
from reproduce.experiment.places import place_of, place_of_claim
from reproduce.experiment.schema import Experiment


class Measured(NamedTuple):
    """What an evaluation of a Task gives."""

    kind: str  # of Task
    metrics: frozenset[str]  # on each split
    validation: bool  # whether there is such a split, beside test
    test_metrics: frozenset[str] = frozenset()  # further ones, on test alone

    def refusal(self, metric: str) -> str:
        """Why ``test.error`` is not among it; "" where it is."""
        split, name, _ = place_of_metric(metric)
        of_split = self.metrics | (self.test_metrics if split == "test" else frozenset())
        if name not in of_split:
            known = sorted(f"{split}.{one}" for one in of_split)
            return f"{metric!r} is not measured on a task of kind {self.kind!r}: {did_you_mean(metric, known)}"
        if split == "validation" and not self.validation:
            return f"{metric!r}: the task has no validation split; set task.validation"
        return ""


def check_metrics(
    name: str, experiment: Experiment, measured: Mapping[tuple[str, str], Measured], folder: MethodFolder | None
) -> None:
    """Refuse claims and columns of what is not measured, before anything is trained.

    Args:
        measured: by task and arm, of those that are planned.
        folder: whose experiment it is, so that file and line can be said.

    Raises:
        UserError: in one line.
    """
    elsewhere = f"experiment {name}"
    for claim in experiment.claims:
        of_task = measured.get((claim.task, claim.arm))
        if of_task is not None and (refused := of_task.refusal(claim.metric)):
            where = place_of_claim(folder, name, claim) if folder else elsewhere
            raise UserError(f"{where}: a claim of arm {claim.arm!r} on task {claim.task!r}: {refused}")
    if {task for task, _ in measured} != set(experiment.tasks):
        return  # a column may be of a task that is not planned
    for index, metric in enumerate(experiment.metrics):
        refusals = [of_task.refusal(metric) for of_task in measured.values()]
        if all(refusals):
            where = place_of(folder, name, [("metrics", index)]) if folder else elsewhere
            raise UserError(f"{where}: metrics: {refusals[0]}")
