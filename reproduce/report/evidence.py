"""The page behind a method's page: every run that counts, with its numbers, its sealed Result and its command."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reproduce.experiment.files import COLUMN
from reproduce.report import repeat
from reproduce.report.numbers import metric_text, number, printed_decimals
from reproduce.report.render import Page
from reproduce.report.tables import TextTable
from reproduce.results.columns import Column
from reproduce.results.evaluate import Finding, MethodFindings, TaskFinding
from reproduce.results.match import ArmRuns, Point
from reproduce.results.record import Result

Address = Callable[[Result], str]  # where a Result lies, as seen from the pages


def beside_pages(result: Result) -> str:
    """Where committed Results lie."""
    return f"evidence/{result.config.folder}.json"


def in_runs(result: Result) -> str:
    """Where the runs lie whose report is in a folder beside them."""
    return f"../{result.config.folder}/result.json"


def found_in(files: Iterable[Path], output: Path) -> Address:
    """Where these files lie, as seen from an output folder anywhere."""
    places = {path.parent.name if path.name == "result.json" else path.stem: path for path in files}

    def address(result: Result) -> str:
        path = places.get(result.config.folder)
        return beside_pages(result) if path is None else Path(os.path.relpath(path, output)).as_posix()

    return address


@dataclass(frozen=True)
class RunLine:
    """One run."""

    params: str
    seed: int
    values: tuple[str, ...]  # of the experiment's metrics
    use: str
    device: str
    date: str
    id: str
    address: str


@dataclass(frozen=True)
class ArmEvidence:
    """One arm on one task: the command that makes its runs, and each of them."""

    anchor: str
    task: str
    label: str
    command: str
    runs: tuple[RunLine, ...]


@dataclass(frozen=True)
class ExperimentEvidence:
    """One experiment of which something ran."""

    name: str
    title: str
    metrics: tuple[str, ...]
    arms: tuple[ArmEvidence, ...]
    table: TextTable
    n_tasks: int

    @property
    def has_params(self) -> bool:
        return any(run.params for arm in self.arms for run in arm.runs)


def page_name(method: str) -> str:
    return f"{method}.evidence"


def anchor(finding: Finding, task: TaskFinding, arm: str) -> str:
    """Where an arm's runs on a task stand on the page."""
    return re.sub(r"[^\w-]+", "-", f"{finding.name}-{task.name}-{arm}")


def link(method: str, finding: Finding, task: TaskFinding, arm: str) -> str:
    """The address of an arm's runs, from the method's page; "" where it has none."""
    return _address(method, anchor(finding, task, arm)) if _ran(task, arm) else ""


def link_of_column(column: Column, arm: str) -> str:
    """The address of the runs of an arm of the matrix, on its method's page of evidence; "" where it has none."""
    method, name = column.place(arm)
    return _address(method, anchor(column.finding, column.task, name)) if _ran(column.task, arm) else ""


def _address(method: str, place: str) -> str:
    return f"{page_name(method)}.html#{place}"


def _ran(task: TaskFinding, arm: str) -> bool:
    runs = task.runs.arms.get(arm)
    return runs is not None and any(point.results for point in runs.points)


def evidence_page(method: MethodFindings, title: str, address: Address) -> Page:
    """The page of all runs of a method that its tables are made of."""
    name = method.folder.name
    ran = sorted((one for one in method.findings if one.results), key=lambda one: one.name.startswith(COLUMN))
    parts = tuple(_experiment(name, finding, address) for finding in ran)
    runs = len({result.id for finding in method.findings for result in finding.results})
    content = {"name": name, "title": title, "experiments": parts, "runs": runs}
    return Page(page_name(name), "evidence", content)


def _experiment(method: str, finding: Finding, address: Address) -> ExperimentEvidence:
    tasks = [task for task in finding.tasks.values() if task.runs.results]
    metrics = tuple(
        dict.fromkeys(
            metric
            for task in tasks
            for metric in (*task.metrics, *task.beside)
            if any(point.values(metric) for arm in task.runs.arms.values() for point in arm.points)
        )
    )
    decimals = {metric: _decimals(tasks, metric) for metric in metrics}
    arms = tuple(
        _arm(method, finding, task, arm, decimals, address)
        for task in tasks
        for arm in task.runs.arms.values()
        if any(point.results for point in arm.points)
    )
    headings = tuple(map(metric_text, metrics))
    table = _table(headings, arms)
    return ExperimentEvidence(finding.name, finding.experiment.title, headings, arms, table, len(tasks))


def _decimals(tasks: Iterable[TaskFinding], metric: str) -> int:
    """As many as six digits of each value need."""
    points = [point for task in tasks for arm in task.runs.arms.values() for point in arm.points]
    values = [value for point in points for value in point.values(metric).values()]
    return max((printed_decimals(float(f"{value:.6g}")) for value in values), default=0)


def _arm(
    method: str, finding: Finding, task: TaskFinding, arm: ArmRuns, decimals: Mapping[str, int], address: Address
) -> ArmEvidence:
    return ArmEvidence(
        anchor=anchor(finding, task, arm.name),
        task=task.name,
        label=arm.label,
        command=repeat.of_arm(method, finding, task, arm),
        runs=tuple(_run(arm, point, seed, decimals, address) for point in arm.points for seed in sorted(point.results)),
    )


def _run(arm: ArmRuns, point: Point, seed: int, decimals: Mapping[str, int], address: Address) -> RunLine:
    result = point.results[seed]
    return RunLine(
        params=", ".join(f"{name} = {value}" for name, value in point.params.items()),
        seed=seed,
        values=tuple(number(point.values(metric).get(seed), places) for metric, places in decimals.items()),
        use=_use(arm, point, seed),
        device=result.environment.device,
        date=result.environment.finished[:10],
        id=result.id,
        address=address(result),
    )


def _use(arm: ArmRuns, point: Point, seed: int) -> str:
    """What the run is for."""
    diverged = "; diverged" if seed in point.diverged else ""
    if arm.chosen is not None and point.params == arm.chosen.params and seed in arm.chosen.results:
        return f"counts{diverged}"
    if seed in arm.choosing:
        return f"chose{diverged}"
    return f"not chosen{diverged}"


def _table(metrics: tuple[str, ...], arms: Sequence[ArmEvidence]) -> TextTable:
    columns = ("Task", "Arm", "Parameters", "Seed", *metrics, "Use", "Device", "Finished", "Result")
    rows = [
        (
            arm.task,
            arm.label,
            run.params,
            str(run.seed),
            *run.values,
            run.use,
            run.device,
            run.date,
            f"[{run.id}]({run.address})",
        )
        for arm in arms
        for run in arm.runs
    ]
    return TextTable(columns, tuple(rows))
