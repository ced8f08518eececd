"""Pre-activation bottleneck networks of depth 9n + 2 for CIFAR (He et al. 2016b), as Keras' example has them."""

from __future__ import annotations

from functools import partial

import torch
from pydantic import field_validator
from torch import nn

from reproduce.models import ModelOptions, Sizes
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

# Keras' defaults, which its example keeps: epsilon 1e-3, and 0.99 of the running averages stays.
Norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)
CHANNELS = (64, 128, 256)


class Options(ModelOptions):
    """Three stages of n blocks with 64, 128 and 256 channels; a 3x3 convolution has 16, 64 and 128."""

    depth: int  # Bansal et al. 2018: 110

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        if depth < 11 or depth % 9 != 2:
            raise ValueError("a bottleneck network for CIFAR has depth 9n + 2 with n >= 1")
        return depth


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> NormalizedResNet:
    """The network with every weight drawn from ``initialisation``: N(0, 2 / fan_in), biases 0; it has no dropout.

    As in the example, convolutions have biases, the bottleneck of a stage has a quarter of the first stage's channels
    and half of what goes into the later ones, and the very first block reads the stem's activation as it is.
    """
    inputs, height, width = image_shape(sizes)
    start: Shape = (16, height, width)

    def block(shape: Shape, outputs: int, stride: int) -> nn.Module:
        narrow = 16 if outputs == CHANNELS[0] else outputs // 2
        inner = halved(shape, narrow, stride)
        return PreActivationBlock(
            [
                convolution(shape[0], narrow, 1, stride, bias=True),
                convolution(narrow, narrow, bias=True),
                convolution(narrow, outputs, 1, bias=True),
            ],
            [shape, inner, inner],
            Norm,
            projection_of(shape[0], outputs, stride, bias=True),
            "first" if shape[0] == start[0] else "plain",
        )

    blocks = stages(start, CHANNELS, (options.depth - 2) // 9, block)
    last = halved(halved(start, CHANNELS[1], 2), CHANNELS[2], 2)
    stem = activated(nn.Sequential(convolution(inputs, start[0], bias=True), Norm(start[0])), start)
    model = NormalizedResNet(stem, blocks, activated(Norm(last[0]), last), last[0], sizes.outputs)
    draw_parameters(model, initialisation, "he", "he")
    return model
