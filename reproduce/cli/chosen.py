"""Which experiments a command takes, and where their Results lie."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import typer

from reproduce.cli.options import as_typed, chosen_methods
from reproduce.errors import UserError, did_you_mean, nearest
from reproduce.experiment import folder as folders
from reproduce.experiment.files import COLUMN, read_columns
from reproduce.experiment.folder import WORKING_FOLDER, MethodFolder, all_methods
from reproduce.experiment.schema import Experiment, Scale
from reproduce.results.index import read_briefly
from reproduce.results.record import Result
from reproduce.results.store import read_results

REPORTS = WORKING_FOLDER / "reports"
EVIDENCE = REPORTS / "evidence"
SCALES = get_args(Scale)


def chosen_experiments(
    method: str, scale: str | None, only: str = "", broken: list[str] | None = None, whole: bool = False
) -> dict[MethodFolder, dict[str, Experiment]]:
    """By method, its experiments at one scale, or all when None; with `only`, those of these names at any scale.

    Args:
        broken: experiments that do not read are left out, and here told in a line each; None: they are an error.
        whole: a method is left out with the first of its own files that does not read.

    Raises:
        UserError: unknown method or scale, a name or pattern in `only` that no experiment has, or an experiment that
            is asked for by its name, or is a file of the only method that is, and does not read.
    """
    if scale is not None and scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}: {did_you_mean(scale, SCALES)}")
    unread: dict[tuple[str, str], str] | None = None if broken is None else {}
    experiments = readable_experiments(chosen_methods(method).values(), unread, whole)
    patterns = [pattern.strip() for pattern in only.split(",") if pattern.strip()]
    columns = unread_columns() if unread else set()
    for (_, name), line in (unread or {}).items():
        is_meant = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        if method == "all":
            is_refused = is_meant and not any(name in found for found in experiments.values())
        else:
            is_refused = is_meant if patterns else name not in columns
        if is_refused:
            raise UserError(line)  # before anything is trained: whoever names it is at work on it
        if broken is not None and line not in broken and (method == "all" or not patterns):
            broken.append(line)
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
    folders: Iterable[MethodFolder], broken: dict[tuple[str, str], str] | None, whole: bool = False
) -> dict[MethodFolder, dict[str, Experiment]]:
    """The experiments of every method that read.

    Args:
        broken: told of the others by method and name, in a line each; None: one that does not read is an error.
        whole: a method is left out with the first of its own files that does not read.

    Raises:
        UserError: one that does not read, or none that does.
    """
    found = {}
    for folder in folders:
        unread: dict[str, str] = {}
        experiments = folder.experiments(None if broken is None else unread)
        if broken is not None:
            broken |= {(folder.name, name): line for name, line in unread.items()}
        if not (whole and unread and unread.keys() - unread_columns()):
            found[folder] = experiments
    if broken and not any(found.values()):
        raise UserError(next(iter(broken.values())))
    return found


def unread_columns() -> set[str]:
    """The columns of the matrix that do not read, by name: a matter of no method."""
    broken: dict[str, str] = {}
    read_columns(folders.WORKLOADS, broken)
    return {*broken}


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
    """Of every method those that read, by name: what is wrong with one is no matter of the others."""
    return {name: folder.experiments({}) for name, folder in all_methods().items()}


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
