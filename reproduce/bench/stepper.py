"""The loop's steps without the loop: what is timed, counted, and compared."""

from __future__ import annotations

import functools

import torch

from reproduce import tasks
from reproduce.bench.workloads import Workload
from reproduce.method import Method
from reproduce.method.rng import Generators
from reproduce.training.capture import CudaGraph, Recording
from reproduce.training.step import Step
from reproduce.training.tape import Tape


def recording(generators: Generators, device: torch.device) -> Recording:
    """What a captured step is recorded into: a CUDA graph, or a tape where there are none, which proves and is slow."""
    return CudaGraph(generators) if device.type == "cuda" else Tape()


class Stepper:
    """Steps of one method on one workload, over one epoch again and again. The first step is taken at once.

    Args:
        captured: the steps after the first WARM_UP_STEPS are replayed.
        rate_on_device: that of `Step`.

    Raises:
        ValueError: the method refuses the workload's model.
    """

    def __init__(
        self,
        workload: Workload,
        method: Method,
        device: torch.device,
        captured: bool = False,
        rate_on_device: bool | None = None,
    ) -> None:
        generators = Generators.seeded(0, device)
        self.task = tasks.build(workload.task, workload.recipe, workload.data(), generators, device)
        make_recording = functools.partial(recording, generators, device) if captured else None
        self.step = Step(self.task, method, workload.recipe, generators, device, make_recording, rate_on_device)
        self.task.start_epoch()
        self()

    def __call__(self) -> None:
        self.step()
