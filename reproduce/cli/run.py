"""`run`: train what is not sealed yet, judge the claims, write the pages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from reproduce.cli import processes
from reproduce.cli.campaign import (
    ORDER,
    ArmsOption,
    BudgetOption,
    DeviceOption,
    JobsOption,
    MaxSeedsOption,
    ModeOption,
    TasksOption,
    UntilDecidedOption,
    Workers,
    further_runs,
    parse_budget,
    planned_runs,
    settings_of,
    warn_of_slow_precision,
)
from reproduce.cli.chosen import (
    chosen_experiments,
    columns_alone,
    committed_results,
    experiments_known,
    local_results,
    nothing_planned,
    say_left_out,
)
from reproduce.cli.durations import runs_text
from reproduce.cli.engines import (
    LOCAL,
    AddressOption,
    EngineChoice,
    EngineOption,
    ResourcesOption,
    StoreOption,
)
from reproduce.cli.estimates import Timer, agenda_of, known_times, too_short
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
from reproduce.results.record import Result
from reproduce.results.source import check_copy

if TYPE_CHECKING:
    from reproduce.results.evaluate import MethodFindings
    from reproduce.training.agenda import Agenda
    from reproduce.training.run import RunSettings
    from reproduce.training.workers import Failure

HELP = f"Train what is not sealed yet, judge the claims, write the page. {ORDER}"


def run(
    context: typer.Context,
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
    until_decided: UntilDecidedOption = False,
    max_seeds: MaxSeedsOption = 0,
    mode: ModeOption = "",
    engine: EngineOption = LOCAL,
    address: AddressOption = "",
    resources: ResourcesOption = "",
    store: StoreOption = "",
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    started = time.monotonic()
    allowed = parse_budget(budget)  # before anything is loaded
    _check_looks(until_decided, max_seeds, seeds)
    chosen_engine = EngineChoice(engine, address, resources, store)
    group = None
    if processes.are_several():
        group = processes.joined(context, device, jobs, mode, chosen_engine.is_local, budget)
    broken: list[str] = []
    with waiting("reading experiments, loading torch"):
        experiments = chosen_experiments(method, scale, only, broken)  # a wrong name is said before torch is loaded
        from reproduce.cli.pages import write_pages
        from reproduce.cli.run_json import answer
        from reproduce.report.evidence import in_runs
        from reproduce.training.plan import most_valuable_first

        check_copy()
        chosen_engine.check(device, jobs, mode)  # bad input is said before anything is read
        in_store = chosen_engine.fetch_results(runs)
        sealed, damaged = local_results(runs)
        damaged += in_store
        planned = planned_runs(experiments, seeds, data, arms, tasks, sealed, broken)
    if not planned:
        print(nothing_planned(method, scale), file=sys.stderr)
    asked = allowed is not None or any(run.published for run in planned)  # of what stands: it takes a second
    evidence = committed_results() if asked else []
    ids = {result.id for result in sealed}
    missing = [run for run in most_valuable_first(planned, [*sealed, *evidence]) if run.id not in ids]
    for line in columns_alone(experiments):
        print(line, file=sys.stderr)
    for line in broken:  # now, while there is time to stop; and again at the end
        print(f"left out: {line}", file=sys.stderr)
    for problem in damaged:
        print(f"not a Result, as if not trained: {problem}", file=sys.stderr)
    if not chosen_engine.is_local and not missing and not until_decided:
        chosen_engine, device, mode = EngineChoice(), "", ""  # nothing to start a cluster for
    workers = group or chosen_engine.workers(context, device, jobs, len(planned), mode)
    runs.mkdir(parents=True, exist_ok=True)
    settings = settings_of(workers, data, runs, len(missing))
    if group:
        settings = replace(settings, group=group.group)
    say: Callable[[str], None] = (lambda line: None) if as_json else print
    say(f"{runs_text(len(planned))}, {len(planned) - len(missing)} sealed, {len(missing)} to train on {workers.device}")
    if missing and workers.how.said:
        say(workers.how.said)
    if chosen_engine.is_local:
        warn_of_slow_precision(missing, workers.device)
    wanted = {run.id: run for run in planned}
    trained: list[Result] = []
    failures: list[Failure] = []
    end = None if allowed is None else started + allowed
    while True:
        timer = Timer(known_times([*sealed, *evidence, *trained], runs), settings, lambda: workers.device_name)
        agenda = agenda_of(missing, allowed, started, timer)
        if missing:
            found, failures = _train(agenda, workers, settings, timer, end, quiet=as_json)
            trained += found
            if agenda.left and not agenda.n_started and not trained and not failures:
                raise UserError(too_short(budget, agenda))
        reasons = {failure.reason for failure in failures}
        if len(reasons) == 1 and failures[0].is_bad_input and not trained and not ids & wanted.keys():
            raise UserError(reasons.pop())
        if failures or agenda.left:
            break
        if trained and any(one.choosing_seeds for of_method in experiments.values() for one in of_method.values()):
            have = ids | {result.id for result in trained}
            planned = planned_runs(experiments, seeds, data, arms, tasks, [*sealed, *trained], [])
            missing = [run for run in most_valuable_first(planned, [*sealed, *evidence]) if run.id not in have]
            wanted |= {run.id: run for run in planned}
            if missing:
                say(f"coefficients are chosen: {len(missing)} more runs at those that count")
                continue
        if not until_decided:
            break
        missing, lines = further_runs(experiments, [*sealed, *trained], max_seeds, data, arms, tasks)
        wanted |= {run.id: run for run in missing}
        say("\n".join(lines) or "no claim is undecided that more seeds could decide")
        if not missing:
            break
    results = [*sealed, *trained]
    replaced = tuple(f"{runs / result.config.folder / 'result.json'}:" for result in trained)
    problems = [problem for problem in damaged if not problem.startswith(replaced)]
    evaluated: list[MethodFindings] = []
    hear = evaluated.append if as_json else _print_summary
    pages = write_pages(
        experiments, results, problems, runs / "report", hear, experiments_known(), address=in_runs, broken=broken
    )
    if as_json:
        print(answer(wanted.values(), results, [*map(str, failures)], evaluated, pages, runs).model_dump_json(indent=1))
    else:
        for problem in problems:
            print(f"skipped: {problem}", file=sys.stderr)
        if agenda.left:
            print(f"{runs_text(len(agenda.left))} did not fit into {budget}: the same command goes on with them")
        for path in pages if len(pages) <= 3 else pages[-1:]:
            print(f"page: {path}")
        for line in _said_of(failures, len(wanted)):
            print(line, file=sys.stderr)
    if failures:
        raise typer.Exit(1)
    say_left_out(broken)


def _said_of(failures: Sequence[Failure], n_runs: int) -> list[str]:
    """What failed, by its reason, after all that went well."""
    if not failures:
        return []
    by_reason: dict[str, list[str]] = {}
    for failure in failures:
        by_reason.setdefault(failure.reason, []).append(failure.label)
    lines = [f"{len(failures)} of {n_runs} runs failed; the same command tries them again"]
    for reason, labels in by_reason.items():
        others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        lines.append(f"  {labels[0]}{others}: {reason}")
    return lines


def _check_looks(until_decided: bool, max_seeds: int, seeds: str) -> None:
    if until_decided and seeds:
        raise UserError("--until-decided starts from an experiment's own seeds: leave --seeds out")
    if max_seeds < 0 or (max_seeds and not until_decided):
        raise UserError(f"--max-seeds {max_seeds}: expected a number of seeds, beside --until-decided")


def _train(
    agenda: Agenda, workers: Workers, settings: RunSettings, timer: Timer, end: float | None, quiet: bool
) -> tuple[list[Result], list[Failure]]:
    """The Results of what was trained, and what failed.

    Args:
        end: of the budget, on the monotonic clock.
    """
    from reproduce.cli.progress import reporter
    from reproduce.cli.remaining import Remaining
    from reproduce.cli.terminal import console
    from reproduce.training import workers as side_by_side
    from reproduce.training.engines import stopped_by_signals

    n_runs = len(agenda.waiting)
    engine, room = workers.engine(n_runs), workers.room()
    remaining = Remaining(agenda.waiting, timer, lambda: room.places, end)
    with stopped_by_signals(), reporter(n_runs, console(), remaining, quiet) as progress:
        return side_by_side.run_all(agenda, settings, engine, room, progress, timer.learn)


def _print_summary(method: MethodFindings) -> None:
    from reproduce.cli.terminal import console
    from reproduce.report.terminal import terminal_summary

    if method.findings:
        console().print(terminal_summary(method.findings))
