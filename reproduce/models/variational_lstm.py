"""A language model with variational dropout: masks of a window on words, inputs, hidden states and outputs."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce.method.activations import in_float32
from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.dropout import LockedDropout, WordDropout
from reproduce.models.dropped_lstm import DroppedLanguageModel, RecurrentLayer, draw_parameters
from reproduce.models.precision import like, run_recurrent

GATES = 4


class Options(ModelOptions):
    """Sizes in units, dropouts as probabilities; each mask holds for a whole window."""

    hidden: int = Field(ge=1)
    embedding: int | None = Field(default=None, ge=1)  # None: as wide as `hidden`
    layers: int = Field(default=2, ge=1)
    tied: bool = False  # the decoder's weight is the embedding's
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of what a layer reads, and of what the decoder reads
    recurrent_dropout: float = Field(default=0.0, ge=0, lt=1)  # of the hidden state that the next step reads
    embedding_dropout: float = Field(default=0.0, ge=0, lt=1)  # of whole words
    # "layer": one mask for the four gates ("tied weights" of Gal & Ghahramani). "gate": each gate has its own ("untied
    # weights"). "shared": the next step and the layer above read the hidden state under one mask (Inan et al.).
    masks: Literal["layer", "gate", "shared"] = "layer"
    initial_bound: float | None = Field(default=None, gt=0)  # every parameter U(+-bound); None: as model `lstm`

    @model_validator(mode="after")
    def _widths_and_rates_fit(self) -> Options:
        if self.tied and self.embedding not in (None, self.hidden):
            raise ValueError(f"option 'tied' needs embedding {self.embedding} to be as wide as hidden {self.hidden}")
        if self.masks == "shared" and self.recurrent_dropout != self.dropout:
            raise ValueError(
                f"masks = 'shared' has one mask for both: recurrent_dropout {self.recurrent_dropout} must be "
                f"dropout {self.dropout}"
            )
        return self


class VariationalLayer(RecurrentLayer):
    """An LSTM layer whose inputs and hidden states are dropped by masks that do not change within a window.

    ``(i, f, g, o)_t = W_x (x_t * z_x) + W_h (h_{t-1} * z_h) + b`` (Gal & Ghahramani 2016, eqs. 4 and 7), z (1, B, d)
    of one call, Bernoulli(1 - p) / (1 - p). Site ``post`` on the raw output. While nothing is dropped it is ``lstm``.

    Args:
        inputs: width of x.
        width: of h.
        input_masks: dropout of x, for all gates or for each of four; none: x comes as it is.
        hidden_masks: dropout of h, for all gates or for each of four.
        passes_on: what goes upward is the hidden state under its mask.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        input_masks: list[LockedDropout],
        hidden_masks: list[LockedDropout],
        passes_on: bool,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width)
        self.input_masks, self.hidden_masks = nn.ModuleList(input_masks), nn.ModuleList(hidden_masks)
        self.passes_on = passes_on
        self.post = Site("post", "tnc", (width,))

    @property
    def drops(self) -> bool:
        return self.training and any(mask.probability > 0 for mask in (*self.input_masks, *self.hidden_masks))

    def forward(self, value: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.drops:
            output, (hidden, cell) = run_recurrent(self.lstm, value, (hidden, cell))
            return self.post(output), hidden, cell
        masks = [mask(torch.ones_like(hidden)) for mask in self.hidden_masks]  # (1, B, width) each
        output, hidden, cell = self._steps(value, hidden[0], cell[0], [mask[0] for mask in masks])
        output = self.post(output)
        return (output * like(masks[0], output) if self.passes_on else output), hidden.unsqueeze(0), cell.unsqueeze(0)

    def _steps(self, value: Tensor, hidden: Tensor, cell: Tensor, masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """All steps of a window: outputs (T, B, width), h_T and c_T (B, width)."""
        weight_hh = self.lstm.get_parameter("weight_hh_l0")
        bias_hh = self.lstm.get_parameter("bias_hh_l0")
        kernels = weight_hh.chunk(len(masks))
        projected = self._from_input(value)
        dtype = projected.dtype  # of matrix products under autocast; gates and cell are float32 at least
        outputs = []
        for given in in_float32(projected).unbind():
            recurrent = torch.cat([F.linear(hidden * m, k) for m, k in zip(masks, kernels, strict=True)], -1)
            i, f, g, o = (given + recurrent + bias_hh).chunk(GATES, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = (o.sigmoid() * cell.tanh()).to(dtype)
            outputs.append(hidden)
        return torch.stack(outputs), hidden, cell

    def _from_input(self, value: Tensor) -> Tensor:
        kernel, bias = self.lstm.get_parameter("weight_ih_l0"), self.lstm.get_parameter("bias_ih_l0")
        if not self.input_masks:
            return F.linear(value, kernel, bias)
        parts = zip(self.input_masks, kernel.chunk(len(self.input_masks)), strict=True)
        product = torch.cat([F.linear(mask(value), part) for mask, part in parts], -1)
        return product + like(bias, product)


class VariationalLanguageModel(DroppedLanguageModel):
    """Tokens (T, B) int64 to logits (T, B, V); Sites ``layers.<i>.post``."""

    def __init__(self, options: Options, sizes: Sizes, dropout: torch.Generator | None) -> None:
        width = options.embedding or options.hidden
        n_masks = GATES if options.masks == "gate" else 1
        shared = options.masks == "shared"

        def masks(probability: float) -> list[LockedDropout]:
            return [LockedDropout(probability, dropout) for _ in range(n_masks)]

        layers: list[RecurrentLayer] = [
            VariationalLayer(
                width if index == 0 else options.hidden,
                options.hidden,
                [] if shared and index > 0 else masks(options.dropout),
                masks(options.recurrent_dropout),
                passes_on=shared,
            )
            for index in range(options.layers)
        ]
        words = WordDropout(options.embedding_dropout, dropout)
        super().__init__(sizes, width, layers, options.tied, words)
        self.output_dropout = nn.Identity() if shared else LockedDropout(options.dropout, dropout)

    def decoded(self, value: Tensor) -> Tensor:
        """Logits, of the output under its own mask; in "shared" masks it has one already."""
        return self.decoder(self.output_dropout(value))


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> VariationalLanguageModel:
    """The model with every parameter drawn from ``initialisation``, as model `lstm` does."""
    model = VariationalLanguageModel(options, sizes, dropout)
    draw_parameters(model, options.initial_bound, initialisation)
    return model
