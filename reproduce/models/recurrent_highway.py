"""A language model of one recurrent highway layer with variational dropout, as in jzilly/RecurrentHighwayNetworks."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce.method.activations import in_float32
from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.dropout import LockedDropout, WordDropout
from reproduce.models.initialisation import draw_uniform
from reproduce.models.lstm import State


class Options(ModelOptions):
    """Zilly et al. (2017), on the Penn Treebank: depth 10 and 830 units, tied; embeddings are as wide as ``hidden``."""

    hidden: int = Field(ge=1)
    depth: int = Field(default=10, ge=1)  # transitions from one time step to the next
    tied: bool = False  # the decoder's weight is the embedding's
    dropout: float = Field(default=0.75, ge=0, lt=1)  # of what the layer reads, and of what the decoder reads
    recurrent_dropout: float = Field(default=0.25, ge=0, lt=1)  # of the state that each transition reads
    embedding_dropout: float = Field(default=0.25, ge=0, lt=1)  # of whole words
    initial_bound: float = Field(default=0.04, gt=0)  # every parameter U(+-bound), the gates' biases apart
    gate_bias: float = -2.0  # of the gates at the start: below 0 the state stays as it is


class HighwayLayer(nn.Module):
    """Inputs (T, B, d) and a state s (B, n) to the states of all steps (T, B, n); Site ``post`` on them.

    A step is ``depth`` transitions ``s <- t h + (1 - t) s`` with ``h = tanh(a)``, ``t = sigmoid(b)`` and
    ``(a, b) = R_l (s * z_h) + c_l``, to which the first adds ``W (x * z_x)``. Masks z (1, B, .) are those of one call.
    Zilly et al. (2017), with the carry gate 1 - t; masks as in the authors' TensorFlow code.
    """

    def __init__(self, options: Options, generator: torch.Generator | None) -> None:
        super().__init__()
        width = options.hidden
        self.from_input = nn.Linear(width, 2 * width, bias=False)
        self.from_state = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(options.depth))
        self.input_mask = LockedDropout(options.dropout, generator)
        self.state_mask = LockedDropout(options.recurrent_dropout, generator)
        self.post = Site("post", "tnc", (width,))

    def forward(self, value: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        given = self.from_input(self.input_mask(value))
        dtype = given.dtype  # of matrix products under autocast; gates and state are float32 at least
        mask = self.state_mask(torch.ones_like(state).unsqueeze(0))[0]
        outputs = []
        for now in in_float32(given).unbind():
            for depth, transition in enumerate(self.from_state):
                sums = in_float32(transition(state * mask))
                candidate, gate = (sums + now if depth == 0 else sums).chunk(2, -1)
                state = state + gate.sigmoid() * (candidate.tanh() - state)
            outputs.append(state.to(dtype))
        return self.post(torch.stack(outputs)), state


class HighwayLanguageModel(nn.Module):
    """Tokens (T, B) int64 to logits (T, B, V); Site ``layer.post``."""

    def __init__(self, options: Options, sizes: Sizes, dropout: torch.Generator | None) -> None:
        super().__init__()
        if sizes.input_shape:
            raise ValueError(f"takes words, of shape (), got inputs of shape {sizes.input_shape}")
        self.embedding = nn.Embedding(sizes.outputs, options.hidden)
        self.word_dropout = WordDropout(options.embedding_dropout, dropout)
        self.layer = HighwayLayer(options, dropout)
        self.output_dropout = LockedDropout(options.dropout, dropout)
        self.decoder = nn.Linear(options.hidden, sizes.outputs)
        if options.tied:
            self.decoder.weight = self.embedding.weight

    def initial_state(self, batch_size: int) -> State:
        """Zeros s, one tensor (1, B, hidden), on the model's device."""
        return (self.decoder.bias.new_zeros(1, batch_size, self.decoder.in_features),)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        value = F.embedding(tokens, self.word_dropout(self.embedding.weight))
        output, last = self.layer(value, state[0][0])
        return self.decoder(self.output_dropout(output)), (last.unsqueeze(0),)


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> HighwayLanguageModel:
    """The model with every parameter U(+-initial_bound) from ``initialisation``; biases of gates are ``gate_bias``."""
    model = HighwayLanguageModel(options, sizes, dropout)
    for parameter in model.parameters():
        draw_uniform(parameter, options.initial_bound, initialisation)
    with torch.no_grad():
        for transition in model.layer.from_state:
            transition.get_parameter("bias")[options.hidden :] = options.gate_bias
    return model
