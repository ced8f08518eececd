"""`torchrun`: a `run` whose Runs are trained by several processes together, one Run at a time."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from reproduce.cli.campaign import Workers
from reproduce.errors import UserError, one_line

if TYPE_CHECKING:
    from reproduce.training.group import Group


@dataclass(frozen=True)
class GroupWorkers(Workers):
    """All processes together, which train one Run at a time."""

    group: Group

    @property
    def device_name(self) -> str:
        from reproduce.training.run import device_name, torch_device

        return device_name(torch_device(self.device), self.group.size)


def are_several() -> bool:
    """Whether torchrun has started this process and others beside it."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def joined(context: typer.Context, device: str, jobs: int, mode: str, is_local: bool, budget: str) -> GroupWorkers:
    """The first process, with the others to train with for as long as the command takes.

    Raises:
        UserError: an option that several processes do not take.
        typer.Exit: in the other processes, when all is done.
    """
    is_first = os.environ["RANK"] == "0"
    try:
        _check(jobs, mode, is_local, budget)
        from reproduce.training import torchrun

        own = torchrun.own_device(device)
    except UserError:
        if is_first:
            raise
        raise typer.Exit(2) from None  # the first process says it
    group = context.with_resource(torchrun.joined(own))
    if is_first:
        return GroupWorkers(str(own), "eager", torchrun.arranged(group, own), group)
    try:
        torchrun.follow(group, own)
    except Exception as error:
        said = one_line(f"{type(error).__name__}: {error}")
        print(f"error: process {os.environ['RANK']} lost the others or could not go on: {said}", file=sys.stderr)
        raise typer.Exit(1) from None
    raise typer.Exit


def _check(jobs: int, mode: str, is_local: bool, budget: str) -> None:
    if not is_local:
        raise UserError("--engine ray starts its own processes: leave torchrun out, or --engine")
    if jobs not in (0, 1):
        raise UserError(f"--jobs {jobs}: the processes of torchrun train one run at a time: leave --jobs out")
    if mode not in ("", "eager"):
        raise UserError(f"--mode {mode}: steps of several processes are eager: leave --mode out")
    if budget:
        raise UserError("--budget times single steps in one process: leave it out, or torchrun")
