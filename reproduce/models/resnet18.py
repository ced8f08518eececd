"""ResNet-18 for CIFAR: four stages of two blocks, a 3x3 stem and no pooling before them, batch normalization inside."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from reproduce.models import ModelOptions, Sizes
from reproduce.models.activation import Activated
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
    """Channels ``width``, then 2, 4 and 8 times as many."""

    width: int = Field(default=64, ge=1)
    # "blocks": at the blocks' outputs alone, where Weak-SIGReg reads; the network is the same.
    sites: Literal["every", "blocks"] = "every"


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> NormalizedResNet:
    """The network with every weight, and the classifier's bias, drawn from ``initialisation``: torch's defaults.

    It has no dropout. Source: He et al. 2016, Table 1, 18 layers, with the stem of kuangliu/pytorch-cifar.
    """
    inputs, height, width = image_shape(sizes)
    channels = [options.width * factor for factor in (1, 2, 4, 8)]

    def block(shape: Shape, outputs: int, stride: int) -> nn.Module:
        found = halved(shape, outputs, stride)
        return PostActivationBlock(
            [convolution(shape[0], outputs, stride=stride), convolution(outputs, outputs)],
            [found, found],
            projection_of(shape[0], outputs, stride),
        )

    start: Shape = (channels[0], height, width)
    stem = activated(nn.Sequential(convolution(inputs, channels[0]), nn.BatchNorm2d(channels[0])), start)
    blocks = stages(start, channels, 2, block)
    model = NormalizedResNet(stem, blocks, nn.Identity(), channels[-1], sizes.outputs)
    draw_parameters(model, initialisation, "torch", "torch")
    if options.sites == "blocks":
        outputs = [block.output for block in blocks]
        for layer in model.modules():
            if isinstance(layer, Activated) and layer not in outputs:
                for name in ("pre", "post"):
                    layer.add_module(name, nn.Identity())
    return model
