"""Runs side by side on one device, each in a thread with a stream and a graph of its own: how many are worth it?"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from reproduce.bench.stepper import Stepper
from reproduce.bench.workloads import Workload
from reproduce.method import Method
from reproduce.processors import usable_cores
from reproduce.training.capture import WARM_UP_STEPS
from reproduce.training.run import own_stream

SECONDS = 0.5  # of steps alone
WORTH_IT = 0.95  # more runs at once must bring a step below this part of what fewer take


@dataclass(frozen=True)
class RunsAtOnce:
    """So many runs at once, of one network."""

    workload: str
    at_once: int
    seconds: float  # from the first step to the last of all, for each step of each run
    memory: int | None  # bytes of the GPU that all of them hold, with what the process holds of it; None on the CPU


def measure(workload: Workload, method: Method, device: torch.device, at_once: int, steps: int) -> RunsAtOnce:
    """Train ``at_once`` runs in threads for so many steps each, after they are warm.

    Raises:
        RuntimeError: a run failed: out of memory, say (torch.OutOfMemoryError).
    """
    threads_before = torch.get_num_threads()
    began: list[float] = []
    ready = threading.Barrier(at_once, action=lambda: began.append(time.perf_counter()))

    def train() -> float:
        try:
            torch.set_num_threads(max(1, usable_cores() // at_once))
            with own_stream(device):
                stepper = Stepper(workload, method, device, captured=device.type == "cuda")
                for _ in range(WARM_UP_STEPS + 1):
                    stepper()
                _finish_queue(device)
                ready.wait()
                for _ in range(steps):
                    stepper()
                _finish_queue(device)
                return time.perf_counter()
        except Exception:
            ready.abort()  # the others do not wait for it
            raise

    try:
        with ThreadPoolExecutor(at_once) as pool:
            runs = [pool.submit(train) for _ in range(at_once)]
            failures = [failure for run in runs if (failure := run.exception()) is not None]
            causes = [failure for failure in failures if not isinstance(failure, threading.BrokenBarrierError)]
            if causes or failures:
                raise (causes or failures)[0]
            ended = max(run.result() for run in runs)
            memory = _memory_in_use(device)
    finally:
        torch.set_num_threads(threads_before)
    return RunsAtOnce(workload.name, at_once, (ended - began[0]) / (at_once * steps), memory)


def steps_to_take(seconds_of_one: float) -> int:
    """Enough to be timed, and few where one takes long."""
    return max(3, round(SECONDS / seconds_of_one))


def recommended_jobs(rows: Sequence[RunsAtOnce]) -> int:
    """Of the rows of one workload: the fewest runs at once that no larger number betters by a twentieth."""
    chosen, *others = sorted(rows, key=lambda row: row.at_once)
    for row in others:
        if row.seconds < WORTH_IT * chosen.seconds:
            chosen = row
    return chosen.at_once


def _finish_queue(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _memory_in_use(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free
