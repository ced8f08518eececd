"""A Gaussian code: what a layer's outputs say of its mean and deviation."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from reproduce.method.activations import check_activations, in_float32

Deviation = Literal["softplus", "log_variance"]
_LEAST = 1e-6  # of a deviation: softplus gives 0 far below zero, where nothing has a density


def gaussian_code(parameters: Tensor, deviation: Deviation = "softplus") -> tuple[Tensor, Tensor]:
    """Means and standard deviations, (..., d) each in float32 at least, of parameters (..., 2 d): means come first.

    The second half is s in ``sigma = log(1 + exp(s))`` ("softplus") or in ``sigma = exp(s / 2)`` ("log_variance");
    no deviation is below 1e-6.

    Raises:
        ValueError: an odd width, not floating point, or another ``deviation``.
    """
    check_activations(parameters)
    if parameters.shape[-1] % 2:
        raise ValueError(f"a Gaussian code needs means and as many deviations, got width {parameters.shape[-1]}")
    mean, raw = in_float32(parameters).chunk(2, dim=-1)
    if deviation == "softplus":
        return mean, F.softplus(raw).clamp_min(_LEAST)
    if deviation == "log_variance":
        return mean, (raw / 2).exp().clamp_min(_LEAST)
    raise ValueError(f"deviation is 'softplus' or 'log_variance', got {deviation!r}")
