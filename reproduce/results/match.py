"""Which Results belong to which arm of an experiment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.identity import canonical_json, cell_key, one_spelling, run_key
from reproduce.experiment.metrics import METRICS, metric_named, place_of_metric
from reproduce.experiment.schema import Arm, Experiment
from reproduce.results.record import Result, device_kind
from reproduce.results.scatter import SeedScatter, seed_scatter
from reproduce.results.stats import UNBOUNDED, Difference, Estimate, difference, mean_estimate

LARGEST = 1e100  # a Run that ends with more has diverged, whatever its last loss was: the square of 1e200 is infinite


@dataclass(frozen=True)
class Point:
    """One choice of an arm's parameters, and its Results by seed."""

    params: dict[str, Any]  # as the experiment gives them
    results: dict[int, Result]

    @cached_property
    def completed(self) -> dict[int, Result]:
        return {seed: result for seed, result in self.results.items() if _has_numbers(result)}

    @cached_property
    def diverged(self) -> dict[int, Result]:
        return {seed: result for seed, result in self.results.items() if seed not in self.completed}

    @cached_property
    def repeats(self) -> int:
        """How many seeds there are of one and the same run, where nothing of it is random: equal in every number."""
        completed = list(self.completed.values())
        same = len(completed) > 1 and all(result.final == completed[0].final for result in completed)
        return len(completed) if same else 0

    def values(self, metric: str) -> dict[int, float]:
        """The number that counts, by seed, of a metric like "test.error"; seeds that lack it are left out.

        Of "test.error@20" the number at the end of epoch 20, which lacks where that epoch was not evaluated.
        """
        split, name, epoch = place_of_metric(metric)
        if split not in ("test", "validation"):
            return {}
        found = {}
        for seed, result in self.completed.items():
            at = (record for record in result.epochs if record.epoch == epoch)
            end = result.final if epoch is None else next(at, None)
            if end is not None and name in getattr(end, split):
                found[seed] = getattr(end, split)[name]
        return found

    def mean(self, metric: str) -> float | None:
        """Over the seeds that completed."""
        values = self.values(metric)
        return float(np.mean(list(values.values()))) if values else None


def _has_numbers(result: Result) -> bool:
    """Whether a Run ended with numbers that a mean and a variance can be taken of."""
    if result.status != "completed":
        return False
    values = () if result.final is None else (*result.final.validation.values(), *result.final.test.values())
    return all(abs(value) <= LARGEST for value in values)  # NaN is not


@dataclass(frozen=True)
class ArmRuns:
    """One arm on one task: its points, the one that counts, and how that one was chosen."""

    name: str
    arm: Arm
    points: tuple[Point, ...]
    chosen: Point | None  # None: nothing has run
    chosen_by: str  # "" where there was nothing to choose
    chosen_on_test: bool
    planned: tuple[int, ...]  # seeds that the experiment asks for, to be judged
    choosing: tuple[int, ...] = ()  # further ones, of every point, that chose
    baseline_chosen: bool = False  # by the same seeds' validation the baseline is better than every point

    @property
    def label(self) -> str:
        return self.arm.label or self.name

    @property
    def missing(self) -> tuple[int, ...]:
        """Planned seeds without a Result at the point that counts."""
        have = self.chosen.results if self.chosen else {}
        return tuple(seed for seed in self.planned if seed not in have)

    @property
    def diverged(self) -> int:
        return len(self.chosen.diverged) if self.chosen else 0

    def values(self, metric: str) -> dict[int, float]:
        """By seed. A run that every seed repeats to the last bit counts once: it says nothing of how seeds scatter."""
        if self.chosen is None:
            return {}
        values = self.chosen.values(metric)
        return dict(list(values.items())[:1]) if self.chosen.repeats else values

    def mean(self, metric: str) -> float | None:
        return self.chosen.mean(metric) if self.chosen else None

    @property
    def chosen_grid(self) -> dict[str, Any]:
        """The parameters that the grid varied, at the point that counts."""
        return {name: self.chosen.params[name] for name in self.arm.choices} if self.chosen else {}

    def end_of_grid(self, name: str) -> str:
        """ "lowest of 3" or "highest of 3" where the number that was chosen is one of the grid's ends; else ""."""
        choices, value = self.arm.choices[name], self.chosen_grid.get(name)
        numbers = [choice for choice in choices if isinstance(choice, int | float) and not isinstance(choice, bool)]
        if len(choices) < 2 or len(numbers) < len(choices) or value not in (min(numbers), max(numbers)):
            return ""
        return f"{'lowest' if value == min(numbers) else 'highest'} of {len(choices)}"


@dataclass(frozen=True)
class TaskRuns:
    """All that is known of one task of an experiment."""

    experiment: Experiment
    task_name: str
    arms: dict[str, ArmRuns]
    superseded: tuple[Result, ...]  # of an older method or loop version, or of other data
    notes: tuple[str, ...]
    whole: TaskRuns | None = None  # the table that this is a part of: how seeds scatter is a matter of all of it

    @property
    def results(self) -> list[Result]:
        """Every Result that counts, of every point of every arm."""
        return [result for arm in self.arms.values() for point in arm.points for result in point.results.values()]

    @property
    def planned(self) -> int:
        """How many Runs the experiment asks for."""
        return sum(
            len(arm.points) * len(arm.choosing) + len(arm.planned)
            if arm.choosing
            else len(arm.points) * len(arm.planned)
            for arm in self.arms.values()
        )

    @property
    def done(self) -> int:
        """How many of these have a Result; seeds beyond the planned ones are not among them."""
        return sum(
            len(point.results.keys() & {*arm.choosing})
            + (0 if arm.choosing and point.params != chosen else len(point.results.keys() & {*arm.planned}))
            for arm in self.arms.values()
            for chosen in [arm.chosen.params if arm.chosen else None]
            for point in arm.points
        )

    @property
    def metric(self) -> str | None:
        """The task's own metric, like "error"; None when nothing has run."""
        names = {result.metric for result in self.results}
        return sorted(names)[0] if names else None

    def part(self, arms: Mapping[str, ArmRuns]) -> TaskRuns:
        """The same table with these arms only."""
        return replace(self, arms=dict(arms), whole=self.whole or self)

    @cached_property
    def _scatters(self) -> dict[str, SeedScatter]:
        return {}

    def scatter(self, metric: str) -> SeedScatter:
        """How seeds scatter, from every point of every arm, unchosen ones included."""
        if self.whole is not None:
            return self.whole.scatter(metric)
        if metric not in self._scatters:
            points = [p.values(metric) for arm in self.arms.values() for p in arm.points if not p.repeats]
            self._scatters[metric] = seed_scatter(points)
        return self._scatters[metric]

    def estimate(self, arm: ArmRuns, metric: str) -> Estimate | None:
        """The arm's mean with its interval; of those seeds that completed."""
        values = arm.values(metric)
        measured = METRICS.get(place_of_metric(metric).name)
        bounds = (measured.low, measured.high) if measured else UNBOUNDED
        return mean_estimate(list(values.values()), self.scatter(metric), bounds) if values else None

    def difference(self, arm: ArmRuns, over: ArmRuns, metric: str) -> Difference | None:
        """One arm minus another; None where one has no value."""
        return difference(arm.values(metric), over.values(metric), self.scatter(metric))


def higher_is_better(metric: str) -> bool:
    """Whether the metric, like "error" or "test.error", is declared so; unknown names are an error."""
    return metric_named(place_of_metric(metric).name).better == "higher"


class ResultIndex:
    """Results by what decides whether they belong to a cell, which takes time to spell out: once for a command."""

    def __init__(self, results: Iterable[Result] = ()) -> None:
        # By method and defaults of its time: those defaults, and the Results by their key.
        self._groups: dict[tuple[str, str], tuple[dict[str, Any], dict[str, list[Result]]]] = {}
        for result in results:
            group = result.config.method, canonical_json(one_spelling(result.defaults))
            _, by_key = self._groups.setdefault(group, (result.defaults, {}))
            by_key.setdefault(run_key(result.config), []).append(result)

    def of(self, cell: Cell) -> list[Result]:
        """Those of any seed that the cell asks for: task, recipe and method are equal, and their params are the
        method's defaults of their time with the cell's params over them."""
        found = []
        for (method, _), (defaults, by_key) in self._groups.items():
            if method == cell.method:
                found += by_key.get(cell_key(cell, defaults), [])
        return found


def match(experiment: Experiment, results: ResultIndex) -> dict[str, TaskRuns]:
    """Find the Results of every arm, by task.

    Seeds beyond the planned ones count too. So that arms stay comparable, one task shows one loop version and one
    dataset checksum (the newest), and one version of each method (the newest); the others are superseded.
    """
    wanted: dict[str, dict[str, list[Cell]]] = {name: {} for name in experiment.tasks}
    for cell in cells(experiment, seeds=experiment.seeds[:1]):
        wanted[cell.task_name].setdefault(cell.arm_name, []).append(cell)
    return {name: _match_task(experiment, name, arms, results) for name, arms in wanted.items()}


def _match_task(
    experiment: Experiment, task_name: str, wanted: Mapping[str, Sequence[Cell]], results: ResultIndex
) -> TaskRuns:
    found = [
        (arm_name, index, result)
        for arm_name, arm_cells in wanted.items()
        for index, cell in enumerate(arm_cells)
        for result in results.of(cell)
        if result.config.seed not in experiment.seen_seeds and result.metric in METRICS
    ]
    kept, notes = _newest([result for *_, result in found])
    kept_ids = {id(result) for result in kept}
    by_point: dict[tuple[str, int], dict[int, Result]] = {}
    superseded: dict[str, Result] = {}
    for arm_name, index, result in sorted(found, key=lambda item: _age(item[2])):
        if id(result) in kept_ids:
            by_point.setdefault((arm_name, index), {})[result.config.seed] = result  # the newest finished stays
        else:
            superseded[result.id] = result
    arms = {}
    for arm_name, arm in experiment.arms.items():
        if arm.tasks is not None and task_name not in arm.tasks:
            continue
        points = tuple(
            Point(cell.point, dict(sorted(by_point.get((arm_name, index), {}).items())))
            for index, cell in enumerate(wanted.get(arm_name, []))
        )
        choosing = experiment.choosing_seeds_of(arm_name)
        others = experiment.choosing_seeds  # which are judged in no arm
        chooses = bool(choosing) and arm.chooses
        planned = experiment.seeds_of(arm_name)
        asked = [_only(point, choosing if chooses else planned) for point in points]
        if not chooses and not any(point.results for point in asked):
            asked = [_without(point, others) for point in points]
        best, chosen_by, on_test = _choose(asked)
        if best is not None and chooses:
            chosen_by += f", on seeds {', '.join(map(str, choosing))}, which are not judged"
        counting = [_without(point, others) for point in points if best and point.params == best.params]
        judged = counting[0] if counting and counting[0].results else None
        arms[arm_name] = ArmRuns(arm_name, arm, points, judged, chosen_by, on_test, planned, choosing)
    arms = {name: _against_zero(arm, arms.get(experiment.baseline or "")) for name, arm in arms.items()}
    notes += _mixed_devices(kept)
    ordered = tuple(superseded[key] for key in sorted(superseded))
    return TaskRuns(experiment, task_name, arms, ordered, tuple(notes))


def _against_zero(arm: ArmRuns, baseline: ArmRuns | None) -> ArmRuns:
    """A grid holds no 0: that is the baseline. Would it have been chosen?"""
    if baseline is None or arm is baseline or not arm.choosing or arm.chosen is None:
        return arm
    chosen = next(point for point in arm.points if point.params == arm.chosen.params)
    both = [_only(point, arm.choosing) for point in (baseline.points[0], chosen)]
    if any(len(point.completed) < len(arm.choosing) for point in both):
        return arm
    preferred, *_ = _choose([*both])
    return replace(arm, baseline_chosen=preferred is both[0])


def _only(point: Point, seeds: Collection[int]) -> Point:
    return Point(point.params, {seed: result for seed, result in point.results.items() if seed in seeds})


def _without(point: Point, seeds: Collection[int]) -> Point:
    return Point(point.params, {seed: result for seed, result in point.results.items() if seed not in seeds})


def cells_to_train(experiment: Experiment, results: ResultIndex) -> list[Cell]:
    """The cells that are to be trained by what is known: a point is judged once all points have run that it is chosen
    from, where arms choose on seeds of their own; all cells of other experiments."""
    if not experiment.choosing_seeds:
        return cells(experiment)
    tasks = match(experiment, results)

    def wanted(cell: Cell) -> bool:
        arm = tasks[cell.task_name].arms[cell.arm_name]
        if not arm.choosing or not arm.arm.chooses or cell.seed in arm.choosing:
            return True
        if any(seed not in point.results for point in arm.points for seed in arm.choosing):
            return False
        chosen, *_ = _choose([_only(point, arm.choosing) for point in arm.points])
        return chosen is not None and cell.point == chosen.params

    return [cell for cell in cells(experiment) if wanted(cell)]


def _age(result: Result) -> tuple[str, str]:
    return result.environment.finished, result.seal


def _newest(results: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Results of the newest loop, then data, then method versions; and a sentence for each thing left out."""
    if not results:
        return [], []
    notes = []
    loop = max(result.config.loop_version for result in results)
    current = [result for result in results if result.config.loop_version == loop]
    if len(current) < len(results):
        notes.append(f"Only runs of loop version {loop} count here; {len(results) - len(current)} older left out.")
    checksum = max(current, key=_age).config.dataset_checksum
    same_data = [result for result in current if result.config.dataset_checksum == checksum]
    if len(same_data) < len(current):
        notes.append(
            f"Runs on different data are not mixed: data {checksum[:12]} counts, as the most recently used; "
            f"{len(current) - len(same_data)} on other data left out."
        )
    versions: dict[tuple[str, str], tuple[int, int]] = {}
    for result in same_data:
        methods, version = _methods(result)
        versions[methods] = max(versions.get(methods, version), version)
    kept = [r for r in same_data if _methods(r)[1] == versions[_methods(r)[0]]]
    for method in sorted({r.config.method for r in same_data}):
        older = sum(r.config.method == method for r in same_data) - sum(r.config.method == method for r in kept)
        if older:
            newest = max(r.config.method_version for r in kept if r.config.method == method)
            notes.append(f"Only version {newest} of {method} counts here; {older} older left out.")
    return kept, notes


def _methods(result: Result) -> tuple[tuple[str, str], tuple[int, int]]:
    """The Run's method and the one that started it, and their versions."""
    config, start = result.config, result.config.start
    return (config.method, start.method if start else ""), (config.method_version, start.version if start else 0)


def _mixed_devices(results: Sequence[Result]) -> list[str]:
    """A sentence where the numbers of one table come from different kinds of device: equal seeds then differ."""
    kinds = Counter(device_kind(result.environment.device) for result in results)
    if len(kinds) < 2:
        return []
    counted = ", ".join(f"{kind} ({count} {'run' if count == 1 else 'runs'})" for kind, count in kinds.most_common())
    return [f"Different kinds of device stand side by side: {counted}. The same seed gives other last bits on each."]


def _choose(points: Sequence[Point]) -> tuple[Point | None, str, bool]:
    """The point with the best mean validation metric (test where there is no validation), why, and if on test.

    A point with a diverged seed, or with fewer seeds than the fullest point, is only chosen if all are such:
    its mean is over survivors, or over fewer chances to fail.
    """
    ran = [point for point in points if point.results]
    if not ran:
        return None, "", False
    if len(points) == 1:
        return ran[0], "", False
    most = max(len(point.completed) for point in ran)
    if most == 0:
        return ran[0], "every point diverged; the first is shown", False
    full = [point for point in ran if len(point.completed) == most and not point.diverged]
    note = "" if full else "no point is without divergence; of those with the most completed seeds the "
    full = full or [point for point in ran if len(point.completed) == most]
    name = next(iter(full[0].completed.values())).metric
    on_test = not all(len(point.values(f"validation.{name}")) == most for point in full)
    split = "test" if on_test else "validation"
    sign = -1.0 if higher_is_better(name) else 1.0
    means = [(sign * m, i) for i, point in enumerate(full) if (m := point.mean(f"{split}.{name}")) is not None]
    if not means:
        return full[0], f"{note}first is shown: no point has a final {name}", False
    warning = " (there is no validation: too good)" if on_test else ""
    run = f"{len(points)} points" if len(ran) == len(points) else f"{len(ran)} run of {len(points)} points"
    return full[min(means)[1]], f"{note}best mean {split} {name} of {run}{warning}", on_test
