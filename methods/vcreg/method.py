"""VCReg (Zhu et al. 2023): keep every unit's variance up and the covariances between units down, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reproduce.method import (
    Features,
    Method,
    NonNegative,
    Positive,
    Role,
    Trace,
    TransformableFunction,
    check_activations,
    differentiable_once,
    errors_in,
    in_float32,
)


def variance_hinge(activations: Tensor, target_std: float = 1.0, epsilon: float = 1e-4) -> Tensor:
    """Mean over units of ``max(0, gamma - sqrt(var + epsilon))``, the variance term of VICReg; 0-dim.

    Activations have shape (..., units); every leading axis counts samples. Of a map (n, c, y, x) give
    `maps.flatten(1)`, or `maps.movedim(1, -1)` with a sample at each location. ``target_std`` is gamma, and the
    variance divides by n - 1. A unit that varies enough costs nothing, and gets no gradient. Neither does a unit
    that is constant, though it costs most: the hinge holds units up, it does not revive them. Computed in float32
    at least. Can be differentiated once.

    Raises:
        ValueError: fewer than two samples, no units, not floating point; a target_std or epsilon that is not positive.
    """
    if not target_std > 0 or not epsilon > 0:
        raise ValueError(f"target_std and epsilon must be positive, got {target_std} and {epsilon}")
    variance: Tensor = _Variance.apply(_samples(activations))[0]  # type: ignore[no-untyped-call]
    return (target_std - (variance + epsilon).sqrt()).relu().mean()


def covariance_penalty(activations: Tensor) -> Tensor:
    """``sum_{i != j} C_ij^2 / d``, the covariance term of VICReg, C the covariance of d units; 0-dim.

    Activations as for `variance_hinge`, (..., units); leading axes count n samples, and C divides by n - 1. Where there
    are fewer samples than units, the same number comes from the n x n matrix of the centred samples' inner
    products, whose squares have the same sum: ``|X^T X|_F = |X X^T|_F``. No d x d matrix is made then.

    Independent units of variance s^2 do not bring it to zero but, on average, to ``s^4 (d - 1) / (n - 1)``. The matrix
    products are computed in float32 at least, whatever autocast says. Can be differentiated once.

    Raises:
        ValueError: fewer than two samples, no units, not floating point.
    """
    samples = _samples(activations)
    result: Tensor = _OffDiagonalSquares.apply(samples)[0]  # type: ignore[no-untyped-call]
    return result


def full_covariance_penalty(activations: Tensor) -> Tensor:
    """`covariance_penalty` as the formula reads, with a d x d matrix at every shape; kept to be timed against it."""
    samples = _samples(activations)
    with torch.autocast(samples.device.type, enabled=False):
        centred = samples - samples.mean(0)
        covariance = centred.mT @ centred / (len(samples) - 1)
    return (covariance - covariance.diagonal().diag_embed()).square().sum() / samples.shape[1]


class _Variance(TransformableFunction):
    """Of each unit of samples (n, units), over n - 1. Torch's own takes about twice as long over the first axis."""

    @staticmethod
    def forward(samples: Tensor) -> tuple[Tensor, Tensor]:
        centred = samples - samples.mean(0)
        return centred.square().sum(0) / (len(samples) - 1), centred

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        TransformableFunction.keep(ctx, output)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        (centred,) = ctx.saved_tensors
        return (centred * (gradient * (2 / (len(centred) - 1))),)


class _OffDiagonalSquares(TransformableFunction):
    """`covariance_penalty` of samples (n, units).

    Autograd would multiply by both factors of a product of X with itself; they are equal, and one suffices. The
    gradient, ``4 X C' / (d (n - 1))`` with C' the covariance without its diagonal, is centred already.
    """

    @staticmethod
    def forward(samples: Tensor) -> tuple[Tensor, ...]:
        n, d = samples.shape
        centred = samples - samples.mean(0)
        if n < d:
            products = _product(centred, centred.mT)
            diagonal = centred.square().sum(0)
            # Rounding may leave a difference of equal numbers below zero.
            total = (products.square().sum() - diagonal.square().sum()).clamp_min_(0)
        else:
            products = _product(centred.mT, centred)
            products.diagonal().zero_()
            diagonal = products.new_empty(0)
            total = products.square().sum()
        return total / (d * (n - 1) ** 2), centred, products, diagonal

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        TransformableFunction.keep(ctx, output)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, gradient: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        centred, products, diagonal = ctx.saved_tensors
        n, d = centred.shape
        scale = 4 * gradient / (d * (n - 1) ** 2)
        if n < d:
            return (scale * _product(products, centred).sub_(centred * diagonal),)
        return (_product(centred, scale * products),)


def _product(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _samples(activations: Tensor) -> Tensor:
    """(samples, units), in float32 at least."""
    check_activations(activations, least_samples=2)
    return in_float32(activations.reshape(-1, activations.shape[-1]))


class VCReg(Method):
    """``variance_strength`` times `variance_hinge` plus ``covariance_strength`` times `covariance_penalty`, over Sites.

    Both are summed over the Sites of one role. A term whose strength is zero is not computed. Time steps of
    recurrent outputs count as samples, and so do the locations of maps with ``features = "channels"``; with
    ``"flatten"`` every location of every channel is a unit.
    """

    variance_strength: NonNegative = 0.1  # alpha; ours: the paper's values were not available
    covariance_strength: NonNegative = 0.01  # beta; ours, likewise
    target_std: Positive = 1.0  # gamma of the hinge; the customary value, ours for these layers
    epsilon: Positive = 1e-4  # under the root; the customary value, ours for these layers
    sites: Role = "post"
    features: Features = "channels"

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted sum."""
        terms = []
        for record in trace.select(self.sites):
            vectors = record.vectors(self.features)
            with errors_in(f"Site {record.site.name!r}"):
                if self.variance_strength:
                    terms.append(self.variance_strength * variance_hinge(vectors, self.target_std, self.epsilon))
                if self.covariance_strength:
                    terms.append(self.covariance_strength * covariance_penalty(vectors))
        return torch.stack(terms).sum()
