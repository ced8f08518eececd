"""CIFAR residual networks of depth 6n + 2: with Fixup's scalars, or plain, for batch normalisation."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.initialisation import draw_weight
from reproduce.models.precision import like


class Options(ModelOptions):
    """Depth 6n + 2; three stages of n blocks with ``width``, 2 and 4 times ``width`` channels."""

    depth: int  # He et al. 2016, Table 6: 20, 32, 44, 56, 110
    width: int = Field(default=16, ge=1)
    variant: Literal["fixup", "he"] = "fixup"
    # None: torch's default for "fixup", as in its authors' code (their rule 2 reads He), and He for "he"
    stem_initialisation: Literal["torch", "he"] | None = None

    @field_validator("depth")
    @classmethod
    def _depth(cls, depth: int) -> int:
        if depth < 8 or depth % 6 != 2:
            raise ValueError("a CIFAR residual network has depth 6n + 2 with n >= 1")
        return depth


Shape = tuple[int, int, int]  # channels, height, width


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the map, or halves it (rounded up) with stride 2."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def scalar(value: float) -> nn.Parameter:
    """One learned number."""
    return nn.Parameter(torch.full((1,), value))


def shortcut(value: Tensor, shape: Shape) -> Tensor:
    """Option A of He et al. (2016): every second row and column, then zeros as the missing channels."""
    if value.shape[1] == shape[0]:
        return value
    return F.pad(value[:, :, ::2, ::2], (0, 0, 0, 0, 0, shape[0] - value.shape[1]))


class FixupBlock(nn.Module):
    """relu(shortcut + scale * conv2(relu(conv1(x + bias1a) + bias1b) + bias2a) + bias2b).

    Where the map is halved the shortcut is taken of x + bias1a, elsewhere of x, as in the authors' code.
    Maps (N, inputs, h, w) to (N, *shape). Source: Zhang, Dauphin & Ma 2019, rules 1-3.
    """

    def __init__(self, inputs: int, shape: Shape) -> None:
        super().__init__()
        channels, stride = shape[0], 1 if inputs == shape[0] else 2
        self.shape = shape
        self.bias_1a = scalar(0.0)
        self.conv_1 = convolution(inputs, channels, stride)
        self.bias_1b = scalar(0.0)
        self.pre_1 = Site("pre", "nchw", shape)
        self.post_1 = Site("post", "nchw", shape)
        self.bias_2a = scalar(0.0)
        self.conv_2 = convolution(channels, channels)
        self.scale = scalar(1.0)
        self.bias_2b = scalar(0.0)
        self.pre_2 = Site("pre", "nchw", shape)
        self.post_2 = Site("post", "nchw", shape)

    def forward(self, value: Tensor) -> Tensor:
        shifted = value + like(self.bias_1a, value)
        halved = self.conv_1.stride[0] == 2
        identity = shortcut(shifted, self.shape) if halved else value
        hidden = self.conv_1(shifted)
        hidden = self.post_1(F.relu(self.pre_1(hidden + like(self.bias_1b, hidden))))
        branch = self.conv_2(hidden + like(self.bias_2a, hidden))
        branch = branch * like(self.scale, branch) + like(self.bias_2b, branch)
        return self.post_2(F.relu(self.pre_2(branch + identity)))


class HeBlock(nn.Module):
    """relu(shortcut(x) + pre_2(conv2(relu(pre_1(conv1(x)))))): ``pre`` Sites follow convolutions directly.

    Maps (N, inputs, h, w) to (N, *shape). Source: He et al. 2016, section 4.2.
    """

    def __init__(self, inputs: int, shape: Shape) -> None:
        super().__init__()
        channels, stride = shape[0], 1 if inputs == shape[0] else 2
        self.shape = shape
        self.conv_1 = convolution(inputs, channels, stride)
        self.pre_1 = Site("pre", "nchw", shape)
        self.post_1 = Site("post", "nchw", shape)
        self.conv_2 = convolution(channels, channels)
        self.pre_2 = Site("pre", "nchw", shape)
        self.post_2 = Site("post", "nchw", shape)

    def forward(self, value: Tensor) -> Tensor:
        hidden = self.post_1(F.relu(self.pre_1(self.conv_1(value))))
        branch = self.pre_2(self.conv_2(hidden))
        return self.post_2(F.relu(branch + shortcut(value, self.shape)))


class ResidualNetwork(nn.Module):
    """Images (N, C, H, W) to logits (N, classes); Sites ``pre``, ``post``, ``blocks.<i>.pre_1`` and so on."""

    def __init__(self, options: Options, sizes: Sizes) -> None:
        super().__init__()
        if len(sizes.input_shape) != 3:
            raise ValueError(f"takes images of shape (channels, height, width), got {sizes.input_shape}")
        inputs, height, width = sizes.input_shape
        fixup = options.variant == "fixup"
        shape: Shape = (options.width, height, width)
        self.conv = convolution(inputs, options.width)
        self.bias_1 = scalar(0.0) if fixup else None
        self.pre = Site("pre", "nchw", shape)
        self.post = Site("post", "nchw", shape)
        blocks: list[nn.Module] = []
        for stage in range(3):
            for index in range((options.depth - 2) // 6):
                before = shape[0]
                if stage > 0 and index == 0:
                    shape = (2 * before, (shape[1] + 1) // 2, (shape[2] + 1) // 2)
                blocks.append(FixupBlock(before, shape) if fixup else HeBlock(before, shape))
        self.blocks = nn.Sequential(*blocks)
        self.bias_2 = scalar(0.0) if fixup else None
        self.classifier = nn.Linear(shape[0], sizes.outputs)

    def forward(self, images: Tensor) -> Tensor:
        value = self.conv(images)
        if self.bias_1 is not None:
            value = value + like(self.bias_1, value)
        value = self.blocks(self.post(F.relu(self.pre(value))))
        pooled = value.mean((2, 3))
        if self.bias_2 is not None:
            pooled = pooled + like(self.bias_2, pooled)
        return self.classifier(pooled)


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> ResidualNetwork:
    """The network with every parameter drawn from ``initialisation``; it has no dropout.

    ``he``: convolutions and classifier N(0, 2 / fan_in), biases 0. ``fixup``: first convolution of each block
    N(0, 2 / fan_out) / sqrt(number of blocks), its second and the classifier 0, the stem by
    `stem_initialisation`.
    """
    model = ResidualNetwork(options, sizes)
    he = options.variant == "he"
    draw_weight(model.conv.weight, options.stem_initialisation or ("he" if he else "torch"), initialisation)
    for block in model.blocks:
        if isinstance(block, FixupBlock):
            fan_out = block.conv_1.weight[:, 0].numel()
            std = math.sqrt(2.0 / fan_out / len(model.blocks))
            draw_weight(block.conv_1.weight, "gaussian", initialisation, std)
            nn.init.zeros_(block.conv_2.weight)
        elif isinstance(block, HeBlock):
            draw_weight(block.conv_1.weight, "he", initialisation)
            draw_weight(block.conv_2.weight, "he", initialisation)
    nn.init.zeros_(model.classifier.bias)
    if he:
        draw_weight(model.classifier.weight, "he", initialisation)
    else:
        nn.init.zeros_(model.classifier.weight)
    return model
