"""The AWD-LSTM: a language model whose hidden-to-hidden kernels, words, inputs and outputs are dropped."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.dropout import Dropout, LockedDropout, WordDropout
from reproduce.models.dropped_lstm import DroppedLanguageModel, RecurrentLayer, draw_parameters
from reproduce.models.precision import run_recurrent

KERNEL = "weight_hh_l0"  # hidden-to-hidden


class Options(ModelOptions):
    """Sizes in units, dropouts as probabilities; the defaults are those of the authors' script (PyTorch 0.2)."""

    hidden: int = Field(ge=1)  # 1150 there
    embedding: int = Field(default=400, ge=1)
    layers: int = Field(default=3, ge=1)
    tied: bool = True  # the last layer is then as wide as the embedding, and the decoder's weight is the embedding's
    dropout: float = Field(default=0.4, ge=0, lt=1)  # of the last layer's output
    hidden_dropout: float = Field(default=0.3, ge=0, lt=1)  # of the output of every other layer
    input_dropout: float = Field(default=0.65, ge=0, lt=1)  # of the embedded words
    embedding_dropout: float = Field(default=0.1, ge=0, lt=1)  # of whole words
    weight_dropout: float = Field(default=0.5, ge=0, lt=1)  # of hidden-to-hidden kernels


class UnflattenedLSTM(nn.LSTM):
    """A layer whose hidden-to-hidden kernel is made anew in each step.

    cuDNN's layout of all weights in one piece would move the other parameters each time.
    """

    def flatten_parameters(self) -> None:
        """Nothing: weights stay where they are."""


class WeightDroppedLayer(RecurrentLayer):
    """An LSTM layer that drops elements of its hidden-to-hidden kernel, the same ones at every step of a window.

    ``W_hh (x) M / (1 - p)`` with M Bernoulli(1 - p), for all four gates (DropConnect: Merity, Keskar & Socher 2018,
    section 2). Site ``post`` on the raw output, then locked dropout, Site ``dropped``.
    """

    def __init__(self, inputs: int, width: int, weight_dropout: Dropout, dropout: Dropout) -> None:
        super().__init__()
        self.lstm = UnflattenedLSTM(inputs, width)
        self.weight_dropout = weight_dropout
        self.post = Site("post", "tnc", (width,))
        self.dropout = dropout
        self.dropped = Site("dropped", "tnc", (width,))

    def _run(self, value: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        kernel = self.weight_dropout(self.lstm.get_parameter(KERNEL))
        result: tuple[Tensor, tuple[Tensor, Tensor]] = functional_call(self.lstm, {KERNEL: kernel}, (value, state))
        return result

    def forward(self, value: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drops = self.training and self.weight_dropout.probability > 0
        output, (hidden, cell) = run_recurrent(self._run if drops else self.lstm, value, (hidden, cell))
        return self.dropped(self.dropout(self.post(output))), hidden, cell


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> DroppedLanguageModel:
    """The model with every parameter drawn from ``initialisation``.

    Embedding and decoder weight U(+-0.1) (one draw where they are tied), decoder bias 0, an LSTM layer of width w
    U(+-1 / sqrt(w)).
    """
    widths = [options.hidden] * (options.layers - 1) + [options.embedding if options.tied else options.hidden]
    inputs = [options.embedding, *widths[:-1]]
    dropouts = [options.hidden_dropout] * (options.layers - 1) + [options.dropout]
    layers: list[RecurrentLayer] = [
        WeightDroppedLayer(read, width, Dropout(options.weight_dropout, dropout), LockedDropout(probability, dropout))
        for read, width, probability in zip(inputs, widths, dropouts, strict=True)
    ]
    words = WordDropout(options.embedding_dropout, dropout)
    given = LockedDropout(options.input_dropout, dropout)
    model = DroppedLanguageModel(sizes, options.embedding, layers, options.tied, words, given)
    draw_parameters(model, None, initialisation)
    return model
