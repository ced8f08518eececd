"""The input as its own code: the row "raw pixels" of a table of features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reproduce.models import ModelOptions, Sizes


class Options(ModelOptions):
    """None: there is nothing to choose."""


class Pixels(nn.Module):
    """Inputs (N, ...) to themselves plus an offset, initially 0, which the squared error holds there."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(math.prod(sizes.input_shape)))

    def encode(self, inputs: Tensor) -> Tensor:
        """The input, flat: (N, d_in)."""
        return inputs.flatten(1)

    def decode(self, code: Tensor) -> Tensor:
        """The code plus the offset."""
        return code + self.offset

    def features(self, inputs: Tensor) -> Tensor:
        """What a classifier reads: the input."""
        return self.encode(inputs)

    def anneal(self, progress: float) -> None:
        """Nothing changes over training."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(self.encode(inputs)).reshape(inputs.shape)


def build(options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None) -> Pixels:
    """The model; it draws nothing."""
    return Pixels(sizes)
