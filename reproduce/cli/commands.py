"""The command line: `python -m reproduce`. The only file that ties everything together."""

from __future__ import annotations

import difflib
import fnmatch
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from reproduce.cli.calibrate import calibrate
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
    data_root,
    one_line_errors,
)
from reproduce.errors import UserError
from reproduce.experiment.folder import WORKING_FOLDER, MethodFolder, all_methods, find_method
from reproduce.experiment.schema import Experiment, Scale, parse_seeds
from reproduce.results.record import Result
from reproduce.results.store import read_results, write_result

if TYPE_CHECKING:
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


def chosen_methods(name: str) -> dict[str, MethodFolder]:
    if name == "all":
        return all_methods()
    folder = find_method(name)
    return {folder.name: folder}


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


@app.command()
@one_line_errors
def plan(
    method: MethodName,
    scale: ScaleOption = "quick",
    seeds: SeedsOption = "",
    data: DataOption = "",
    runs: RunsOption = Path("runs"),
    only: OnlyOption = "",
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """The runs that would be trained, what is sealed already, and the estimated time."""
    from reproduce.cli.terminal import PlannedRow, console, plan_table
    from reproduce.training.plan import estimated_seconds

    planned = planned_runs(chosen_experiments(method, scale, only), seeds, data)
    if not planned:
        print(NOTHING_PLANNED.format(method=method, scale=scale), file=sys.stderr)
    sealed, _ = local_results(runs)
    evidence, _ = read_results(EVIDENCE.glob("*.json"))
    ids = {result.id for result in sealed}
    rows = [
        PlannedRow(run.id, run.label, run.id in ids, estimated_seconds(run, [*sealed, *evidence])) for run in planned
    ]
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    console().print(plan_table(rows))
    missing = [row for row in rows if not row.sealed]
    known = [row.estimated_seconds for row in missing if row.estimated_seconds is not None]
    unknown = f", {len(missing) - len(known)} of unknown length" if len(known) < len(missing) else ""
    print(f"{len(rows)} runs, {len(missing)} to train: about {sum(known) / 60:.0f} minutes of one worker{unknown}")


def planned_runs(experiments: dict[MethodFolder, dict[str, Experiment]], seeds: str, data: str) -> list[PlannedRun]:
    """All Runs of the chosen methods' experiments, each once."""
    from reproduce.training.plan import plan as plan_experiments

    root = data_root(data)
    found: dict[str, PlannedRun] = {}
    for folder, of_method in experiments.items():
        for run in plan_experiments(of_method, root, parse_seeds(seeds)):
            named = replace(run, label=f"{folder.name} / {run.label}") if len(experiments) > 1 else run
            found.setdefault(run.id, named)
    return list(found.values())


@app.command()
@one_line_errors
def run(
    method: MethodName,
    scale: ScaleOption = "quick",
    seeds: SeedsOption = "",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = "",
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            help="Runs side by side; 0: one per core, up to 8 on a GPU, as its memory allows. They share the cores; "
            "threads move last bits.",
        ),
    ] = 0,
    data: DataOption = "",
    runs: RunsOption = Path("runs"),
    only: OnlyOption = "",
    mode: Annotated[
        str, typer.Option("--mode", help="Steps eager, or captured as CUDA graphs; default: captured on a GPU.")
    ] = "",
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """Train what is not sealed yet, judge the claims, write the page."""
    from reproduce.cli.pages import write_pages
    from reproduce.cli.progress import reporter
    from reproduce.cli.terminal import console
    from reproduce.training import workers
    from reproduce.training.engines import engine_for
    from reproduce.training.run import RunSettings, default_device, multiplies_bfloat16, step_mode, torch_device
    from reproduce.training.side_by_side import DeviceFacts, Room, arrange

    chosen = torch_device(device or default_device())
    facts = DeviceFacts.of(chosen)
    arrange(jobs, 1, facts)  # bad input is said before anything is read
    chosen_mode = step_mode(mode, chosen)
    experiments = chosen_experiments(method, scale, only)
    planned = planned_runs(experiments, seeds, data)
    if not planned:
        print(NOTHING_PLANNED.format(method=method, scale=scale), file=sys.stderr)
    sealed, damaged = local_results(runs)
    ids = {result.id for result in sealed}
    missing = [run for run in planned if run.id not in ids]
    for problem in damaged:
        print(f"not a Result, as if not trained: {problem}", file=sys.stderr)
    how = arrange(jobs, len(planned), facts)
    runs.mkdir(parents=True, exist_ok=True)
    settings = RunSettings(
        runs=runs,
        root=data_root(data),
        cache=WORKING_FOLDER / "data",
        device=str(chosen),
        threads=how.threads,
        at_once=max(1, min(how.jobs, len(missing))),
        mode=chosen_mode,
    )
    trained: list[Result] = []
    failures: list[str] = []
    if not as_json:
        print(f"{len(planned)} runs, {len(planned) - len(missing)} sealed, {len(missing)} to train on {chosen}")
        if missing and how.said:
            print(how.said)
    if any(run.config.recipe.precision == "bfloat16" for run in missing) and not multiplies_bfloat16(chosen):
        print("warning: this processor computes bfloat16 by emulation, slower than float32", file=sys.stderr)
    if missing:
        with reporter(len(missing), console(), quiet=as_json) as progress:
            engine, room = engine_for(how, len(missing)), Room(how.jobs, how.free_bytes)
            trained, failures = workers.run_all(missing, settings, engine, room, progress)
    results = [*sealed, *trained]
    replaced = tuple(f"{runs / result.config.folder / 'result.json'}:" for result in trained)
    problems = [problem for problem in damaged if not problem.startswith(replaced)]
    pages = write_pages(experiments, results, problems, runs / "report", None if as_json else console())
    if as_json:
        wanted = {run.id for run in planned}
        ordered = sorted((r for r in results if r.id in wanted), key=lambda r: r.config.folder)
        finals = {r.id: r.final.model_dump() if r.final else None for r in ordered}
        print(json.dumps({"pages": [str(path) for path in pages], "results": finals, "failures": failures}, indent=1))
    else:
        for problem in problems:
            print(f"skipped: {problem}", file=sys.stderr)
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
    from reproduce.cli.pages import write_pages

    if results != EVIDENCE and not results.is_dir():
        raise UserError(f"--results {results}: no such folder")
    found, problems = read_results([*results.glob("*.json"), *results.glob("*/result.json")])
    experiments = chosen_experiments(method, None)
    if results == EVIDENCE:  # quick experiments are for the reader's own machine
        experiments = {
            folder: {name: one for name, one in of_method.items() if one.scale != "quick"}
            for folder, of_method in experiments.items()
        }
    pages = write_pages(experiments, found, problems, output)
    print(f"{len(found)} Results, {len(problems)} unreadable; {len(pages)} pages in {output}")
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)


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
            found, damaged = read_results([source])
            problems += damaged
            for result in found:
                write_result(result, target)
                n_new += 1
    already = len(planned) - n_new - n_missing - len(problems)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    print(f"{n_new} Results published to {output}, {already} already there, {n_missing} not trained yet")


@app.command()
@one_line_errors
def bench(
    method: Annotated[str, typer.Argument(help="A method's name, or 'all'.")] = "all",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Interleaved rounds; more are steadier.")] = 5,
    runs: RunsOption = Path("runs"),
    small: Annotated[bool, typer.Option("--small", help="Toy sizes: checks the bench, measures nothing.")] = False,
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """Time every method's step against vanilla's, and the loop against bare steps."""
    from reproduce.bench.measure import bench as measure
    from reproduce.bench.measure import machine
    from reproduce.cli.terminal import bench_table, console
    from reproduce.training.run import default_device, torch_device

    chosen = torch_device(device or default_device())
    runs.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(chosen), "rounds": rounds, "small": small, "rows": (measured := [])}
    for rows in measure(chosen_methods(method), chosen, rounds, small):
        measured += [asdict(row) for row in rows]
        (runs / "bench.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        if not as_json:
            console().print(bench_table(rows, show_header=len(measured) == len(rows)))
    print(json.dumps(content, indent=1) if as_json else f"written: {runs / 'bench.json'}")


app.command()(one_line_errors(calibrate))


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
