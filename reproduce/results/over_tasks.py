"""An experiment over many tasks of one kind: means of every arm on each, ranks, and a performance profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reproduce.results.match import TaskRuns, higher_is_better

MANY = 6  # with so many tasks, a page leads with one table over them and folds the rest away


@dataclass(frozen=True)
class OverTasks:
    """Means over seeds, and over the folds of a dataset, by problem and arm."""

    metric: str  # like "test.error"
    labels: dict[str, str]  # of arms that ran anywhere, by name
    means: dict[str, dict[str, float | None]]  # infinite where a run diverged, None where all are missing
    runs: dict[str, tuple[int, int]]  # by problem: completed, planned
    waiting: tuple[str, ...]  # problems of which nothing has run

    @property
    def complete(self) -> dict[str, dict[str, float]]:
        """The problems on which every arm ran, an infinite mean being the worst."""
        worst = -math.inf if higher_is_better(self.metric) else math.inf
        found = {}
        for problem, row in self.means.items():
            values = {arm: value for arm, value in row.items() if value is not None}
            if len(values) == len(self.labels):
                found[problem] = {arm: value if math.isfinite(value) else worst for arm, value in values.items()}
        return found

    def best(self, problem: str) -> set[str]:
        """The arms with the best mean, where two or more have one."""
        finite = {arm: v for arm, v in self.means[problem].items() if v is not None and math.isfinite(v)}
        if len(finite) < 2:
            return set()
        target = (max if higher_is_better(self.metric) else min)(finite.values())
        return {arm for arm, value in finite.items() if value == target}

    def mean_ranks(self) -> dict[str, float]:
        """Over complete problems: 1 is the best arm of each, equal ones share their ranks; empty without any."""
        rows = [list(row.values()) for row in self.complete.values()]
        if not rows:
            return {}
        from scipy import stats  # half a second to load, which most commands can do without

        sign = -1 if higher_is_better(self.metric) else 1
        ranks = np.mean([stats.rankdata(sign * np.array(row)) for row in rows], axis=0)
        return dict(zip(self.labels, map(float, ranks), strict=True))

    def friedman_p(self) -> float | None:
        """p of Friedman's test that no arm ranks better than another over complete problems; None where two arms, or
        fewer than MANY problems, are too few for it, or all ranks are equal."""
        rows = [list(row.values()) for row in self.complete.values()]
        if len(self.labels) < 3 or len(rows) < MANY:
            return None
        from scipy import stats

        p = float(stats.friedmanchisquare(*np.array(rows).T).pvalue)
        return p if math.isfinite(p) else None


def over_tasks(tasks: Mapping[str, TaskRuns]) -> OverTasks | None:
    """What an experiment found over all its tasks; None for fewer than MANY, or while no two can be compared."""
    ran = {name: task for name, task in tasks.items() if task.results}
    metrics = {task.metric for task in ran.values()}
    if len(tasks) < MANY or len(metrics) != 1:
        return None
    metric = f"test.{metrics.pop()}"
    labels = {name: arm.label for task in ran.values() for name, arm in task.arms.items() if arm.chosen}
    means: dict[str, dict[str, float | None]] = {}
    runs = {}
    waiting = []
    for problem, folds in _problems(tasks).items():
        if not any(task.results for task in folds):
            waiting.append(problem)
            continue
        means[problem] = {arm: _mean(folds, arm, metric) for arm in labels}
        arms = [arm for task in folds for arm in task.arms.values() if not arm.arm.pending]
        runs[problem] = (
            sum(len(arm.chosen.values(metric)) for arm in arms if arm.chosen),
            sum(len(arm.planned) for arm in arms),
        )
    return OverTasks(metric, labels, means, runs, tuple(waiting))


def _problems(tasks: Mapping[str, TaskRuns]) -> dict[str, list[TaskRuns]]:
    """Tasks that differ in their fold alone are one problem, called by its values on the other axes."""
    named: dict[str, list[TaskRuns]] = {}
    for name, task in tasks.items():
        axes = task.experiment.axes.get(name, {})
        others = [str(value) for axis, value in axes.items() if axis != "fold"]
        named.setdefault("_".join(others) if "fold" in axes and others else name, []).append(task)
    return named


def _mean(folds: Sequence[TaskRuns], arm_name: str, metric: str) -> float | None:
    found = []
    for task in folds:
        arm = task.arms.get(arm_name)
        if arm is not None and arm.diverged:
            return math.inf
        mean = arm.mean(metric) if arm else None
        if mean is not None:
            found.append(mean)
    return float(np.mean(found)) if found else None


def profile(over: OverTasks) -> dict[str, tuple[list[float], list[float]]]:
    """Dolan & Moré (2002): by arm, the ratios to the best mean of each complete problem, sorted, and the share of
    problems up to each. A diverged arm is infinitely far; so is all but a zero where the best is zero.

    Raises:
        ValueError: a metric of which more is better, or a negative mean: no ratio says which is better then.
    """
    problems = over.complete.values()
    smallest = min((value for row in problems for value in row.values()), default=0.0)
    if higher_is_better(over.metric) or smallest < 0:
        raise ValueError(f"a profile needs means of 0 or more, the less the better; got {over.metric}, {smallest}")
    curves = {}
    for arm in over.labels:
        ratios = []
        for row in problems:
            best, value = min(row.values()), row[arm]
            ratios.append(1.0 if value == best < math.inf else value / best if 0 < best < math.inf else math.inf)
        curves[arm] = sorted(ratios), [(place + 1) / len(ratios) for place in range(len(ratios))]
    return curves
