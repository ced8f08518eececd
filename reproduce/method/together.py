"""Losses of many Sites together: what is small of each is stacked, so that a step has few operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_IN_PARTS = 2**15  # numbers from which on torch sums a tensor in parts, one for each thread


def losses_together(losses: Callable[..., Tensor], *columns: Sequence[Any]) -> Tensor:
    """One loss for each Site, (Sites,), in one call of ``losses`` for all Sites that are alike.

    A step of a deep network waits for the number of its operations, not for their size. So ``losses`` should read each
    activation where it lies, stack the few numbers that it finds there for each sample or unit, and go on with
    those of all Sites at once.

    Args:
        losses: called with a list of tensors for a column of tensors, and with the value itself for a column of
            others; returns the losses of these Sites, (len(list),).
        columns: one entry for each Site: the activations, and what else ``losses`` needs. Sites are alike if their
            tensors have the same shape, layout and type, and all else is equal.
    """
    rows = list(zip(*columns, strict=True))
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(tuple(map(_kind, row)), []).append(place)
    found: dict[int, Tensor] = {}
    for places in alike.values():
        given = zip(*(rows[place] for place in places), strict=True)
        terms = losses(*(list(column) if isinstance(column[0], Tensor) else column[0] for column in given))
        found |= zip(places, terms.unbind(), strict=True)
    return torch.stack([found[place] for place in range(len(rows))])


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device, value.requires_grad
    return value


def sum_of_each(stacked: Tensor) -> Tensor:
    """The sum of each Site's numbers, (Sites, ...) to (Sites,): on a CPU ``stacked[i].sum()`` bit for bit."""
    numbers = stacked.reshape(len(stacked), -1)
    if numbers.shape[1] >= _IN_PARTS:  # where a tensor is summed in parts, torch sums those of a stack in no parts
        return torch.stack([own.sum() for own in numbers.unbind()])
    return numbers.sum(1)


def mean_of_each(stacked: Tensor) -> Tensor:
    """The mean of each Site's numbers, as `sum_of_each`."""
    return sum_of_each(stacked) / stacked[0].numel()
