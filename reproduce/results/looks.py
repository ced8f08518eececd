"""Which seeds to add to undecided claims: `run --until-decided`, by the plan that the rule of verdicts allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.schema import Claim
from reproduce.results.evaluate import Finding
from reproduce.results.judge import Verdict
from reproduce.results.match import ArmRuns
from reproduce.results.power import is_open, seeds_of

LOOKS = 3  # after the planned one, each at twice as many seeds: 3, 6, 12, 24


@dataclass(frozen=True)
class NextLook:
    """What would be trained next, the claims that need the fewest seeds first, and what will not be."""

    cells: tuple[Cell, ...]
    claims: int  # how many undecided claims these are for
    hopeless: tuple[Claim, ...]  # undecided, but more seeds are needed than may be added


def next_look(finding: Finding, most: int | None = None) -> NextLook:
    """The cells of the next look at one experiment's undecided claims.

    A claim's arms are brought to the next of n, 2 n, 4 n, ... seeds, n as planned, where that many have not run yet.
    Only the points that count are trained further: the other ones of a grid have been left behind.

    Args:
        most: seeds of an arm, at the most; None: eight times as planned.
    """
    experiment = finding.experiment
    planned = len(experiment.seeds)
    most = planned * 2**LOOKS if most is None else most
    wanted: dict[tuple[str, str], int] = {}
    hopeless = []
    counted = 0
    for verdict in sorted(filter(is_open, finding.verdicts), key=_needed):
        claim = verdict.claim
        arms = _arms(finding, claim)
        n = min(len(arm.values(claim.metric)) for arm in arms)
        if n >= most or _needed(verdict) > most:
            hopeless.append(claim)
            continue
        following = min(most, next(planned * 2**look for look in range(64) if planned * 2**look > n))
        counted += 1
        for arm in arms:
            key = claim.task, arm.name
            wanted[key] = max(wanted.get(key, 0), following)
    found = [
        cell
        for (task, name), n in wanted.items()
        for cell in cells(experiment, _seeds(experiment.seeds, n))
        if (cell.task_name, cell.arm_name) == (task, name) and _counts(finding, cell)
    ]
    return NextLook(tuple(found), counted, tuple(hopeless))


def _needed(verdict: Verdict) -> float:
    needed = seeds_of(verdict)
    return float("inf") if needed is None else needed


def _arms(finding: Finding, claim: Claim) -> list[ArmRuns]:
    arms = finding.tasks[claim.task].runs.arms
    return [arms[name] for name in (claim.arm, claim.over) if name is not None]


def _counts(finding: Finding, cell: Cell) -> bool:
    """Whether the cell is of the point that was chosen."""
    chosen = finding.tasks[cell.task_name].runs.arms[cell.arm_name].chosen
    return chosen is not None and cell.point == chosen.params


def _seeds(planned: Sequence[int], n: int) -> tuple[int, ...]:
    """The planned ones, and then the smallest others."""
    others = (seed for seed in range(len(planned) + n) if seed not in planned)
    return (*planned, *(next(others) for _ in range(n - len(planned))))[:n]
