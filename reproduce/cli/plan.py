"""`plan`: what would be trained, and how long it would take."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reproduce.cli.campaign import (
    ORDER,
    ArmsOption,
    BudgetOption,
    DeviceOption,
    JobsOption,
    TasksOption,
    claims_outlook,
    parse_budget,
    planned_runs,
    settings_of,
    workers_on,
)
from reproduce.cli.chosen import (
    chosen_experiments,
    columns_alone,
    committed_results,
    local_results,
    nothing_planned,
    say_left_out,
)
from reproduce.cli.durations import runs_text
from reproduce.cli.estimates import Timer, known_times, time_lines
from reproduce.cli.fleet import fleet_lines, parse_fleet
from reproduce.cli.options import (
    DataOption,
    JsonOption,
    MethodName,
    MethodsOption,
    OnlyOption,
    RunsOption,
    ScaleOption,
    SeedsOption,
    waiting,
)
from reproduce.errors import UserError
from reproduce.results.memory import collector_paused

if TYPE_CHECKING:
    from reproduce.cli.campaign import Workers
    from reproduce.cli.terminal import PlannedRow
    from reproduce.training.plan import PlannedRun

HELP = f"The runs that would be trained, what is sealed already, and the estimated time. {ORDER}"


LONG = 20  # rows, of which the sums at the head are said again at the end


@collector_paused()
def plan(
    method: MethodName,
    scale: ScaleOption = "quick",
    seeds: SeedsOption = "",
    device: DeviceOption = "",
    jobs: JobsOption = 0,
    data: DataOption = "",
    runs: RunsOption = Path("runs"),
    only: OnlyOption = "",
    arms: ArmsOption = "",
    tasks: TasksOption = "",
    budget: BudgetOption = "",
    pilot: Annotated[
        bool, typer.Option("--pilot", help="Time 20 steps and an evaluation of what has no estimate on this device.")
    ] = False,
    on: Annotated[
        str, typer.Option("--on", help="How long on so many devices of one kind, as 64xH100, of which times are known.")
    ] = "",
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    allowed = parse_budget(budget)
    if on and as_json:
        raise UserError("--on prints sums, and --json a row for each run: leave one of them out")
    broken: list[str] = []
    with waiting("reading experiments, loading torch"):
        experiments = chosen_experiments(method, scale, only, broken)  # a wrong name is said before torch is loaded
        from reproduce.cli.terminal import print_plan
        from reproduce.training.plan import most_valuable_first

        sealed, _ = local_results(runs, briefly=True)
        planned = planned_runs(experiments, seeds, data, arms, tasks, sealed, broken)
    if not planned:
        print(nothing_planned(method, scale), file=sys.stderr)
    for line in columns_alone(experiments):
        print(line, file=sys.stderr)
    in_order = planned
    have = [*sealed, *committed_results()]
    ids = {result.id for result in sealed}
    planned = most_valuable_first(planned, have)
    missing = [run for run in planned if run.id not in ids]
    workers = workers_on(device, jobs, len(planned))
    timer = Timer(known_times(have, runs), settings_of(workers, data, runs, len(missing)))
    if pilot:
        timer.time_pilots(missing)
    estimated = {run.id: timer.seconds_of(run) for run in planned}
    starting = _starting(missing, allowed, estimated, workers)
    rows = _rows(planned, ids, estimated, starting)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        say_left_out(broken)
        return
    sums = [f"{runs_text(len(rows))}, {len(missing)} to train", *time_lines(missing, timer, workers.how.jobs)]
    if on:
        fleet = parse_fleet(on, timer.kinds)
        sums += fleet_lines([timer.seconds_of(run, fleet.kind) for run in missing], fleet)
    if starting is not None:
        sums.append(_in_budget(len(starting), budget, [estimated[run.id] for run in missing], workers.how.jobs))
    print("\n".join(sums), end="\n\n")
    print_plan(rows)
    _print_experiments(in_order, ids, timer)
    for line in claims_outlook(experiments, have, seeds):
        print(line)
    if len(rows) > LONG:  # the first lines have left the screen
        print("\n".join(["", *sums]))
    say_left_out(broken)


def _starting(
    missing: Sequence[PlannedRun], allowed: float | None, estimated: Mapping[str, float | None], workers: Workers
) -> set[str] | None:
    """Ids of those that would start in the budget; None: there is none."""
    from reproduce.training.agenda import rehearsed

    if allowed is None:
        return None
    return rehearsed(missing, allowed, lambda run: estimated[run.id], workers.how.jobs)


def _rows(
    planned: Sequence[PlannedRun], sealed: set[str], estimated: Mapping[str, float | None], starting: set[str] | None
) -> list[PlannedRow]:
    from reproduce.cli.terminal import PlannedRow

    return [
        PlannedRow(
            run.id,
            run.label,
            run.id in sealed,
            estimated[run.id],
            None if starting is None or estimated[run.id] is None else run.id in starting,
        )
        for run in planned
    ]


def _print_experiments(planned: Sequence[PlannedRun], sealed: set[str], timer: Timer) -> None:
    """A row for each experiment, with the time that it takes on each kind of device; none for a single experiment."""
    from reproduce.cli.coverage import by_experiment
    from reproduce.cli.terminal import Workload, console, workload_table

    grouped = by_experiment(planned)
    if len(grouped) < 2:
        return
    kinds = [kind for kind in timer.kinds if any(timer.seconds_of(run, kind) is not None for run in planned)]
    rows = []
    for (method, experiment), runs in grouped.items():
        left = [run for run in runs if run.id not in sealed]
        estimates = [[timer.seconds_of(run, kind) for run in left] for kind in kinds]
        rows.append(Workload(method, experiment, len(runs), len(left), estimates))
    console().print(workload_table(rows, kinds))


def _in_budget(n_starting: int, budget: str, estimates: Sequence[float | None], jobs: int) -> str:
    untimed = sum(seconds is None for seconds in estimates)
    others = f"; of {untimed} nothing is known: `run` times 20 steps of each kind first, as --pilot does"
    return f"{n_starting} would start within {budget} on {jobs} workers" + (others if untimed else "")
