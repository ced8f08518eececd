"""Sliced Wasserstein distance between activations and the normal distribution, exact in each slice by sorting."""

from __future__ import annotations

import math
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reproduce.method import (
    Features,
    Method,
    NonNegative,
    PositiveCount,
    Role,
    SharedDirections,
    Trace,
    check_activations,
    directions_for,
    making_constants,
)

Order = Literal[1, 2]


def sliced_wasserstein(
    activations: Tensor,
    n_slices: int = 256,
    order: Order = 2,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """The mean over directions of ``W_p^p(projected samples, N(0, 1))``, p = ``order``; 0-dim.

    For the sorted projections ``x_1 <= ... <= x_n`` of n samples, ``W_p^p = sum_i int |x_i - Q(u)|^p du`` over
    the cells ``(i-1)/n < u < i/n``, with the quantile function Q of N(0, 1): the optimal coupling in one
    dimension, with the whole normal distribution and not with n points of it. With the means ``m_i`` of Q over
    the cells, ``W_2^2 = mean_i (x_i - m_i)^2 + 1 - mean_i m_i^2``; a cell of W_1 is in the code. Activations have
    shape (..., d), every leading axis counts samples; of a map (n, c, y, x) give `maps.flatten(1)`, or
    `maps.movedim(1, -1)` with a sample at each location. ``directions`` (slices, d) of length one, drawn from
    ``generator`` where they are not given. In float32 at least, the cells of W_1 in float64. Kolouri et al. (2019)
    compare with samples of the target in this place.

    Raises:
        ValueError: activations without a feature axis, without elements or not floating point; directions of
            another width; fewer than one slice; an order that is neither 1 nor 2.
    """
    check_activations(activations)
    if order not in (1, 2):
        raise ValueError(f"order is 1 or 2, got {order!r}")
    theta = directions_for(activations, n_slices, generator, directions)
    with torch.autocast(activations.device.type, enabled=False):
        projections = theta @ activations.to(theta.dtype).reshape(-1, theta.shape[1]).mT
        ordered = projections.sort(dim=1).values
        cells = _cells(ordered.shape[1], activations.device)
        if order == 1:
            return _first_order(ordered.double(), cells).to(theta.dtype)
        return (ordered - cells.mean.to(theta.dtype)).square().mean() + cells.variance


class _Cells(NamedTuple):
    """The normal distribution cut into n pieces of equal probability, in float64."""

    edge: Tensor  # (n + 1,), infinite at both ends
    density: Tensor  # (n + 1,) at the edges
    mean: Tensor  # (n,) of each piece
    variance: float  # within pieces, on average


@cache  # never emptied: a recorded step goes on reading the constants that it met
def _cells(n: int, device: torch.device) -> _Cells:
    with making_constants(), torch.no_grad():
        edge = torch.special.ndtri(torch.arange(n + 1, dtype=torch.float64) / n)
        density = torch.exp(-0.5 * edge.square()) / math.sqrt(2 * math.pi)
        mean = n * (density[:-1] - density[1:])
        variance = 1 - math.fsum((mean.square() / n).tolist())
        return _Cells(edge.to(device), density.to(device), mean.to(device), variance)


def _first_order(ordered: Tensor, cells: _Cells) -> Tensor:
    """Mean over slices of the sum over cells of ``int |x - Q(u)| du``; ordered projections (slices, n).

    Within its cell (a, b) x costs ``x (2 Phi(x) - Phi(a) - Phi(b)) + 2 phi(x) - phi(a) - phi(b)``, and outside
    ``1/n`` times its distance from the cell more than the nearer edge. Its slope runs from -1/n to 1/n.
    """
    n = ordered.shape[1]
    level = torch.arange(n + 1, dtype=ordered.dtype, device=ordered.device) / n
    inside = ordered.clamp(cells.edge[:-1], cells.edge[1:])
    balance = 2 * torch.special.ndtr(inside) - level[:-1] - level[1:]
    peak = torch.exp(-0.5 * inside.square()) * (2 / math.sqrt(2 * math.pi))
    cost = inside * balance + peak - cells.density[:-1] - cells.density[1:]
    return (cost + (ordered - inside).abs() / n).sum(1).mean()


class SlicedWasserstein(Method):
    """The sliced Wasserstein distance on every Site of one role, summed over Sites and weighted by ``strength``.

    Samples are examples, time steps and, with ``features = "channels"``, locations. One set of directions
    serves all Sites of one width in a step.
    """

    strength: NonNegative = 1e-4  # lambda; as PER's, which bounds the order 1 from above; ours
    order: Order = 2  # p; ours: as VISReg's shape term and the sliced Wasserstein autoencoder
    n_slices: PositiveCount = 256  # as PER's, section 4 of Joo et al. (2020)
    sites: Role = "post"  # as PER's
    features: Features = "flatten"  # a sample of a map: all of it, or one location

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss."""
        directions = SharedDirections(self.n_slices, generator)
        terms = []
        for record in trace.select(self.sites):
            samples = record.vectors(self.features)
            terms.append(sliced_wasserstein(samples, order=self.order, directions=directions.of(samples)))
        return self.strength * torch.stack(terms).sum()
