"""`doctor`: what is here, and what it is good for: versions, device, memory, disk, data, and how long it trains."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import reproduce
from reproduce.cli.chosen import SCALES, chosen_experiments, committed_results, local_results
from reproduce.cli.durations import count_of
from reproduce.cli.options import DataOption, JsonOption, MethodsOption, RunsOption, as_typed
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard, card_names, matches, read_card
from reproduce.experiment.folder import WORKING_FOLDER
from reproduce.processors import usable_cores

if TYPE_CHECKING:
    from reproduce.cli.campaign import Workers

State = Literal["fine", "note", "problem"]
LIBRARIES = ("torch", "torchvision", "datasets")
GIB = 2**30
SMALLEST_MEMORY, SMALLEST_DISK = 2.0, 1.0  # GiB: below, even the quick experiments get into trouble


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    state: State = "fine"


def doctor(
    data: DataOption = "",
    runs: RunsOption = Path("runs"),
    quickly: Annotated[bool, typer.Option("--quickly", help="Load no torch, and estimate nothing.")] = False,
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """Python, torch, GPU, data, memory, disk; what this machine can run, and how long that takes. Trains nothing."""
    found = []
    for finding in findings(data, runs, quickly):
        found.append(finding)
        if not as_json:  # at once: the later ones take seconds
            mark = {"fine": " ", "note": "-", "problem": "!"}[finding.state]
            print(f"{mark} {finding.what + ':':<14} {finding.found}", flush=True)
    problems = [finding for finding in found if finding.state == "problem"]
    has_notes = any(finding.state == "note" for finding in found)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        said = f"{count_of(len(problems), 'problem')}, marked with !" if problems else "no problems"
        print(f"{said}; - marks what some experiments need or wait for" if has_notes else said)
    if problems:
        raise typer.Exit(1)


def findings(data: str, runs: Path, quickly: bool = False) -> Iterator[Finding]:
    """One by one, what takes long last."""
    yield Finding("reproduce", f"{reproduce.__version__} in {Path(reproduce.__file__).parent}")
    yield Finding("Python", f"{platform.python_version()} ({sys.executable})")
    for library in LIBRARIES:
        yield _library(library)
    yield _cores_and_memory()
    yield _disk(runs)
    yield from data_found(Path(data).expanduser() if data else None, WORKING_FOLDER / "data")
    if not quickly and importlib.util.find_spec("torch"):
        workers, device = _device()
        yield device
        yield from _estimates(data, runs, workers)


def _library(name: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed: make setup, or pip install the project", "problem")


def _cores_and_memory() -> Finding:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    enough = gib >= SMALLEST_MEMORY
    said = f"{usable_cores()} cores, {gib:.1f} GiB of memory"
    return Finding("machine", said if enough else f"{said}: {SMALLEST_MEMORY:g} GiB are needed", _state(enough))


def _disk(runs: Path) -> Finding:
    there = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    gib = shutil.disk_usage(there).free / GIB
    said = f"{gib:.1f} GiB free for {runs}/"
    if not os.access(there, os.W_OK):
        return Finding("disk", f"{said}, which cannot be written: name another with --runs", "problem")
    enough = gib >= SMALLEST_DISK
    return Finding("disk", said if enough else f"{said}: {SMALLEST_DISK:g} GiB are needed", _state(enough))


def _state(is_fine: bool) -> State:
    return "fine" if is_fine else "problem"


def data_found(root: Path | None, cache: Path) -> Iterator[Finding]:
    """Which datasets are here, by their cards; checksums are compared when a dataset is loaded."""
    if root is not None and not root.is_dir():
        yield Finding("data", f"{root}: no such folder", "problem")
        root = None
    by_place: dict[str, list[str]] = {}
    for name in card_names():
        try:
            place = where_found(read_card(name), [folder for folder in (root, cache) if folder is not None])
        except UserError as error:
            yield Finding("card", str(error), "problem")
            continue
        by_place.setdefault(place, []).append(name)
    for place, names in sorted(by_place.items()):
        yield Finding("data", f"{place}: {', '.join(names)}", "note" if place.startswith("not here") else "fine")


def where_found(card: DatasetCard, folders: Sequence[Path]) -> str:
    """In which folder a card's files lie, or how they come."""
    if not card.files:
        return "comes along"
    for folder in folders:
        for files in (card.files, card.archive):
            if files and all(matches(folder, pattern) for pattern in files):
                return f"in {folder}"
    downloads = card.torchvision or card.hugging_face
    return "not here, downloaded at first use" if downloads else "not here, to be put into --data as its card says"


def _device() -> tuple[Workers, Finding]:
    import torch

    from reproduce.cli.campaign import workers_on
    from reproduce.training.run import device_name, torch_device

    workers = workers_on("", 0, 1000)
    said = f"{device_name(torch_device(workers.device))}, up to {workers.how.jobs} runs side by side"
    if workers.device != "cpu":
        gib = torch.cuda.get_device_properties(torch.device(workers.device)).total_memory / GIB
        return workers, Finding("device", f"{said}, {gib:.0f} GiB")
    return workers, Finding("device", f"{said}; no GPU that torch {torch.__version__} can use", "note")


def _estimates(data: str, runs: Path, workers: Workers) -> Iterator[Finding]:
    """How long what is not trained yet takes at each scale, where like steps were timed on such a device."""
    from reproduce.cli.campaign import planned_runs, settings_of
    from reproduce.cli.durations import duration, runs_text
    from reproduce.cli.estimates import Timer, known_times

    sealed, _ = local_results(runs, briefly=True)
    any_untimed, left_out = False, dict[str, None]()
    times, ids = known_times([*sealed, *committed_results()], runs), {result.id for result in sealed}
    for scale in SCALES:
        broken: list[str] = []
        try:
            experiments = chosen_experiments("all", scale, broken=broken)
            planned = planned_runs(experiments, "", data, results=sealed, broken=broken)
        except UserError as error:
            yield Finding(scale, str(error), "problem")
            continue
        left_out |= dict.fromkeys(broken)
        missing = [run for run in planned if run.id not in ids]
        timer = Timer(times, settings_of(workers, data, runs, len(missing)))
        known = [seconds for run in missing if (seconds := timer.seconds_of(run)) is not None]
        said = f"{runs_text(len(planned))}, {len(missing)} to train"
        if known:
            of_some = f"{len(known)} of them " if len(known) < len(missing) else ""
            said += f": {of_some}about {duration(sum(known) / workers.how.jobs)} on {workers.how.jobs} workers"
        if untimed := len(missing) - len(known):
            said += f"; {runs_text(untimed)} that nothing like was timed on this device yet"
        any_untimed |= untimed > 0
        yield Finding(scale, said, "note" if untimed else "fine")
    for line in left_out:
        yield Finding("experiments", line, "problem")
    if any_untimed:
        command = f"{as_typed()} plan all --scale quick --pilot"
        yield Finding("to time them", f"{command} runs 20 steps of each kind; nothing is wrong without", "note")
