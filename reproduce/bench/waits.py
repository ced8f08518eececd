"""Steps in which the host may not wait for the device: there, a wait is an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reproduce.training.capture import waits_for_a_value


class WaitsForTheDevice(RuntimeError):
    """An operation that needs a tensor's value on the host."""


class _NoHostSync(TorchDispatchMode):
    """Raises where an operation waits for a tensor's value, or has a shape that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if waits_for_a_value(func, args):
            raise WaitsForTheDevice(f"{func} waits for the device: no .item(), no branch on a value, no mask as index")
        return func(*args, **(kwargs or {}))


class _NoCopyToHost(TorchFunctionMode):
    """Raises for the copies to the host that no operation on a CPU shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "__array__", "cpu"):
            raise WaitsForTheDevice(f"Tensor.{name} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def forbidden_waits(device: torch.device) -> Iterator[None]:
    """What would wait raises here: on CUDA by its driver, elsewhere where it is seen that the operation would.

    Raises:
        RuntimeError: from the operation; off CUDA it is a `WaitsForTheDevice`.
    """
    if device.type != "cuda":
        with _NoCopyToHost(), _NoHostSync():
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
