"""What training minimises, the loss plus the method's penalty, on the splits that are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from reproduce.method.sites import sites_of

if TYPE_CHECKING:
    from reproduce.training.step import Step


@runtime_checkable
class HasObjective(Protocol):
    """A Task that may ask for the penalty of its splits."""

    evaluates_objective: bool

    def losses_of_splits(self) -> Iterator[tuple[str, Tensor, int]]:
        """Split, loss and size of each batch, right after the model has read it."""


@torch.no_grad()
def objectives(step: Step) -> dict[str, float]:
    """By split, the mean over examples of loss plus penalty; nothing where the Task does not ask for it.

    Layers are in evaluation mode while their Sites record. Generators are put back afterwards, so a Run with
    objectives equals one without.
    """
    task = step.task
    if not isinstance(task, HasObjective) or not task.evaluates_objective:
        return {}
    states = step.generators.state_dict()
    task.model.eval()
    for site in sites_of(task.model):
        site.training = True  # the Site alone: what it holds stays in evaluation mode
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for split, loss, size in task.losses_of_splits():
        penalty = step.method.penalty(step.trace, step.progress, step.generators.method)
        step.trace.clear()
        totals[split] = totals.get(split, 0.0) + (loss.double() + penalty.double()) * size
        counts[split] = counts.get(split, 0) + size
    task.model.train()
    step.generators.load_state_dict(states)
    return {split: float(total) / counts[split] for split, total in totals.items()}
