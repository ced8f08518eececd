"""An example to replace: keep the mean of every unit near zero, so that activations stay centred."""

from __future__ import annotations

import torch
from torch import Tensor

from reproduce.method import Method, NonNegative, Role, Trace, check_activations, in_float32


def squared_mean(activations: Tensor) -> Tensor:
    """``mean over units of (mean over samples of h)^2``; 0-dim, computed in float32 at least.

    Activations have shape (..., units); every leading axis counts samples. Of a map (n, c, y, x) give
    `maps.flatten(1)`, or `maps.movedim(1, -1)` with a sample at each location. Write here: the equation's number,
    shapes, units and source.

    Raises:
        ValueError: no activations, or not floating point.
    """
    check_activations(activations)
    samples = in_float32(activations).reshape(-1, activations.shape[-1])
    return samples.mean(0).square().mean()


class Example(Method):
    """``strength`` times the sum over Sites of `squared_mean`."""

    strength: NonNegative = 1e-2  # lambda; ours
    sites: Role = "post"  # ours: where the activations are read

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted penalty."""
        terms = [squared_mean(record.samples) for record in trace.select(self.sites)]
        return self.strength * torch.stack(terms).sum()
