"""Which arms a figure of many names: the baseline, the best, and those that claims are about."""

from __future__ import annotations

from collections.abc import Sequence

from reproduce.report.sentences import best_of, complete_means
from reproduce.results.evaluate import TaskFinding
from reproduce.results.match import ArmRuns

MOST = 6  # arms in color; the others are grey


def front(task: TaskFinding) -> list[str]:
    """The arms in front, most important first.

    These are the baseline, the best by validation, those of the papers' claims, those of ours, and then what comes
    first in the file.
    """
    ran = [arm.name for arm in task.runs.arms.values() if arm.chosen and arm.chosen.results]
    claims = [claim for claim in task.experiment.claims if claim.task == task.name]
    of_claims = [
        arm
        for claim in sorted(claims, key=lambda claim: claim.ours)
        for arm in (claim.arm, claim.over)
        if arm is not None
    ]
    wanted = dict.fromkeys(
        [*([task.baseline.name] if task.baseline else []), *_best_by_validation(task), *of_claims, *ran]
    )
    return [name for name in wanted if name in ran][:MOST]


def _best_by_validation(task: TaskFinding) -> list[str]:
    """The arm with the best mean, in a list; none where no arm has one."""
    own = sorted(task.metrics, key=lambda metric: not metric.startswith("validation."))[:1]
    for metric in own:
        means = complete_means(task.tables[metric])
        if means:
            return [best_of(means, metric)[0].arm]
    return []


def one_for_each_method(task: TaskFinding, count: int) -> list[ArmRuns]:
    """At most so many arms in front, no two of one method, in the order of the file."""
    chosen: dict[str, str] = {}
    for name in front(task):
        chosen.setdefault(task.experiment.arms[name].method, name)
    return in_order_of_file(task, list(chosen.values())[:count])


def in_order_of_file(task: TaskFinding, names: Sequence[str]) -> list[ArmRuns]:
    return [arm for name, arm in task.runs.arms.items() if name in names]
