"""Weight initialisation by name, drawn from a given generator."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

InitialisationName = Literal["he", "lecun", "glorot", "gaussian", "torch"]


def fan_in(weight: Tensor) -> int:
    """Inputs that one output of a linear (out, in) or convolution (out, in, h, w) weight sums over."""
    return weight[0].numel()


def draw_weight(weight: Tensor, kind: InitialisationName, generator: torch.Generator, std: float | None = None) -> None:
    """Fill a weight in place.

    Args:
        weight: (out, in) or (out, in, height, width).
        kind: ``he`` N(0, 2 / fan_in) (He et al. 2015, eq. 10); ``lecun`` N(0, 1 / fan_in)
            (LeCun et al. 1998); ``glorot`` U(+-sqrt(6 / (fan_in + fan_out))) (Glorot & Bengio 2010, eq. 16);
            ``gaussian`` N(0, std**2); ``torch`` U(+-1 / sqrt(fan_in)), variance 1 / (3 fan_in), torch's default.
        generator: source of the numbers, on the weight's device.
        std: standard deviation of ``gaussian``.

    Raises:
        ValueError: for another kind, or ``gaussian`` without ``std``.
    """
    inputs = fan_in(weight)
    if kind == "he":
        nn.init.normal_(weight, 0.0, math.sqrt(2.0 / inputs), generator=generator)
    elif kind == "lecun":
        nn.init.normal_(weight, 0.0, math.sqrt(1.0 / inputs), generator=generator)
    elif kind == "glorot":
        outputs = len(weight) * inputs // weight.shape[1]  # that one input feeds
        draw_uniform(weight, math.sqrt(6.0 / (inputs + outputs)), generator)
    elif kind == "gaussian" and std is not None:
        nn.init.normal_(weight, 0.0, std, generator=generator)
    elif kind == "torch":
        draw_uniform(weight, 1.0 / math.sqrt(inputs), generator)
    else:
        raise ValueError(f"cannot initialise with {kind!r} and standard deviation {std!r}")


def draw_uniform(tensor: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill a tensor in place from U(-bound, bound)."""
    nn.init.uniform_(tensor, -bound, bound, generator=generator)
