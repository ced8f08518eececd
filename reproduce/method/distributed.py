"""Several processes that train one model: what is around it, and what they must have alike."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from reproduce.method.living import living
from reproduce.method.restore import tensors_of


def refuse_unsynchronised(model: nn.Module, before: set[int]) -> None:
    """A model with parameters that were added where nothing averages their gradients over processes.

    Buffers that were added are shown to `DistributedDataParallel`, which sends none if it found none when it was made.

    Args:
        model: as it is now.
        before: the ids of its parameters and buffers as it was.

    Raises:
        ValueError: `DistributedDataParallel` or FSDP was around the model already.
    """
    if not _is_in_use() or all(id(tensor) in before for tensor in tensors_of(model)):
        return
    added = {
        name: model.get_submodule(name.rpartition(".")[0])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in before
    }
    if added and _around(model, added):
        gc.collect()  # a wrapper that is no longer used may lie in a cycle of references
        for name, kind in _around(model, added).items():
            raise ValueError(
                f"the method adds the parameter {name!r}, and {kind} was there before it, so that each process would "
                f"train one of its own: attach() to the model first, and then {kind}(model)"
            )
    for wrapper in wrappers_of(model):
        if isinstance(wrapper, DistributedDataParallel):
            wrapper._assign_modules_buffers()


def _around(model: nn.Module, owners: dict[str, nn.Module]) -> dict[str, str]:
    """What is around the modules with these names."""
    kinds = [(type(one).__name__, one) for one in wrappers_of(model)] + [
        ("fully_shard", one) for one in _sharded(model)
    ]
    return {
        name: kind
        for name, owner in owners.items()
        for kind, one in kinds
        if any(part is owner for part in one.modules())
    }


def reshard(model: nn.Module) -> None:
    """Cut the weights into shards again that a forward pass of an FSDP2 model has left whole.

    An optimiser that is made then would hold the whole ones, and train nothing.
    """
    for part in _sharded(model):
        part.reshard()


def is_of_shards(error: RuntimeError) -> bool:
    """Whether weights that are cut into shards were combined with whole tensors."""
    return "DTensor" in str(error)


class AlikeAfterSteps:
    """Keeps what a method rewrites after a step alike in all processes: the first one decides.

    What it reads is each process's own: activations, counts, statistics of the first batch.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._wrappers: list[weakref.ref[nn.Module]] | None = None

    @contextlib.contextmanager
    def rewriting(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Around the method's work. All processes have to come here, each with the same optimiser and progress.

        Raises:
            ValueError: weights, or the optimiser's state, that are cut into shards.
        """
        wrappers = self._found() if _is_in_use() else []
        is_sharded = any(not isinstance(one, DistributedDataParallel) for one in [*wrappers, *_sharded(self.model)])
        if is_sharded or (wrappers and hasattr(optimizer, "consolidate_state_dict")):
            raise ValueError(
                "this method rewrites weights and the optimiser's state after a step, and they are cut into shards: "
                "use DistributedDataParallel, and an optimiser that is whole in each process"
            )
        if not wrappers:
            yield
            return
        tensors = list(_written_after_steps(self.model, optimizer))
        versions = [tensor._version for tensor in tensors]
        yield
        rewritten = [tensor for tensor, version in zip(tensors, versions, strict=True) if tensor._version != version]
        _send(rewritten, wrappers[0].process_group)

    def _found(self) -> list[Any]:
        """Looked for again where one is gone, as at the start of another fit."""
        if self._wrappers is None or any(one() is None for one in self._wrappers):
            self._wrappers = [weakref.ref(one) for one in wrappers_of(self.model)]
        return [one() for one in self._wrappers]


def wrappers_of(model: nn.Module) -> list[Any]:
    """What averages gradients around the model or a part of it; a module does not know what is around it."""
    sharding: Any = sys.modules.get("torch.distributed.fsdp")  # not imported: not in use, and slow to import
    kinds = (DistributedDataParallel, *((sharding.FullyShardedDataParallel,) if sharding else ()))
    parts = set(map(id, model.modules()))
    return [one for one in living(kinds) if any(id(part) in parts for part in one.modules())]


def _is_in_use() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _sharded(model: nn.Module) -> Iterator[Any]:
    """The parts that FSDP2 has cut into shards."""
    sharding: Any = sys.modules.get("torch.distributed.fsdp")
    return (part for part in model.modules() if sharding is not None and isinstance(part, sharding.FSDPModule))


def _written_after_steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """In the same order in every process."""
    yield from tensors_of(model)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            states: dict[str, Any] = optimizer.state.get(parameter, {})
            yield from (value for _, value in sorted(states.items()) if isinstance(value, Tensor))


@torch.no_grad()
def _send(tensors: Iterable[Tensor], group: Any) -> None:
    """Those of the group's first process to all others."""
    works = [distributed.broadcast(tensor.detach(), group=group, group_src=0, async_op=True) for tensor in tensors]
    for work in works:
        if work is not None:
            work.wait()
