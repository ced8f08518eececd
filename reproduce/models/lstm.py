"""A word-level language model: embedding, LSTM layers, a linear decoder, as in pytorch/examples."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.dropout import Dropout, LockedDropout
from reproduce.models.initialisation import draw_uniform
from reproduce.models.precision import run_recurrent

EMBEDDING_BOUND = 0.1  # U(+-0.1) for embedding and decoder: pytorch/examples, word_language_model

State = tuple[Tensor, ...]


class Options(ModelOptions):
    """Sizes in units, dropout as probabilities."""

    hidden: int = Field(ge=1)
    embedding: int | None = Field(default=None, ge=1)  # None: as wide as `hidden`
    layers: int = Field(default=2, ge=1)
    tied: bool = False  # the decoder's weight is the embedding's
    projection: bool = False  # a linear layer as wide as `hidden` before the decoder (Press & Wolf 2017)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # on the output of every layer
    dropout_kind: Literal["plain", "locked"] = "plain"
    embedding_dropout: float | None = Field(default=None, ge=0, lt=1)  # None: as `dropout`
    initial_bound: float | None = Field(default=None, gt=0)  # every parameter U(+-bound); None: see `build`

    @model_validator(mode="after")
    def _tied_widths(self) -> Options:
        if self.tied and self.embedding not in (None, self.hidden):
            raise ValueError(f"option 'tied' needs embedding {self.embedding} to be as wide as hidden {self.hidden}")
        return self


class Layer(nn.Module):
    """One LSTM layer, Site ``post`` on its raw output, dropout, Site ``dropped``."""

    def __init__(self, inputs: int, hidden: int, dropout: Dropout) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden)
        self.post = Site("post", "tnc", (hidden,))
        self.dropout = dropout
        self.dropped = Site("dropped", "tnc", (hidden,))

    def forward(self, value: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (hidden, cell) = run_recurrent(self.lstm, value, (hidden, cell))
        return self.dropped(self.dropout(self.post(output))), hidden, cell


class LanguageModel(nn.Module):
    """Tokens (T, B) int64 to logits (T, B, V); Sites ``layers.<i>.post`` and ``layers.<i>.dropped``."""

    def __init__(self, options: Options, sizes: Sizes, dropout: torch.Generator | None) -> None:
        super().__init__()
        if sizes.input_shape:
            raise ValueError(f"takes words, of shape (), got inputs of shape {sizes.input_shape}")
        kind = LockedDropout if options.dropout_kind == "locked" else Dropout
        width = options.embedding or options.hidden
        embedding_dropout = options.dropout if options.embedding_dropout is None else options.embedding_dropout
        self.embedding = nn.Embedding(sizes.outputs, width)
        self.embedding_dropout = kind(embedding_dropout, dropout)
        self.layers = nn.ModuleList(
            Layer(width if index == 0 else options.hidden, options.hidden, kind(options.dropout, dropout))
            for index in range(options.layers)
        )
        self.projection = nn.Linear(options.hidden, options.hidden) if options.projection else nn.Identity()
        self.decoder = nn.Linear(options.hidden, sizes.outputs)
        if options.tied:
            self.decoder.weight = self.embedding.weight
        self.hidden = options.hidden

    def initial_state(self, batch_size: int) -> State:
        """Zeros (h, c) of each layer in turn: 2 x layers tensors (1, B, hidden), on the model's device."""
        zeros = self.decoder.bias.new_zeros
        return tuple(zeros(1, batch_size, self.hidden) for _ in range(2 * len(self.layers)))

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        value = self.embedding_dropout(self.embedding(tokens))
        next_state: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            value, hidden, cell = layer(value, state[2 * index], state[2 * index + 1])
            next_state += [hidden, cell]
        return self.decoder(self.projection(value)), tuple(next_state)


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> LanguageModel:
    """The model with every parameter drawn from ``initialisation``.

    Embedding and decoder weight U(+-0.1) (one draw where they are tied), decoder bias 0; all weights and biases of the
    LSTM and of the projection U(+-1 / sqrt(hidden)), torch's default. With ``initial_bound`` every parameter, biases
    among them, U(+-initial_bound), one draw each (Zaremba et al. 2014, section 4.1).
    """
    model = LanguageModel(options, sizes, dropout)
    if options.initial_bound is not None:
        for parameter in model.parameters():
            draw_uniform(parameter, options.initial_bound, initialisation)
        return model
    draw_uniform(model.embedding.weight, EMBEDDING_BOUND, initialisation)
    for layer in model.layers:
        for parameter in layer.parameters():
            draw_uniform(parameter, 1.0 / math.sqrt(options.hidden), initialisation)
    for parameter in model.projection.parameters():
        draw_uniform(parameter, 1.0 / math.sqrt(options.hidden), initialisation)
    if not options.tied:
        draw_uniform(model.decoder.weight, EMBEDDING_BOUND, initialisation)
    nn.init.zeros_(model.decoder.bias)
    return model
