"""The energy distance between activations and N(0, I): PER with its missing repulsion, without slices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from reproduce.method import (
    Features,
    Method,
    NonNegative,
    PositiveCount,
    Record,
    Role,
    SharedDirections,
    Trace,
    TransformableFunction,
    accumulation_dtype,
    check_activations,
    clenshaw,
    differentiable_once,
    directions_for,
    grouped,
    groups_of_samples,
    is_channels_last,
    losses_together,
    making_constants,
    mean_of_each,
    moderate_scale,
    sample_rows,
    sum_of_each,
)

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_WITHIN_TARGET = 2 / math.sqrt(math.pi)  # E|Z - Z'| of two standard normal numbers
_COINCIDENT = 16  # roundings: samples that are closer than so many count as one
_DIRECT = 2**23  # differences of numbers, below which distances are taken from differences
_LONGEST = 2.0**40  # root mean square of a sample from which on its attraction is linear to rounding
_CHUNK = 4096  # columns of a wide layer that a processor's cache holds


def energy_distance(
    activations: Tensor,
    feature_axes: int = 1,
    group_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The sliced energy distance between n samples and N(0, I), over all directions in closed form; 0-dim.

    ``2/n sum_i a(|h_i|) - c_d/(n(n-1)) sum_{i != j} |h_i - h_j| - 2/sqrt(pi)``, unbiased, with
    ``a(|h|) = E_theta E_Z |<theta, h> - Z| = sqrt(2/pi) 1F1(-1/2; d/2; -|h|^2/2)`` and
    ``c_d = Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))``. Zero in expectation at N(0, I) and nowhere else. In d
    dimensions it is c_d times the statistic of Szekely & Rizzo (2005). Their sum over all pairs costs ``n^2 d``
    operations. With ``group_size`` m the samples are cut into ``n // m`` groups of one size (a remainder smaller
    than the number of groups stays out), and pairs are taken within groups: ``n m d`` operations, unbiased if the
    samples are in random order or ``generator`` draws one.

    Two samples that coincide, to rounding, do not repel each other. Where a layer has 2^23 numbers or more to
    compare, squared distances come from a matrix product about the mean of each group; samples closer
    than 1.4e-3 of their distance from that mean then count as coincident (in float32).
    Computed in float32 at least; differentiable once.

    Args:
        activations: (..., d); every leading axis counts samples. Of a map (n, c, y, x) give `maps.flatten(1)`, or
            `maps.movedim(1, -1)` with a sample at each location.
        feature_axes: how many last axes together are one vector: 3 for whole maps (n, c, h, w).
        group_size: at least 2; None: all pairs.
        generator: draws which samples form a group, where there is more than one group.

    Raises:
        ValueError: fewer than two samples, no features, not floating point; feature_axes that the activations do
            not have; a group_size below 2.
    """
    n_groups, order = _groups(activations, feature_axes, group_size, generator)
    orders = None if order is None else [order]
    found: Tensor = _EnergyDistances.apply(feature_axes, True, n_groups, orders, activations)[0]  # type: ignore[no-untyped-call]
    return found.squeeze(0)


def energy_distances(
    activations: Sequence[Tensor], feature_axes: int, n_groups: int, orders: Sequence[Tensor] | None
) -> Tensor:
    """`energy_distance` of each of several activations of one shape, (activations,), in few operations for all.

    Their samples are cut into ``n_groups`` groups, as they come or each in its own order of ``orders``. Here the length
    of a sample has to be below 1e19 in float32; `energy_distance` looks for the largest number first.
    """
    return _EnergyDistances.apply(feature_axes, False, n_groups, orders, *activations)[0]  # type: ignore[no-untyped-call, no-any-return]


def _groups(
    activations: Tensor, feature_axes: int, group_size: int | None, generator: torch.Generator | None
) -> tuple[int, Tensor | None]:
    """How many groups there are of the samples, and in which order those are cut."""
    check_activations(activations, feature_axes, least_samples=2)
    n_samples = math.prod(activations.shape[:-feature_axes])
    return groups_of_samples(n_samples, group_size, generator, activations.device)


def sliced_energy_distance(
    activations: Tensor,
    n_slices: int = 256,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """The same distance over all pairs, with random slices: the mean over directions of that in one dimension; 0-dim.

    For the projections ``p_i = <theta, h_i>``, sorted: ``2/n sum_i (p_i erf(p_i/sqrt2) + sqrt(2/pi)
    exp(-p_i^2/2)) - 2/(n(n-1)) sum_i (2i-n-1) p_(i) - 2/sqrt(pi)``. Activations have shape (..., d);
    ``directions`` (slices, d) of length one, drawn from ``generator`` where they are not given. Computed in
    float32 at least.

    Raises:
        ValueError: activations as for `energy_distance`; directions of another width; fewer than one slice.
    """
    check_activations(activations, least_samples=2)
    theta = directions_for(activations, n_slices, generator, directions)
    with torch.autocast(activations.device.type, enabled=False):
        projections = theta @ activations.to(theta.dtype).reshape(-1, theta.shape[1]).mT
        n = projections.shape[1]
        smooth = _SQRT_2_OVER_PI * torch.exp(-0.5 * projections.square())
        attraction = torch.addcmul(smooth, projections, torch.erf(projections * math.sqrt(0.5))).mean()
        rank = torch.arange(1 - n, n, 2, device=projections.device, dtype=theta.dtype)
        repulsion = (projections.sort(dim=1).values @ rank).mean() * (2 / (n * (n - 1)))
        return 2 * attraction - repulsion - _WITHIN_TARGET


def attraction(mean_square: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """``a`` of samples of mean square ``q = |h|^2/d``, and the slope with ``gradient of a = slope * h``; of q's shape.

    ``a = F(u) sqrt(1+q)`` and ``slope = G(u) / sqrt(1+q)`` with ``u = q/(1+q)``, where F and G are smooth on
    [0, 1] in every dimension: Chebyshev series, the shorter the more dimensions.
    """
    q = mean_square.reshape(-1)
    scale = q + 1
    both = clenshaw(_series(dimension, q.dtype, q.device), (q - 1) / scale)  # at 2u - 1
    root = scale.sqrt()
    return (both[0] * root).reshape(mean_square.shape), (both[1] / root).reshape(mean_square.shape)


@cache  # never emptied: a recorded step goes on reading the constants that it met
def _series(dimension: int, dtype: torch.dtype, device: torch.device, nodes: int = 64) -> tuple[Tensor, ...]:
    """Chebyshev coefficients of F and G, one column (2, 1) for each order.

    By interpolation at points u in which the mean over directions is a sum over ``y = sqrt(d) <theta, h>/|h|``,
    whose density ``(1 - y^2/d)^((d-3)/2)`` is cut off 12 standard deviations out. The points y are the equally
    spaced ones of a variable in which the density vanishes smoothly at both ends: their sum is then exact
    to rounding. `_distance_to_normal` varies over ``y ~ 1/sqrt(q)``, which they resolve at every node.
    """
    with making_constants(), torch.no_grad():
        turn = (torch.arange(4096, dtype=torch.float64) + 0.5) * math.pi / 4096
        latitude = min(math.pi / 2, 12 / math.sqrt(dimension)) * (turn + turn.sin()) / math.pi
        weight = (1 + turn.cos()) * latitude.cos() ** (dimension - 2)
        y = latitude.sin() * math.sqrt(dimension)
        if dimension == 1:  # the two directions, +1 and -1
            weight, y = torch.ones_like(y[:1]), torch.ones_like(y[:1])
        node = (torch.arange(nodes, dtype=torch.float64) + 0.5) * math.pi / nodes
        root = (1 / torch.tan(node / 2)).unsqueeze(1)  # sqrt(q) at u = (1 + cos node) / 2
        sign = torch.erf(root * y * math.sqrt(0.5))
        value = root * y * sign + _SQRT_2_OVER_PI * torch.exp(-0.5 * (root * y).square())
        value = value @ weight / (1 + root[:, 0].square()).sqrt()
        slope = (sign * y) @ weight / root[:, 0] * (1 + root[:, 0].square()).sqrt() / dimension
        cosines = torch.cos(torch.outer(torch.arange(nodes, dtype=torch.float64), node))
        coefficients = cosines @ torch.stack([value, slope], dim=1) * (2 / nodes / weight.sum())
        coefficients[0] /= 2
        digits = 1 if dtype == torch.float32 else 2
        used = min(nodes, math.ceil(digits * (4 + 40 / math.sqrt(dimension))))  # found by trial, and tested
        return coefficients[:used].unsqueeze(-1).to(device=device, dtype=dtype).unbind()


def pair_constant(dimension: int) -> float:
    """``c_d = E_theta |<theta, e>|`` of a unit vector e: ``Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2))``."""
    return math.exp(math.lgamma(dimension / 2) - math.lgamma((dimension + 1) / 2)) / math.sqrt(math.pi)


class _EnergyDistances(TransformableFunction):
    """One product of each activation with itself forward, and one with a matrix over samples backward.

    What lies between is done for all activations at once, on (activations, samples) and (activations, groups, m, m).
    """

    @staticmethod
    def forward(
        feature_axes: int, of_any_size: bool, n_groups: int, orders: Sequence[Tensor] | None, *activations: Tensor
    ) -> tuple[Tensor, ...]:
        rows = [sample_rows(h, feature_axes) for h in activations]
        n, dimension = rows[0].shape
        precision = accumulation_dtype(rows[0])
        scale = torch.stack([moderate_scale(h) for h in rows]).unsqueeze(1) if of_any_size else None
        if scale is not None:
            rows = [h.to(precision) * own for h, own in zip(rows, scale, strict=True)]
        with torch.autocast(rows[0].device.type, enabled=False):
            length = torch.stack([torch.linalg.vector_norm(h, dim=1, dtype=precision) for h in rows])
            value, slope = _attraction_of(length.square() / dimension, dimension, scale)
            own = ordered = 2 / n * slope
            if orders is not None:
                place = torch.stack(list(orders))
                length, ordered = length.gather(1, place), own.gather(1, place)
            size = n // n_groups
            length, within = (each[:, : n_groups * size].unflatten(1, (n_groups, size)) for each in (length, ordered))
            in_order = rows if orders is None else (h[order] for h, order in zip(rows, orders, strict=True))
            groups = (grouped(h, n_groups) for h in in_order)
            distance = _distances(groups, length, dimension)
            if scale is not None:
                distance = distance / scale.view(-1, 1, 1, 1)
            pair_weight = pair_constant(dimension) / (n_groups * size * (size - 1))
            energy = 2 * mean_of_each(value) - pair_weight * sum_of_each(distance) - _WITHIN_TARGET
            # The gradient at sample i is the sum over j of pull_ij h_j. A pair pushes apart with a force that
            # has no direction, and is none, where its distance is zero.
            push = torch.where(distance > 0, 2 * pair_weight / distance, 0)
            pull = push + torch.diag_embed(within - push.sum(3))
        return energy, pull, own

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.feature_axes, _, _, orders, *activations = inputs
        TransformableFunction.keep(ctx, output, *activations, *(orders or ()))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        pull, own, *saved = ctx.saved_tensors
        pull, own = pull * gradient.view(-1, 1, 1, 1), own * gradient.view(-1, 1)
        activations, orders = saved[: len(pull)], saved[len(pull) :] or [None] * len(pull)
        given = zip(activations, pull, own, orders, strict=True)
        return None, None, None, None, *(_Pulled.apply(*each, ctx.feature_axes) for each in given)  # type: ignore[no-untyped-call]


def _attraction_of(scaled_mean_square: Tensor, dimension: int, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """`attraction` of samples times ``scale``, by which no square overflows."""
    if scale is None:
        return attraction(scaled_mean_square, dimension)
    bound = _LONGEST * scale
    excess = scaled_mean_square.clamp_min(bound.square()).sqrt() / bound
    value, slope = attraction(scaled_mean_square.clamp_max(bound.square()) / scale / scale, dimension)
    return value * excess, slope / excess


class _Pulled(TransformableFunction):
    """The gradient: the samples of each group times its matrix ``pull``, and those in no group times their ``own``.

    It has the activations' own layout and no view behind it: autograd can then add the other gradients of the layer
    into it in place, which saves a pass over memory.
    """

    @staticmethod
    def forward(activations: Tensor, pull: Tensor, own: Tensor, order: Tensor | None, feature_axes: int) -> Tensor:
        if is_channels_last(activations, feature_axes):
            result = torch.empty_like(activations)
        else:
            result = activations.new_empty(activations.shape)
        rows, target = sample_rows(activations, feature_axes), sample_rows(result, feature_axes)
        found = torch.empty_like(target) if order is not None else target
        if order is not None:
            rows, own = rows[order], own[order]
        groups = grouped(rows, len(pull))
        if rows.dtype == pull.dtype:
            torch.bmm(pull, groups, out=grouped(found, len(pull)))
        else:
            grouped(found, len(pull)).copy_(torch.bmm(pull, groups.to(pull.dtype)))
        n_grouped = groups.shape[0] * groups.shape[1]
        if n_grouped < len(rows):
            found[n_grouped:] = own[n_grouped:].unsqueeze(1) * rows[n_grouped:]
        if order is not None:
            target.index_copy_(0, order, found)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept: the energy distance can be differentiated once."""


def _distances(groups: Iterable[Tensor], length: Tensor, dimension: int) -> Tensor:
    """Distances (activations, groups, m, m) between the samples of each group, zero where they coincide.

    Groups (groups, m, d) of each activation, one at a time since they may be copies, and the length of each sample
    (activations, groups, m).
    """
    _, n_groups, size = length.shape
    rounding = torch.finfo(length.dtype).eps * _COINCIDENT
    if n_groups * size * size * dimension < _DIRECT:
        wides = (each.to(length.dtype) for each in groups)
        exactly = "donot_use_mm_for_euclid_dist"
        distance = torch.stack([torch.cdist(wide, wide, compute_mode=exactly) for wide in wides])
    else:
        gram = length.new_zeros(*length.shape, size)
        for each, products in zip(groups, gram, strict=True):
            for start in range(0, dimension, _CHUNK):
                wide = each[:, :, start : start + _CHUNK].to(length.dtype)
                wide = wide - wide.mean(dim=1, keepdim=True)  # a common offset has no part in distances
                products.baddbmm_(wide, wide.mT)
        own = gram.diagonal(dim1=2, dim2=3)
        both = own.unsqueeze(3) + own.unsqueeze(2)
        square = both - 2 * gram
        distance = torch.where(square > rounding * both, square, 0).sqrt()
    return torch.where(distance > rounding * (length.unsqueeze(3) + length.unsqueeze(2)), distance, 0)


class EnergyDistance(Method):
    """The energy distance on every Site of one role, summed over Sites and weighted by ``strength``.

    Samples are examples, time steps and, with ``features = "channels"``, locations. ``group_size`` is that of
    `energy_distance`: a batch of fewer than twice as many samples is one group, with all its pairs. Groups are
    drawn from the generator where samples are time steps or locations; examples come in random order. ``mode =
    "sliced"`` has all pairs, and ``n_slices`` random directions for each distinct width and step.
    """

    strength: NonNegative = 1e-4  # lambda; that of PER, whose attracting half this doubles; ours
    mode: Literal["exact", "sliced"] = "exact"
    group_size: Annotated[int, Field(ge=2)] = 8  # ours: bounds a CNN's step, see variants.toml
    n_slices: PositiveCount = 256  # as PER's, section 4 of Joo et al. (2020)
    sites: Role = "post"  # as PER's
    features: Features = "flatten"  # a sample of a map: all of it, or one location

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss."""
        records = trace.select(self.sites)
        if self.mode == "exact":
            sites = [self._site(record, generator) for record in records]
            losses = losses_together(energy_distances, *zip(*sites, strict=True))
        else:
            directions = SharedDirections(self.n_slices, generator)
            samples = [record.vectors(self.features) for record in records]
            losses = torch.stack([sliced_energy_distance(h, directions=directions.of(h)) for h in samples])
        return self.strength * losses.sum()

    def _site(self, record: Record, generator: torch.Generator) -> tuple[Tensor, int, int, Tensor | None]:
        """What `energy_distances` needs of a Site."""
        samples, feature_axes = record.as_samples(self.features)
        in_random_order = feature_axes > 1 or record.site.axes == "nc"  # one sample an example
        groups = _groups(samples, feature_axes, self.group_size, None if in_random_order else generator)
        return samples, feature_axes, *groups
