"""KL-guided domain adaptation (Nguyen et al. 2022): codes of a target domain are given the law of the source's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reproduce.method import (
    Deviation,
    Method,
    NonNegative,
    Record,
    Role,
    Trace,
    check_activations,
    gaussian_code,
    in_float32,
)


def mixture_log_density(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """``log p(z) = log (1/B) sum_i N(z; mu_i, diag(sigma_i^2))`` at each value (eq. 16); (n,), in float32 at least.

    It is the law of a domain's codes as a mini-batch of B examples estimates it.

    Args:
        values: z (n, d).
        mean: mu (B, d).
        deviation: sigma (B, d), positive.

    Raises:
        ValueError: shapes that do not belong together, or values that are not floating point.
    """
    check_activations(values)
    if values.dim() != 2 or mean.dim() != 2 or mean.shape != deviation.shape or values.shape[1] != mean.shape[1]:
        shapes = [tuple(given.shape) for given in (values, mean, deviation)]
        raise ValueError(f"values (n, d) need means and deviations (B, d), got {shapes}")
    values, mean, deviation = map(in_float32, (values, mean, deviation))
    distances = ((values[:, None] - mean) / deviation).square().sum(-1)
    volumes = 2 * deviation.log().sum(-1) + mean.shape[1] * math.log(2 * math.pi)
    return (-0.5 * (distances + volumes)).logsumexp(-1) - math.log(len(mean))


def mixture_divergence(values: Tensor, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """``(1/n) sum_i log p(z_i) - log q(z_i)``, an estimate of ``KL(p || q)`` from draws of p (eq. 15); 0-dim.

    p and q are mixtures as of `mixture_log_density`. Of these mixtures the estimate is unbiased, of the laws behind
    the mini-batches it is not (section 3.3): p has the Gaussian in it that a value was drawn from.

    Args:
        values: draws of p (n, d).
        own: means and deviations of p, (B, d) each.
        other: those of q, as many or not.

    Raises:
        ValueError: as of `mixture_log_density`.
    """
    return (mixture_log_density(values, *own) - mixture_log_density(values, *other)).mean()


class KLDomainAdaptation(Method):
    """``reverse_coefficient KL(p_T || p_S) + forward_coefficient KL(p_S || p_T)`` of Gaussian codes (eq. 14).

    Reads Sites (N, 2 d) that hold the parameters of codes, as `gaussian_code` reads them, of a batch with examples of
    the source domain and then of the target's, whose labels nobody needs. Draws one value of each code.
    """

    reverse_coefficient: NonNegative = 0.3  # beta, appendix D.3.1, for Rotated MNIST
    forward_coefficient: NonNegative = 0.1  # beta_aux, there
    sites: Role = "gaussian"
    deviation: Deviation = "softplus"  # as in the authors' code

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted divergences, summed over Sites."""
        return torch.stack([self._of_site(record, trace, generator) for record in trace.select(self.sites)]).sum()

    def _of_site(self, record: Record, trace: Trace, generator: torch.Generator) -> Tensor:
        site = record.site
        if site.known_axes != "nc" or site.features % 2:
            raise ValueError(
                f"Site {site.name!r} (axes {site.axes!r}, width {site.features}) holds no Gaussian codes: "
                "(examples, 2 d) is needed, d means and then what gives d deviations"
            )
        mean, deviation = gaussian_code(record.activation, self.deviation)
        values = mean + deviation * torch.empty_like(mean).normal_(generator=generator)
        (source_mean, target_mean), (source_deviation, target_deviation), (source_values, target_values) = map(
            trace.domains, (mean, deviation, values)
        )
        source, target = (source_mean, source_deviation), (target_mean, target_deviation)
        total = trace.zero()
        if self.reverse_coefficient:
            total = total + self.reverse_coefficient * mixture_divergence(target_values, target, source)
        if self.forward_coefficient:
            total = total + self.forward_coefficient * mixture_divergence(source_values, source, target)
        return total
