"""Images read as a sequence, row by row or pixel by pixel, by one recurrent layer; its last output is classified."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize

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
    # "glorot": every gate's hidden-to-hidden block is U(+-sqrt(3 / hidden)) (Glorot & Bengio 2010, eq. 16).
    initialisation: Literal["torch", "orthogonal", "identity", "glorot"] = "torch"
    margin: float | None = Field(default=None, ge=0)  # of the hidden-to-hidden singular values around 1; None: free

    @model_validator(mode="after")
    def _margin_has_its_start(self) -> Options:
        if self.margin is not None and (self.cell != "tanh" or self.initialisation != "orthogonal"):
            raise ValueError(
                f"margin {self.margin} needs cell 'tanh' and initialisation 'orthogonal', "
                f"found {self.cell!r} and {self.initialisation!r}"
            )
        return self


class BoundedSpectrum(nn.Module):
    """A kernel whose singular values stay within a margin of 1: ``W = C(L) diag(s) C(R) W_0``.

    ``C(A) = (I - S)^-1 (I + S)`` with ``S = (A - A^T) / 2`` is orthogonal, and ``W_0`` the orthogonal kernel at the
    start; ``s_i = 2 margin (sigmoid(p_i) - 1/2) + 1``. At the start L, R and p are zero.

    Source: Vorontsov et al. 2017, for s; their bases follow geodesics, and the chart of ours is Cayley's map.
    """

    start: Tensor

    def __init__(self, start: Tensor, margin: float) -> None:
        super().__init__()
        self.margin = margin
        self.register_buffer("start", start.clone())

    def forward(self, left: Tensor, right: Tensor, spectrum: Tensor) -> Tensor:
        singular = 2 * self.margin * (torch.sigmoid(spectrum) - 0.5) + 1
        return (_cayley(left) * singular) @ _cayley(right) @ self.start

    def right_inverse(self, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the parameters are at the start."""
        return torch.zeros_like(kernel), torch.zeros_like(kernel), kernel.new_zeros(len(kernel))


def _cayley(matrix: Tensor) -> Tensor:
    skew = (matrix - matrix.mT) / 2
    identity = torch.eye(len(matrix), device=matrix.device, dtype=matrix.dtype)
    with torch.autocast(matrix.device.type, enabled=False):  # I - S is never singular: no need to look
        return torch.linalg.solve_ex(identity - skew, identity + skew, check_errors=False)[0]


class UnflattenedRNN(nn.RNN):
    """A tanh layer whose kernel is made anew in each step.

    cuDNN's layout of all weights in one piece would move the other parameters each time, under a recorded step too.
    """

    def flatten_parameters(self) -> None:
        """Nothing: weights stay where they are."""


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
        cell = CELLS[options.cell] if options.margin is None else UnflattenedRNN
        self.recurrent = cell(channels * width if by_rows else channels, options.hidden)
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
    if options.initialisation == "glorot":
        for block in from_hidden:
            nn.init.xavier_uniform_(block, generator=initialisation)
    orthogonal = {"orthogonal": from_hidden, "identity": from_input}.get(options.initialisation, ())
    for block in orthogonal:
        nn.init.orthogonal_(block, generator=initialisation)
    if options.margin is not None:
        kernel = model.recurrent.get_parameter("weight_hh_l0").detach()
        parametrize.register_parametrization(model.recurrent, "weight_hh_l0", BoundedSpectrum(kernel, options.margin))
    return model
