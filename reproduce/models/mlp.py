"""A multilayer perceptron: hidden layers of one width, and a linear layer to the classes."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reproduce.models import ModelOptions, Sizes
from reproduce.models.activation import Activated, ActivationName
from reproduce.models.dropout import AlphaDropout, Dropout
from reproduce.models.initialisation import InitialisationName, draw_uniform, draw_weight, fan_in


class Options(ModelOptions):
    """Ioffe & Szegedy (2015), Figure 1: depth 3, width 100, sigmoid, gaussian (of unstated deviation)."""

    width: int = Field(ge=1)
    depth: int = Field(ge=1)  # hidden layers
    activation: ActivationName = "relu"
    initialisation: InitialisationName = "he"  # biases are 0, but torch's U(+-1 / sqrt(fan_in)) with "torch"
    initialisation_std: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    dropout_kind: Literal["plain", "alpha"] = "plain"  # "alpha" keeps the mean and variance that SELU tends to
    dropout_after: Literal["last", "every"] = "last"  # of the hidden layers

    @model_validator(mode="after")
    def _std_belongs_to_gaussian(self) -> Options:
        if (self.initialisation == "gaussian") != (self.initialisation_std is not None):
            raise ValueError("initialisation 'gaussian', and no other, takes option 'initialisation_std'")
        return self

    @model_validator(mode="after")
    def _alpha_belongs_to_selu(self) -> Options:
        if self.dropout_kind == "alpha" and self.activation != "selu":
            raise ValueError(f"option dropout_kind 'alpha' is for activation 'selu', found {self.activation!r}")
        if self.dropout == 0 and (self.dropout_kind, self.dropout_after) != ("plain", "last"):
            raise ValueError("options 'dropout_kind' and 'dropout_after' need option 'dropout' above 0")
        return self


class MLP(nn.Module):
    """Input of any shape, flattened, to logits (N, classes); Sites ``layers.<i>.pre`` and ``.post``."""

    def __init__(self, options: Options, sizes: Sizes, dropout: torch.Generator | None) -> None:
        super().__init__()
        if not sizes.input_shape:
            raise ValueError(f"takes inputs of a fixed shape, got {sizes.input_shape}")
        widths = [math.prod(sizes.input_shape)] + [options.width] * options.depth
        self.layers = nn.Sequential(
            *(
                Activated(nn.Linear(inputs, outputs), options.activation, "nc", (outputs,))
                for inputs, outputs in itertools.pairwise(widths)
            )
        )
        self.dropout = (AlphaDropout if options.dropout_kind == "alpha" else Dropout)(options.dropout, dropout)
        self.drops_after_every = options.dropout_after == "every"
        self.classifier = nn.Linear(options.width, sizes.outputs)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images.flatten(1)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden)
            if self.drops_after_every or index == last:
                hidden = self.dropout(hidden)
        return self.classifier(hidden)


def build(options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None) -> MLP:
    """The network with every parameter drawn from ``initialisation``."""
    model = MLP(options, sizes, dropout)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            draw_weight(layer.weight, options.initialisation, initialisation, options.initialisation_std)
            if options.initialisation == "torch":
                draw_uniform(layer.bias, 1.0 / math.sqrt(fan_in(layer.weight)), initialisation)
            else:
                nn.init.zeros_(layer.bias)
    return model
