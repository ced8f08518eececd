"""Directions for slices: what every sliced distance draws."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_directions(
    dimension: int,
    n_slices: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Directions (n_slices, dimension), uniform on the unit sphere: normal vectors over their lengths.

    Raises:
        ValueError: fewer than one slice or dimension.
    """
    if n_slices < 1 or dimension < 1:
        raise ValueError(f"need at least one slice and one dimension, got {n_slices} and {dimension}")
    normal = torch.randn(n_slices, dimension, generator=generator, device=device, dtype=dtype)
    return normal.div_(torch.linalg.vector_norm(normal, dim=1, keepdim=True))
