"""Timings that are interleaved, and their ratios round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from reproduce.training.estimate import StepTime


@dataclass(frozen=True)
class Row:
    """One ratio of timings with its spread over rounds, or of counts."""

    what: str
    where: str
    ratio: float
    low: float
    high: float
    milliseconds: float | None  # of the thing measured, for orientation only; None: it was counted
    limit: str = ""
    kept: bool | None = None
    operations: int | None = None  # counted
    step: StepTime | None = None  # where a whole training step was timed


def timed(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds per call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def interleaved(
    functions: dict[str, Callable[[], None]], device: torch.device, rounds: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Time all functions in turn, round after round, so that a machine that drifts drifts for all of them.

    Each must have run once before: the first time costs more.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_index in range(rounds):
        names = list(functions) if round_index % 2 == 0 else list(reversed(functions))
        for name in names:
            seconds[name].append(timed(functions[name], device, repeats))
    return seconds


def ratio_row(
    what: str, where: str, seconds: list[float], base: list[float], limit: float | None = None, at_least: bool = False
) -> Row:
    """Median of the ratios round by round, with their quartiles."""
    ratios = sorted(one / other for one, other in zip(seconds, base, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    if limit is None:
        promised, kept = "", None
    else:
        promised, kept = f"{'>=' if at_least else '<='} {limit:g}", (middle >= limit) if at_least else (middle <= limit)
    return Row(what, where, middle, low, high, 1e3 * statistics.median(seconds), promised, kept)
