"""Compound batch normalization (Cheng et al. 2022): a Gaussian mixture in place of one Gaussian for each unit."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from reproduce.method import (
    Method,
    NonNegative,
    Positive,
    PositiveCount,
    Site,
    check_activations,
    fill_sites,
    in_float32,
    is_in_backward,
    sites_with_role,
)


class Mixture(NamedTuple):
    """K Gaussians for each unit, or K with diagonal covariances for all: each part is (K, units)."""

    weights: Tensor
    means: Tensor
    variances: Tensor


def responsibilities(samples: Tensor, mixture: Mixture, shared: bool = False, eps: float = 1e-5) -> Tensor:
    """The E step, ``r_ik = w_k N(x_i; m_k, v_k + eps) / sum_j w_j N(x_i; m_j, v_j + eps)``, for samples (n, units).

    Each unit by itself, (n, K, units); or, where ``shared``, with the product of units' densities and the weights of
    the first unit, (n, K, 1). They sum to 1 over K.

    Raises:
        ValueError: samples and a mixture whose shapes do not belong together, or that are not floating point.
    """
    _check(samples, mixture)
    weights, means, variances = mixture
    variances = variances + eps
    log_density = -0.5 * ((samples.unsqueeze(1) - means).square() / variances + variances.log())
    if shared:
        log_density, weights = log_density.sum(2, keepdim=True), weights[:, :1]
    return (log_density + weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).softmax(1)


def batch_components(
    samples: Tensor, shares: Tensor, mixture: Mixture, pseudo_samples: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The M step on one batch: means and variances (K, units), over samples in the parts ``shares`` (n, K, units or 1).

    The mixture counts as ``pseudo_samples`` further samples of each component, so that one that the batch leaves empty
    has the statistics that it had. With none, and one component, these are the batch's mean and biased variance.

    Raises:
        ValueError: shapes that do not belong together, or samples that are not floating point.
    """
    _check(samples, mixture, shares)
    counts = shares.sum(0) + pseudo_samples
    counts = counts.clamp_min(torch.finfo(counts.dtype).tiny)
    _, means, variances = mixture
    of_each = samples.unsqueeze(1)
    mean = ((shares * of_each).sum(0) + pseudo_samples * means) / counts
    square = ((shares * of_each.square()).sum(0) + pseudo_samples * (variances + means.square())) / counts
    return mean, (square - mean.square()).clamp_min(0)


def compound_normalize(
    samples: Tensor, shares: Tensor, means: Tensor, variances: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5
) -> Tensor:
    """``y_i = sum_k r_ik (scale_k (x_i - m_k) / sqrt(v_k + eps) + shift_k)``: (n, units).

    Shares are as of `responsibilities`; what follows them is (K, units).
    """
    slope = scale * (variances + eps).rsqrt()
    return samples * (shares * slope).sum(1) + (shares * (shift - slope * means)).sum(1)


def followed(mixture: Mixture, samples: Tensor, shares: Tensor, momentum: float) -> Mixture:
    """The mixture after one step of moving-average EM: ``s <- (1 - momentum) s + momentum s_batch`` for its statistics.

    Of a component they are ``s = (w, w m, w (v + m^2))``, and those of the batch the means over samples of
    ``(r_ik, r_ik x_i, r_ik x_i^2)`` (Cappe & Moulines 2009). Samples and shares are as of `batch_components`.

    Raises:
        ValueError: as `batch_components`.
    """
    mean, variance = batch_components(samples, shares, mixture, pseudo_samples=0.0)
    part = shares.mean(0).expand_as(mean)
    weights = torch.lerp(mixture.weights, part, momentum)
    step = momentum * part / weights.clamp_min(torch.finfo(weights.dtype).tiny)  # how far the component moves
    means = torch.lerp(mixture.means, mean, step)
    before = mixture.variances + (mixture.means - means).square()
    return Mixture(weights, means, torch.lerp(before, variance + (mean - means).square(), step))


def _check(samples: Tensor, mixture: Mixture, shares: Tensor | None = None) -> None:
    check_activations(samples)
    shapes = [tuple(part.shape) for part in mixture]
    if samples.dim() != 2 or len(shapes[0]) != 2 or samples.shape[1] != shapes[0][1] or len(set(shapes)) != 1:
        raise ValueError(
            f"samples (n, units) need weights, means and variances (K, units), got {tuple(samples.shape)} and {shapes}"
        )
    n, (components, units) = len(samples), shapes[0]
    if shares is not None and tuple(shares.shape) not in ((n, components, units), (n, components, 1)):
        raise ValueError(f"shares must be (n, K, units or 1), {(n, components, units)} here, got {tuple(shares.shape)}")


class CompoundBatchNormalization(nn.Module):
    """`compound_normalize` of a Site, with a mixture that follows training batches by moving averages.

    In training shares come from the moving mixture, and statistics from the batch (`batch_components`), through which
    gradients flow; shares are constants to the gradient, as an E step has them. At evaluation both come from the
    moving mixture. The first batch places the components: around its mean, in its deviations, where the offsets say.

    Args:
        offsets: (K, units), in standard deviations.
        features_last: whether units are the last axis, and not the second. Every other axis counts samples.
        method: the rest of its choices.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    is_filled: Tensor

    def __init__(self, offsets: Tensor, features_last: bool, method: CompoundBatchNorm) -> None:
        super().__init__()
        self.features_last, self.method = features_last, method
        self.scale = nn.Parameter(torch.ones_like(offsets))
        self.shift = nn.Parameter(torch.zeros_like(offsets))
        self.register_buffer("weights", torch.full_like(offsets, 1 / len(offsets)))
        self.register_buffer("means", offsets.clone())
        self.register_buffer("variances", torch.ones_like(offsets))
        self.register_buffer("is_filled", torch.zeros((), dtype=torch.bool, device=offsets.device))

    def forward(self, activation: Tensor) -> Tensor:
        if self.training and is_in_backward():
            raise ValueError(
                "compound batch normalization cannot be computed again in the backward pass, since its mixture has "
                "moved: leave its Sites out of checkpoint()"
            )
        features_last = activation if self.features_last else activation.movedim(1, -1)
        rows = in_float32(features_last).reshape(-1, features_last.shape[-1])
        # Squares of a mean that is far from zero would cost digits.
        centre = rows.detach().mean(0) if self.training else (self.weights * self.means).sum(0)
        rows = rows - centre
        mixture = self._mixture(rows.detach(), centre)
        chosen = self.method
        shares = responsibilities(rows.detach(), mixture, chosen.shared, chosen.eps)
        means, variances = mixture.means, mixture.variances
        if self.training:
            means, variances = batch_components(rows, shares, mixture, chosen.pseudo_samples)
            self._remember(followed(mixture, rows.detach(), shares, chosen.momentum), centre)
        made = compound_normalize(rows, shares, means, variances, self.scale, self.shift, chosen.eps)
        made = made.to(activation.dtype).view(features_last.shape)
        return made if self.features_last else made.movedim(-1, 1)

    def _mixture(self, centred: Tensor, centre: Tensor) -> Mixture:
        """The moving one, around the centre; at the first training batch, components placed by its deviations."""
        means = self.means - centre
        if not self.training:
            return Mixture(self.weights, means, self.variances)
        variance = centred.var(0, correction=0)
        return Mixture(
            self.weights,
            torch.where(self.is_filled, means, self.means * variance.sqrt()),
            torch.where(self.is_filled, self.variances, self.variances * variance),
        )

    @torch.no_grad()
    def _remember(self, mixture: Mixture, centre: Tensor) -> None:
        self.weights.copy_(mixture.weights)
        self.means.copy_(mixture.means + centre)
        self.variances.copy_(mixture.variances)
        self.is_filled.fill_(True)


class CompoundBatchNorm(Method):
    """Put a `CompoundBatchNormalization` into every Site of one role.

    One component is batch normalization but for ``pseudo_samples``, and for variances at evaluation that are of all
    training batches together.
    """

    shared: bool = False  # whether all units of a sample share their responsibilities
    components: PositiveCount = 3  # K; ours, as all that follow: the paper's numbers are not known to us
    sites: Literal["pre", "post"] = "pre"  # as batch normalization
    eps: Positive = 1e-5  # ours, as batch normalization here
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1  # ours: the weight of the newest batch
    pseudo_samples: NonNegative = 1.0  # ours: what keeps a component that a batch leaves nearly empty where it was
    spread: Positive = 1.0  # ours: of the components at the first batch, in deviations of a unit, or of all if shared

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Fill the Sites; each has its own mixture, whose components begin around the mean of the first batch.

        Raises:
            ValueError: no such Sites, one that holds a sequence, is already filled or whose shape is not known yet.
        """
        make = partial(self._layer, generator=generator)
        fill_sites(model, sites_with_role(model, self.sites), make)

    def _layer(self, site: Site, generator: torch.Generator) -> nn.Module:
        if site.is_sequence:
            raise ValueError(
                f"Site {site.name!r} holds a sequence (axes {site.axes!r}), and compound batch normalization needs one "
                "without time: recurrent_batchnorm is a method for LSTMs"
            )
        _ = site.known_axes  # refused where they are a guess
        drawn = torch.randn(self.components, site.features, generator=generator, device=generator.device)
        offsets = self.spread * (drawn - drawn.mean(0))
        apart = math.sqrt(site.features) if self.shared else 1.0  # so that densities differ as much over all units
        return CompoundBatchNormalization(offsets / apart, site.has_features_last, self)
