"""A multilayer perceptron whose outputs pass a ReLU, as quantities that cannot be negative."""

from __future__ import annotations

import itertools
import math

import torch
from pydantic import Field
from torch import Tensor, nn

from reproduce.models import ModelOptions, Sizes
from reproduce.models.activation import Activated, ActivationName
from reproduce.models.initialisation import draw_weight


class Options(ModelOptions):
    """Ours: sizes, and the non-linearity of the hidden layers."""

    width: int = Field(ge=1)
    depth: int = Field(ge=1)  # hidden layers
    activation: ActivationName = "tanh"


class RectifiedMLP(nn.Module):
    """Input of any shape, flattened, to outputs (N, outputs) >= 0.

    Sites ``layers.<i>.pre`` and ``.post`` of the hidden layers, ``output.pre`` and ``output.post``.
    """

    def __init__(self, options: Options, sizes: Sizes) -> None:
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
        self.output = Activated(nn.Linear(options.width, sizes.outputs), "relu", "nc", (sizes.outputs,))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.layers(inputs.flatten(1)))


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> RectifiedMLP:
    """The network with weights N(0, 1 / fan_in), biases 0, and those of the outputs 1: every unit starts alive."""
    model = RectifiedMLP(options, sizes)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            draw_weight(layer.weight, "lecun", initialisation)
            nn.init.zeros_(layer.bias)
    output = model.output.layer
    if isinstance(output, nn.Linear):
        nn.init.ones_(output.bias)
    return model
