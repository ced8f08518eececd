"""Singular values of a model's kernels: what penalties of orthogonality act on."""

from __future__ import annotations

import torch
from torch import nn

from reproduce.method.kernels import kernels_of
from reproduce.results.record import KernelSpectrum

MOST = 64  # singular values of a kernel that are kept, evenly by their rank
DIGITS = 5  # that are kept of each
NO_MATRIX = frozenset({"embedding", "unknown"})  # tables that are looked up; weights of which no axis counts outputs


@torch.no_grad()
def kernel_spectra(model: nn.Module) -> tuple[KernelSpectrum, ...]:
    """The singular values of every kernel (out, ...) as a matrix (out, fan_in), in the order of the model's modules.

    A kernel that holds several, as the gates of an LSTM and the groups of a convolution, gives one entry for each,
    `name.0` and on. Of more than MOST values some are kept, evenly by their rank, the largest and the smallest among
    them. A matrix that holds what is no finite number has none: all are NaN.

    Raises:
        ValueError: as `kernels_of`.
    """
    found = []
    for kernel in kernels_of(model):
        if kernel.kind in NO_MATRIX or kernel.weight.numel() == 0:
            continue
        blocks = kernel.outputs_first.flatten(1).double().chunk(kernel.blocks)
        for place, matrix in enumerate(blocks):
            name = kernel.name if len(blocks) == 1 else f"{kernel.name}.{place}"
            found.append(KernelSpectrum(name=name, singular_values=_singular_values(matrix)))
    return tuple(found)


def _singular_values(matrix: torch.Tensor) -> tuple[float, ...]:
    count = min(matrix.shape)
    kept = count if count <= MOST else MOST
    if not matrix.isfinite().all():
        return (float("nan"),) * kept
    values = torch.linalg.svdvals(matrix).tolist()
    ranks = [round(place * (count - 1) / max(1, kept - 1)) for place in range(kept)]
    return tuple(float(f"{values[rank]:.{DIGITS}g}") for rank in ranks)
