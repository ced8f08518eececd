"""Which experiments a command takes, and where their Results lie."""

from __future__ import annotations

import contextlib
import fnmatch
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import typer

from reproduce.cli.options import as_typed, chosen_methods
from reproduce.errors import UserError, did_you_mean, nearest
from reproduce.experiment.files import COLUMN
from reproduce.experiment.folder import WORKING_FOLDER, MethodFolder, all_methods
from reproduce.experiment.schema import Experiment, Scale
from reproduce.results.index import read_briefly
from reproduce.results.record import Result
from reproduce.results.store import read_results

REPORTS = WORKING_FOLDER / "reports"
EVIDENCE = REPORTS / "evidence"
SCALES = get_args(Scale)


def chosen_experiments(
    method: str, scale: str | None, only: str = "", broken: list[str] | None = None
) -> dict[MethodFolder, dict[str, Experiment]]:
    """By method, its experiments at one scale, or all when None; with `only`, those of these names at any scale.

    Args:
        broken: of all methods, those that do not read are left out, and here told in a line each; None: that is an
            error.

    Raises:
        UserError: unknown method or scale, experiments that do not read, or a name or pattern in `only` that no
            experiment has.
    """
    if scale is not None and scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}: {did_you_mean(scale, SCALES)}")
    experiments = readable_experiments(chosen_methods(method).values(), broken if method == "all" else None)
    patterns = [pattern.strip() for pattern in only.split(",") if pattern.strip()]
    if not patterns:
        return {
            folder: {name: one for name, one in found.items() if scale is None or one.scale == scale}
            for folder, found in experiments.items()
        }
    known = list(dict.fromkeys(name for found in experiments.values() for name in found))
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            near = nearest(pattern, known, at_most=3)
            all_of_one = (
                f"`{as_typed()} list` names them" if method == "all" else f"it has {', '.join(known) or 'none'}"
            )
            hint = f"did you mean {' or '.join(near)}?" if near else all_of_one
            lacking = "no method has an" if method == "all" else f"method {method} has no"
            raise UserError(f"{lacking} experiment {pattern!r}: {hint}")
    chosen = {
        folder: {name: one for name, one in found.items() if any(fnmatch.fnmatch(name, p) for p in patterns)}
        for folder, found in experiments.items()
    }
    return {folder: found for folder, found in chosen.items() if found}


def readable_experiments(
    folders: Iterable[MethodFolder], broken: list[str] | None
) -> dict[MethodFolder, dict[str, Experiment]]:
    """The experiments of every method that reads.

    Args:
        broken: told of the others in a line each; None: one that does not read is an error.

    Raises:
        UserError: one that does not read, or none that does.
    """
    found = {}
    for folder in folders:
        try:
            found[folder] = folder.experiments()
        except UserError as error:
            if broken is None:
                raise
            broken.append(str(error))
    if broken and not found:
        raise UserError(broken[0])
    return found


def say_left_out(broken: Sequence[str]) -> None:
    """What could not be read, after all that could; the command has then not done all that it was asked for.

    Raises:
        typer.Exit: there is something to say.
    """
    for line in dict.fromkeys(broken):
        print(f"error: {line}", file=sys.stderr)
    if broken:
        raise typer.Exit(2)


def nothing_planned(method: str, scale: str) -> str:
    """What to say where a method has nothing at a scale."""
    return f"{method} has no experiments at scale {scale}: `{as_typed()} list` shows those it has"


def columns_alone(experiments: Mapping[MethodFolder, Mapping[str, Experiment]]) -> list[str]:
    """A line for each chosen column of the matrix that no method adds an arm to: its baseline would train alone."""
    chosen = {name: one for found in experiments.values() for name, one in found.items() if name.startswith(COLUMN)}
    joined = {name for name, one in chosen.items() if len(one.arms) > 1}
    if chosen.keys() - joined:
        joined |= {name for found in experiments_known().values() for name, one in found.items() if len(one.arms) > 1}
    lines = []
    for name in sorted(chosen.keys() - joined):
        own, lender = name.removeprefix(COLUMN), chosen[name].arms_of
        tables = f"[{own}] or [{lender}]" if lender else f"[{own}]"
        hint = "" if lender else f'; arms_of = "images" in {name}.toml takes the arms that methods have there'
        lines.append(f"{name}: no method has a table {tables} in its matrix.toml, so the baseline trains alone{hint}")
    return lines


def experiments_known() -> dict[str, dict[str, Experiment]]:
    """Of every method that can be read, by name: what is wrong with one is no matter of the others."""
    known = {}
    for name, folder in all_methods().items():
        with contextlib.suppress(UserError):
            known[name] = folder.experiments()
    return known


def committed_results() -> list[Result]:
    """The evidence, as far as planning needs it: without curves."""
    return list(read_briefly(EVIDENCE.glob("*.json"))[0].values())


def local_results(runs: Path, briefly: bool = False) -> tuple[list[Result], list[str]]:
    """The Results in a folder of runs, without curves if ``briefly``, and a line for each that cannot be read."""
    files = runs.glob("*/result.json")
    if not briefly:
        return read_results(files)
    found, problems = read_briefly(files)
    return list(found.values()), problems
