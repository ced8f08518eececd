"""The command line: `python -m reproduce`. The only file that ties everything together."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from reproduce.cli.bundle import ACCEPT_OPTIONS_OF_RUN, bundle
from reproduce.cli.calibrate import calibrate
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
    agenda_of,
    claims_outlook,
    duration,
    further_runs,
    known_times,
    parse_budget,
    planned_runs,
    settings_of,
    time_pilots,
    too_short,
    warn_of_slow_precision,
    workers_on,
)
from reproduce.cli.check import check
from reproduce.cli.new import new
from reproduce.cli.options import (
    DataOption,
    JsonOption,
    MethodName,
    MethodsOption,
    OnlyOption,
    RunsOption,
    ScaleOption,
    SeedsOption,
    chosen_methods,
    one_line_errors,
)
from reproduce.cli.pack import pack, unpack
from reproduce.cli.unchanged import Report, digests, remember, sources, unchanged
from reproduce.errors import UserError
from reproduce.experiment.folder import WORKING_FOLDER, MethodFolder, all_methods
from reproduce.experiment.schema import Experiment, Scale
from reproduce.report.block import refresh
from reproduce.results.record import Result
from reproduce.results.source import check_copy
from reproduce.results.store import ResultError, copy_result, read_results

if TYPE_CHECKING:
    from reproduce.bench.measure import Row
    from reproduce.training.plan import PlannedRun

# `list`, `status` and `new` answer at once: what trains and what draws is imported by the commands that do so.

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Reproduce published ways of regularizing activations, and judge their claims. In a checkout, reports/ and "
    "data/ are its own; where the package is installed, they are made in the current folder, as runs/ always is.",
)
REPORTS = WORKING_FOLDER / "reports"
EVIDENCE = REPORTS / "evidence"
SCALES = get_args(Scale)
NOTHING_PLANNED = "{method} has no experiments at scale {scale}: `python -m reproduce list` shows those it has"


def chosen_experiments(method: str, scale: str | None, only: str = "") -> dict[MethodFolder, dict[str, Experiment]]:
    """By method, its experiments at one scale, or all when None; with `only`, those of these names at any scale.

    Raises:
        UserError: unknown method or scale, or a name or pattern in `only` that no experiment has.
    """
    if scale is not None and scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}: use quick, reduced or paper")
    experiments = {folder: folder.experiments() for folder in chosen_methods(method).values()}
    patterns = [pattern.strip() for pattern in only.split(",") if pattern.strip()]
    if not patterns:
        return {
            folder: {name: one for name, one in found.items() if scale is None or one.scale == scale}
            for folder, found in experiments.items()
        }
    known = list(dict.fromkeys(name for found in experiments.values() for name in found))
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            near = difflib.get_close_matches(pattern, known)
            all_of_one = "`reproduce list` names them" if method == "all" else f"it has {', '.join(known) or 'none'}"
            hint = f"did you mean {' or '.join(near)}?" if near else all_of_one
            lacking = "no method has an" if method == "all" else f"method {method} has no"
            raise UserError(f"{lacking} experiment {pattern!r}: {hint}")
    chosen = {
        folder: {name: one for name, one in found.items() if any(fnmatch.fnmatch(name, p) for p in patterns)}
        for folder, found in experiments.items()
    }
    return {folder: found for folder, found in chosen.items() if found}


def experiments_known() -> dict[str, dict[str, Experiment]]:
    """Of every method that can be read, by name: what is wrong with one is no matter of the others."""
    known = {}
    for name, folder in all_methods().items():
        with contextlib.suppress(UserError):
            known[name] = folder.experiments()
    return known


def local_results(runs: Path) -> tuple[list[Result], list[str]]:
    return read_results(runs.glob("*/result.json"))


@app.command("list")
@one_line_errors
def list_methods(as_json: JsonOption = False, methods: MethodsOption = None) -> None:
    """The methods and their experiments."""
    from reproduce.cli.terminal import print_line

    rows = [
        {
            "method": folder.name,
            "title": folder.title,
            "experiments": {n: e.scale for n, e in folder.experiments().items()},
        }
        for folder in all_methods().values()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for folder in all_methods().values():
        print_line(f"[bold]{folder.name}[/bold]  {folder.title}")
        by_scale: dict[str, list[str]] = {}
        for name, experiment in folder.experiments().items():
            by_scale.setdefault(experiment.scale, []).append(name)
        for scale in sorted(by_scale, key=SCALES.index):
            print_line(f"    {scale:<8} {', '.join(by_scale[scale])}")


@app.command(help=f"The runs that would be trained, what is sealed already, and the estimated time. {ORDER}")
@one_line_errors
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
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    from reproduce.cli.terminal import PlannedRow, print_plan
    from reproduce.results.record import device_kind
    from reproduce.training.agenda import rehearsed
    from reproduce.training.estimate import Work
    from reproduce.training.plan import most_valuable_first
    from reproduce.training.run import device_name, torch_device

    allowed = parse_budget(budget)
    experiments = chosen_experiments(method, scale, only)
    sealed, _ = local_results(runs)
    planned = planned_runs(experiments, seeds, data, arms, tasks, sealed)
    if not planned:
        print(NOTHING_PLANNED.format(method=method, scale=scale), file=sys.stderr)
    evidence, _ = read_results(EVIDENCE.glob("*.json"))
    ids = {result.id for result in sealed}
    planned = most_valuable_first(planned, [*sealed, *evidence])
    missing = [run for run in planned if run.id not in ids]
    workers = workers_on(device, jobs, len(planned))
    here = device_kind(device_name(torch_device(workers.device)))
    settings = settings_of(workers, data, runs, len(missing))
    at_once = settings.at_once if workers.device.startswith("cuda") else 1
    times = known_times([*sealed, *evidence], runs)
    if pilot:
        time_pilots(missing, times, settings)
    works = {run.id: Work.of(run.config) for run in planned}

    def seconds(run: PlannedRun, kind: str = here) -> float | None:
        return times.seconds(works[run.id], kind, workers.how.threads, at_once)

    estimated = {run.id: seconds(run) for run in planned}
    starting = None
    if allowed is not None:
        starting = rehearsed(missing, allowed, lambda run: estimated[run.id], workers.how.jobs)
    rows = [
        PlannedRow(
            run.id,
            run.label,
            run.id in ids,
            estimated[run.id],
            None if starting is None or estimated[run.id] is None else run.id in starting,
        )
        for run in planned
    ]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    print_plan(rows)
    for line in claims_outlook(experiments, [*sealed, *evidence], seeds):
        print(line)
    print(f"{len(rows)} runs, {len(missing)} to train")
    for kind in dict.fromkeys([here, *times.devices]):
        known = [found for run in missing if (found := seconds(run, kind)) is not None]
        unknown = f"{len(missing) - len(known)} of unknown length" if len(known) < len(missing) else ""
        about = f"about {duration(sum(known))} of one worker" if known or not missing else ""
        print(f"{kind}: {', '.join(filter(None, (about, unknown)))}")
    if starting is not None:
        untimed = sum(estimated[run.id] is None for run in missing)
        others = (
            f"; of {untimed} nothing is known: `run` times 20 steps of each kind first, as --pilot does"
            if untimed
            else ""
        )
        print(f"{len(starting)} would start within {budget} on {workers.how.jobs} workers{others}")


@app.command(help=f"Train what is not sealed yet, judge the claims, write the page. {ORDER}")
@one_line_errors
def run(
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
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    started = time.monotonic()
    allowed = parse_budget(budget)  # before anything is loaded
    if until_decided and seeds:
        raise UserError("--until-decided starts from an experiment's own seeds: leave --seeds out")
    if max_seeds < 0 or (max_seeds and not until_decided):
        raise UserError(f"--max-seeds {max_seeds}: expected a number of seeds, beside --until-decided")
    from reproduce.cli.pages import write_pages
    from reproduce.cli.progress import reporter
    from reproduce.cli.terminal import console
    from reproduce.report.evidence import in_runs
    from reproduce.training import workers as side_by_side
    from reproduce.training.engines import engine_for
    from reproduce.training.plan import most_valuable_first
    from reproduce.training.side_by_side import Room

    check_copy()
    workers = workers_on(device, jobs, 0, mode)  # bad input is said before anything is read
    experiments = chosen_experiments(method, scale, only)
    sealed, damaged = local_results(runs)
    planned = planned_runs(experiments, seeds, data, arms, tasks, sealed)
    if not planned:
        print(NOTHING_PLANNED.format(method=method, scale=scale), file=sys.stderr)
    asked = allowed is not None or any(run.published for run in planned)  # of what stands: it takes a second
    evidence = read_results(EVIDENCE.glob("*.json"))[0] if asked else []
    ids = {result.id for result in sealed}
    missing = [run for run in most_valuable_first(planned, [*sealed, *evidence]) if run.id not in ids]
    for problem in damaged:
        print(f"not a Result, as if not trained: {problem}", file=sys.stderr)
    workers = workers_on(device, jobs, len(planned), mode)
    runs.mkdir(parents=True, exist_ok=True)
    settings = settings_of(workers, data, runs, len(missing))
    trained: list[Result] = []
    failures: list[str] = []
    if not as_json:
        print(f"{len(planned)} runs, {len(planned) - len(missing)} sealed, {len(missing)} to train on {workers.device}")
        if missing and workers.how.said:
            print(workers.how.said)
    warn_of_slow_precision(missing, workers.device)
    while True:
        agenda, learn = agenda_of(missing, allowed, started, settings, [*sealed, *evidence, *trained])
        if missing:
            engine, room = engine_for(workers.how, len(missing)), Room(workers.how.jobs, workers.how.free_bytes)
            with reporter(len(missing), console(), quiet=as_json) as progress:
                found, failures = side_by_side.run_all(agenda, settings, engine, room, progress, learn)
            trained += found
            if agenda.left and not agenda.n_started and not trained and not failures:
                raise UserError(too_short(budget, agenda))
        if failures or agenda.left:
            break
        if trained and any(one.choosing_seeds for of_method in experiments.values() for one in of_method.values()):
            have = ids | {result.id for result in trained}
            planned = planned_runs(experiments, seeds, data, arms, tasks, [*sealed, *trained])
            missing = [run for run in most_valuable_first(planned, [*sealed, *evidence]) if run.id not in have]
            if missing:
                if not as_json:
                    print(f"coefficients are chosen: {len(missing)} more runs at those that count")
                continue
        if not until_decided:
            break
        missing, lines = further_runs(experiments, [*sealed, *trained], max_seeds, data, arms, tasks)
        if not as_json:
            print("\n".join(lines) or "no claim is undecided that more seeds could decide")
        if not missing:
            break
    results = [*sealed, *trained]
    replaced = tuple(f"{runs / result.config.folder / 'result.json'}:" for result in trained)
    problems = [problem for problem in damaged if not problem.startswith(replaced)]
    screen = None if as_json else console()
    known = experiments_known()
    pages = write_pages(experiments, results, problems, runs / "report", screen, known, address=in_runs)
    if as_json:
        wanted = {run.id for run in planned}
        ordered = sorted((r for r in results if r.id in wanted), key=lambda r: r.config.folder)
        finals = {r.id: r.final.model_dump() if r.final else None for r in ordered}
        print(json.dumps({"pages": [str(path) for path in pages], "results": finals, "failures": failures}, indent=1))
    else:
        for problem in problems:
            print(f"skipped: {problem}", file=sys.stderr)
        if agenda.left:
            print(f"{len(agenda.left)} runs did not fit into {budget}: the same command goes on with them")
        for path in pages if len(pages) <= 3 else pages[-1:]:
            print(f"page: {path}")
    if failures:
        raise typer.Exit(1)


@app.command()
@one_line_errors
def status(runs: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """What lies in the runs folder: sealed, interrupted, unreadable."""
    results, problems = local_results(runs)
    interrupted = sorted(path.parent.name for path in runs.glob("*/checkpoint.pt"))
    if as_json:
        sealed = [{"id": result.id, "status": result.status} for result in results]
        print(json.dumps({"sealed": sealed, "interrupted": interrupted, "unreadable": problems}, indent=1))
        return
    n_diverged = sum(result.status == "diverged" for result in results)
    print(f"{len(results)} sealed ({n_diverged} diverged), {len(interrupted)} interrupted, {len(problems)} unreadable")
    for name in interrupted:
        print(f"  interrupted: {name}")
    for problem in problems:
        print(f"  unreadable: {problem}")


@app.command()
@one_line_errors
def report(
    method: Annotated[str, typer.Argument(help="A method's name, or 'all'.")] = "all",
    results: Annotated[Path, typer.Option("--results", help="Where the Results lie.")] = EVIDENCE,
    output: Annotated[Path, typer.Option("--output", help="Where the pages go.")] = REPORTS,
    methods: MethodsOption = None,
) -> None:
    """Rebuild the pages from sealed Results alone: seconds, no training, no torch."""
    if results != EVIDENCE and not results.is_dir():
        raise UserError(f"--results {results}: no such folder")
    files = [*results.glob("*.json"), *results.glob("*/result.json")]
    options = [method, str(output), str(results == EVIDENCE)]
    made_of = sources(options, [*all_methods().values()], results, files)  # arms of all methods share the matrix
    made = unchanged(output, made_of) or _new_report(method, results, files, output, made_of)
    if output == REPORTS and method == "all":
        refresh(WORKING_FOLDER / "README.md", output / "README.md")
    print(made.said)
    for problem in made.skipped:
        print(f"skipped: {problem}", file=sys.stderr)


def _new_report(method: str, results: Path, files: list[Path], output: Path, made_of: str) -> Report:
    from reproduce.cli.pages import write_pages
    from reproduce.report.drawings import processors
    from reproduce.report.evidence import beside_pages, found_in

    found, problems = read_results(files)
    experiments = chosen_experiments(method, None)
    if results == EVIDENCE:  # quick experiments are for the reader's own machine
        experiments = {
            folder: {name: one for name, one in of_method.items() if one.scale != "quick"}
            for folder, of_method in experiments.items()
        }
    address = beside_pages if results == EVIDENCE else found_in(files, output)
    known = experiments_known()
    pages = write_pages(experiments, found, problems, output, None, known, processors(), address)
    said = f"{len(found)} Results, {len(problems)} unreadable; {len(pages)} pages in {output}"
    patterns = [f"{name}.*" for name in ("matrix", *(page.stem for page in pages))]
    patterns += ["README.md", "answer*.svg", "data/*"] if len(pages) > 1 else []
    written = digests((path for pattern in patterns for path in output.glob(pattern)), output)
    report = Report(made_of, said, problems, written)
    remember(output, report)
    return report


@app.command()
@one_line_errors
def publish(
    method: MethodName,
    scale: ScaleOption = "reduced",
    seeds: SeedsOption = "",
    data: DataOption = "",
    runs: RunsOption = Path("runs"),
    only: OnlyOption = "",
    output: Annotated[Path, typer.Option("--output", help="Where evidence is kept.")] = EVIDENCE,
    methods: MethodsOption = None,
) -> None:
    """Copy the sealed local Results of an experiment into reports/evidence; what is there stays."""
    planned = planned_runs(chosen_experiments(method, scale, only), seeds, data)
    output.mkdir(parents=True, exist_ok=True)
    n_new = n_missing = 0
    problems: list[str] = []
    for planned_run in planned:
        source = runs / planned_run.config.folder / "result.json"
        target = output / f"{planned_run.config.folder}.json"
        if not source.exists():
            n_missing += 1
        elif not target.exists():
            try:
                copy_result(source, target)
                n_new += 1
            except ResultError as error:
                problems.append(str(error))
    already = len(planned) - n_new - n_missing - len(problems)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    print(f"{n_new} Results published to {output}, {already} already there, {n_missing} not trained yet")


@app.command()
@one_line_errors
def bench(
    method: Annotated[str, typer.Argument(help="A method's name, or 'all'.")] = "all",
    device: DeviceOption = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds; more are steadier.")] = 5,
    runs: RunsOption = Path("runs"),
    small: Annotated[bool, typer.Option("--small", help="Toy sizes: checks the bench, measures nothing.")] = False,
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """Time every method's step against vanilla's, and the loop against bare steps."""
    from reproduce.bench.measure import as_json as bench_json
    from reproduce.bench.measure import bench as measure
    from reproduce.bench.measure import machine
    from reproduce.cli.terminal import bench_table, console
    from reproduce.training.run import default_device, torch_device

    chosen = torch_device(device or default_device())
    runs.mkdir(parents=True, exist_ok=True)
    measured: list[Row] = []
    content: dict[str, Any] = {}
    for rows in measure(chosen_methods(method), chosen, rounds, small):
        measured += rows
        content = {"machine": machine(chosen), "rounds": rounds, "small": small, **bench_json(measured)}
        (runs / "bench.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        if not as_json:
            console().print(bench_table(rows, show_header=len(measured) == len(rows)))
    print(json.dumps(content, indent=1) if as_json else f"written: {runs / 'bench.json'}")


app.command()(one_line_errors(check))
app.command()(one_line_errors(calibrate))
app.command(context_settings=ACCEPT_OPTIONS_OF_RUN)(one_line_errors(bundle))
app.command()(one_line_errors(pack))
app.command()(one_line_errors(unpack))


@app.command("new")
@one_line_errors
def new_method(
    name: Annotated[str, typer.Argument(help="The new method's name; hyphens become underscores.")],
    methods: MethodsOption = None,
) -> None:
    """Make the folder of a new method from the template: in methods/, or in the folder that --methods names."""
    new(name)


def main() -> None:
    """Entry point of the console script."""
    app()
