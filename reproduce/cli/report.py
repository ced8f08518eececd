"""`report` and `publish`: pages from sealed Results, and which Results are committed."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from reproduce.cli.campaign import planned_runs
from reproduce.cli.chosen import EVIDENCE, REPORTS, chosen_experiments, experiments_known, say_left_out
from reproduce.cli.options import (
    DataOption,
    MethodName,
    MethodsOption,
    OnlyOption,
    RunsOption,
    ScaleOption,
    SeedsOption,
    say_at_once,
)
from reproduce.cli.unchanged import Report, digests, remember, sources, unchanged
from reproduce.errors import UserError
from reproduce.experiment.folder import WORKING_FOLDER, all_methods
from reproduce.report.block import CHOICE, refresh
from reproduce.results.store import ResultError, copy_result, read_results


def report(
    method: Annotated[str, typer.Argument(help="A method's name, or 'all'.")] = "all",
    results: Annotated[Path, typer.Option("--results", help="Where the Results lie.")] = EVIDENCE,
    output: Annotated[Path, typer.Option("--output", help="Where the pages go.")] = REPORTS,
    methods: MethodsOption = None,
) -> None:
    """Rebuild the pages from sealed Results alone: seconds, no training, no torch."""
    if results != EVIDENCE and not results.is_dir():
        raise UserError(f"--results {results}: no such folder")
    if output == Path():
        raise UserError("--output: expected a folder for the pages; this one would be filled with them")
    files = [*results.glob("*.json"), *results.glob("*/result.json")]
    options = [method, str(output), str(results == EVIDENCE)]
    made_of = sources(options, [*all_methods().values()], results, files)  # arms of all methods share the matrix
    with _undisturbed():
        made = unchanged(output, made_of) or _new_report(method, results, files, output, made_of)
    if output == REPORTS and method == "all":
        refresh(WORKING_FOLDER / "README.md", output / "README.md")
        refresh(WORKING_FOLDER / "docs" / "cookbook.md", output / "README.md", CHOICE)
    print(made.said)
    for problem in made.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    say_left_out(made.broken)


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without threads of linear algebra, which wait for each other at full speed beside the processes that draw, and
    without the search for garbage: of a report's many objects nearly none is any."""
    if "numpy" not in sys.modules:  # it reads this once
        for name in THREADS:
            os.environ.setdefault(name, "1")
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _new_report(method: str, results: Path, files: list[Path], output: Path, made_of: str) -> Report:
    say_at_once(f"reading {len(files)} Results, and drawing what changed")
    from reproduce.cli.pages import write_pages
    from reproduce.processors import usable_cores
    from reproduce.report.evidence import beside_pages, found_in

    found, problems = read_results(files)
    broken: list[str] = []
    experiments = chosen_experiments(method, None, broken=broken, whole=True)  # a page is whole or as it was
    known = {one.name: of_one for one, of_one in experiments.items()} if method == "all" else experiments_known()
    if results == EVIDENCE:  # quick experiments are for the reader's own machine
        experiments = {
            folder: {name: one for name, one in of_method.items() if one.scale != "quick"}
            for folder, of_method in experiments.items()
        }
    pages = write_pages(
        experiments,
        found,
        problems,
        output,
        known=known,
        processes=usable_cores(),
        address=beside_pages if results == EVIDENCE else found_in(files, output),
        broken=broken,
    )
    said = f"{len(found)} Results, {len(problems)} unreadable; {len(pages)} pages in {output}"
    patterns = [f"{name}.*" for name in ("matrix", *(page.stem for page in pages))]
    patterns += ["README.md", "answer*.svg", "data/*"] if len(pages) > 1 else []
    written = digests((path for pattern in patterns for path in output.glob(pattern)), output)
    report = Report(made_of, said, problems, broken, written)
    remember(output, report)
    return report


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
    broken: list[str] = []
    planned = planned_runs(chosen_experiments(method, scale, only, broken), seeds, data, broken=broken)
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
                copy_result(source, target, of_run=planned_run.id)
                n_new += 1
            except ResultError as error:
                problems.append(str(error))
    already = len(planned) - n_new - n_missing - len(problems)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    print(f"{n_new} Results published to {output}, {already} already there, {n_missing} not trained yet")
    say_left_out(broken)
