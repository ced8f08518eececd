"""Latent density (Postels et al. 2020): keep information in the last activations, whose density tells the unknown."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reproduce.method import (
    Method,
    NonNegative,
    Role,
    Site,
    Trace,
    check_activations,
    device_of,
    dtype_of,
    in_float32,
    show_in_forward,
    sites_with_role,
)


def unexplained_fraction(latent: Tensor, target: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """``mean_ij (t_ij - (W z_i)_j)^2``, the part of a batch's variance that a linear decoder leaves; 0-dim.

    t are targets without their means, divided by ``sqrt(v + eps)``, v the variance averaged over units; z latents
    without theirs, divided by ``sqrt(v + 1)``: neither large latents nor silent ones make large steps. With a Gaussian
    decoder of one variance, ``I(T; Z) >= H(T) - (m / 2) log(2 pi e s^2)`` (Barber & Agakov 2003), s^2 its mean squared
    error: the less is left, the more the latents tell of the target. The target is a constant to the gradient. In
    float32 at least.

    Args:
        latent: (n, d).
        target: (n, m).
        weight: W (m, d).

    Raises:
        ValueError: shapes that do not belong together, or latents that are not floating point.
    """
    check_activations(latent)
    fits = latent.dim() == target.dim() == 2 and len(target) == len(latent)
    if not fits or weight.shape != (target.shape[1], latent.shape[1]):
        shapes = [tuple(given.shape) for given in (latent, target, weight)]
        raise ValueError(f"latents (n, d) and targets (n, m) need weights (m, d), got {shapes}")
    left = _scaled(target.detach(), eps) - torch.nn.functional.linear(_scaled(latent, 1.0), weight)
    return left.square().mean()


def _scaled(features: Tensor, added: float) -> Tensor:
    features = in_float32(features)
    centred = features - features.mean(0)
    return centred * (centred.square().mean() + added).rsqrt()


class LatentDensity(Method):
    """``strength`` times `unexplained_fraction` of the first Site of one role by the last one.

    ``prepare`` gives the last Site a linear ``decoder``, which the optimiser treats as any other layer. Of maps both
    sides are the means of their channels. The density itself is no part of training: tasks measure it
    where they have images ``out_of_distribution``.
    """

    strength: NonNegative = 0.1  # ours: the paper's is not known to us
    sites: Role = "post"  # the last ones of a classifier are decoded to the first ones

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Add the decoder; nothing changes where ``strength`` is zero.

        Raises:
            ValueError: fewer than two such Sites, one of both that holds a sequence, one whose shape is not
                known yet, or one with a decoder.
        """
        if self.strength == 0:
            return
        chosen = sites_with_role(model, self.sites)
        target, latent = chosen[0], chosen[-1]
        if latent is target:
            raise ValueError(f"{latent.name!r} is the only {self.sites!r} Site: the last of two or more is decoded")
        for site in (latent, target):
            if site.is_sequence:
                raise ValueError(f"Site {site.name!r} holds a sequence (axes {site.axes!r}): a latent has no time here")
            _ = site.known_axes  # refused where they are a guess
        if _decoder(latent) is not None:
            raise ValueError(f"Site {latent.name!r} already has a decoder")
        decoder = nn.utils.skip_init(
            nn.Linear, latent.features, target.features, bias=False, dtype=dtype_of(model, latent)
        )
        decoder = decoder.to(device_of(model))
        with torch.no_grad():
            decoder.weight.normal_(0, 1 / math.sqrt(latent.features), generator=generator)
        latent.add_module("decoder", decoder)
        show_in_forward(latent, ["decoder.weight"])

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss."""
        records = trace.select(self.sites)
        target, latent = records[0], records[-1]
        decoder = _decoder(latent.site)
        if decoder is None:
            raise ValueError("latent density needs a decoder: call prepare() before training")
        loss = unexplained_fraction(latent.channel_means, target.channel_means, decoder.weight)
        return self.strength * loss


def _decoder(site: Site) -> nn.Linear | None:
    found = getattr(site, "decoder", None)
    return found if isinstance(found, nn.Linear) else None
