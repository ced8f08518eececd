"""SIGReg (Balestriero & LeCun 2025): a batch should look normal along every direction. Sliced, in closed form, weak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from reproduce.method import (
    Method,
    NonNegative,
    Positive,
    PositiveCount,
    Record,
    Role,
    Trace,
    TransformableFunction,
    accumulation_dtype,
    check_activations,
    clenshaw,
    directions_for,
    grouped,
    groups_of_samples,
    in_float32,
    is_channels_last,
    losses_together,
    making_constants,
    moderate_scale,
    sample_rows,
    sum_of_each,
)

_SQRT_TWO_PI = math.sqrt(2 * math.pi)
# What the kernel is on average at the target, between two samples and from one sample to the target, in any dimension.
_PAIR_AT_TARGET = 1 / math.sqrt(3)
_SINGLE_AT_TARGET = math.sqrt(2 / 3)


def sigreg(
    activations: Tensor,
    feature_axes: int = 1,
    group_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The mean of the Epps-Pulley statistic over all directions, in closed form; 0-dim, float32 at least.

    ``N sqrt(2 pi) [mean_ij k(|h_i - h_j|^2 / 2) - sqrt(2) mean_i k(|h_i|^2 / 4) + 1/sqrt(3)]`` with
    ``k(s) = 1F1(1/2; d/2; -s)``, all N^2 ordered pairs and an unbounded window; derived in the card. At N(0, I) its
    mean is ``sqrt(2 pi) (1 - 1/sqrt(3)) = 1.0594`` for every N and d. Half precision is accumulated in float32, the
    kernel is computed in float64. Relative error in float32 below 1e-5, at the target too. Can be differentiated
    twice.

    All pairs cost N^2 d operations. With ``group_size`` m the samples are cut into N // m groups of one size (a
    remainder smaller than the number of groups has no pairs), and pairs are taken within groups: N m d operations,
    and the same mean over random orders of the samples. Where they are in no random order, ``generator`` draws one.

    Args:
        activations: (..., d); every leading axis counts samples. Of a map (n, c, y, x) give `maps.flatten(1)`, or
            `maps.movedim(1, -1)` with a sample at each location.
        feature_axes: how many last axes together are one vector: 3 for whole maps (n, c, h, w), without a view of them.
        group_size: at least 2; None: all pairs.
        generator: draws which samples form a group, where there is more than one group.

    Raises:
        ValueError: activations without a feature axis, without elements, or not floating point; feature_axes that
            the activations do not have; a group_size below 2.
    """
    n_groups, order = _groups(activations, feature_axes, group_size, generator)
    orders = None if order is None else [order]
    found: Tensor = _Exact.apply(feature_axes, True, n_groups, orders, activations)[0]  # type: ignore[no-untyped-call]
    return found.squeeze(0)


def sigregs(activations: Sequence[Tensor], feature_axes: int, n_groups: int, orders: Sequence[Tensor] | None) -> Tensor:
    """`sigreg` of each of several activations of one shape, (activations,), in few operations for all.

    Their samples are cut into ``n_groups`` groups, as they come or each in its own order of ``orders``. Here the length
    of a sample has to be below 1e19 in float32; `sigreg` looks for the largest number first.
    """
    return _Exact.apply(feature_axes, False, n_groups, orders, *activations)[0]  # type: ignore[no-untyped-call, no-any-return]


def _groups(
    activations: Tensor, feature_axes: int, group_size: int | None, generator: torch.Generator | None
) -> tuple[int, Tensor | None]:
    """How many groups there are of the samples, and in which order those are cut."""
    check_activations(activations, feature_axes)
    n_samples = math.prod(activations.shape[:-feature_axes])
    return groups_of_samples(n_samples, group_size, generator, activations.device)


def sliced_sigreg(
    activations: Tensor,
    n_slices: int = 256,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
    n_points: int = 17,
    t_max: float = 3.0,
) -> Tensor:
    """The mean of the Epps-Pulley statistic over random directions; 0-dim, float32 at least.

    For projections p on one direction, ``N sum_k w_k {[mean cos(t_k p) - exp(-t_k^2/2)]^2 + [mean sin(t_k p)]^2}``
    at ``n_points`` equal steps ``t_k`` from 0 to ``t_max``, the trapezoid rule doubled by symmetry:
    ``w_k = 2 dt exp(-t_k^2/2)``, half of it at both ends. As in rbalestr-lab/lejepa, univariate/epps_pulley.py.
    Activations as for `sigreg`, (..., d); ``directions`` (slices, d) are drawn from
    ``generator`` where they are not given. Can be differentiated twice.

    Raises:
        ValueError: activations as for `sigreg`; directions of another width; fewer than one slice or two points;
            a t_max that is not positive.
    """
    check_activations(activations)
    if n_points < 2 or not t_max > 0:
        raise ValueError(f"need at least 2 points and a positive t_max, got {n_points} and {t_max}")
    theta = directions_for(activations, n_slices, generator, directions)
    with torch.autocast(activations.device.type, enabled=False):
        projections = activations.to(theta.dtype).reshape(-1, theta.shape[1]) @ theta.mT
        return _EppsPulley.apply(projections, n_points, t_max)[0]  # type: ignore[no-untyped-call, no-any-return]


def weak_sigreg(activations: Tensor, n_directions: int = 64, generator: torch.Generator | None = None) -> Tensor:
    """``|| cov(S h) - I ||_F``, not squared, with S = randn(n_directions, d) / sqrt(d); 0-dim, float32 at least.

    The covariance divides by N - 1; the mean is free. Activations no wider than ``n_directions`` are not sketched.
    Activations as for `sigreg`, (..., d). As in kreasof-ai/sigreg (Weak-SIGReg).

    Raises:
        ValueError: activations as for `sigreg`; fewer than two samples or one direction.
    """
    check_activations(activations)
    dimension = activations.shape[-1]
    if n_directions < 1 or activations.numel() < 2 * dimension:
        found = activations.numel() // dimension
        raise ValueError(f"needs at least 2 samples and 1 direction, got {found} and {n_directions}")
    precision = accumulation_dtype(activations)
    with torch.autocast(activations.device.type, enabled=False):
        rows = activations.to(precision).reshape(-1, dimension)
        if dimension > n_directions:
            normal = torch.randn(n_directions, dimension, generator=generator, device=rows.device, dtype=precision)
            rows = rows @ (normal * dimension**-0.5).mT
        rows = rows - rows.mean(0)
        covariance = rows.mT @ rows / (len(rows) - 1)
        target = torch.eye(rows.shape[1], device=rows.device, dtype=precision)
        return torch.linalg.matrix_norm(covariance - target)


def kernel_and_slope(mean_square: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """``k = 1F1(1/2; d/2; -d q / 2)``, the mean of exp(-d q <theta, e>^2 / 2) over directions, and ``dk/dq``.

    ``k = F(u) / sqrt(1+q)`` with ``u = q/(1+q)``; the slope ``((1-u) F'(u) - F(u)/2) / (1+q)^(3/2)`` is exactly its
    derivative. F is a Chebyshev series that depends on the dimension d (`_series`); one dimension has exp(-q/2).
    ``mean_square`` has any shape and is best float64. Relative error in float64 below 1e-10, of the slope below 1e-8.
    """
    if dimension == 1:
        value = torch.exp(-0.5 * mean_square)
        return value, -0.5 * value
    series = _series(dimension, mean_square.dtype, mean_square.device)
    scale = 1 + mean_square.reshape(1, -1)
    factor, derivative = clenshaw(series, 1 - 2 / scale)  # at 2u - 1
    inverse = 1 / scale[0]
    value = factor * inverse.sqrt()
    slope = (derivative * inverse - 0.5 * factor) * inverse * inverse.sqrt()
    return value.reshape(mean_square.shape), slope.reshape(mean_square.shape)


@cache  # never emptied: a recorded step goes on reading the constants that it met
def _series(dimension: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """F and dF/du in Chebyshev polynomials of x = 2u - 1, one column (2, 1) for each order.

    Kummer's equation becomes ``[b - 3u(1-u)] F' + u (1-u)^2 F'' + 3/4 u F = 0`` with F(0) = 1 and b = d/2. F is its
    one smooth solution: collocation finds it for every d >= 2 alike, and the larger d, the shorter the series.
    """
    n = 80 if dimension < 8 else 40
    with making_constants(), torch.no_grad():
        kind: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        order = torch.arange(n + 1, **kind)
        angle = (torch.arange(n, **kind).unsqueeze(1) + 0.5) * (math.pi / n)
        x, sine = torch.cos(angle), torch.sin(angle)
        value = torch.cos(order * angle)
        first = order * torch.sin(order * angle) / sine
        second = (x * first - order.square() * value) / sine.square()
        u = (1 + x) / 2
        equation = (dimension / 2 - 3 * u * (1 - u)) * 2 * first + u * (1 - u) ** 2 * 4 * second + 0.75 * u * value
        start = (-1.0) ** order
        system = torch.cat([equation / (dimension / 2), start.unsqueeze(0)])
        right = torch.zeros(n + 1, **kind)
        right[-1] = 1
        # On the host, so that no device waits.
        factor: list[float] = torch.linalg.solve(system, right).tolist()
        while abs(factor[-1]) * len(factor) ** 2 < 1e-9:
            factor.pop()
        derivative = [0.0] * (len(factor) + 1)
        for index in range(len(factor) - 1, 0, -1):
            derivative[index - 1] = derivative[index + 1] + 4 * index * factor[index]
        derivative[0] /= 2
        columns = torch.tensor([factor, derivative[:-1]], **kind).mT.unsqueeze(-1)
        return columns.to(device=device, dtype=dtype).unbind()


class _Pull(NamedTuple):
    """The gradient as a matrix on samples: of ``pairs`` (groups, m, m) on groups, of ``single`` (rest,) on the rest."""

    pairs: Tensor
    single: Tensor

    def of(self, rows: Tensor, order: Tensor | None) -> Tensor:
        """Rows (N, d); ``order`` of the samples, before they are cut into groups."""
        rows = rows if order is None else rows[order]
        groups = grouped(rows, len(self.pairs))
        found = torch.bmm(self.pairs, groups).flatten(0, 1)
        if len(self.single):
            found = torch.cat([found, self.single.unsqueeze(1) * rows[len(found) :]])
        return found if order is None else found[order.argsort()]


def _rows(activations: Tensor, feature_axes: int) -> Tensor:
    """(N, d), in float32 at least."""
    return sample_rows(in_float32(activations), feature_axes)


def _products(rows: Tensor, n_groups: int, order: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of rows (N, d): all inner products in each group (groups, m, m), and the squares of the rest (rest,)."""
    rows = rows if order is None else rows[order]
    groups = grouped(rows, n_groups)
    rest = rows[groups.shape[0] * groups.shape[1] :]
    return torch.bmm(groups, groups.mT), rest.double().square().sum(1) if len(rest) else rest.new_empty(0)


def _values_and_pulls(
    activations: Sequence[Tensor],
    feature_axes: int,
    of_any_size: bool,
    n_groups: int,
    orders: Sequence[Tensor | None],
) -> tuple[Tensor, _Pull]:
    """The statistics of activations of one shape with the pairs of ``n_groups`` groups, and their gradients.

    Both are stacked: their first axis counts activations. The constants of the target are taken out of both sums
    before they are formed: at the target those nearly cancel.
    """
    dimension = math.prod(activations[0].shape[-feature_axes:])
    n = activations[0].numel() // dimension
    rows = [_rows(h, feature_axes) for h in activations]
    moderate = torch.stack([moderate_scale(h) for h in rows]) if of_any_size else None
    if moderate is not None:
        rows = [h * own for h, own in zip(rows, moderate, strict=True)]
    products = [_products(h, n_groups, order) for h, order in zip(rows, orders, strict=True)]
    gram, rest = (torch.stack(each) for each in zip(*products, strict=True))
    precision, size = gram.dtype, gram.shape[-1]
    gram = gram.double()  # products in the rows' own precision, all that follows in float64
    if moderate is not None:
        squared = moderate.double().square()
        gram, rest = gram / squared.view(-1, 1, 1, 1), rest / squared.unsqueeze(1)
    own = gram.diagonal(dim1=2, dim2=3)
    distance = (own.unsqueeze(3) + own.unsqueeze(2) - 2 * gram).clamp_min(0)
    square = torch.cat([own.flatten(1), rest], dim=1)
    single, single_slope = kernel_and_slope(square / (2 * dimension), dimension)
    pair, pair_slope = kernel_and_slope(distance / dimension, dimension)
    share = (n - 1) / max(n_groups * size * (size - 1), 1)  # what a pair counts; a sample is no pair with itself
    others = share * (1 - torch.eye(size, device=gram.device, dtype=pair.dtype))
    pairs_deviate = sum_of_each((pair - _PAIR_AT_TARGET) * others)
    deviation = pairs_deviate - math.sqrt(2) * sum_of_each(single - _SINGLE_AT_TARGET)
    push, pull = 4 * pair_slope * others, -math.sqrt(2) * single_slope
    within = pull[:, : n_groups * size].unflatten(1, (n_groups, size))
    scale = _SQRT_TWO_PI / dimension
    pairs = ((push.sum(3) + within).diag_embed() - push) * scale
    value = _SQRT_TWO_PI * (1 - _PAIR_AT_TARGET + deviation)
    return value.to(precision), _Pull(pairs.to(precision), (pull[:, n_groups * size :] * scale).to(precision))


class _Exact(TransformableFunction):
    """One product with each activation forward, and one backward; what lies between is done for all of them at once.

    The gradients have the activations' own shape and layout and no view behind them: autograd can then add the other
    gradients of the layer into them in place.
    """

    @staticmethod
    def forward(
        feature_axes: int, of_any_size: bool, n_groups: int, orders: Sequence[Tensor] | None, *activations: Tensor
    ) -> tuple[Tensor, ...]:
        in_order: Sequence[Tensor | None] = orders or [None] * len(activations)
        with torch.autocast(activations[0].device.type, enabled=False):
            value, pull = _values_and_pulls(activations, feature_axes, of_any_size, n_groups, in_order)
        return value, *pull

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *ctx.options, orders = inputs[:4]
        ctx.n_activations = len(inputs) - 4
        TransformableFunction.keep(ctx, output, *inputs[4:], *(orders or ()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        pairs, single, *saved = ctx.saved_tensors
        count = ctx.n_activations
        activations, orders = saved[:count], saved[count:] or [None] * count
        with torch.autocast(gradient.device.type, enabled=False):
            if torch.is_grad_enabled():  # create_graph: autograd differentiates the matrices, too
                feature_axes, of_any_size, n_groups = ctx.options
                pull = _values_and_pulls(activations, feature_axes, of_any_size, n_groups, orders)[1]
                pairs, single = pull.pairs, pull.single
            pulls = map(_Pull, gradient.view(-1, 1, 1, 1) * pairs, gradient.view(-1, 1) * single)
            given = zip(pulls, activations, orders, strict=True)
            return None, None, None, None, *(_gradient(*each, ctx.options[0]) for each in given)


def _gradient(pull: _Pull, activations: Tensor, order: Tensor | None, feature_axes: int) -> Tensor:
    found = pull.of(_rows(activations, feature_axes), order).to(activations.dtype)
    if is_channels_last(activations, feature_axes):
        n, c, h, w = activations.shape
        return found.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return found.reshape(activations.shape)


class _EppsPulley(TransformableFunction):
    """Projections (N, slices) to the mean statistic, with memory for N x slices instead of N x slices x points.

    With ``z = exp(i dt p)`` the characteristic function at t_k is the mean of z^k, and the gradient a polynomial in z.
    """

    @staticmethod
    def forward(projections: Tensor, n_points: int, t_max: float) -> tuple[Tensor, ...]:
        step = t_max / (n_points - 1)
        residuals = _residuals(_unit(projections, step), step, n_points)
        weights = _knot_weights(step, n_points)
        terms = [w * (r.real.square() + r.imag.square()) for w, r in zip(weights, residuals, strict=True)]
        return len(projections) * torch.stack(terms).sum(0).mean(), *residuals

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        projections, ctx.n_points, t_max = inputs
        ctx.step = t_max / (ctx.n_points - 1)
        TransformableFunction.keep(ctx, output, projections)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, None, None]:
        if gradient is None:
            return None, None, None
        *residuals, projections = ctx.saved_tensors
        unit = _unit(projections, ctx.step)
        weights = _knot_weights(ctx.step, ctx.n_points)
        if torch.is_grad_enabled():  # create_graph
            residuals = _residuals(unit, ctx.step, ctx.n_points)
        total = torch.zeros_like(unit)
        for index in range(ctx.n_points - 2, -1, -1):  # Horner's rule; d|r|^2/dp = -2 t Im(conj(r) z^k) / N
            total = (total + weights[index] * (index + 1) * ctx.step * residuals[index].conj()) * unit
        return gradient * (-2 / projections.shape[1]) * total.imag, None, None


def _unit(projections: Tensor, step: float) -> Tensor:
    return torch.polar(torch.ones_like(projections), projections * step)


def _residuals(unit: Tensor, step: float, n_points: int) -> list[Tensor]:
    """Empirical minus normal characteristic function, (slices,) at each t_k but 0, where both are 1."""
    residuals, power = [], unit
    for index in range(1, n_points):
        power = unit if index == 1 else power * unit
        residuals.append(power.mean(0) - math.exp(-0.5 * (index * step) ** 2))
    return residuals


def _knot_weights(step: float, n_points: int) -> list[float]:
    last = n_points - 1
    return [(1 if k == last else 2) * step * math.exp(-0.5 * (k * step) ** 2) for k in range(1, n_points)]


class SIGReg(Method):
    """SIGReg on every Site of one role, summed over Sites and weighted by ``strength``.

    ``reduction = "sum"`` is the published statistic, N times the mean discrepancy of N samples; ``"mean"`` leaves that
    factor out, so that strengths carry over between batch sizes. The weak form has no such factor. Samples are
    examples, time steps and, with ``features = "channels"``, locations. ``group_size`` is that of `sigreg`: fewer than
    twice as many samples are one group, with all their pairs. Groups are drawn where samples are time steps or
    locations; examples come in random order.
    """

    strength: NonNegative = 2e-3  # lambda; Weak-SIGReg's strong form: 0.01 of the loss over 5 layers (LeJEPA: 0.02)
    mode: Literal["exact", "sliced", "weak"] = "exact"
    n_slices: PositiveCount | None = None  # None: 256 as in MINIMAL.md, and 64 as in Weak-SIGReg in the weak mode
    n_points: Annotated[int, Field(ge=2)] = 17  # sliced: MINIMAL.md
    t_max: Positive = 3.0  # sliced: univariate/epps_pulley.py
    group_size: Annotated[int, Field(ge=2)] | None = 16  # exact: ours, bounds the step of a CNN; None: all pairs
    sites: Role = "post"  # ours: neither paper's networks, and PER's choice
    features: Literal["flatten", "channels", "pooled"] = "flatten"  # a sample of a map: all of it, a location, its mean
    reduction: Literal["sum", "mean"] = "sum"

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss."""
        records = trace.select(self.sites)
        samples, feature_axes = zip(*map(self._samples, records), strict=True)
        if self.mode == "exact":
            groups = [self._groups_of(*each, generator) for each in zip(records, samples, feature_axes, strict=True)]
            losses = losses_together(self._exact, samples, feature_axes, *zip(*groups, strict=True))
        else:
            losses = torch.stack([self._term(h, generator) for h in samples])
        return self.strength * losses.sum()

    def _samples(self, record: Record) -> tuple[Tensor, int]:
        """What is one sample of a Site, and how many last axes it has."""
        if self.features != "pooled":
            return record.as_samples(self.features) if self.mode == "exact" else (record.vectors(self.features), 1)
        if not record.site.is_map:
            return record.vectors("channels"), 1
        locations = tuple(axis for axis, name in enumerate(record.site.known_axes) if name not in "nc")
        return record.activation.mean(locations, dtype=accumulation_dtype(record.activation)), 1

    def _groups_of(
        self, record: Record, samples: Tensor, feature_axes: int, generator: torch.Generator
    ) -> tuple[int, Tensor | None]:
        is_pooled = self.features == "pooled" and record.site.is_map
        per_example = feature_axes > 1 or is_pooled or record.site.axes == "nc"
        return _groups(samples, feature_axes, self.group_size, None if per_example else generator)

    def _exact(
        self, samples: Sequence[Tensor], feature_axes: int, n_groups: int, orders: Sequence[Tensor] | None
    ) -> Tensor:
        return self._reduced(sigregs(samples, feature_axes, n_groups, orders), samples[0], feature_axes)

    def _term(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        if self.mode == "weak":
            return weak_sigreg(samples, self.n_slices or 64, generator)
        found = sliced_sigreg(samples, self.n_slices or 256, generator, None, self.n_points, self.t_max)
        return self._reduced(found, samples, 1)

    def _reduced(self, found: Tensor, samples: Tensor, feature_axes: int) -> Tensor:
        return found / math.prod(samples.shape[:-feature_axes]) if self.reduction == "mean" else found
