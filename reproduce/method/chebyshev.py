"""Chebyshev series: how closed forms over all directions are evaluated in every dimension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clenshaw(coefficients: Sequence[Tensor], position: Tensor) -> Tensor:
    """``sum_k c_k T_k(x)`` by Clenshaw's recurrence, for several series at once.

    Args:
        coefficients: one tensor for each order from 0 on, two orders at least; (series, 1) broadcasts over points.
        position: x in [-1, 1], of shape (n,) or (1, n).

    Returns:
        (series, n).
    """
    current, previous = coefficients[-1], torch.zeros_like(coefficients[-1])
    for coefficient in coefficients[-2:0:-1]:
        current, previous = torch.addcmul(coefficient - previous, position, current, value=2), current
    return torch.addcmul(coefficients[0] - previous, position, current)
