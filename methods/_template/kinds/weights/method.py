"""An example to replace: keep the mean of every unit's incoming weights near zero, so that kernels stay centred."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from reproduce.method import Method, NonNegative, Role, Trace, in_float32


def squared_mean(weight: Tensor) -> Tensor:
    """``mean over outputs of (mean over incoming weights)^2``; 0-dim, computed in float32 at least.

    A weight has shape (outputs, ...). Write here: the equation's number, shapes, units and source.

    Raises:
        ValueError: a weight that has fewer than two axes, is empty or not floating point.
    """
    if weight.dim() < 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(f"a weight must be floating point, (outputs, ...), got {weight.dtype} {tuple(weight.shape)}")
    return in_float32(weight).flatten(1).mean(1).square().mean()


def kernels(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of two or more axes: no biases, no scales of normalizations.

    Raises:
        ValueError: the model has none.
    """
    found = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    if not found:
        raise ValueError("the penalty needs a kernel, a parameter of two or more axes; the model has none")
    return found


class Example(Method):
    """``strength`` times the sum over kernels of `squared_mean`."""

    recorded_roles: ClassVar[frozenset[Role]] = frozenset()  # it reads weights, and no activations

    strength: NonNegative = 1e-2  # lambda; ours

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted penalty."""
        return self.strength * torch.stack([squared_mean(weight) for weight in kernels(trace.model)]).sum()
