"""An autoencoder of ordinary layers, with or without a hidden layer on each side of its code."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.activation import FUNCTIONS, Activated
from reproduce.models.initialisation import draw_weight


class Options(ModelOptions):
    """Géron (2022), chapter 17, notebook: ``d_sae = 300``, ``hidden = 100``. Ng (2011): ``d_sae = 200``, no hidden
    layer, ``output_activation = "sigmoid"``.
    """

    d_sae: int = Field(ge=1)  # width of the code
    hidden: int | None = Field(default=None, ge=1)  # of a ReLU layer before the code, and of one behind it; None: none
    activation: Literal["relu", "sigmoid"] = "sigmoid"  # of the code
    output_activation: Literal["linear", "sigmoid"] = "linear"


class LayeredAutoencoder(nn.Module):
    """Inputs (N, ...) to reconstructions of the same shape; Site ``code`` on the code (N, d_sae).

    Sites ``before.pre`` and ``.post``, ``behind.pre`` and ``.post`` of the hidden layers, where there are any.
    """

    def __init__(self, options: Options, sizes: Sizes) -> None:
        super().__init__()
        if not sizes.input_shape:
            raise ValueError(f"takes inputs of a fixed shape, got {sizes.input_shape}")
        d_in, hidden = math.prod(sizes.input_shape), options.hidden
        self.before = _hidden(d_in, hidden)
        self.encoder = nn.Linear(hidden or d_in, options.d_sae)
        self.activation = FUNCTIONS[options.activation]()
        self.code = Site("code", "nc", (options.d_sae,))
        self.behind = _hidden(options.d_sae, hidden)
        self.decoder = nn.Linear(hidden or options.d_sae, d_in)
        self.output_activation = nn.Sigmoid() if options.output_activation == "sigmoid" else nn.Identity()

    def encode(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) to codes (N, d_sae)."""
        return self.activation(self.encoder(self.before(inputs.flatten(1))))

    def decode(self, code: Tensor) -> Tensor:
        """Codes (N, d_sae) to reconstructions (N, d_in)."""
        return self.output_activation(self.decoder(self.behind(code)))

    def features(self, inputs: Tensor) -> Tensor:
        """What a classifier reads: the code."""
        return self.encode(inputs)

    def anneal(self, progress: float) -> None:
        """Nothing changes over training."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(self.code(self.encode(inputs))).reshape(inputs.shape)


def _hidden(inputs: int, width: int | None) -> nn.Module:
    return nn.Identity() if width is None else Activated(nn.Linear(inputs, width), "relu", "nc", (width,))


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> LayeredAutoencoder:
    """The autoencoder with weights U(+-sqrt(6 / (fan_in + fan_out))) and biases 0, Keras's default."""
    model = LayeredAutoencoder(options, sizes)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            draw_weight(layer.weight, "glorot", initialisation)
            nn.init.zeros_(layer.bias)
    return model
