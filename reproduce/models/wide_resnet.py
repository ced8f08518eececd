"""Wide residual networks (Zagoruyko & Komodakis 2016), WRN-depth-widen, batch normalization inside."""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import nn

from reproduce.models import ModelOptions, Sizes
from reproduce.models.dropout import Dropout
from reproduce.models.residual import (
    NormalizedResNet,
    PreActivationBlock,
    Shape,
    activated,
    convolution,
    draw_parameters,
    halved,
    image_shape,
    projection_of,
    stages,
)


class Options(ModelOptions):
    """Depth 6n + 4; three stages of n blocks with 16, 32 and 64 times ``widen`` channels."""

    depth: int  # published: 28 with widen 10, 16 with 8
    widen: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)  # between the two convolutions of a block

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        if depth < 10 or depth % 6 != 4:
            raise ValueError("a wide residual network has depth 6n + 4 with n >= 1")
        return depth


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> NormalizedResNet:
    """The network with every weight drawn from ``initialisation``.

    Convolutions N(0, 2 / fan_out), as in Bansal et al.'s code and the one that it is made from; the classifier's weight
    is torch's default there, and its bias 0.
    """
    inputs, height, width = image_shape(sizes)
    channels = [factor * options.widen for factor in (16, 32, 64)]

    def block(shape: Shape, outputs: int, stride: int) -> nn.Module:
        inner = halved(shape, outputs, stride)
        return PreActivationBlock(
            [convolution(shape[0], outputs, stride=stride), convolution(outputs, outputs)],
            [shape, inner],
            nn.BatchNorm2d,
            projection_of(shape[0], outputs, stride),
            "activated",
            Dropout(options.dropout, dropout) if options.dropout else None,
        )

    blocks = stages((16, height, width), channels, (options.depth - 4) // 6, block)
    last = halved(halved((16, height, width), channels[1], 2), channels[2], 2)
    head = activated(nn.BatchNorm2d(last[0]), last)
    model = NormalizedResNet(convolution(inputs, 16), blocks, head, last[0], sizes.outputs)
    draw_parameters(model, initialisation, "he_fan_out", "torch")
    nn.init.zeros_(model.classifier.bias)
    return model
