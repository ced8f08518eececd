"""Compound batch normalization (Cheng et al. 2022): a Gaussian mixture in place of one Gaussian for each unit."""

from __future__ import annotations

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
    sites_with_role,
)


class Mixture(NamedTuple):
    """K Gaussians with diagonal covariances: weights (K,), means and variances (K, units)."""

    weights: Tensor
    means: Tensor
    variances: Tensor


def responsibilities(samples: Tensor, mixture: Mixture, eps: float = 1e-5) -> Tensor:
    """The E step, ``r_ik = w_k N(x_i; m_k, v_k + eps) / sum_j w_j N(x_i; m_j, v_j + eps)``: (n, K), rows sum to 1.

    Samples are (n, units). They share nothing but the mixture, and a sample's units share its responsibilities.

    Raises:
        ValueError: samples and a mixture whose shapes do not belong together, or that are not floating point.
    """
    _check(samples, mixture)
    weights, means, variances = mixture
    precision = 1 / (variances + eps)
    # sum_c (x - m)^2 / v by matrix products: no (n, K, units) tensor
    distance = samples.square() @ precision.mT - 2 * samples @ (means * precision).mT
    log_density = -0.5 * (distance + (means.square() * precision - precision.log()).sum(1))
    smallest = torch.finfo(weights.dtype).tiny
    return (log_density + weights.clamp_min(smallest).log()).softmax(1)


def batch_components(
    samples: Tensor, shares: Tensor, mixture: Mixture, pseudo_samples: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The M step on one batch: means and variances (K, units), over samples in the parts ``shares`` (n, K).

    The mixture counts as ``pseudo_samples`` further samples of each component, so that one that the batch leaves empty
    has the statistics that it had. With none, and one component, these are the batch's mean and biased variance.

    Raises:
        ValueError: shapes that do not belong together, or samples that are not floating point.
    """
    _check(samples, mixture)
    if shares.shape != (len(samples), len(mixture.weights)):
        wanted = (len(samples), len(mixture.weights))
        raise ValueError(f"shares must be (samples, components), {wanted} here, got {tuple(shares.shape)}")
    counts = shares.sum(0).unsqueeze(1) + pseudo_samples
    counts = counts.clamp_min(torch.finfo(counts.dtype).tiny)
    _, means, variances = mixture
    mean = (shares.mT @ samples + pseudo_samples * means) / counts
    square = (shares.mT @ samples.square() + pseudo_samples * (variances + means.square())) / counts
    return mean, (square - mean.square()).clamp_min(0)


def compound_normalize(
    samples: Tensor, shares: Tensor, means: Tensor, variances: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5
) -> Tensor:
    """``y_i = sum_k r_ik (scale_k (x_i - m_k) / sqrt(v_k + eps) + shift_k)``: (n, units).

    Shares are (n, K), all else but the samples (K, units).
    """
    slope = scale * (variances + eps).rsqrt()
    return samples * (shares @ slope) + shares @ (shift - slope * means)


def followed(mixture: Mixture, samples: Tensor, shares: Tensor, momentum: float) -> Mixture:
    """The mixture after one step of moving-average EM: ``s <- (1 - momentum) s + momentum s_batch`` for its statistics.

    Of a component they are ``s = (w, w m, w (v + m^2))``, and those of the batch the means over samples of
    ``(r_ik, r_ik x_i, r_ik x_i^2)`` (Cappe & Moulines 2009). Samples are (n, units), shares (n, K).
    """
    tiny = torch.finfo(shares.dtype).tiny
    part = shares.mean(0)
    counts = shares.sum(0).clamp_min(tiny).unsqueeze(1)
    mean = shares.mT @ samples / counts
    variance = (shares.mT @ samples.square() / counts - mean.square()).clamp_min(0)
    weights = torch.lerp(mixture.weights, part, momentum)
    step = (momentum * part / weights.clamp_min(tiny)).unsqueeze(1)  # how far the component moves
    means = torch.lerp(mixture.means, mean, step)
    before = mixture.variances + (mixture.means - means).square()
    return Mixture(weights, means, torch.lerp(before, variance + (mean - means).square(), step))


def _check(samples: Tensor, mixture: Mixture) -> None:
    check_activations(samples)
    shape = tuple(mixture.means.shape)
    fits = samples.dim() == 2 and len(shape) == 2 and samples.shape[1] == shape[1]
    if not fits or tuple(mixture.variances.shape) != shape or tuple(mixture.weights.shape) != shape[:1]:
        raise ValueError(
            "samples (n, units) need weights (K,), means and variances (K, units), got "
            f"{tuple(samples.shape)} and {[tuple(part.shape) for part in mixture]}"
        )


class CompoundBatchNormalization(nn.Module):
    """`compound_normalize` of a Site, with a mixture that follows training batches by moving averages.

    In training shares come from the moving mixture, and statistics from the batch (`batch_components`); gradients flow
    through both. At evaluation both come from the moving mixture. The first batch places the components: around
    its mean, in its deviations, where the given offsets say.

    Args:
        offsets: (K, units), in standard deviations.
        features_last: whether units are the last axis, and not the second. Every other axis counts samples.
        eps, momentum, pseudo_samples: as in `CompoundBatchNorm`.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor
    is_filled: Tensor

    def __init__(
        self, offsets: Tensor, features_last: bool, eps: float, momentum: float, pseudo_samples: float
    ) -> None:
        super().__init__()
        self.features_last, self.eps, self.momentum, self.pseudo_samples = features_last, eps, momentum, pseudo_samples
        self.scale = nn.Parameter(torch.ones_like(offsets))
        self.shift = nn.Parameter(torch.zeros_like(offsets))
        self.register_buffer("weights", torch.full_like(offsets[:, 0], 1 / len(offsets)))
        self.register_buffer("means", offsets.clone())
        self.register_buffer("variances", torch.ones_like(offsets))
        self.register_buffer("is_filled", torch.zeros((), dtype=torch.bool, device=offsets.device))

    def forward(self, activation: Tensor) -> Tensor:
        features_last = activation if self.features_last else activation.movedim(1, -1)
        rows = in_float32(features_last).reshape(-1, features_last.shape[-1])
        # Squares of a mean that is far from zero would cost digits.
        centre = rows.detach().mean(0) if self.training else self.weights @ self.means
        rows = rows - centre
        mixture = self._mixture(rows.detach(), centre)
        shares = responsibilities(rows, mixture, self.eps)
        means, variances = mixture.means, mixture.variances
        if self.training:
            means, variances = batch_components(rows, shares, mixture, self.pseudo_samples)
            self._remember(followed(mixture, rows.detach(), shares.detach(), self.momentum), centre)
        made = compound_normalize(rows, shares, means, variances, self.scale, self.shift, self.eps)
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

    components: PositiveCount = 3  # K; ours, as all that follow: the paper's numbers are not known to us
    sites: Literal["pre", "post"] = "pre"  # as batch normalization
    eps: Positive = 1e-5  # ours, as batch normalization here
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.1  # ours: the weight of the newest batch
    pseudo_samples: NonNegative = 1.0  # ours: what keeps a component that a batch leaves nearly empty where it was
    spread: Positive = 0.1  # ours: of the components at the first batch, in standard deviations

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
        return CompoundBatchNormalization(offsets, site.has_features_last, self.eps, self.momentum, self.pseudo_samples)
