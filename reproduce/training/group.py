"""The processes that train one Run together, each on its part of every batch; mostly it is this one alone.

The first one commands: it alone writes and prints, it tells the others what to train, and its clock and its stop signal
count for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from reproduce.errors import UserError, one_line
from reproduce.method.parts import Part, passing
from reproduce.method.sites import Trace

BUCKET_BYTES = 2**25  # of gradients that are averaged in one exchange, as in DistributedDataParallel
Found = TypeVar("Found")


class Abandoned(Exception):
    """Another process of the group could not go on with a Run: all leave it."""


@dataclass(eq=False)
class Group:
    """This process and those beside it.

    Args:
        part: of each batch; None: this process is alone.
        control: torch's process group, on the CPU and without a time limit, by which the first process commands.
    """

    part: Part | None = None
    control: Any = None
    is_broken: bool = field(default=False, init=False)  # a Run was left in the middle

    def begin(self, order: Any) -> None:
        """Of the first process: have the others do what this one does now; None: they may end.

        Raises:
            UserError: they stand in the middle of something else, or are gone.
        """
        if self.is_broken:
            raise UserError("the processes are no longer in step: the same command goes on from the checkpoints")
        self.of_first(order)

    def lose(self) -> None:
        """This process leaves a Run in the middle, and nobody knows where the others stand."""
        self.is_broken = self.part is not None

    @property
    def size(self) -> int:
        return 1 if self.part is None else self.part.size

    @property
    def is_first(self) -> bool:
        return self.part is None or self.part.rank == 0

    def agreed(self, *flags: bool) -> tuple[bool, ...]:
        """Those of the first process."""
        if self.part is None:
            return flags
        sent = torch.tensor(flags, dtype=torch.uint8)
        distributed.broadcast(sent, src=0, group=self.control)
        return tuple(bool(flag) for flag in sent.tolist())

    def of_first(self, value: Found) -> Found:
        """What the first process has here."""
        if self.part is None:
            return value
        sent = [value]
        distributed.broadcast_object_list(sent, src=0, group=self.control)
        return sent[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What may fail in one process alone, and in which none waits for another: it fails in all of them.

        Raises:
            UserError: in the first process, where another one failed.
            Abandoned: in the others, where any did.
        """
        if self.part is None:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        failed: list[str | None] = [None] * self.size
        distributed.all_gather_object(failed, None if own is None else one_line(str(own)), group=self.control)
        reasons = [f"process {rank}: {reason}" for rank, reason in enumerate(failed) if reason is not None]
        if reasons and not self.is_first:
            raise Abandoned(reasons[0]) from own
        if own is not None:
            raise own
        if reasons:
            raise UserError(reasons[0])

    def passing(self) -> Any:
        """A context in which this process's part of a batch passes the model."""
        return passing(self.part)

    def complete(self, trace: Trace) -> None:
        """Put the whole batch's activations in place of this part's."""
        if self.part is not None:
            trace.replace_activations(self.part.whole)

    @torch.no_grad()
    def average(self, parameters: Sequence[nn.Parameter], *values: Tensor) -> tuple[Tensor, ...]:
        """Average the gradients over the processes, in place; and these 0-dim values, which are given back."""
        if self.part is None:
            return values
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averaged = [value.detach().clone() for value in values]
        for bucket in _buckets([*gradients, *averaged]):
            flat = _flatten_dense_tensors(bucket)
            distributed.all_reduce(flat, group=self.part.group)
            flat /= self.size
            for tensor, mean in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
                tensor.copy_(mean)
        return tuple(averaged)


ALONE = Group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, in the same order in every process."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or size + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
