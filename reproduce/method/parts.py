"""A batch in equal parts, one for each process of a group: what reads a batch in the forward pass sees the whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reproduce.method.activations import in_float32
from reproduce.method.normalization import BatchNormOfLast
from reproduce.method.sites import Site, sites_of

_Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Part:
    """Which of ``size`` equal parts of each batch this process has, in their order.

    Gradients are those of the mean over processes: every one computes a loss, and their gradients are averaged.
    """

    rank: int
    size: int
    group: Any  # torch's process group of all that have a part

    def own(self, whole: Tensor, axis: int = 0) -> Tensor:
        """This process's part of a tensor that all have alike.

        Raises:
            ValueError: it cannot be cut into equal parts.
        """
        rows, left = divmod(whole.shape[axis], self.size)
        if left:
            raise ValueError(f"{whole.shape[axis]} examples cannot be cut into {self.size} equal parts")
        return whole.narrow(axis, self.rank * rows, rows)

    def whole(self, own: Tensor, axis: int = 0) -> Tensor:
        """All processes' parts, equally large, one after another; the gradient is the sum of what reaches them."""
        gathered: Tensor = _Whole.apply(own, axis, self)
        return gathered

    def sum(self, own: Tensor) -> Tensor:
        """Over the processes, elementwise; the gradient is the sum of all processes' gradients."""
        total: Tensor = _Sum.apply(own, self)
        return total


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor, axis: int, part: Part) -> Tensor:
        context.axis, context.part = axis, part
        # Maps keep their layout: some methods take units in the order of memory.
        channels_last = own.dim() == 4 and own.is_contiguous(memory_format=torch.channels_last)
        sent = own.movedim(1, -1) if channels_last else own.contiguous()
        parts = [torch.empty_like(sent) for _ in range(part.size)]
        distributed.all_gather(parts, sent, group=part.group)
        return torch.cat(parts, axis).movedim(-1, 1) if channels_last else torch.cat(parts, axis)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        part: Part = context.part
        return part.own(_summed(gradients[0], part), context.axis), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor, part: Part) -> Tensor:
        context.part = part
        return _summed(own, part)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _summed(gradients[0], context.part), None


def _summed(own: Tensor, part: Part) -> Tensor:
    total = own.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=part.group)
    return total


_PART: ContextVar[Part | None] = ContextVar("the part of a batch that this process has", default=None)


def current_part() -> Part | None:
    """The part of the batch that passes the model now; None: it is the whole."""
    return _PART.get()


@contextmanager
def passing(part: Part | None) -> Iterator[None]:
    """Within it, what passes the model is this part of a batch."""
    token = _PART.set(part)
    try:
        yield
    finally:
        _PART.reset(token)


class BatchNormOfAll(nn.SyncBatchNorm):
    """Batch normalization by the mean and biased variance of all parts of a batch; torch's own where it is whole.

    ``y = weight (x - mean) / sqrt(var + eps) + bias`` (Ioffe & Szegedy 2015, Algorithm 1). Torch's `SyncBatchNorm` is
    for GPUs alone; on another device sums are exchanged here, twice, so that a mean far from zero costs no digits.
    """

    def forward(self, activation: Tensor) -> Tensor:
        part = current_part()
        if part is None or not self.training:
            return _Norm.forward(self, activation)
        return super().forward(activation) if activation.is_cuda else self._of_parts(activation, part)

    def _of_parts(self, activation: Tensor, part: Part) -> Tensor:
        values = in_float32(activation)
        others = [axis for axis in range(values.dim()) if axis != 1]
        count = part.size * values.numel() // values.shape[1]
        shape = (-1, *[1] * (values.dim() - 2))
        mean = part.sum(values.sum(others)) / count
        centred = values - mean.view(shape)
        variance = part.sum(centred.square().sum(others)) / count
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        made = centred * scale.view(shape)
        return (made + self.bias.view(shape) if self.affine else made).to(activation.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        newest = 1 / self.num_batches_tracked if self.momentum is None else torch.tensor(self.momentum)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), newest.to(self.running_mean))
        self.running_var.lerp_(variance.to(self.running_var.dtype), newest.to(self.running_var))


def read_whole_batches(model: nn.Module, part: Part, known: set[nn.Module]) -> None:
    """Let what looks at other samples in the forward pass look at those of all parts, within `passing`.

    Batch normalization exchanges sums; any other transform of a Site is given the whole batch, and has its part of what
    comes out passed on. Modules stay the ones that they are.

    Args:
        model: prepared by its method.
        known: its modules before that.

    Raises:
        ValueError: the method has put modules elsewhere, of which nobody knows what they do to a batch.
    """
    given_whole: set[nn.Module] = set()
    within: set[nn.Module] = set()
    for site in sites_of(model):
        within.update(site.modules())  # but for the transform, they are a penalty's, which has the whole batch
        if site.transform is None:
            continue
        if not isinstance(site.transform, _Norm | BatchNormOfLast):
            given_whole.update(site.transform.modules())
            _give_whole(site, site.transform, part)
    for name, module in model.named_modules():
        if module not in known and module not in within:
            raise ValueError(
                f"the method puts {type(module).__name__} at {name!r}, which is no Site, and may look at other samples "
                "there: train it in one process"
            )
        if isinstance(module, _Norm) and module not in given_whole:
            module.__class__ = BatchNormOfAll  # its parameters, buffers and hooks stay
            module.process_group = part.group


def _give_whole(site: Site, transform: nn.Module, part: Part) -> None:
    axis = site.axes.index("n")

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return (part.whole(inputs[0], axis),) if current_part() is not None else None

    def after(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return part.own(output, axis) if current_part() is not None else None

    transform.register_forward_pre_hook(before)
    transform.register_forward_hook(after)
