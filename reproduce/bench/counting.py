"""What a step cannot do without: operations to start, and bytes to move at the speed at which the device copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reproduce.bench.timing import timed

COPIED_BYTES = 2**28  # far more than caches hold
_NEVER_READ_OR_WRITTEN = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Operations(TorchDispatchMode):
    """Counts aten operations that compute, and the bytes that they read and write; views do neither.

    An operation counts what it is given and what it gives, as if no cache held anything: a kernel that fuses several
    moves less. What is repeated along an axis (an expanded bias) counts once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.bytes = 0

    @property
    def count(self) -> int:
        return self.by_name.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in _NEVER_READ_OR_WRITTEN and not _is_view(func, (args, kwargs), results):
            self.by_name[name] += 1
            self.bytes += sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, results)))
        return results


def _is_view(operation: Any, given: Any, results: Any) -> bool:
    """Whether nothing was computed: what it gives lies where what it was given lies, and nothing was written there."""
    made = _places(results)
    return bool(made) and not operation._schema.is_mutable and made <= _places(given)


def _places(tree: Any) -> set[int]:
    return {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}


def _bytes(leaf: Any) -> int:
    if not isinstance(leaf, Tensor):
        return 0
    return min(leaf.numel() * leaf.element_size(), leaf.untyped_storage().nbytes())


def operations_of(function: Callable[[], object]) -> Operations:
    """The operations of one call."""
    with Operations() as counted:
        function()
    return counted


def copy_bandwidth(device: torch.device, n_bytes: int = COPIED_BYTES) -> float:
    """Bytes a second, read and written, of the fastest of a few copies on the device."""
    source = torch.zeros(n_bytes // 4, device=device)
    target = torch.zeros_like(source)
    target.copy_(source)  # touches every page, once
    seconds = min(timed(lambda: target.copy_(source), device, repeats=3) for _ in range(5))
    return 2 * n_bytes / seconds
