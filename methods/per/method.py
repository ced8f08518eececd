"""PER, projected error function regularization (Joo, Kang & Kim, ICLR 2020): exact, with random slices, and between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
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
    directions_for,
    in_float32,
    losses_together,
    making_constants,
    mean_of_each,
    moderate_scale,
    sample_directions,
)

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_LARGE_DIMENSION = 32  # from here on the expansion in 1/d is exact to float32
_LONGEST = 2.0**40  # root mean square of a sample from which on PER is linear to rounding
_NODES = 96  # of the Chebyshev interpolation below


def per_loss(activations: Tensor, feature_axes: int = 1) -> Tensor:
    """The expectation of PER over all directions (eq. 5 in closed form), averaged over samples; 0-dim.

    ``E_theta E_Z |<theta, h> - Z| = sqrt(2/pi) 1F1(-1/2; d/2; -|h|^2/2)`` with theta uniform on the sphere
    and Z ~ N(0, 1); its gradient is ``h sqrt(2/pi)/d 1F1(1/2; d/2+1; -|h|^2/2)``. Activations have shape
    (..., d); every leading axis counts samples. With ``feature_axes`` above 1, the last so many axes together
    are one vector: 3 for whole maps (n, c, h, w), without a view of them; `maps.movedim(1, -1)` makes each
    location a sample. Relative error in float32 below 1e-6,
    of the gradient below 2e-6. Half precision is accumulated, and the loss returned, in float32. Can be
    differentiated twice.

    Raises:
        ValueError: activations without a feature axis, without elements, or not floating point; feature_axes that
            the activations do not have.
    """
    check_activations(activations, feature_axes)
    loss: Tensor = _ExactLosses.apply(feature_axes, True, activations)[0]  # type: ignore[no-untyped-call]
    return loss.squeeze(0)


def per_losses(activations: Sequence[Tensor], feature_axes: int = 1) -> Tensor:
    """`per_loss` of each of several activations of one shape, (activations,), in few operations for all of them.

    Here the length of a sample has to be below 1e19 in float32; `per_loss` looks for the largest number first.

    Raises:
        ValueError: as `per_loss`.
    """
    check_activations(activations[0], feature_axes)
    return _ExactLosses.apply(feature_axes, False, *activations)[0]  # type: ignore[no-untyped-call, no-any-return]


def limit_per_loss(activations: Tensor, feature_axes: int = 1) -> Tensor:
    """What `per_loss` tends to in wide layers: ``sqrt(2/pi) sqrt(1 + q)``, q the mean square of a sample.

    Averaged over samples; 0-dim, in float32 at least. Its gradient is ``h sqrt(2/pi)/d / sqrt(1 + q)``. Against
    `per_loss` the value is low by at most a part 1/(4d), and the gradient by 1/(3d). Arguments and errors are
    those of `per_loss`. The limit is ours: the first term of the expansion in `_expansion`.
    """
    check_activations(activations, feature_axes)
    wide = in_float32(activations)
    scale = moderate_scale(wide)
    mean_square, excess = _bounded(_mean_square(wide * scale, feature_axes), scale)
    return _SQRT_2_OVER_PI * ((1 + mean_square).sqrt() * excess).mean()


def _limit_of_moderate(activations: Tensor, feature_axes: int) -> Tensor:
    """`limit_per_loss` of activations whose squares float32 can hold, in fewer operations."""
    return _SQRT_2_OVER_PI * (1 + _mean_square(in_float32(activations), feature_axes)).sqrt().mean()


def _mean_square(activations: Tensor, feature_axes: int) -> Tensor:
    return activations.square().mean(tuple(range(-feature_axes, 0)))


def sliced_per_loss(
    activations: Tensor,
    n_slices: int = 256,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """PER with random slices: the mean of ``p erf(p/sqrt2) + sqrt(2/pi) exp(-p^2/2)``, p = <theta, h>.

    Equation 5 with the Monte Carlo directions of Algorithm 1, shared by all samples; its gradient is the mean
    of ``erf(p/sqrt2) theta`` (eq. 6). Activations have shape (..., d); ``directions`` (slices, d), drawn from
    ``generator`` where they are not given. 0-dim, computed in float32 at least.

    Raises:
        ValueError: activations as for `per_loss`; directions of another width; fewer than one slice.
    """
    check_activations(activations)
    theta = directions_for(activations, n_slices, generator, directions)
    with torch.autocast(activations.device.type, enabled=False):
        projections = activations.to(theta.dtype).reshape(-1, theta.shape[1]) @ theta.mT
        smooth = _SQRT_2_OVER_PI * torch.exp(-0.5 * projections.square())
        return torch.addcmul(smooth, projections, torch.erf(projections * math.sqrt(0.5))).mean()


def noisy_per_loss(
    activations: Tensor,
    n_slices: int = 256,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
) -> Tensor:
    """`per_loss`, in value and in the mean of its gradient, with the noise of ``n_slices`` slices in the gradient.

    The noise is `matched_noise`, over the number of samples as the gradient of a mean is: as strong as that of
    `sliced_per_loss` and as much shared between samples, but without its directions. Activations have shape
    (..., d); ``directions`` (2, slices, d), drawn from ``generator`` where they are not given. 0-dim, in float32 at
    least. An instrument of ours, not of the paper.

    Raises:
        ValueError: as `sliced_per_loss`.
    """
    check_activations(activations)
    dimension = activations.shape[-1]
    precision = accumulation_dtype(activations)
    if directions is None:
        drawn = sample_directions(dimension, 2 * n_slices, generator, activations.device, precision)
        directions = drawn.view(2, n_slices, dimension)
    noise = matched_noise(activations, directions)
    along = (noise * activations.to(noise.dtype)).sum() / (activations.numel() // dimension)
    return per_loss(activations) + (along - along.detach())


@torch.no_grad()
def matched_noise(activations: Tensor, directions: Tensor) -> Tensor:
    """Isotropic noise for the gradient of each sample, with the second moments of the sliced gradient's.

    With K shared slices the gradient of sample i is ``mean_k a_ik theta_k``, ``a_ik = erf(<theta_k, h_i>/sqrt2)``,
    and its deviations e_i from the expectation g_i have ``E<e_i, e_j> = (E a_i a_j - <g_i, g_j>)/K``. Here
    ``noise_i = mean_k (a_ik - c <g_i, theta_k>) phi_k``, with phi independent of theta. It has mean zero, no
    preferred direction, and inner products ``(E a_i a_j - (2c - c^2/d) <g_i, g_j>)/K``, which at
    ``c = d (1 - sqrt(1 - 1/d))`` are those above for all i and j, in every dimension d. What is gone is that a
    slice's weight belongs to its direction, which is where the expectation comes from.

    Activations (..., d) and directions (2, slices, d), theta and phi, to noise of the activations' shape, in float32
    at least and without a gradient of its own.

    Raises:
        ValueError: activations as for `per_loss`; directions of another shape or width.
    """
    check_activations(activations)
    dimension = activations.shape[-1]
    precision = accumulation_dtype(activations)
    _check_two_sets(directions, dimension)
    own, independent = directions.to(precision)
    share = 1 / (1 + math.sqrt(1 - 1 / dimension))  # c, without a difference of near numbers
    with torch.autocast(activations.device.type, enabled=False):
        samples = activations.to(precision).reshape(-1, dimension)
        projections = samples @ own.mT
        scale = moderate_scale(samples)
        mean_square, excess = _bounded((samples * scale).square().mean(1), scale)
        slope = value_and_slope(mean_square, dimension)[1] / excess
        weights = torch.erf(projections * math.sqrt(0.5)) - (share * slope).unsqueeze(1) * projections
        return (weights @ independent / len(own)).reshape(activations.shape)


def value_and_slope(mean_square: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """PER of a sample of given mean square ``q = |h|^2/d``, and the slope with ``gradient = slope * h``.

    ``value = sqrt(2/pi) sqrt(1+q) F(u)`` with ``u = q/(1+q)``, and ``slope = (2/d) dvalue/dq =
    sqrt(2/pi)/d (F + 2 (1-u) F'(u)) / sqrt(1+q)`` exactly. F is a short polynomial that depends on the
    dimension d: an expansion in 1/d from 32 dimensions on, a Chebyshev series below. One dimension has the
    error function itself.
    """
    if dimension == 1:
        length = mean_square.sqrt()
        positive = length.clamp_min(1e-9)  # erf(x)/x has reached its limit there
        slope = torch.erf(positive * math.sqrt(0.5)) / positive
        return mean_square * slope + _SQRT_2_OVER_PI * torch.exp(-0.5 * mean_square), slope
    q = mean_square.reshape(-1)
    scale = q + 1
    if dimension >= _LARGE_DIMENSION:
        both = _horner(_expansion(dimension, q.dtype, q.device), q / scale)
    else:
        both = clenshaw(_chebyshev(dimension, q.dtype, q.device), (q - 1) / scale)
    root = scale.sqrt()
    return (both[0] * root).reshape(mean_square.shape), (both[1] / root).reshape(mean_square.shape)


def _bounded(scaled_mean_square: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The mean square of samples times ``scale`` as a mean square up to 2^80, and how far the root is above, 1 or more.

    There PER is proportional to the length and its slope to the inverse, to rounding: they are those of the first
    times, and over, the second.
    """
    bound = _LONGEST * scale
    excess = scaled_mean_square.clamp_min(bound.square()).sqrt() / bound
    return scaled_mean_square.clamp_max(bound.square()) / scale / scale, excess


def _horner(coefficients: tuple[Tensor, ...], position: Tensor) -> Tensor:
    """Two polynomials, with coefficients (2, 1) from the constant upward, at points (n,); (2, n)."""
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = torch.addcmul(coefficient, position, total)
    return total


@cache  # never emptied: a recorded step goes on reading the constants that it met
def _expansion(dimension: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """F and F + 2 (1-u) F' in powers of u: ``F = 1 + P1/b + P2/b^2 + P3/b^3 + ...`` with ``b = d/2``.

    It holds uniformly in u. Cut after the third order the error is below 5e-8 at d = 32, and falls as 1/d^4;
    orders that float32 cannot see are left out.
    """
    orders = (
        (0.0, 0.0, 1 / 8),
        (0.0, 0.0, -1 / 8, 1 / 4, -15 / 128),
        (0.0, 0.0, 1 / 8, -3 / 4, 45 / 32, -35 / 32, 315 / 1024),
    )
    negligible = 1e-6 if dtype == torch.float32 else 0.0
    factor = [1.0] + [0.0] * 6
    for order, polynomial in enumerate(orders, start=1):
        size = (dimension / 2) ** -order
        if order == 1 or size > negligible:
            for power, coefficient in enumerate(polynomial):
                factor[power] += coefficient * size
    while factor[-1] == 0.0:
        factor.pop()
    tilt = [value * (1 - 2 * power) for power, value in enumerate(factor)]
    for power in range(1, len(factor)):
        tilt[power - 1] += 2 * power * factor[power]
    return _coefficients(factor, tilt, dimension, dtype, device)


@cache  # never emptied: a recorded step goes on reading the constants that it met
def _chebyshev(dimension: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """F and F + 2 (1-u) F' in Chebyshev polynomials of 2u-1, by interpolation of `_kummer`."""
    negligible = 1e-8 if dtype == torch.float32 else 1e-11  # in the derivative
    turns = [2 * node + 1 for node in range(_NODES)]  # angles in units of pi / (2 nodes), kept exact
    values = [_kummer((1 + _cosine(turn)) / 2, dimension / 2) for turn in turns]
    factor = [
        (2 if order else 1)
        / _NODES
        * math.fsum(value * _cosine(order * turn) for value, turn in zip(values, turns, strict=True))
        for order in range(_NODES)
    ]
    while abs(factor[-1]) * len(factor) ** 2 < negligible:
        factor.pop()
    derivative = [0.0] * (len(factor) + 1)
    for order in range(len(factor) - 1, 0, -1):
        derivative[order - 1] = derivative[order + 1] + 2 * order * factor[order]
    derivative[0] /= 2
    tilt = [value + 2 * slope for value, slope in zip(factor, derivative, strict=False)]
    for order in range(len(factor) - 1):  # 2 (1-u) dF/du = 2 (1-x) dF/dx with x = 2u-1, and x T_k here
        tilt[order + 1] -= derivative[order] * (1 if order else 2)
        if order:
            tilt[order - 1] -= derivative[order]
    return _coefficients(factor, tilt, dimension, dtype, device)


def _coefficients(
    factor: list[float], tilt: list[float], dimension: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, ...]:
    """Both series with their constants, as one column (2, 1) per order."""
    with making_constants():
        columns = torch.tensor([factor, tilt], dtype=torch.float64) * _SQRT_2_OVER_PI
        columns[1] /= dimension
        return columns.mT.unsqueeze(-1).to(device=device, dtype=dtype).unbind()


def _cosine(turn: int) -> float:
    return math.cos(math.pi * (turn % (4 * _NODES)) / (2 * _NODES))


def _kummer(u: float, b: float) -> float:
    """``F(u) = 1F1(-1/2; b; -b q) / sqrt(1+q)``, q = u/(1-u), to double precision for b < 20."""
    x = b * u / (1 - u)
    term, total, index = 1.0, 1.0, 0
    if x < 100:  # Kummer's transformation: exp(-x) 1F1(b+1/2; b; x), whose terms are all positive
        while term > 1e-17 * total:
            term *= (b + 0.5 + index) / (b + index) * x / (index + 1)
            total += term
            index += 1
        return math.exp(-x) * total * math.sqrt(1 - u)
    for index in range(40):  # the asymptotic series for large x
        term *= (index - 0.5) * (0.5 - b + index) / ((index + 1) * x)
        total += term
    return math.gamma(b) / math.gamma(b + 0.5) * math.sqrt(b * u) * total


class _ExactLosses(TransformableFunction):
    """One pass over each activation forward, and one multiplication backward; what lies between is done for all."""

    @staticmethod
    def forward(feature_axes: int, of_any_size: bool, *activations: Tensor) -> tuple[Tensor, Tensor]:
        precision = accumulation_dtype(activations[0])
        axes = tuple(range(-feature_axes, 0))
        dimension = math.prod(activations[0].shape[-feature_axes:])
        if of_any_size:
            scales = [moderate_scale(h) for h in activations]
            moderate = [h.to(precision) * scale for h, scale in zip(activations, scales, strict=True)]
            squares = [torch.linalg.vector_norm(h, dim=axes).square() / dimension for h in moderate]
            mean_square, excess = map(torch.stack, zip(*map(_bounded, squares, scales), strict=True))
            value, slope = value_and_slope(mean_square, dimension)
            return mean_of_each(value * excess), slope / excess
        length = torch.stack([torch.linalg.vector_norm(h, dim=axes, dtype=precision) for h in activations])
        value, slope = value_and_slope(length.square() / dimension, dimension)
        return mean_of_each(value), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.feature_axes, _, *activations = inputs
        TransformableFunction.keep(ctx, output, *activations)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        # The gradient has the activations' own shape and no view behind it: autograd can then add the other
        # gradients of the layer into it in place, which saves a third of the loss's memory traffic.
        slope, *activations = ctx.saved_tensors
        weight = gradient / slope[0].numel()
        if torch.is_grad_enabled():  # create_graph: the same in operations that autograd can differentiate again
            own = zip(activations, weight, strict=True)
            return None, None, *(_differentiable_gradient(h, share, ctx.feature_axes) for h, share in own)
        scales = _spread(_spread(weight, slope.dim() - 1) * slope, ctx.feature_axes)
        return None, None, *(_scaled(h, scale) for h, scale in zip(activations, scales, strict=True))


def _spread(numbers: Tensor, n_axes: int) -> Tensor:
    """With ``n_axes`` more axes, of length one: to be broadcast over as many."""
    return numbers.reshape(numbers.shape + (1,) * n_axes)


def _scaled(activations: Tensor, scale: Tensor) -> Tensor:
    """Their product, in the activations' type."""
    same_type = scale.dtype == activations.dtype
    return torch.mul(activations, scale, out=None if same_type else torch.empty_like(activations))


def _differentiable_gradient(activations: Tensor, weight: Tensor, feature_axes: int) -> Tensor:
    wide = activations.to(weight.dtype)
    dimension = math.prod(wide.shape[-feature_axes:])
    if dimension == 1:
        return (weight * torch.erf(wide * math.sqrt(0.5))).to(activations.dtype)
    scale = moderate_scale(wide)
    mean_square, excess = _bounded(_mean_square(wide * scale, feature_axes), scale)
    slope = value_and_slope(mean_square, dimension)[1] / excess
    return (weight * _spread(slope, feature_axes) * wide).to(activations.dtype)


def _check_two_sets(directions: Tensor, dimension: int) -> None:
    shape = tuple(directions.shape)
    if len(shape) != 3 or shape[0] != 2 or shape[1] == 0 or shape[2] != dimension:
        raise ValueError(
            f"directions must be (2, slices, {dimension}) for activations of width {dimension}, got {shape}"
        )


class PER(Method):
    """PER on every Site of one role, summed over Sites and weighted by ``strength``.

    ``reduction = "mean"`` averages over samples (eq. 5): examples, time steps and, with ``features =
    "channels"``, locations, as the task loss averages over its predictions. ``"sum"`` adds the samples up,
    which is Algorithm 1 read literally beside a batch-mean task loss.

    ``mode = "sliced"`` is the paper's loss and ``"exact"`` its expectation. Two more take the effect apart and are
    ours: ``"limit"``, the expectation's form in wide layers, and ``"noisy"``, the expectation with isotropic noise in
    its gradient that matches the noise of ``n_slices`` slices.
    """

    strength: NonNegative = 1e-4  # lambda; the paper searches 3e-4, 1e-4, 3e-5, 1e-5
    mode: Literal["exact", "sliced", "limit", "noisy"] = "exact"
    n_slices: PositiveCount = 256  # section 4
    sites: Role = "post"  # eq. 1: h = phi(W h + b)
    features: Features = "flatten"  # a sample of a map: all of it, or one location
    reduction: Literal["mean", "sum"] = "mean"

    @property
    def is_mean_over_samples(self) -> bool:
        return self.reduction == "mean"

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss."""
        records = trace.select(self.sites)
        if self.mode == "exact":
            samples = [record.as_samples(self.features) for record in records]
            losses = losses_together(self._exact, *zip(*samples, strict=True))
        else:
            sets = 2 if self.mode == "noisy" else 1
            directions = SharedDirections(sets * self.n_slices, generator)
            losses = torch.stack([self._term(record, directions) for record in records])
        return self.strength * losses.sum()

    def _exact(self, samples: Sequence[Tensor], feature_axes: int) -> Tensor:
        return self._reduced(per_losses(samples, feature_axes), samples[0], feature_axes)

    def _term(self, record: Record, directions: SharedDirections) -> Tensor:
        samples, feature_axes = record.as_samples(self.features)
        if self.mode == "limit":
            loss = _limit_of_moderate(samples, feature_axes)
        else:
            vectors = record.vectors(self.features)
            shared = directions.of(vectors)
            if self.mode == "sliced":
                loss = sliced_per_loss(vectors, directions=shared)
            else:
                loss = noisy_per_loss(vectors, directions=shared.unflatten(0, (2, self.n_slices)))
        return self._reduced(loss, samples, feature_axes)

    def _reduced(self, mean: Tensor, samples: Tensor, feature_axes: int) -> Tensor:
        return mean * math.prod(samples.shape[:-feature_axes]) if self.reduction == "sum" else mean
