"""What residual networks with batch normalization inside have in common: blocks, stages, how parameters start."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from reproduce.models import Sizes
from reproduce.models.activation import Activated
from reproduce.models.initialisation import draw_uniform, draw_weight

Shape = tuple[int, int, int]  # channels, height, width
Wiring = Literal["activated", "plain", "first"]


def convolution(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Conv2d:
    """A convolution that keeps the map, or halves it (rounded up) with stride 2."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def activated(layer: nn.Module, shape: Shape) -> Activated:
    """The layer, Site ``pre``, ReLU, Site ``post``."""
    return Activated(layer, "relu", "nchw", shape)


class PreActivationBlock(nn.Module):
    """shortcut + branch, whose convolutions each come after ``relu(norm(.))``: (N, inputs, h, w) to (N, *shape).

    Args:
        convolutions: those of the branch.
        shapes: of what goes into each of them.
        norm: makes the normalization of so many channels.
        projection: a convolution on the shortcut, or None for the identity.
        wiring: ``"activated"``: the projection too reads the first ``relu(norm(x))``; ``"plain"``: it reads x;
            ``"first"``: so does the branch, whose first convolution follows an activation already.
        dropout: before the last convolution.

    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks", Figure 1(b); with dropout and
    ``"activated"``, Zagoruyko & Komodakis 2016, Figure 1(d), as their code has it.
    """

    def __init__(
        self,
        convolutions: Sequence[nn.Conv2d],
        shapes: Sequence[Shape],
        norm: Callable[[int], nn.Module],
        projection: nn.Conv2d | None,
        wiring: Wiring,
        dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        first = [nn.Identity() if wiring == "first" else activated(norm(shapes[0][0]), shapes[0])]
        self.activations = nn.ModuleList(first + [activated(norm(shape[0]), shape) for shape in shapes[1:]])
        self.convolutions = nn.ModuleList(convolutions)
        self.projection = projection
        self.projects_activated = wiring == "activated" and projection is not None
        self.dropout = dropout or nn.Identity()

    def forward(self, value: Tensor) -> Tensor:
        branch = self.activations[0](value)
        shortcut = branch if self.projects_activated else value
        if self.projection is not None:
            shortcut = self.projection(shortcut)
        last = len(self.convolutions) - 1
        for index, (activation, layer) in enumerate(zip(self.activations, self.convolutions, strict=True)):
            branch = activation(branch) if index else branch
            branch = layer(self.dropout(branch) if index == last else branch)
        return shortcut + branch


class PostActivationBlock(nn.Module):
    """relu(shortcut + branch), whose convolutions are each followed by a normalization, and all but the last by a ReLU.

    Maps (N, inputs, h, w) to (N, *shapes[-1]); the last ``pre`` Site holds the sum, which is what the ReLU reads.

    Args:
        convolutions: those of the branch.
        shapes: of what comes out of each of them.
        projection: a convolution on the shortcut, normalized too (option B), or None for the identity.

    Source: He et al. 2016, "Deep Residual Learning", Figure 2 and 5.
    """

    def __init__(
        self, convolutions: Sequence[nn.Conv2d], shapes: Sequence[Shape], projection: nn.Conv2d | None
    ) -> None:
        super().__init__()
        layers = [nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels)) for layer in convolutions]
        inner = zip(layers[:-1], shapes[:-1], strict=True)
        self.branch = nn.Sequential(*(activated(layer, shape) for layer, shape in inner), layers[-1])
        self.shortcut = (
            nn.Identity() if projection is None else nn.Sequential(projection, nn.BatchNorm2d(projection.out_channels))
        )
        self.output = activated(nn.Identity(), shapes[-1])

    def forward(self, value: Tensor) -> Tensor:
        return self.output(self.branch(value) + self.shortcut(value))


def projection_of(inputs: int, outputs: int, stride: int, bias: bool = False) -> nn.Conv2d | None:
    """A 1x1 convolution where the map changes its shape, else None."""
    return None if inputs == outputs and stride == 1 else convolution(inputs, outputs, 1, stride, bias=bias)


def halved(shape: Shape, channels: int, stride: int) -> Shape:
    """The shape after a convolution of this stride: height and width rounded up."""
    return channels, math.ceil(shape[1] / stride), math.ceil(shape[2] / stride)


def stages(
    shape: Shape, channels: Sequence[int], n_blocks: int, make: Callable[[Shape, int, int], nn.Module]
) -> nn.Sequential:
    """Stages of ``n_blocks`` blocks each; the first block of every stage but the first halves the map.

    Args:
        shape: of what goes into the first block.
        channels: that come out of each stage.
        n_blocks: of each stage.
        make: a block, from the shape that goes in, the channels that come out, and the stride.
    """
    blocks: list[nn.Module] = []
    for stage, outputs in enumerate(channels):
        for index in range(n_blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            blocks.append(make(shape, outputs, stride))
            shape = halved(shape, outputs, stride)
    return nn.Sequential(*blocks)


class NormalizedResNet(nn.Module):
    """Images (N, C, H, W) to logits (N, classes): stem, blocks, head, mean over the map, classifier."""

    def __init__(self, stem: nn.Module, blocks: nn.Sequential, head: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = blocks
        self.head = head
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.head(self.blocks(self.stem(images))).mean((2, 3)))


def image_shape(sizes: Sizes) -> Shape:
    """Channels, height and width of the images.

    Raises:
        ValueError: no images.
    """
    if len(sizes.input_shape) != 3:
        raise ValueError(f"takes images of shape (channels, height, width), got {sizes.input_shape}")
    channels, height, width = sizes.input_shape
    return channels, height, width


def draw_parameters(
    model: NormalizedResNet,
    generator: torch.Generator,
    convolutions: Literal["he_fan_out", "he", "torch"],
    classifier: Literal["he", "torch"],
) -> None:
    """Draw every weight; biases are 0, and normalizations the identity.

    ``he_fan_out``: N(0, 2 / (outputs times kernel area)), as in Torch 7's residual networks; ``he`` and ``torch``
    as in `draw_weight`. ``torch`` draws the classifier's bias too, U(+-1 / sqrt(fan_in)).
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            if convolutions == "he_fan_out":
                draw_weight(layer.weight, "gaussian", generator, math.sqrt(2.0 / layer.weight[:, 0].numel()))
            else:
                draw_weight(layer.weight, convolutions, generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    draw_weight(model.classifier.weight, classifier, generator)
    if classifier == "torch":
        draw_uniform(model.classifier.bias, 1.0 / math.sqrt(model.classifier.in_features), generator)
    else:
        nn.init.zeros_(model.classifier.bias)
