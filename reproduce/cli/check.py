"""`check`: is this machine fit to train on, how fast is it, and how many runs does it take at once?"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reproduce.cli.campaign import DeviceOption
from reproduce.cli.durations import count_of
from reproduce.cli.estimates import in_file_names
from reproduce.cli.options import JsonOption, MethodsOption, chosen_methods, say_at_once
from reproduce.results.record import device_kind

if TYPE_CHECKING:
    from reproduce.bench.check import Findings
    from reproduce.training.estimate import StepTime


def check(
    method: Annotated[str, typer.Argument(help="A method's name, or 'all'.")] = "all",
    device: DeviceOption = "",
    small: Annotated[bool, typer.Option("--small", help="Toy sizes: checks the check, measures nothing.")] = False,
    output: Annotated[Path, typer.Option("--output", help="The folder for <device>.json.")] = Path("runs/check"),
    as_json: JsonOption = False,
    methods: MethodsOption = None,
) -> None:
    """Facts of a device, every method beside the CPU, eager beside captured steps, step times, runs side by side."""
    say_at_once("loading torch, looking at the device")
    from reproduce.bench.check import check as findings_by_part
    from reproduce.cli.check_tables import tables_of
    from reproduce.cli.terminal import console
    from reproduce.training.malloc import keep_freed_memory
    from reproduce.training.run import default_device, torch_device

    folders = chosen_methods(method)
    chosen = torch_device(device or default_device())
    output.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()  # as in the worker processes that train
    for part, found in findings_by_part(folders, chosen, small):
        content = as_content(found, small)
        path = output / f"{in_file_names(device_kind(found.device))}.json"
        path.write_text(
            json.dumps(content, indent=1) + "\n", "utf-8"
        )  # after each part: a lease may end before the last
        if not as_json:
            for shown in tables_of(part, found):
                console().print(shown)
    for line in found.problems:
        print(f"problem: {line}", file=sys.stderr)
    if as_json:
        print(json.dumps(content, indent=1))
    else:
        print(f"{count_of(len(found.problems), 'problem') if found.problems else 'no problems'}; written: {path}")
    if found.problems:
        raise typer.Exit(1)


def as_content(found: Findings, small: bool) -> dict[str, Any]:
    """What is written: step times are read again, as estimates (`read_step_times`); the rest is for people."""
    timed = [{name: value for name, value in vars(step).items() if name != "estimate"} for step in found.steps]
    # Runs are captured where that can be: the faster of both modes is what they will take.
    fastest: dict[tuple[str, str], StepTime] = {}
    for step in sorted(found.steps, key=lambda step: step.seconds, reverse=True):
        fastest[step.estimate.problem, step.estimate.way] = step.estimate
    return {
        "machine": {"device": found.device, "kind": device_kind(found.device)},
        "versions": found.versions,
        "steps": [estimate.model_dump() for estimate in fastest.values()],
        "timed": timed,
        "small": small,
        "facts": found.facts,
        "bandwidth": found.bandwidth,
        "counts": dict(found.counts),
        "side_by_side": [asdict(row) for row in found.side_by_side],
        "recommended_jobs": found.recommended,
        "problems": found.problems,
        "remarks": found.remarks,
    }
