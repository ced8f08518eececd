"""A non-linearity between its two Sites."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from reproduce.method.sites import Axes, Site
from reproduce.models.precision import like

ActivationName = Literal["relu", "elu", "selu", "sigmoid", "tanh", "leaky_relu"]

# torch's defaults: ELU with alpha 1 (Clevert et al. 2016), LeakyReLU with slope 0.01 (Maas et al. 2013)
FUNCTIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
}


class Activated(nn.Module):
    """An affine layer, Site ``pre``, non-linearity, scalar bias if wanted (initially 0), Site ``post``.

    Args:
        layer: the affine layer.
        activation: name of the non-linearity.
        axes: meaning of the output's axes.
        shape: shape of one sample of the output.
        scalar_bias: add one learned number to the whole map after the non-linearity.
    """

    def __init__(
        self,
        layer: nn.Module,
        activation: ActivationName,
        axes: Axes,
        shape: tuple[int, ...],
        scalar_bias: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.pre = Site("pre", axes, shape)
        self.activation = FUNCTIONS[activation]()
        self.scalar_bias = nn.Parameter(torch.zeros(1)) if scalar_bias else None
        self.post = Site("post", axes, shape)

    def forward(self, value: Tensor) -> Tensor:
        value = self.activation(self.pre(self.layer(value)))
        if self.scalar_bias is not None:
            value = value + like(self.scalar_bias, value)
        return self.post(value)
