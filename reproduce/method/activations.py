"""What several methods ask of activations: checks, precision, samples as rows, groups of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_activations(activations: Tensor, feature_axes: int = 1, least_samples: int = 1) -> None:
    """Activations (..., d) hold floating-point numbers, and enough samples.

    Args:
        activations: every axis before the features counts samples.
        feature_axes: how many last axes together are one sample's features.
        least_samples: fewer are refused.

    Raises:
        ValueError: what is wrong, with the shape or type that was found.
        TypeError: no tensor.
    """
    if not isinstance(activations, Tensor):
        raise TypeError(f"activations are a tensor (..., units), got {type(activations).__name__}")
    shape = tuple(activations.shape)
    if activations.dim() == 0 or activations.numel() == 0:
        raise ValueError(f"activations must be (..., units) and not empty, got shape {shape}")
    if not activations.is_floating_point():
        raise ValueError(f"activations must be floating point, got {activations.dtype}")
    if not 1 <= feature_axes <= activations.dim():
        raise ValueError(f"feature_axes must be 1 to {activations.dim()}, got {feature_axes}")
    if math.prod(shape[:-feature_axes]) < least_samples:
        raise ValueError(f"at least {least_samples} samples are needed, got activations of shape {shape}")


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Float32 for half precision, whose sums and squares overflow; else the tensor's own type.

    Raises:
        ValueError: a type of eight bits or fewer, which holds numbers and is not computed in.
    """
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        raise ValueError(
            f"found {tensor.dtype} {tuple(tensor.shape)}, in which torch does not compute: needed is bfloat16 or "
            "wider, as .to(torch.bfloat16) makes it; weights that are kept so may be left out by name"
        )
    return torch.promote_types(tensor.dtype, torch.float32)


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor.to(accumulation_dtype(tensor))


def moderate_scale(tensor: Tensor) -> Tensor:
    """A power of two, 0-dim, times which no number of the tensor exceeds 2^40: 1 where none does, or one is not finite.

    Sums of squares then do not overflow float32, and no bits change of what is divided by it again.
    """
    least, most = torch.aminmax(tensor.detach())  # in one pass
    largest = in_float32(torch.maximum(-least, most))
    if hasattr(largest, "full_tensor"):  # of a weight in shards, of which torch 2.11 takes no `frexp`
        largest = largest.full_tensor()
    excess = (torch.frexp(largest).exponent - 40).clamp_min(0)
    return torch.where(largest.isfinite(), torch.ldexp(torch.ones_like(largest), -excess), 1.0)


def is_channels_last(activations: Tensor, feature_axes: int) -> bool:
    """Whether whole maps (n, c, h, w) lie in memory as (n, h, w, c)."""
    if feature_axes != 3 or activations.dim() != 4:
        return False
    expected = 1
    for axis in (1, 3, 2, 0):  # by strides, which `torch.vmap` knows too
        if activations.shape[axis] != 1:
            if activations.stride(axis) != expected:
                return False
            expected *= activations.shape[axis]
    return True


def sample_rows(activations: Tensor, feature_axes: int = 1) -> Tensor:
    """(samples, d), features in the order of memory where that needs no copy: for what no order of features changes."""
    if is_channels_last(activations, feature_axes):
        return activations.movedim(1, -1).flatten(1)
    return activations.reshape(-1, math.prod(activations.shape[-feature_axes:]))


def groups_of_samples(
    n_samples: int, group_size: int | None, generator: torch.Generator | None, device: torch.device
) -> tuple[int, Tensor | None]:
    """How many groups of at least ``group_size`` there are (one without a size), and the order that is cut into them.

    The order is drawn from the generator where there is one and more than one group; None: as the samples come.

    Raises:
        ValueError: a group_size below 2.
    """
    if group_size is not None and group_size < 2:
        raise ValueError(f"group_size must be at least 2, got {group_size}")
    n_groups = max(1, n_samples // group_size) if group_size else 1
    if generator is None or n_groups == 1:
        return n_groups, None
    return n_groups, torch.randperm(n_samples, generator=generator, device=device)


def grouped(rows: Tensor, n_groups: int) -> Tensor:
    """The first rows as (groups, m, d), a view; fewer than ``n_groups`` are left over."""
    size = len(rows) // n_groups
    return rows[: n_groups * size].view(n_groups, size, -1)
