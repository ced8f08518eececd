"""From an experiment and Results to a Finding: matched, compared and judged once, for every page and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from reproduce.experiment.dataset_card import DatasetCard, read_card
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Claim, Experiment
from reproduce.results.chance import collapsed, expected_best
from reproduce.results.judge import Verdict, judge_experiment
from reproduce.results.match import ArmRuns, ResultIndex, TaskRuns, match
from reproduce.results.over_tasks import OverTasks, over_tasks
from reproduce.results.record import Result
from reproduce.results.stats import SIGNIFICANCE, Difference, Estimate, holm


def no_interval(estimate: Estimate | None) -> str:
    """Why an estimate has no interval; "" where it has one."""
    if estimate is None or estimate.interval is not None:
        return ""
    return "one run gives no interval" if estimate.n == 1 else "equal at every seed: nothing tells how seeds scatter"


@dataclass(frozen=True)
class ArmRow:
    """One arm under one metric: a row of a table, with the statistics of its seeds; what is unknown is None."""

    runs: ArmRuns
    metric: str  # like "test.error"
    paper: float | None  # the published number
    values: Mapping[int, float]  # by seed, of those that completed
    estimate: Estimate | None  # of these values
    difference: Difference | None  # to the baseline; None where a seed of either diverged
    collapsed: tuple[int, ...]  # seeds that ended at chance level
    p_holm: float | None  # of the difference: two-sided, adjusted over all arms of the whole table (Holm)

    @property
    def arm(self) -> str:
        return self.runs.name

    @property
    def label(self) -> str:
        return self.runs.label

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def planned(self) -> int:
        """Seeds that are planned; those that ran, where they are more."""
        return max(len(self.runs.planned), len(self.runs.chosen.results) if self.runs.chosen else 0)

    @property
    def diverged(self) -> int:
        return self.runs.diverged

    @property
    def ran(self) -> bool:
        return self.n > 0 or self.diverged > 0

    @property
    def mean(self) -> Estimate | None:
        """The arm's mean. An arm with a diverged seed has none: see `survivors`."""
        return None if self.diverged else self.estimate

    @property
    def survivors(self) -> Estimate | None:
        """The mean of those that completed, where a seed diverged."""
        return self.estimate if self.diverged else None

    @property
    def significant(self) -> bool:
        """Whether the seeds tell the arm from the baseline."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE

    @property
    def chosen(self) -> str:
        """What the grid varied, at the point that counts; at an end of it, a better one may lie beyond."""
        ends = {name: self.runs.end_of_grid(name) for name in self.runs.chosen_grid}
        return ", ".join(
            f"{name} = {value}" + (f" ({ends[name]})" if ends[name] else "")
            for name, value in self.runs.chosen_grid.items()
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the arm, piece by piece."""
        if self.runs.arm.pending:
            return (f"not run: {self.runs.arm.pending}",)
        chosen = self.runs.chosen
        if chosen is None:
            return ("not run",)
        notes = []
        if self.diverged:
            survivors = ": the mean in brackets is of the others" if chosen.completed else ""
            notes.append(f"{self.diverged} of {len(chosen.results)} seeds diverged{survivors}")
        if self.collapsed:
            notes.append(f"{len(self.collapsed)} of {self.n} seeds ended at chance level")
        if chosen.repeats:
            notes.append(f"{chosen.repeats} seeds gave one and the same run, which counts once")
        lacking = no_interval(self.estimate)
        if lacking or (self.difference is not None and no_interval(self.difference.estimate)):
            notes.append(lacking or "the gap has no interval: one run counts of the baseline")
        if self.runs.missing:
            notes.append(f"seed {', '.join(map(str, self.runs.missing))} not run")
        if self.runs.chosen_by:
            notes.append(f"chosen: {self.runs.chosen_by}")
        if self.luck is not None:
            points = len(self.runs.points)
            notes.append(f"the best of {points} points that do not differ lies {self.luck:.2g} off by chance alone")
        if self.runs.baseline_chosen:
            notes.append("validation prefers 0, the baseline")
        return tuple(notes)

    @property
    def luck(self) -> float | None:
        """How far off the mean lies by the choice alone, where it was made on the very numbers that are shown: the
        expected best of so many points that do not differ. None where it was made on others."""
        names = {result.metric for result in self.runs.chosen.completed.values()} if self.runs.chosen else set()
        judged_by_choice = self.runs.chosen_on_test and self.metric in {f"test.{name}" for name in names}
        if not judged_by_choice or self.estimate is None or self.estimate.error is None:
            return None
        return expected_best(len(self.runs.points)) * math.sqrt(self.estimate.error.variance)


@dataclass(frozen=True)
class TaskFinding:
    """One task of an experiment: for each metric a row per arm."""

    runs: TaskRuns
    tables: Mapping[str, tuple[ArmRow, ...]]  # of `metrics`, then of what else is in `beside`
    metrics: tuple[str, ...]  # test, then validation of the task's own metric, then what else the claims name
    beside: tuple[str, ...]  # what the experiment wants in columns side by side, as far as this task measures it

    @property
    def name(self) -> str:
        return self.runs.task_name

    @property
    def experiment(self) -> Experiment:
        return self.runs.experiment

    @property
    def baseline(self) -> ArmRuns | None:
        return self.runs.arms.get(self.experiment.baseline or "")

    @property
    def rows(self) -> list[ArmRow]:
        """Those of all metrics."""
        return [row for rows in self.tables.values() for row in rows]

    def row(self, metric: str, arm: str) -> ArmRow | None:
        return next((row for row in self.tables.get(metric, ()) if row.arm == arm), None)

    def with_arms(self, names: Sequence[str]) -> TaskFinding:
        """The same numbers with these arms only, in this order."""
        runs = self.runs.part({name: self.runs.arms[name] for name in names})
        tables = {metric: {row.arm: row for row in rows} for metric, rows in self.tables.items()}
        ordered = {metric: tuple(rows[name] for name in names) for metric, rows in tables.items()}
        return replace(self, runs=runs, tables=ordered)


@dataclass(frozen=True)
class Finding:
    """Everything that pages say about one experiment."""

    name: str
    experiment: Experiment
    tasks: Mapping[str, TaskFinding]
    verdicts: tuple[Verdict, ...]  # one per claim, in the file's order
    datasets: Mapping[str, DatasetCard]
    over_tasks: OverTasks | None  # where there are many tasks

    @property
    def results(self) -> list[Result]:
        """Every Result that counts."""
        return [result for task in self.tasks.values() for result in task.runs.results]

    @property
    def superseded(self) -> list[Result]:
        return [result for task in self.tasks.values() for result in task.runs.superseded]

    @property
    def n_runs(self) -> int:
        return len({result.id for result in self.results})

    @property
    def ran(self) -> bool:
        """Whether anything can be judged: what only chooses, or is another experiment's as well, is not enough."""
        return any(arm.chosen is not None for task in self.tasks.values() for arm in task.runs.arms.values())

    @property
    def n_done(self) -> int:
        """How many of the planned Runs have a Result."""
        return sum(task.runs.done for task in self.tasks.values())

    @property
    def n_planned(self) -> int:
        return sum(task.runs.planned for task in self.tasks.values())


@dataclass(frozen=True)
class MethodFindings:
    """A method, and what was found in its experiments."""

    folder: MethodFolder
    findings: tuple[Finding, ...]


def evaluate(name: str, experiment: Experiment, results: ResultIndex) -> Finding:
    """Match, compare and judge one experiment.

    Raises:
        UserError: a task names a dataset without a card.
    """
    runs = match(experiment, results)
    cards = {task_name: read_card(experiment.tasks[task_name].dataset) for task_name in runs}
    return finding(name, experiment, {key: task_finding(task, cards[key]) for key, task in runs.items()})


def finding(name: str, experiment: Experiment, tasks: Mapping[str, TaskFinding]) -> Finding:
    """Judge what was found of an experiment's tasks.

    Raises:
        UserError: a task names a dataset without a card.
    """
    datasets = {task.dataset: read_card(task.dataset) for task in experiment.tasks.values()}
    stand_ins = frozenset(key for key, card in datasets.items() if not card.exact)
    runs = {task_name: task.runs for task_name, task in tasks.items()}
    return Finding(
        name=name,
        experiment=experiment,
        tasks=tasks,
        verdicts=tuple(
            _with_collapses(_with_its_p(verdict, experiment, tasks), tasks)
            for verdict in judge_experiment(experiment, runs, stand_ins)
        ),
        datasets=datasets,
        over_tasks=over_tasks(runs),
    )


def _with_its_p(verdict: Verdict, experiment: Experiment, tasks: Mapping[str, TaskFinding]) -> Verdict:
    """One comparison has one p: a gap to the baseline that of its row, adjusted over the arms of the table."""
    claim = verdict.claim
    row = tasks[claim.task].row(claim.metric, claim.arm) if claim.over == experiment.baseline else None
    return replace(verdict, p_adjusted=row.p_holm) if row is not None and row.p_holm is not None else verdict


def _with_collapses(verdict: Verdict, tasks: Mapping[str, TaskFinding]) -> Verdict:
    """The verdict with the arms named whose runs learned nothing: their mean says little."""
    said = at_chance_level(verdict.claim, tasks)
    return replace(verdict, reason="; ".join((verdict.reason, *said))) if said else verdict


def at_chance_level(claim: Claim, tasks: Mapping[str, TaskFinding]) -> list[str]:
    """Of a claim's arms, in words, those with runs that learned nothing."""
    rows = [tasks[claim.task].row(claim.metric, name) for name in (claim.arm, claim.over) if name is not None]
    return [
        f"{row.label}: {len(row.collapsed)} of {row.n} seeds at chance level" for row in rows if row and row.collapsed
    ]


def task_finding(task: TaskRuns, card: DatasetCard) -> TaskFinding:
    """The statistics of one task's matched Results, on the data of that card."""
    metrics = _metrics(task)
    beside = tuple(m for m in task.experiment.metrics if any(arm.values(m) for arm in task.arms.values()))
    tables = {metric: _rows(task, metric, card) for metric in dict.fromkeys((*metrics, *beside))}
    return TaskFinding(task, tables, metrics, beside)


def _metrics(task: TaskRuns) -> tuple[str, ...]:
    own = [f"{split}.{task.metric}" for split in ("test", "validation")] if task.metric is not None else []
    measured = [metric for metric in own if any(arm.values(metric) for arm in task.arms.values())]
    claimed = [claim.metric for claim in task.experiment.claims if claim.task == task.task_name]
    return tuple(dict.fromkeys(measured + claimed)) or (f"test.{task.metric or 'metric'}",)


def _rows(task: TaskRuns, metric: str, card: DatasetCard) -> tuple[ArmRow, ...]:
    baseline = task.arms.get(task.experiment.baseline or "")
    values = {name: arm.values(metric) for name, arm in task.arms.items()}
    differences = {
        name: None
        if baseline is None or arm is baseline or arm.diverged or baseline.diverged
        else task.difference(arm, baseline, metric)
        for name, arm in task.arms.items()
    }
    p_values = holm([difference.p_value if difference else None for difference in differences.values()])
    return tuple(
        ArmRow(
            runs=arm,
            metric=metric,
            paper=claim.value if (claim := published(task, name, metric)) else None,
            values=values[name],
            estimate=task.estimate(arm, metric),
            difference=differences[name],
            collapsed=collapsed(values[name], metric, card),
            p_holm=p_holm,
        )
        for (name, arm), p_holm in zip(task.arms.items(), p_values, strict=True)
    )


def published(task: TaskRuns, arm_name: str, metric: str) -> Claim | None:
    """The claim that states the paper's own number for one arm, if an experiment's file does."""
    for claim in task.experiment.claims:
        if (claim.task, claim.arm, claim.metric) == (task.task_name, arm_name, metric) and claim.over is None:
            return claim
    return None
