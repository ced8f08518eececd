"""Processes that `torchrun` has started: how they find each other, and what those do that the first one commands."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta

import torch
from torch import distributed

from reproduce.errors import UserError
from reproduce.method.parts import Part
from reproduce.processors import usable_cores
from reproduce.training.engines import ORPHAN_SECONDS, STOPPING
from reproduce.training.group import Abandoned, Group
from reproduce.training.loop import Interrupted
from reproduce.training.run import own_stream, train_here
from reproduce.training.side_by_side import SideBySide

NO_LIMIT = timedelta(days=365)  # the first process reads Results and writes pages while the others wait


def _told(name: str) -> int:
    return int(os.environ[name])


def own_device(asked: str) -> torch.device:
    """The CPU, or the GPU that is this process's among those of its machine.

    Raises:
        UserError: a GPU by its number, or more processes on this machine than GPUs.
    """
    kind = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    if kind.type != "cuda":
        return kind
    if kind.index is not None:
        raise UserError(f"--device {asked}: each process of torchrun has a GPU of its own: say --device cuda")
    n_gpus, n_processes = torch.cuda.device_count(), _told("LOCAL_WORLD_SIZE")
    if n_processes > n_gpus:
        raise UserError(f"{n_processes} processes and {n_gpus} GPUs here: torchrun --nproc-per-node {max(1, n_gpus)}")
    return torch.device("cuda", _told("LOCAL_RANK"))


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """The group of all processes; when the first one leaves it, the others are told to end.

    There are two of torch's groups: gradients and activations go through one, by NCCL between GPUs, and commands
    through the other, which waits for as long as the first process takes.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo", timeout=NO_LIMIT)
    try:
        control = distributed.group.WORLD
        of_batches = distributed.new_group(backend="nccl" if device.type == "cuda" else "gloo")
        part = Part(distributed.get_rank(), distributed.get_world_size(), of_batches)
        group = Group(part, control)
        if group.is_first:
            threading.Thread(target=_stop_with_parent, args=(os.getppid(),), daemon=True).start()
        try:
            yield group
        finally:
            if group.is_first:
                with suppress(UserError, RuntimeError):  # they are gone
                    group.begin(None)
    finally:
        distributed.destroy_process_group()


def _stop_with_parent(parent: int) -> None:
    """Ask this process to stop when torchrun was killed, which cannot ask any more."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def follow(group: Group, device: torch.device) -> None:
    """Train this process's part of every Run that the first one begins, until it says that there is none.

    What asks to stop is heard by the first process, and all stop after the same step.
    """
    for one in STOPPING:
        signal.signal(one, signal.SIG_IGN)
    torch.set_autocast_cache_enabled(False)  # as in the first process, which trains in a thread
    while (order := group.of_first(None)) is not None:
        run, settings = order
        torch.set_num_threads(settings.threads)
        here = replace(settings, device=str(device), group=group)
        with suppress(Abandoned, Interrupted), own_stream(device):
            train_here(run, here, device, here.runs / run.config.folder)


def arranged(group: Group, device: torch.device) -> SideBySide:
    """One Run at a time, by all processes; each has its share of its machine's cores."""
    threads = max(1, usable_cores() // _told("LOCAL_WORLD_SIZE"))
    what = f"the CPU, {threads} thread{'s' * (threads > 1)} each" if device.type == "cpu" else "a GPU each"
    said = f"{group.size} processes train one run at a time, each its part of every batch, on {what}"
    return SideBySide(1, threads, in_threads=True, said=said)
