"""Random numbers of the CPU on any device, so that a step there can be compared with the same step on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")


class DrawsOfTheCpu(TorchDispatchMode):
    """Each operation with a generator is done on the CPU, by a generator with the same seed, and its result copied.

    A GPU's generators give other numbers than the CPU's from the same seed. Generators are told apart by their seeds,
    so two with one seed count as one; what they drew before is not known here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_seed: dict[int, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        generator = next((leaf for leaf in leaves if isinstance(leaf, torch.Generator)), None)
        if generator is None:
            return func(*args, **kwargs)
        drawn = func(*tree_map(self._on_cpu, args), **tree_map(self._on_cpu, kwargs))
        if func._schema.is_mutable:  # a tensor filled in place, the first argument or `out`
            filled = kwargs.get("out", args[0] if args else None)
            return filled.copy_(drawn)
        home = kwargs.get("device") or next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), CPU)
        return drawn.to(home)

    def _on_cpu(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Generator):
            seed = leaf.initial_seed()
            if seed not in self._by_seed:
                self._by_seed[seed] = torch.Generator().manual_seed(seed)
            return self._by_seed[seed]
        if isinstance(leaf, torch.device):
            return CPU
        return leaf.cpu().clone() if isinstance(leaf, Tensor) else leaf
