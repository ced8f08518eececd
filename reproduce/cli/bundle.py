"""`bundle`: one folder with all that a command needs on a machine without network."""

from __future__ import annotations

import glob
import hashlib
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reproduce.cli.durations import runs_text
from reproduce.cli.options import DataOption, MethodsOption, RunsOption, as_typed, data_root, say_at_once
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import read_card
from reproduce.experiment.folder import ROOT, WORKING_FOLDER, methods_outside

if TYPE_CHECKING:
    from reproduce.data.sources import LocalFiles

LARGEST = 60 * 2**20  # bytes of the folder
SCRIPT = Path(__file__).with_name("bundle.sh")  # the part of run.sh that is the same in every bundle
LEFT_OUT = ("reports", "reports/data", "reports/evidence", "docs")  # folders whose files no Run reads
ACCEPT_OPTIONS_OF_RUN = {"allow_extra_args": True, "ignore_unknown_options": True}


def bundle(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--output", help="The folder to write; it may not be there yet.")] = Path(
        "bundle"
    ),
    data: DataOption = "",
    runs: RunsOption = Path("runs"),
    methods: MethodsOption = None,
    image_has: Annotated[
        str,
        typer.Option(
            "--image-has",
            help="Packages that the other machine has, comma-separated; default: torch, torchvision, the usual "
            "scientific ones, tensorboard, typer, rich and jinja2.",
        ),
    ] = "",
    python_version: Annotated[
        str, typer.Option("--python-version", help="The other machine's; default: this one's.")
    ] = "",
    platform: Annotated[
        list[str] | None, typer.Option("--platform", help="The other machine's, as pip spells it; may be repeated.")
    ] = None,
) -> None:
    """Write a folder of at most 60 MiB that trains on a machine without network: code, wheels, data and a run.sh.

    All other arguments are those of the `run` that it is to do there: `bundle per --scale paper --device cuda`.
    What is sealed here goes along as a pack, and is not trained again.
    """
    from reproduce.cli.campaign import check_options_of_run, planned_runs

    say_at_once("reading experiments, collecting code, packages and data")
    from reproduce.cli.chosen import EVIDENCE, chosen_experiments, say_left_out
    from reproduce.cli.wheels import IMAGE_HAS, PLATFORMS, download, lacking
    from reproduce.results.pack import write_packs
    from reproduce.results.source import NOTE, current_source, tracked_files

    chosen = _arguments_of_run(context.args)
    check_options_of_run(chosen)
    broken: list[str] = []
    experiments = chosen_experiments(chosen["method"], chosen["scale"], chosen["only"], broken)
    planned = planned_runs(experiments, chosen["seeds"], data, chosen["arms"], chosen["tasks"], broken=broken)
    if not planned:
        raise UserError(f"run {shlex.join(context.args)}: nothing to train: `{as_typed()} list` shows what is")
    source = current_source()
    python = python_version or f"{sys.version_info.major}.{sys.version_info.minor}"
    if output.exists():
        raise UserError(f"--output {output}: it is there already: remove it, or name another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(output)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.{os.getpid()}.") as temporary:
        made = Path(temporary) / output.name
        _copy(ROOT, (name for name in tracked_files(ROOT) if name.rpartition("/")[0] not in LEFT_OUT), made / "code")
        (made / "code" / NOTE).write_text(source.model_dump_json(indent=1) + "\n", "utf-8")
        outside = methods_outside()
        if outside is not None:
            shutil.copytree(outside, made / "methods_outside", ignore=shutil.ignore_patterns("__pycache__"))
        used = _archive_data(
            {name for run in planned for name in run.config.task.datasets}, data_root(data), made / "data"
        )
        has = image_has or IMAGE_HAS
        download(lacking(ROOT, has.split(",")), made / "wheels", python, platform or list(PLATFORMS))
        places = [(runs / run.config.folder / "result.json", EVIDENCE / f"{run.config.folder}.json") for run in planned]
        sealed = [next(path for path in both if path.exists()) for both in places if any(p.exists() for p in both)]
        _, n_packed, problems = write_packs(sealed, made / "packs")
        (made / "run.sh").write_text(_script(context.args, python, has, made), "utf-8")
        sizes = _checked_sizes(made, used)
        made.rename(output)
    for problem in problems:
        print(f"not taken along, and trained there: {problem}", file=sys.stderr)
    print(f"{output}: {_mebibytes(sum(sizes.values()))} MiB: {_listed(sizes)}")
    print(f"{runs_text(len(planned))}, {n_packed} of them sealed here; carry it over; there: bash {output.name}/run.sh")
    say_left_out(broken)


def _remove_left_behind(output: Path) -> None:
    """What a bundle of this name left that was killed while it was made: its process is gone."""
    for folder in output.parent.glob(f".{glob.escape(output.name)}.*.*"):
        number = folder.name.removeprefix(f".{output.name}.").partition(".")[0]
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):  # a name of another kind; another user's process
            continue


def _arguments_of_run(arguments: list[str]) -> dict[str, Any]:
    """The values of `run`'s options; what it does not take ends as it does when `run` is given it."""
    from reproduce.cli.commands import app

    command = typer.main.get_command(app)
    run = command.commands["run"]  # type: ignore[attr-defined]
    return run.make_context("run", list(arguments)).params


def _copy(root: Path, names: Iterable[str], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)


def _archive_data(datasets: Iterable[str], root: Path | None, target: Path) -> dict[str, list[str]]:
    """An archive for each top folder of the data that these datasets need; their names by the archive's.

    Raises:
        DataError: missing or damaged files; how to get them.
    """
    target.mkdir(parents=True)
    files: dict[str, dict[str, Path]] = {}
    used: dict[str, list[str]] = {}
    for name in sorted(datasets):
        found = _files_of(name, root)
        for pattern, paths in found.files.items() if found else ():
            archive = f"{Path(pattern).parts[0]}.tar.xz"
            folder = Path(pattern).parent
            files.setdefault(archive, {}).update({(folder / path.name).as_posix(): path for path in paths})
            used.setdefault(archive, []).append(name)
    for archive, members in files.items():
        with tarfile.open(target / archive, "w:xz", dereference=True) as opened:
            for name, path in members.items():
                opened.add(path, name)
    return {archive: list(dict.fromkeys(names)) for archive, names in used.items()}


def _files_of(dataset: str, root: Path | None) -> LocalFiles | None:
    """Its files, or the archive that holds them, each checked; None for data that come with the packages."""
    from reproduce.data.sources import find_files, missing

    card, cache = read_card(dataset), WORKING_FOLDER / "data"
    layouts = [files for files in (card.files, card.archive) if files]
    for files in layouts:
        found = find_files(card, files, root, cache)
        if found is not None:
            return found
    if layouts:
        raise missing(card, [*card.files, *card.archive], root, cache)
    return None


def _script(arguments: list[str], python: str, image_has: str, made: Path) -> str:
    settings = {"image_has": image_has, "python_version": python, "site": f"site-{_name_of(made / 'wheels')}"}
    settings["data"] = f"data-{_name_of(made / 'data')}"
    lines = ["#!/usr/bin/env bash", f"# Made by: reproduce bundle {shlex.join(arguments)}"]
    lines += [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return "\n".join([*lines, f"run=({shlex.join(arguments)})", "", SCRIPT.read_text("utf-8")])


def _name_of(folder: Path) -> str:
    """Of what is in it: another bundle on the same machine does not take it for its own."""
    hashes = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in sorted(folder.iterdir())]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:8]


def _checked_sizes(made: Path, used: dict[str, list[str]]) -> dict[str, int]:
    """Bytes of each part.

    Raises:
        UserError: too large in all; it names the data to leave out.
    """
    sizes = {part.name: _bytes_in(part) for part in sorted(made.iterdir()) if part.name not in ("data", "run.sh")}
    archives = {path.name: path.stat().st_size for path in (made / "data").iterdir()}
    sizes |= {f"data/{name}": size for name, size in archives.items()}
    excess = sum(sizes.values()) - LARGEST
    if excess <= 0:
        return sizes
    leave_out = []
    for name in sorted(archives, key=lambda name: -archives[name]):
        if excess > 0:
            excess -= archives[name]
            leave_out += used[name]
    advice = f"leave out the experiments on {', '.join(leave_out)}" if excess <= 0 else "no data can be left out for it"
    raise UserError(
        f"the bundle has {_mebibytes(sum(sizes.values()))} MiB, at most {LARGEST // 2**20} go along "
        f"({_listed(sizes)}): {advice}: choose others with --only"
    )


def _bytes_in(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _listed(sizes: dict[str, int]) -> str:
    ordered = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {_mebibytes(size)}" for name, size in ordered if size)


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f}"
