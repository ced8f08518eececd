"""A language model of one recurrent layer without gates, whose units are modReLUs, as in KyleGoyette/nnRNN."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce.method.activations import in_float32
from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.initialisation import draw_uniform, draw_weight
from reproduce.models.lstm import EMBEDDING_BOUND, State

OFFSET_BOUND = 0.01  # of modReLU's b at the start, there


class Options(ModelOptions):
    """Kerg et al. (2019), their README: ``hidden = 1024``, ``embedding = 200``."""

    hidden: int = Field(ge=1)
    embedding: int = Field(default=200, ge=1)
    # The hidden-to-hidden kernel: N(0, 1 / hidden) ("glorot"), or rotations by small angles of pairs of units.
    initialisation: Literal["glorot", "rotations"] = "rotations"


class ModReLU(nn.Module):
    """``sign(z) max(|z| + b, 0)``, b a number for each unit; (..., n) to the same shape.

    Of real values; Arjovsky, Shah & Bengio (2016), eq. 8, has it of complex ones.
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, value: Tensor) -> Tensor:
        return value.sign() * (value.abs() + self.bias).relu()


class ModReLULanguageModel(nn.Module):
    """Tokens (T, B) int64 to logits (T, B, V): ``h_t = modReLU(U x_t + c + W h_{t-1})``; Site ``post`` on all h_t."""

    def __init__(self, options: Options, sizes: Sizes) -> None:
        super().__init__()
        if sizes.input_shape:
            raise ValueError(f"takes words, of shape (), got inputs of shape {sizes.input_shape}")
        self.embedding = nn.Embedding(sizes.outputs, options.embedding)
        self.from_input = nn.Linear(options.embedding, options.hidden)
        self.from_hidden = nn.Linear(options.hidden, options.hidden, bias=False)
        self.activation = ModReLU(options.hidden)
        self.post = Site("post", "tnc", (options.hidden,))
        self.decoder = nn.Linear(options.hidden, sizes.outputs)

    def initial_state(self, batch_size: int) -> State:
        """Zeros h, one tensor (1, B, hidden), on the model's device."""
        return (self.decoder.bias.new_zeros(1, batch_size, self.from_hidden.in_features),)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        given = self.from_input(self.embedding(tokens))
        dtype = given.dtype  # of matrix products under autocast; sums are float32 at least
        hidden, kernel, outputs = state[0][0], self.from_hidden.weight, []
        for now in in_float32(given).unbind():
            hidden = self.activation(now + F.linear(hidden, kernel)).to(dtype)
            outputs.append(hidden)
        return self.decoder(self.post(torch.stack(outputs))), (hidden.unsqueeze(0),)


def rotations(units: int, generator: torch.Generator) -> Tensor:
    """Pairs of units turned by -tan(t / 2), t from U(0, pi / 2); a unit left over stays; (units, units), orthogonal.

    It is the exponential of a skew matrix with these angles beside its diagonal: KyleGoyette/nnRNN's "Cayley" start.
    """
    angles = -(torch.rand(units // 2, generator=generator) * (math.pi / 4)).tan()
    kernel, first = torch.eye(units), 2 * torch.arange(units // 2)
    kernel[first, first] = kernel[first + 1, first + 1] = angles.cos()
    kernel[first, first + 1] = angles.sin()
    kernel[first + 1, first] = -angles.sin()
    return kernel


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> ModReLULanguageModel:
    """The model with every parameter drawn from ``initialisation``.

    Embedding and decoder weight U(+-0.1), decoder bias 0; U N(0, 2 / embedding), its bias U(+-1 / sqrt(embedding)); the
    offset of modReLU U(+-0.01); the hidden-to-hidden kernel by the option. Nothing is dropped.
    """
    model = ModReLULanguageModel(options, sizes)
    draw_uniform(model.embedding.weight, EMBEDDING_BOUND, initialisation)
    draw_weight(model.from_input.weight, "he", initialisation)
    draw_uniform(model.from_input.bias, 1.0 / math.sqrt(options.embedding), initialisation)
    if options.initialisation == "glorot":
        nn.init.xavier_normal_(model.from_hidden.weight, generator=initialisation)
    else:
        with torch.no_grad():
            model.from_hidden.weight.copy_(rotations(options.hidden, initialisation))
    draw_uniform(model.activation.bias, OFFSET_BOUND, initialisation)
    draw_uniform(model.decoder.weight, EMBEDDING_BOUND, initialisation)
    nn.init.zeros_(model.decoder.bias)
    return model
