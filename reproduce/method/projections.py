"""Directions for slices: what every sliced distance draws."""

from __future__ import annotations

import torch
from torch import Tensor

from reproduce.method.activations import accumulation_dtype


def directions_for(
    activations: Tensor, n_slices: int, generator: torch.Generator | None, given: Tensor | None
) -> Tensor:
    """Directions (slices, d) for activations (..., d), in float32 at least: those given, or else drawn.

    Raises:
        ValueError: given directions of another shape; fewer than one slice to draw.
    """
    width = activations.shape[-1]
    precision = accumulation_dtype(activations)
    if given is None:
        return sample_directions(width, n_slices, generator, activations.device, precision)
    if given.dim() != 2 or given.shape[1] != width or len(given) == 0:
        shape = tuple(given.shape)
        raise ValueError(f"directions must be (slices, {width}) for activations of width {width}, got {shape}")
    return given.to(precision)


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


class SharedDirections:
    """One set of random directions for all activations of one width in a step, drawn when the width is first met."""

    def __init__(self, n_slices: int, generator: torch.Generator) -> None:
        self.n_slices, self.generator = n_slices, generator
        self._by_width: dict[int, Tensor] = {}

    def of(self, activations: Tensor) -> Tensor:
        """Directions (n_slices, d) for activations (..., d)."""
        width = activations.shape[-1]
        if width not in self._by_width:
            self._by_width[width] = sample_directions(width, self.n_slices, self.generator, activations.device)
        return self._by_width[width]
