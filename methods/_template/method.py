"""An example to replace: keep the mean of every unit near zero, so that activations stay centred."""

from __future__ import annotations

import torch
from torch import Tensor

import reproduce.method
from reproduce.method import NonNegative, Role, Trace


def squared_mean(activations: Tensor) -> Tensor:
    """``mean over units of (mean over samples of h)^2``; 0-dim, computed in float32 at least.

    Activations have shape (..., units); every leading axis counts samples. Write here: the equation's number, shapes,
    units and source.

    Raises:
        ValueError: no activations.
    """
    if activations.dim() == 0 or activations.numel() == 0:
        raise ValueError(f"activations must be (..., units) and not empty, got {tuple(activations.shape)}")
    precision = torch.promote_types(activations.dtype, torch.float32)
    return activations.reshape(-1, activations.shape[-1]).mean(0, dtype=precision).square().mean()


class Method(reproduce.method.Method):
    """``strength`` times the sum over Sites of `squared_mean`."""

    strength: NonNegative = 1e-2  # lambda; ours
    sites: Role = "post"  # ours: where the activations are read

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted penalty; exactly zero, and blind to the activations, where ``strength`` is zero."""
        if self.strength == 0:
            return trace.zero()
        terms = [squared_mean(record.samples) for record in trace.select(self.sites)]
        return self.strength * torch.stack(terms).sum()
