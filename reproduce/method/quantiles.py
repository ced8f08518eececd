"""Quantile functions of units: from sorted samples, at evaluation, and as a moving average over training batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def tied_places(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last place, from 0, of the values equal to each one in ascending rows (..., n).

    The level of a place, ties counted half, is ``(first + last + 1) / (2 n)``. NaNs come last, and
    their places mean nothing.
    """
    first = torch.searchsorted(ordered, ordered).clamp_(max=ordered.shape[-1] - 1)
    return first, torch.searchsorted(ordered, ordered, right=True) - 1


def quantile_points(ordered: Tensor, points: int) -> Tensor:
    """The quantile function of ascending rows (..., n) at the levels ``(k + 1/2) / points``: (..., points).

    Between the samples, whose levels are ``(i + 1/2) / n``, it is straight; beyond the outer two it is constant.
    """
    n = ordered.shape[-1]
    levels = (torch.arange(points, device=ordered.device, dtype=ordered.dtype) + 0.5) / points
    position = (levels * n - 0.5).clamp(0, n - 1)
    lower = position.floor().long()
    left, right = ordered.index_select(-1, lower), ordered.index_select(-1, (lower + 1).clamp(max=n - 1))
    return torch.lerp(left, right, position - lower)


class QuantileMemory(nn.Module):
    """Base of a Site's transform that remembers each unit's quantile function over training.

    The buffer ``reference`` holds points (units, points) of it, at the levels ``(k + 1/2) / points``: a moving average
    of the batches' quantile functions, which ascend, and so does their average. The first batch fills it; before that
    it holds the standard normal law.

    Args:
        axes: as of a Site. A channel of a map is one unit with a sample at each location.
        units: channels or units.
        points: of each unit's quantile function.
        momentum: the weight of the newest batch.
    """

    reference: Tensor
    is_filled: Tensor

    def __init__(self, axes: str, units: int, points: int, momentum: float) -> None:
        super().__init__()
        self.axes, self.momentum = axes, momentum
        precision = torch.promote_types(torch.get_default_dtype(), torch.float32)
        levels = (torch.arange(points, dtype=precision) + 0.5) / points
        self.register_buffer("reference", torch.special.ndtri(levels).repeat(units, 1))
        self.register_buffer("is_filled", torch.zeros((), dtype=torch.bool))

    def units_first(self, activation: Tensor) -> Tensor:
        """The axes in the order units, time, samples, places."""
        return activation.permute(self._order())

    def as_before(self, units_first: Tensor) -> Tensor:
        """What `units_first` has permuted, back again."""
        order = self._order()
        return units_first.permute(sorted(range(len(order)), key=order.__getitem__))

    def _order(self) -> list[int]:
        return [self.axes.index(axis) for axis in sorted(self.axes, key="ctndlhw".index)]

    @torch.no_grad()
    def remember(self, ordered: Tensor) -> None:
        """Let the mean quantile function of sorted samples (units, steps, n) enter the average; none leaves it be."""
        if not ordered.numel():
            return
        newest = quantile_points(ordered, self.reference.shape[1]).mean(1)
        average = torch.lerp(self.reference, newest, self.momentum)
        self.reference.copy_(torch.where(self.is_filled, average, newest))
        self.is_filled.fill_(True)
