"""How many Runs share a device, and how: in worker processes, or in threads of one process."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from reproduce.errors import UserError
from reproduce.processors import usable_cores

RUNS_ON_A_GPU = 8  # where --jobs leaves it open: the networks of the papers leave most of a GPU idle when alone
STREAMS = 32  # of each device: torch hands them out in turn, and the 33rd is the first one again
HEADROOM = 1.2  # what a Run may take beyond its first steps: evaluation, and blocks that do not fit together
MPS_CONTROL = "nvidia-cuda-mps-control"


@dataclass(frozen=True)
class DeviceFacts:
    """What is asked of a machine before Runs share its device."""

    name: str  # "cpu", "cuda:0"
    cores: int
    mps: bool = False  # CUDA's multi-process service answers: kernels of several processes run at the same time
    mps_installed: bool = False  # the user could start it
    free_bytes: Callable[[], int] | None = None  # of the device's memory, now; None: nobody counts, as on a CPU

    @classmethod
    def of(cls, device: torch.device) -> DeviceFacts:
        cores = usable_cores()
        if device.type != "cuda":
            return cls(str(device), cores)
        pipes = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")  # CUDA's own default
        return cls(
            str(device),
            cores,
            mps=listens(pipes / "control"),
            mps_installed=shutil.which(MPS_CONTROL) is not None,
            free_bytes=lambda: torch.cuda.mem_get_info(device)[0],
        )


@dataclass(frozen=True)
class SideBySide:
    """How Runs share a device."""

    jobs: int  # at once, at most
    threads: int  # of the CPU, for each
    in_threads: bool = False  # of one process; else a process each
    free_bytes: Callable[[], int] | None = None  # of the device's memory, now; None: it is not counted
    said: str = ""  # in one line, where it is not the ordinary way


def arrange(asked: int, n_runs: int, facts: DeviceFacts) -> SideBySide:
    """As many Runs as asked for; 0 means one a core on a CPU, and RUNS_ON_A_GPU on a GPU; never more than there are.

    On a GPU without MPS, processes take turns and their kernels never overlap: threads of one process are better there,
    each Run with a stream and a graph of its own.

    Args:
        n_runs: of the whole plan, sealed ones as well: a resumed Run keeps its number of threads, and so its last bits.

    Raises:
        UserError: a negative number.
    """
    if asked < 0:
        raise UserError(f"--jobs {asked}: expected 0 or more")
    on_gpu = facts.free_bytes is not None
    jobs = min(asked or (RUNS_ON_A_GPU if on_gpu else facts.cores), max(1, n_runs))
    in_threads = on_gpu and not facts.mps and jobs > 1
    if in_threads:
        jobs = min(jobs, STREAMS)
    threads = max(1, facts.cores // jobs)
    if not on_gpu or jobs == 1:
        return SideBySide(jobs, threads)
    if not in_threads:
        reason = "in processes, which the MPS daemon lets share it"
    elif facts.mps_installed:
        reason = f"in threads, no MPS daemon: `{MPS_CONTROL} -d` starts one, and the next command takes processes"
    else:
        reason = f"in threads, no MPS daemon and no {MPS_CONTROL} to start one with"
    return SideBySide(
        jobs, threads, in_threads, facts.free_bytes, f"up to {jobs} runs side by side on {facts.name} {reason}"
    )


def listens(control: Path) -> bool:
    """Whether a daemon has this socket or named pipe open: the file alone may be left over from a dead one."""
    try:
        mode = control.stat().st_mode
        if stat.S_ISFIFO(mode):
            os.close(os.open(control, os.O_WRONLY | os.O_NONBLOCK))
            return True
    except OSError:
        return False
    return stat.S_ISSOCK(mode) and any(_accepts(control, kind) for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM))


def _accepts(control: Path, kind: socket.SocketKind) -> bool:
    with socket.socket(socket.AF_UNIX, kind) as line:
        line.settimeout(1.0)
        return line.connect_ex(str(control)) == 0


class Room:
    """How many Runs may train at once: as many as asked for, and no more than the device's memory holds.

    What a Run takes is measured, since activations, cuDNN's workspaces and a graph's memory cannot be known before. So
    the first Run begins alone, and the others follow when it has settled. One that finds no memory later on, since Runs
    differ, waits until another has ended.

    Args:
        free_bytes: of the device's memory, now; None: it is not counted.
        capacity: of the machines, now, where they come and go; None: it is ``jobs``.
    """

    def __init__(
        self, jobs: int, free_bytes: Callable[[], int] | None = None, capacity: Callable[[], int] | None = None
    ) -> None:
        self._jobs = jobs
        self._free_bytes = free_bytes
        self._capacity = capacity
        self._free_before = 0 if free_bytes is None else free_bytes()
        self._places = jobs if free_bytes is None or jobs == 1 else 1
        self._measured = self._places == jobs

    @property
    def places(self) -> int:
        return self._places if self._capacity is None else min(self._places, self._capacity())

    def settled(self) -> str | None:
        """The first Run has taken what it needs; a line for the user when fewer than asked for fit beside it."""
        if self._measured or self._free_bytes is None:
            return None
        self._measured = True
        free = self._free_bytes()
        taken = max(1, self._free_before - free)
        self._places = min(self._jobs, 1 + int(free / (HEADROOM * taken)))
        if self.places == self._jobs:
            return None
        return (
            f"{self.places} instead of {self._jobs} runs side by side: the first one took {_gib(taken)} of "
            f"{_gib(self._free_before)} of free memory"
        )

    def ran_out(self, n_training: int) -> str | None:
        """One of so many Runs found no memory; a line for the user if fewer may do, None if it was alone."""
        if n_training < 2:
            return None
        self._places = min(self._places, n_training - 1)
        return f"out of memory with {n_training} runs side by side: {self.places} from here on"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"
