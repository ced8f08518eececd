"""Functions with a gradient of their own, such that `torch.func` can transform them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TransformableFunction(torch.autograd.Function):
    """With ``setup_context`` in a subclass, a function that `torch.func.grad` and `torch.vmap` take.

    What `forward` returns beside its result is kept for the backward pass: `keep` says so. Under `torch.vmap` one
    entry of the batch is computed after another, so that a forward may write in place.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        dims = list(zip(arguments, in_dims, strict=True))
        found = [cls.apply(*(_entry(*each, index) for each in dims)) for index in range(info.batch_size)]  # type: ignore[no-untyped-call]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(torch.stack(column) for column in zip(*found, strict=True)), (0,) * len(found[0])

    @staticmethod
    def keep(ctx: Any, output: tuple[Tensor, ...], *inputs: Tensor) -> None:
        """For ``ctx.saved_tensors``: all but the first that was returned, which have no gradient, and these inputs."""
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:], *inputs)


def _entry(argument: Any, dim: Any, index: int) -> Any:
    """Of a batched tensor, or of those in a list, one entry."""
    if isinstance(argument, list | tuple) and dim is not None:
        return [_entry(*each, index) for each in zip(argument, dim, strict=True)]
    return argument if dim is None else argument.select(dim, index)
