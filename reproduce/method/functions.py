"""Functions with a gradient of their own, such that `torch.func` can transform them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

TWICE = (
    "this loss can be differentiated once: it has no second derivative, as a Hessian, MAML or create_graph=True needs"
)
FORWARD = "this loss has no derivative in forward mode: use torch.func.grad, vjp or jacrev, not jvp, jacfwd or hessian"


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
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(FORWARD)

    @staticmethod
    def keep(ctx: Any, output: tuple[Tensor, ...], *inputs: Tensor) -> None:
        """For ``ctx.saved_tensors``: all but the first that was returned, which have no gradient, and these inputs."""
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:], *inputs)


def differentiable_once(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """For a backward pass that autograd cannot differentiate: a second derivative is an error.

    `torch.autograd.function.once_differentiable` says so only where the incoming gradient has a graph; that of a
    penalty, which is added to a loss, has none, and a Hessian would silently miss the penalty's part.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.compiler.is_compiling():
            n_gradients = sum(each.key() == torch._C._functorch.TransformType.Grad for each in _transforms())
            # One transform of torch.func always has a graph of its gradient.
            if n_gradients > 1 or (n_gradients == 0 and torch.is_grad_enabled()):
                raise RuntimeError(TWICE)
        with torch.no_grad():
            return backward(ctx, *gradients)

    return once


def _transforms() -> list[Any]:
    """Of `torch.func`, that are under way."""
    return torch._C._functorch.get_interpreter_stack() or []


def _entry(argument: Any, dim: Any, index: int) -> Any:
    """Of a batched tensor, or of those in a list, one entry."""
    if isinstance(argument, list | tuple) and dim is not None:
        return [_entry(*each, index) for each in zip(argument, dim, strict=True)]
    return argument if dim is None else argument.select(dim, index)


@contextlib.contextmanager
def making_constants() -> Iterator[None]:
    """Within it constants are made that are kept: on the CPU, and free of an inference mode that wants them first."""
    is_elsewhere = not torch.compiler.is_compiling() and torch.get_default_device() != torch.device("cpu")
    with torch.inference_mode(False), torch.device("cpu") if is_elsewhere else contextlib.nullcontext():
        yield


def is_in_backward() -> bool:
    """Whether autograd's engine runs this: checkpointing computes activations again then.

    A compiled model cannot tell.
    """
    return not torch.compiler.is_compiling() and bool(torch._C._current_graph_task_id() != -1)


def version_of(tensor: Tensor) -> int:
    """How often it was written in place; one that was made under `inference_mode` does not count that."""
    if not torch.compiler.is_compiling() and tensor.is_inference():
        return 0
    return tensor._version
