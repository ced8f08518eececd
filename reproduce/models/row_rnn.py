"""Images read as a sequence, row by row or pixel by pixel, by one recurrent layer; its last output is classified."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.initialisation import draw_uniform
from reproduce.models.precision import run_recurrent

CELLS: dict[str, Callable[[int, int], nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}
BLOCKS = {"lstm": 4, "gru": 3, "tanh": 1}  # gates, whose blocks lie below each other in a hidden-to-hidden kernel


class Options(ModelOptions):
    """Vorontsov et al. (2017): 128 units, pixel by pixel, in order or permuted."""

    hidden: int = Field(ge=1)
    cell: Literal["lstm", "gru", "tanh"] = "lstm"
    order: Literal["rows", "pixels"] = "rows"
    # Shuffle the sequence, the same for every image and every run; the published permutations are not known.
    permutation_seed: int | None = Field(default=None, ge=0)
    # "torch": U(+-1 / sqrt(hidden)); "orthogonal": every gate's hidden-to-hidden block is orthogonal; "identity": it is
    # the identity, and every gate's input-to-hidden block orthogonal (Cooijmans et al. 2017, sequential MNIST).
    initialisation: Literal["torch", "orthogonal", "identity"] = "torch"


class RowRNN(nn.Module):
    """Images (N, C, H, W) to logits (N, classes); one Site ``post`` on the outputs of all steps, (T, N, hidden).

    A step is a row of all channels (T = H), or a pixel (T = H W).
    """

    permutation: Tensor | None

    def __init__(self, options: Options, sizes: Sizes) -> None:
        super().__init__()
        if len(sizes.input_shape) != 3:
            raise ValueError(f"takes images of shape (channels, height, width), got {sizes.input_shape}")
        channels, height, width = sizes.input_shape
        by_rows = options.order == "rows"
        self.order = options.order
        self.recurrent = CELLS[options.cell](channels * width if by_rows else channels, options.hidden)
        self.post = Site("post", "tnc", (options.hidden,))
        self.classifier = nn.Linear(options.hidden, sizes.outputs)
        permutation = None
        if options.permutation_seed is not None:
            shuffling = torch.Generator().manual_seed(options.permutation_seed)
            permutation = torch.randperm(height if by_rows else height * width, generator=shuffling)
        self.register_buffer("permutation", permutation)

    def steps(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) as the sequence that is read: (T, N, inputs)."""
        if self.order == "rows":
            sequence = images.permute(2, 0, 1, 3).flatten(2)
        else:
            sequence = images.permute(2, 3, 0, 1).flatten(0, 1)
        return sequence if self.permutation is None else sequence[self.permutation]

    def forward(self, images: Tensor) -> Tensor:
        output, _ = run_recurrent(self.recurrent, self.steps(images).contiguous())
        return self.classifier(self.post(output)[-1])


def build(options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None) -> RowRNN:
    """The model with every parameter drawn from ``initialisation``: U(+-1 / sqrt(hidden)), torch's default.

    With "orthogonal" and "identity", kernels are then set anew, block by block.
    """
    model = RowRNN(options, sizes)
    for parameter in model.parameters():
        draw_uniform(parameter, 1.0 / math.sqrt(options.hidden), initialisation)
    blocks = BLOCKS[options.cell]
    from_hidden = model.recurrent.get_parameter("weight_hh_l0").detach().chunk(blocks)
    from_input = model.recurrent.get_parameter("weight_ih_l0").detach().chunk(blocks)
    if options.initialisation == "identity":
        for block in from_hidden:
            nn.init.eye_(block)
    orthogonal = {"torch": (), "orthogonal": from_hidden, "identity": from_input}[options.initialisation]
    for block in orthogonal:
        nn.init.orthogonal_(block, generator=initialisation)
    return model
