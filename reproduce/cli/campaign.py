"""What `plan` and `run` share: which Runs, in which order, and on what."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reproduce.cli.options import data_root
from reproduce.errors import UserError, did_you_mean
from reproduce.experiment.cells import parse_seeds
from reproduce.experiment.folder import WORKING_FOLDER, MethodFolder
from reproduce.experiment.schema import Experiment
from reproduce.results.record import Result

if TYPE_CHECKING:
    from reproduce.training.capture import Mode
    from reproduce.training.plan import PlannedRun
    from reproduce.training.run import RunSettings
    from reproduce.training.side_by_side import Room, SideBySide
    from reproduce.training.workers import Engine

ORDER = (
    "Order: one seed of everything before a second; of one seed, the baselines of all tasks first, then what a paper "
    "gives a number of and no Result stands beside yet."
)

DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one.")]
JobsOption = Annotated[
    int,
    typer.Option(
        "--jobs",
        help="Runs side by side; 0: one per core, up to 8 on a GPU, as its memory allows. They share the cores; "
        "threads move last bits.",
    ),
]
ModeOption = Annotated[
    str, typer.Option("--mode", help="Steps eager, or captured as CUDA graphs; default: captured on a GPU.")
]
ArmsOption = Annotated[str, typer.Option("--arms", help="Only arms of these names, comma-separated.")]
TasksOption = Annotated[str, typer.Option("--tasks", help="Only tasks of these names, comma-separated.")]
UntilDecidedOption = Annotated[
    bool,
    typer.Option(
        "--until-decided",
        help="Then add seeds to claims that are undecided, those first that need the fewest: to twice the planned "
        "number, four and eight times, by the rule's plan.",
    ),
]
MaxSeedsOption = Annotated[
    int,
    typer.Option("--max-seeds", help="With --until-decided: seeds of an arm at the most; 0: eight times as planned."),
]
BudgetOption = Annotated[
    str,
    typer.Option(
        "--budget",
        help="Wall time, as 90s, 9m or 1.5h: only runs start that will finish in it by what similar ones took, or by "
        "20 steps that are timed first.",
    ),
]


@dataclass(frozen=True)
class Workers:
    """The device, how steps are taken on it, and how Runs share it and the cores."""

    device: str
    mode: Mode
    how: SideBySide

    @property
    def device_name(self) -> str:
        from reproduce.training.run import device_name, torch_device

        return device_name(torch_device(self.device))

    @property
    def at_once(self) -> int:
        """Runs that share a device, at most."""
        return self.how.jobs

    def engine(self, n_runs: int) -> Engine:
        """One that trains so many, with no more workers than that."""
        from reproduce.training.engines import engine_for

        return engine_for(self.how, n_runs)

    def room(self) -> Room:
        from reproduce.training.side_by_side import Room

        return Room(self.how.jobs, self.how.free_bytes)


def workers_on(device: str, jobs: int, n_runs: int, mode: str = "") -> Workers:
    """As asked for, else as suits the device; never more side by side than there are runs.

    Raises:
        UserError: a negative number, an unknown device, a GPU that is not there, or a mode that it has not.
    """
    from reproduce.training.run import default_device, step_mode, torch_device
    from reproduce.training.side_by_side import DeviceFacts, arrange

    chosen = torch_device(device or default_device())
    # Of all runs, not of the missing ones: a resumed run keeps its number of threads, and so its last bits.
    return Workers(str(chosen), step_mode(mode, chosen), arrange(jobs, n_runs, DeviceFacts.of(chosen)))


def warn_of_slow_precision(missing: Iterable[PlannedRun], device: str) -> None:
    """One line where bfloat16 costs time instead of saving it."""
    from reproduce.training.run import multiplies_bfloat16, torch_device

    is_asked_for = any(run.config.recipe.precision == "bfloat16" for run in missing)
    if is_asked_for and not multiplies_bfloat16(torch_device(device)):
        print("warning: this processor computes bfloat16 by emulation, slower than float32", file=sys.stderr)


def settings_of(workers: Workers, data: str, runs: Path, n_missing: int) -> RunSettings:
    from reproduce.training.run import RunSettings

    return RunSettings(
        runs=runs,
        root=data_root(data),
        cache=WORKING_FOLDER / "data",
        device=workers.device,
        threads=workers.how.threads,
        at_once=max(1, min(workers.at_once, n_missing)),
        mode=workers.mode,
    )


def parse_budget(text: str) -> float | None:
    """'90s', '9m' or '1.5h' in seconds; nothing as None.

    Raises:
        UserError: anything else.
    """
    if not text:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text.strip())
    if not found:
        raise UserError(f"--budget {text!r}: expected a time like 90s, 9m or 1.5h")
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
    if not 0 < seconds < math.inf:
        raise UserError(f"--budget {text!r}: expected a time above zero, like 90s, 9m or 1.5h")
    return seconds


def check_options_of_run(options: Mapping[str, Any]) -> None:
    """Refuse what a `run` on another machine would refuse, whatever devices are here.

    Raises:
        UserError: a budget, device, number of jobs or mode that `run` does not take.
    """
    from reproduce.training.run import parse_device, step_mode
    from reproduce.training.side_by_side import DeviceFacts, arrange

    parse_budget(options["budget"])
    device = parse_device(options["device"] or "cuda")  # left open, it may be a GPU there
    step_mode(options["mode"], device)
    arrange(options["jobs"], 1, DeviceFacts(str(device), cores=1))


def planned_runs(
    experiments: Mapping[MethodFolder, dict[str, Experiment]],
    seeds: str,
    data: str,
    arms: str = "",
    tasks: str = "",
    results: Iterable[Result] | None = None,
    broken: list[str] | None = None,
) -> list[PlannedRun]:
    """All Runs of the chosen methods' experiments, or of these arms and tasks of them, each once.

    Args:
        broken: of several methods, those that cannot be planned are left out, and here told in a line each; None: that
            is an error.

    Raises:
        UserError: an arm or task that none of the experiments has, with the nearest names; or what cannot be planned.
    """
    from reproduce.results.match import ResultIndex
    from reproduce.training.plan import merged
    from reproduce.training.plan import plan as plan_experiments

    root, seeds_asked = data_root(data), parse_seeds(seeds)
    every = [experiment for of_method in experiments.values() for experiment in of_method.values()]
    choosing = any(experiment.choosing_seeds for experiment in every)
    indexed = ResultIndex(results) if results is not None and choosing else None
    arm_names = _named("--arms", arms, {name for experiment in every for name in experiment.arms})
    task_names = _named("--tasks", tasks, {name for experiment in every for name in experiment.tasks})
    found: dict[str, PlannedRun] = {}
    for folder, of_method in experiments.items():
        before = f"{folder.name} / " if len(experiments) > 1 else ""
        try:
            planned = plan_experiments(
                of_method, root, seeds_asked, arm_names, task_names, indexed, method=folder.name, before=before
            )
        except UserError as error:
            if broken is None or len(experiments) == 1:
                raise
            broken.append(str(error))
            continue
        for run in planned:
            found[run.id] = merged(found[run.id], run) if run.id in found else run
    if broken and not found:
        raise UserError(broken[0])
    if not found and (arm_names or task_names):
        asked = [f"{option} {text!r}" for option, text in (("--arms", arms), ("--tasks", tasks)) if text]
        raise UserError(f"{' '.join(asked)}: nothing to train: they are of different experiments, or cannot run yet")
    return list(found.values())


def claims_outlook(
    experiments: Mapping[MethodFolder, dict[str, Experiment]], results: Iterable[Result], seeds: str = ""
) -> list[str]:
    """For each experiment with claims, how many seeds they need by what ran; and which cannot be told from no gap."""
    from reproduce.results.evaluate import evaluate
    from reproduce.results.match import ResultIndex
    from reproduce.results.power import seeds_of

    have = list(results)
    indexed, datasets = ResultIndex(have), {(result.config.task.kind, result.config.task.dataset) for result in have}
    lines = []
    every = [(folder, name, experiment) for folder, found in experiments.items() for name, experiment in found.items()]
    names = [name for _, name, _ in every]
    for folder, experiment_name, experiment in every:
        claims = [claim for claim in experiment.claims if not experiment.arms[claim.arm].pending]
        if not claims:
            continue
        ran = any((task.kind, task.dataset) in datasets for task in experiment.tasks.values())
        verdicts = evaluate(experiment_name, experiment, indexed).verdicts if ran else ()
        needed = [n for verdict in verdicts if verdict.claim in claims and (n := seeds_of(verdict)) is not None]
        planned = len(parse_seeds(seeds) or experiment.seeds)
        enough = sum(n <= planned for n in needed)
        parts = [
            f"{enough} {'needs' if enough == 1 else 'need'} no more" if enough else "",
            f"{len(needed) - enough} need up to {max(needed)}" if len(needed) > enough else "",
            f"{len(claims) - len(needed)} not known yet" if len(needed) < len(claims) else "",
        ]
        many = "1 claim" if len(claims) == 1 else f"{len(claims)} claims"
        of_each = "1 seed" if planned == 1 else f"{planned} seeds"
        shown_name = f"{folder.name} {experiment_name}" if names.count(experiment_name) > 1 else experiment_name
        lines.append(f"{shown_name}: {many}, {of_each} planned: {', '.join(filter(None, parts))}")
        at_zero = sum(claim.holds_zero for claim in claims)
        if at_zero:
            gaps = "a gap's" if at_zero == 1 else f"{at_zero} gaps'"
            lines.append(f"  warning: {gaps} tolerance holds zero: that there is none takes many seeds")
    return lines


def further_runs(
    experiments: Mapping[MethodFolder, dict[str, Experiment]],
    results: Iterable[Result],
    max_seeds: int,
    data: str,
    arms: str = "",
    tasks: str = "",
) -> tuple[list[PlannedRun], list[str]]:
    """What `--until-decided` trains next, and a line for each experiment that has undecided claims."""
    from reproduce.results.columns import find_all
    from reproduce.results.looks import next_look
    from reproduce.results.match import ResultIndex
    from reproduce.training.plan import Planner, chosen_cells, merged, plan_cells

    arm_names, task_names = _names(arms), _names(tasks)
    have = list(results)
    ids = {result.id for result in have}
    planner = Planner(data_root(data))
    named = {folder.name: of_method for folder, of_method in experiments.items()}
    evaluated, _ = find_all(experiments, named, ResultIndex(have))
    found: dict[str, PlannedRun] = {}
    lines = []
    for method in evaluated:
        for finding in method.findings:
            look = next_look(finding, max_seeds or None)
            cells = chosen_cells(look.cells, arm_names, task_names)
            planned = plan_cells(finding.name, finding.experiment, cells, planner, method=method.folder.name)
            runs = [run for run in planned if run.id not in ids]
            new = {run.id: run for run in runs if run.id not in found}
            found |= {key: merged(found[key], run) if key in found else run for key, run in new.items()}
            if new:
                lines.append(f"{finding.name}: {look.claims} claims are undecided, {len(new)} more runs")
            if look.hopeless:
                lines.append(f"{finding.name}: {len(look.hopeless)} undecided claims need more seeds than may be added")
    return list(found.values()), lines


def _named(option: str, text: str, known: set[str]) -> set[str] | None:
    """The names in a comma-separated list; None for an empty one, which means all."""
    names = _names(text) or set()
    if text and not names:
        raise UserError(f"{option} {text!r}: expected names, comma-separated; leave it out for all")
    for name in sorted(names - known):
        hint = did_you_mean(name, sorted(known), at_most=3, shown=12)
        raise UserError(f"{option} {name!r}: no chosen experiment has one of this name: {hint}")
    return names or None


def _names(text: str) -> set[str] | None:
    return {name.strip() for name in text.split(",") if name.strip()} or None
