"""An experiment over many tasks of one kind: one table over all of them, ranks, and a performance profile."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from reproduce.report.sentences import SMALL
from reproduce.report.style import DASHES, STYLE, WIDTH, Look, colour, legend
from reproduce.report.tables import decimals_of, metric_name, number, p_text
from reproduce.results.match import TaskRuns, higher_is_better

MANY = 6  # with so many tasks, a page leads with one table over them and folds the rest away
MOST_RATIO = 3.0  # a profile shows no more


@dataclass(frozen=True)
class Across:
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
        sign = -1 if higher_is_better(self.metric) else 1
        ranks = np.mean([stats.rankdata(sign * np.array(row)) for row in rows], axis=0)
        return dict(zip(self.labels, map(float, ranks), strict=True))


def across(tasks: Mapping[str, TaskRuns]) -> Across | None:
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
        runs[problem] = sum(len(arm.values(metric)) for arm in arms), sum(len(arm.planned) for arm in arms)
    return Across(metric, labels, means, runs, tuple(waiting))


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
        estimate = arm.estimate(metric) if arm else None
        if estimate is not None:
            found.append(estimate.mean)
    return float(np.mean(found)) if found else None


def rows(found: Across) -> list[dict[str, Any]]:
    """For a table: a dict per problem with its name, cells (text, best) and runs; below, of
    the complete problems, how often an arm is best and its mean rank."""
    decimals = decimals_of([v for row in found.means.values() for v in row.values() if v is not None and v < math.inf])
    shown = []
    for problem, row in found.means.items():
        best = found.best(problem)
        cells = [{"text": _text(value, decimals), "best": arm in best} for arm, value in row.items()]
        done, planned = found.runs[problem]
        shown.append(
            {"name": problem, "cells": cells, "runs": f"{done}" if done == planned else f"{done} of {planned}"}
        )
    complete = found.complete
    if ranks := found.mean_ranks():
        wins = [str(sum(arm in found.best(problem) for problem in complete)) for arm in found.labels]
        for name, texts in (("best on", wins), ("mean rank", [number(rank, 2) for rank in ranks.values()])):
            cells = [{"text": text, "best": False} for text in texts]
            shown.append({"name": name, "cells": cells, "runs": f"on {len(complete)} tasks"})
    return shown


def _text(value: float | None, decimals: int) -> str:
    return "diverged" if value == math.inf else number(value, decimals)


def frame(found: Across) -> pd.DataFrame:
    """The same as texts, the best between asterisks."""
    texts = []
    for row in rows(found):
        cells = [f"**{cell['text']}**" if cell["best"] else cell["text"] for cell in row["cells"]]
        texts.append([row["name"], *cells, row["runs"]])
    return pd.DataFrame(texts, columns=pd.Index(["Task", *found.labels.values(), "Runs"]), dtype=object)


def sentence(found: Across) -> str:
    """Which arm has the best mean rank, and whether the tasks tell the arms apart (Friedman's test)."""
    ranks, complete = found.mean_ranks(), found.complete
    if len(ranks) < 2:
        return "No task has two arms to compare yet."
    least = min(ranks.values())
    names = [f"“{found.labels[arm]}”" for arm, rank in ranks.items() if math.isclose(rank, least)]
    said = (
        f"Over {len(complete)} tasks {' and '.join(names)} {'has' if len(names) == 1 else 'share'} the best mean rank "
        f"by {metric_name(found.metric)}, {number(least, 2)} among {len(ranks)} arms"
    )
    if len(ranks) > 2 and len(complete) >= MANY:
        columns = np.array([list(row.values()) for row in complete.values()]).T
        p = float(stats.friedmanchisquare(*columns).pvalue)
        if math.isfinite(p):
            text = p_text(p)
            told = "tells the arms apart" if p < SMALL else "does not tell the arms apart"
            said += f"; Friedman's test over tasks {told} (p {text if text.startswith('<') else f'= {text}'})"
    left_out = len(found.means) + len(found.waiting) - len(complete)
    more = f"{left_out} more task{'s are' if left_out > 1 else ' is'} not complete"
    return f"{said}." + (f" {more}." if left_out else "")


def profile(found: Across) -> dict[str, tuple[list[float], list[float]]]:
    """Dolan & Moré (2002): by arm, the ratios to the best mean of each complete problem, sorted, and the share of
    problems up to each. A diverged arm is infinitely far; so is all but a zero where the best is zero.

    Raises:
        ValueError: a metric of which more is better, or a negative mean: no ratio says which is better then.
    """
    problems = found.complete.values()
    smallest = min((value for row in problems for value in row.values()), default=0.0)
    if higher_is_better(found.metric) or smallest < 0:
        raise ValueError(f"a profile needs means of 0 or more, the less the better; got {found.metric}, {smallest}")
    curves = {}
    for arm in found.labels:
        ratios = []
        for row in problems:
            best, value = min(row.values()), row[arm]
            ratios.append(1.0 if value == best < math.inf else value / best if 0 < best < math.inf else math.inf)
        curves[arm] = sorted(ratios), [(place + 1) / len(ratios) for place in range(len(ratios))]
    return curves


def performance_profile(found: Across, look: Look) -> Figure | None:
    """Share of the tasks on which an arm's mean is at most so many times the best one's (Dolan & Moré 2002)."""
    if len(found.labels) < 2 or not found.complete or higher_is_better(found.metric):
        return None
    curves = profile(found)
    farthest = max((r for ratios, _ in curves.values() for r in ratios if math.isfinite(r)), default=1.0)
    end = min(MOST_RATIO, max(1.05, 1 + 1.05 * (farthest - 1)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axis = figure.subplots()
        for arm, (ratios, shares) in curves.items():
            inside = [(ratio, share) for ratio, share in zip(ratios, shares, strict=True) if ratio <= end]
            x = [1.0, *(ratio for ratio, _ in inside), end]
            y = [0.0, *(share for _, share in inside), inside[-1][1] if inside else 0.0]
            dash = DASHES[look[arm] // 8 % len(DASHES)]
            axis.step(x, y, where="post", lw=1.6, ls=dash, color=colour(look, arm), label=found.labels[arm])
        axis.set(xlabel=f"{metric_name(found.metric)} / best", ylabel="share of tasks", ylim=(0, 1.03), xlim=(1, end))
        axis.grid(axis="y")
        legend(figure, axis)
    return figure
