"""Counts the numbers of papers that are claimed, and those of them that a run can decide.

A cell is one number that a source prints of one model: a claim at paper scale with a value, of an arm by itself.
Differences of two cells, directions, repeats at reduced scale and claims of our own are not counted. It can run if its
arm is not pending.
"""

from __future__ import annotations

from collections.abc import Iterator

from reproduce.experiment.folder import all_methods
from reproduce.experiment.schema import Claim, Experiment


def cells() -> Iterator[tuple[Experiment, Claim]]:
    for folder in all_methods().values():
        for experiment in folder.experiments().values():
            if experiment.scale == "paper":
                yield from (
                    (experiment, claim)
                    for claim in experiment.claims
                    if claim.value is not None and claim.over is None and not claim.ours
                )


def can_run(experiment: Experiment, claim: Claim) -> bool:
    return not experiment.arms[claim.arm].pending


def test_so_many_published_cells_are_claims_and_can_run() -> None:
    found = list(cells())
    assert len(found) >= 351
    assert sum(can_run(*cell) for cell in found) >= 313


def test_each_cell_is_claimed_once() -> None:
    """By experiment, task, arm, metric and address: a number that stands twice would count twice."""
    found = [(experiment.title, claim.task, claim.arm, claim.metric, claim.source) for experiment, claim in cells()]
    assert len(set(found)) == len(found)


def test_a_cell_that_cannot_run_says_why() -> None:
    for experiment, claim in cells():
        if not can_run(experiment, claim):
            assert len((experiment.arms[claim.arm].pending or "").split()) >= 4, (experiment.title, claim.arm)
