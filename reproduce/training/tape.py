"""A CUDA graph's meaning without a GPU: the operations of one step, recorded and replayed on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reproduce.training.capture import can_be_recorded


class Tape:
    """A `Recording` on any device, slower than what it records: a proof, and no way to train.

    As in a CUDA graph: tensors stay where they were when it was recorded, numbers that the host knew are repeated,
    generators go on, and Python is not asked again. What is recorded stays alive.

    Raises:
        RuntimeError: from `record`, at an operation that a graph could not hold.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def record(self, function: Callable[[], None]) -> None:
        with _Recorder(self.operations):
            function()

    def replay(self) -> None:
        with torch.no_grad():
            for operation, arguments, options, results in self.operations:
                for place, value in zip(
                    tree_leaves(results), tree_leaves(operation(*arguments, **options)), strict=True
                ):
                    if isinstance(place, Tensor) and not _shares_memory(place, value):
                        place.copy_(value)


class _Recorder(TorchDispatchMode):
    def __init__(self, operations: list[Any]) -> None:
        super().__init__()
        self.operations = operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not can_be_recorded(func, args, kwargs):
            raise RuntimeError(f"{func} waits for a value: no graph holds it")
        options = kwargs or {}
        results = func(*args, **options)
        self.operations.append((func, args, options, results))
        return results


def _shares_memory(one: Tensor, other: Tensor) -> bool:
    """A view, or what was written in place, lies there already."""
    return one.data_ptr() == other.data_ptr() and one.numel() > 0
