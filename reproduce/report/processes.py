"""Several processes for one report."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Made = TypeVar("Made")


_calls: list[Callable[[], Any]] = []  # what a forked process finds: Results are long to send


def all_made(
    calls: Sequence[Callable[[], Made]], processes: int = 1, meanwhile: Callable[[], None] = lambda: None
) -> list[Made]:
    """What each call returns, in their order; what that is can be pickled.

    Python looks for garbage after each call, in nothing but what that made: Results are long to look through.

    Args:
        processes: at most so many make something side by side.
        meanwhile: what this process does while others work.
    """
    if _calls:  # inside one of them: there are processes enough
        gc.freeze()
        return [_then_collected(call) for call in calls]
    is_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    _calls[:] = calls
    try:
        if min(processes, len(calls)) < 2 or sys.platform != "linux":  # elsewhere, a fork with threads may hang
            meanwhile()
            return [_then_collected(call) for call in calls]
        with ProcessPoolExecutor(min(processes, len(calls)), multiprocessing.get_context("fork")) as pool:
            made = pool.map(_made, range(len(calls)))
            meanwhile()
            return list(made)
    finally:
        _calls.clear()
        gc.unfreeze()
        if is_enabled:
            gc.enable()


def _made(place: int) -> Any:
    return _then_collected(_calls[place])


def _then_collected(call: Callable[[], Made]) -> Made:
    made = call()
    gc.collect()
    return made
