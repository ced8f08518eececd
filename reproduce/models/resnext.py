"""ResNeXt for CIFAR (Xie et al. 2017): bottlenecks with a 3x3 convolution in groups, batch normalization inside."""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import nn

from reproduce.models import ModelOptions, Sizes
from reproduce.models.residual import (
    NormalizedResNet,
    PostActivationBlock,
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
    """Depth 9n + 2; three stages of n blocks with 256, 512 and 1024 channels (4, 8 and 16 times ``stem``)."""

    depth: int  # published: 29
    cardinality: int = Field(default=8, ge=1)  # groups
    width: int = Field(default=64, ge=1)  # channels of a group in the first stage
    stem: int = Field(default=64, ge=1)

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        if depth < 11 or depth % 9 != 2:
            raise ValueError("a ResNeXt for CIFAR has depth 9n + 2 with n >= 1")
        return depth


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> NormalizedResNet:
    """The network with every weight drawn from ``initialisation``; it has no dropout.

    Convolutions N(0, 2 / fan_out), as in the Torch 7 code that the authors' was made from; the classifier's weight is
    torch's default, and its bias 0.
    """
    inputs, height, width = image_shape(sizes)
    channels = [4 * options.stem * factor for factor in (1, 2, 4)]

    def block(shape: Shape, outputs: int, stride: int) -> nn.Module:
        inner = options.cardinality * options.width * outputs // channels[0]
        halfway = halved(shape, inner, stride)
        return PostActivationBlock(
            [
                convolution(shape[0], inner, 1),
                convolution(inner, inner, 3, stride, options.cardinality),
                convolution(inner, outputs, 1),
            ],
            [(inner, *shape[1:]), halfway, (outputs, *halfway[1:])],
            projection_of(shape[0], outputs, stride),
        )

    start: Shape = (options.stem, height, width)
    blocks = stages(start, channels, (options.depth - 2) // 9, block)
    stem = activated(nn.Sequential(convolution(inputs, options.stem), nn.BatchNorm2d(options.stem)), start)
    model = NormalizedResNet(stem, blocks, nn.Identity(), channels[-1], sizes.outputs)
    draw_parameters(model, initialisation, "he_fan_out", "torch")
    nn.init.zeros_(model.classifier.bias)
    return model
