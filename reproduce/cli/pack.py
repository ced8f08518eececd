"""`pack` and `unpack`: sealed Results on their way from one machine to another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reproduce.cli.chosen import chosen_experiments, say_left_out
from reproduce.cli.options import DataOption, MethodsOption, OnlyOption, RunsOption, SeedsOption
from reproduce.errors import UserError
from reproduce.experiment.folder import ROOT


def pack(
    method: Annotated[str, typer.Argument(help="A method's name, or 'all'; default: all that is sealed there.")] = "",
    scale: Annotated[str, typer.Option("--scale", help="quick, reduced or paper; default: all.")] = "",
    seeds: SeedsOption = "",
    data: DataOption = "",
    only: OnlyOption = "",
    results: Annotated[
        Path, typer.Option("--results", help="Where the Results lie: a folder of runs, or reports/evidence.")
    ] = Path("runs"),
    output: Annotated[Path, typer.Option("--output", help="The folder for the packs.")] = Path(),
    source: Annotated[
        bool, typer.Option("--source", help="Instead, note commit and code in source.json, for a copy without .git.")
    ] = False,
    methods: MethodsOption = None,
) -> None:
    """Pack sealed Results into files of at most 15 MiB, to be carried to another machine."""
    from reproduce.results.pack import write_packs

    if source:
        _note_source()
        return
    if not results.is_dir():
        raise UserError(f"--results {results}: no such folder")
    if not method and (scale or seeds or only):
        raise UserError("--scale, --seeds and --only choose among a method's experiments: name it, or say all")
    paths = {path.stem: path for path in results.glob("*.json")}
    paths |= {path.parent.name: path for path in results.glob("*/result.json")}
    broken: list[str] = []
    if method:
        from reproduce.cli.campaign import planned_runs

        experiments = chosen_experiments(method, scale or None, only, broken)
        planned = planned_runs(experiments, seeds, data, broken=broken)
        wanted = {run.config.folder for run in planned}
        paths = {name: path for name, path in paths.items() if name in wanted}
    files, n_packed, problems = write_packs(paths.values(), output)
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    for file in files:
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
    print(f"{n_packed} Results packed, {len(problems)} skipped")
    say_left_out(broken)


def _note_source() -> None:
    from reproduce.results.source import NOTE, current_source

    noted = current_source()
    (ROOT / NOTE).write_text(noted.model_dump_json(indent=1) + "\n", "utf-8")
    state = "with uncommitted changes" if noted.dirty else "without changes"
    print(f"{ROOT / NOTE}: commit {noted.commit[:12]} {state}, {len(noted.files)} files; do not commit it")


def unpack(
    packs: Annotated[list[Path], typer.Argument(help="Files that `reproduce pack` made.")],
    runs: RunsOption = Path("runs"),
) -> None:
    """Put packed Results among the local ones, each only where seal and id hold; what is sealed there stays."""
    from reproduce.results.pack import unpack as unpack_results

    n_new = n_already = 0
    problems: list[str] = []
    for pack_file in packs:
        try:
            found = unpack_results(pack_file, runs)
        except UserError as error:  # the other packs are taken all the same
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}")
        else:
            n_new += len(found.new)
            n_already += found.already
            problems += found.problems
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    print(f"{n_new} Results unpacked to {runs}, {n_already} already there, {len(problems)} skipped")
    if problems:
        raise typer.Exit(2)
