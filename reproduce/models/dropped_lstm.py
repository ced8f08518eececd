"""What language models with several dropouts share: whole words dropped, layers of their own widths, a decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce.models import Sizes
from reproduce.models.dropout import LockedDropout, WordDropout
from reproduce.models.initialisation import draw_uniform
from reproduce.models.lstm import EMBEDDING_BOUND, State


class RecurrentLayer(nn.Module):
    """One layer of a `DroppedLanguageModel`: value, h and c to the same; its parameters are those of ``lstm``."""

    lstm: nn.LSTM

    def forward(self, value: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError


class DroppedLanguageModel(nn.Module):
    """Tokens (T, B) int64 to logits (T, B, V).

    Args:
        sizes: of words; outputs are the vocabulary.
        width: of the embedding.
        layers: the first reads the embedding, the last is read by the decoder.
        tied: the decoder's weight is the embedding's, which then has the last layer's width.
        word_dropout: of the embedding's rows.
        input_dropout: of what the first layer reads; None: none.

    Raises:
        ValueError: for inputs that are no words.
    """

    def __init__(
        self,
        sizes: Sizes,
        width: int,
        layers: list[RecurrentLayer],
        tied: bool,
        word_dropout: WordDropout,
        input_dropout: LockedDropout | None = None,
    ) -> None:
        super().__init__()
        if sizes.input_shape:
            raise ValueError(f"takes words, of shape (), got inputs of shape {sizes.input_shape}")
        self.embedding = nn.Embedding(sizes.outputs, width)
        self.word_dropout = word_dropout
        self.input_dropout = nn.Identity() if input_dropout is None else input_dropout
        self.layers = nn.ModuleList(layers)
        self.widths = [layer.lstm.hidden_size for layer in layers]
        self.decoder = nn.Linear(self.widths[-1], sizes.outputs)
        if tied:
            self.decoder.weight = self.embedding.weight

    def initial_state(self, batch_size: int) -> State:
        """Zeros (h, c) of each layer in turn: 2 x layers tensors (1, B, width), on the model's device."""
        zeros = self.decoder.bias.new_zeros
        return tuple(zeros(1, batch_size, width) for width in self.widths for _ in ("h", "c"))

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        value = self.input_dropout(F.embedding(tokens, self.word_dropout(self.embedding.weight)))
        next_state: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            value, hidden, cell = layer(value, state[2 * index], state[2 * index + 1])
            next_state += [hidden, cell]
        return self.decoded(value), tuple(next_state)

    def decoded(self, value: Tensor) -> Tensor:
        """Logits of the last layer's output."""
        return self.decoder(value)


def draw_parameters(model: DroppedLanguageModel, bound: float | None, initialisation: torch.Generator) -> None:
    """Draw every parameter: as `lstm.build` does, each layer by its own width; with ``bound`` all from U(+-bound)."""
    if bound is not None:
        for parameter in model.parameters():
            draw_uniform(parameter, bound, initialisation)
        return
    draw_uniform(model.embedding.weight, EMBEDDING_BOUND, initialisation)
    for layer, width in zip(model.layers, model.widths, strict=True):
        for parameter in layer.parameters():
            draw_uniform(parameter, 1.0 / math.sqrt(width), initialisation)
    if model.decoder.weight is not model.embedding.weight:
        draw_uniform(model.decoder.weight, EMBEDDING_BOUND, initialisation)
    nn.init.zeros_(model.decoder.bias)
