"""How sparse a code is and how well it reconstructs, over a whole split: sums on the device, ratios at the end."""

from __future__ import annotations

import torch
from torch import Tensor

CODE_METRICS = frozenset({"l0", "dead_fraction"})
RECONSTRUCTION_METRICS = frozenset({"fvu", "relative_reconstruction_bias", "decoder_norm"})


class CodeStatistics:
    """How often each latent fires; a latent fires where its code is not zero."""

    def __init__(self) -> None:
        self.fired: Tensor | None = None
        self.samples = 0

    def add(self, code: Tensor) -> None:
        """Take in codes (..., d_sae)."""
        rows = code.detach().reshape(-1, code.shape[-1])
        fired = (rows != 0).sum(0)
        self.fired = fired if self.fired is None else self.fired + fired
        self.samples += len(rows)

    def metrics(self) -> dict[str, float]:
        """``l0``: mean number of latents that fire; ``dead_fraction``: of latents that never did.

        Raises:
            ValueError: when no code was added.
        """
        if self.fired is None or self.samples == 0:
            raise ValueError("no code was added, so there is nothing to count")
        return {
            "l0": self.fired.sum().item() / self.samples,
            "dead_fraction": self.fired.eq(0).double().mean().item(),
        }


class ReconstructionStatistics:
    """What a reconstruction leaves unexplained, and how much it shrinks."""

    def __init__(self) -> None:
        self.samples = 0
        self.residual: Tensor | float = 0.0  # sum |x - xhat|^2
        self.square: Tensor | float = 0.0  # sum |x|^2
        self.total: Tensor | float = 0.0  # sum x, (d_in,)
        self.output: Tensor | float = 0.0  # sum |xhat|^2
        self.overlap: Tensor | float = 0.0  # sum xhat . x

    def add(self, inputs: Tensor, reconstruction: Tensor) -> None:
        """Take in inputs and their reconstructions, (samples, d_in) each."""
        x, xhat = inputs.detach().double(), reconstruction.detach().double()
        self.samples += len(x)
        self.residual = self.residual + (x - xhat).square().sum()
        self.square = self.square + x.square().sum()
        self.total = self.total + x.sum(0)
        self.output = self.output + xhat.square().sum()
        self.overlap = self.overlap + (xhat * x).sum()

    def metrics(self) -> dict[str, float]:
        """``fvu``: sum |x - xhat|^2 / sum |x - mean x|^2, means over all that was added, so 1 for the mean itself.

        ``relative_reconstruction_bias``: sum |xhat|^2 / sum xhat . x, below 1 where the output is too small
        (Rajamanoharan et al. 2024, eq. 10). An output of zero everywhere counts as 0.

        Raises:
            ValueError: when nothing was added, or all inputs are equal and there is no variance to explain.
        """
        if self.samples == 0:
            raise ValueError("no reconstruction was added, so there is nothing to compare")
        variance = float(self.square - torch.as_tensor(self.total).square().sum() / self.samples)
        residual, output, overlap = float(self.residual), float(self.output), float(self.overlap)
        if variance == 0.0:
            raise ValueError(f"all {self.samples} inputs are equal: no variance to explain")
        return {"fvu": residual / variance, "relative_reconstruction_bias": output / overlap if output else 0.0}
