"""A multilayer perceptron: hidden layers of one width, and a linear layer to the classes."""

from __future__ import annotations

import itertools
import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reproduce.models import ModelOptions, Sizes
from reproduce.models.activation import Activated, ActivationName
from reproduce.models.dropout import Dropout
from reproduce.models.initialisation import InitialisationName, draw_uniform, draw_weight, fan_in


class Options(ModelOptions):
    """Ioffe & Szegedy (2015), Figure 1: depth 3, width 100, sigmoid, gaussian (of unstated deviation)."""

    width: int = Field(ge=1)
    depth: int = Field(ge=1)  # hidden layers
    activation: ActivationName = "relu"
    initialisation: InitialisationName = "he"  # biases are 0, but torch's U(+-1 / sqrt(fan_in)) with "torch"
    initialisation_std: float | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # after the last hidden layer

    @model_validator(mode="after")
    def _std_belongs_to_gaussian(self) -> Options:
        if (self.initialisation == "gaussian") != (self.initialisation_std is not None):
            raise ValueError("initialisation 'gaussian', and no other, takes option 'initialisation_std'")
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
        self.dropout = Dropout(options.dropout, dropout)
        self.classifier = nn.Linear(options.width, sizes.outputs)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.layers(images.flatten(1))
        return self.classifier(self.dropout(hidden))


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
