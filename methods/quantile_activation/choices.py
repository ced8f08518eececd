"""What the authors' code is said to choose otherwise: grounded levels, levels on a grid, slopes by a kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KERNEL_POINTS = 100  # of each unit's law, between which the kernel density is summed; the authors' number of levels


@dataclass(frozen=True)
class Choices:
    """Where a quantile layer follows the authors' code: nowhere, by default."""

    grounded: bool = False
    bandwidth: float | None = None
    levels: int | None = None


def grounded_levels(levels: Tensor, zero_level: Tensor, is_negative: Tensor) -> Tensor:
    """Levels in a law of which the negative values count one half together, and the others the other half.

    ``(F_-(x) + F_+(x)) / 2``, with the distribution functions of negative values and of the others; a sign that
    does not occur counts as infinitely far away.

    Args:
        levels: F(x) in the ungrounded law, (..., n).
        zero_level: the share of negative values in it, (..., 1).
        is_negative: of each x.
    """
    tiny = torch.finfo(levels.dtype).tiny
    below = levels / (2 * zero_level).clamp_min(tiny)
    above = 0.5 + (levels - zero_level) / (2 * (1 - zero_level)).clamp_min(tiny)
    return torch.where(is_negative, below.clamp(0, 0.5), above.clamp(0.5, 1))


def on_grid(levels: Tensor, count: int) -> Tensor:
    """The levels cut into ``count`` equal parts, which become ``1 / (count + 1), ..., count / (count + 1)``."""
    return ((levels * count).floor().clamp(0, count - 1) + 1) / (count + 1)


def kernel_slopes(ordered: Tensor, levels: Tensor, bandwidth: float) -> Tensor:
    """The density at each of the samples, by a Gaussian kernel: the shape of the samples.

    Of the law that ascending samples (..., n) with these levels describe, KERNEL_POINTS values at equal steps of level
    are taken; the kernels' mean is found at each of them, and a sample has that of the nearest level.
    """
    wanted = (torch.arange(KERNEL_POINTS, dtype=levels.dtype, device=levels.device) + 0.5) / KERNEL_POINTS
    everywhere = wanted.expand(*levels.shape[:-1], -1).contiguous()
    place = torch.searchsorted(levels.contiguous(), everywhere).clamp_(max=levels.shape[-1] - 1)
    points = ordered.gather(-1, place)
    distance = (points.unsqueeze(-1) - points.unsqueeze(-2)) / bandwidth
    # A grounded law without negative values begins at level 1/2: its other half is nowhere near.
    reach = 0.5 / KERNEL_POINTS + 1 / levels.shape[-1]
    present = (wanted > levels[..., :1] - reach) & (wanted < levels[..., -1:] + reach)
    kernel = torch.exp(-0.5 * distance.square()) * present.unsqueeze(-2)
    density = kernel.mean(-1) / (bandwidth * math.sqrt(2 * math.pi))
    return density.gather(-1, (levels * KERNEL_POINTS).long().clamp(0, KERNEL_POINTS - 1))
