"""The 11-layer convolutional network of Clevert et al. (2016) that Littwin & Wolf (2018) and PER trained."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from reproduce.models import ModelOptions, Sizes
from reproduce.models.activation import Activated
from reproduce.models.dropout import Dropout
from reproduce.models.initialisation import draw_weight

# One stack a row: (kernel size, channels) of its convolutions.
# All channels but the first 192 are multiplied by width_factor.
STACKS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((5, 192),),
    ((1, 192), (3, 240)),
    ((1, 240), (2, 260)),
    ((1, 260), (2, 280)),
    ((1, 280), (2, 300)),
    ((1, 300),),
)
DROPOUT = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # after each stack


class Options(ModelOptions):
    """Published runs use ``width_factor`` 1 (2 in the reference code of Littwin & Wolf)."""

    width_factor: int = Field(default=1, ge=1, le=2)
    width_divisor: int = Field(default=1, ge=1, le=16)  # of all channels, for a processor
    activation: Literal["elu", "relu", "leaky_relu"] = "elu"
    scalar_bias: bool = False  # after each activation; PER: with ReLU and LeakyReLU
    dropout: bool = True  # 0, 0.1, ... 0.5 after the six stacks
    initialisation: Literal["torch", "lecun", "he"] = "torch"  # of the weights; all biases are 0


def same_convolution(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution that keeps the map's size; an even kernel is padded one more on the right and below."""
    if kernel % 2:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    before, after = kernel // 2 - 1, kernel // 2
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(inputs, outputs, kernel))


class ConvolutionalNetwork(nn.Module):
    """Images (N, C, H, W) to logits (N, classes); Sites ``stacks.<i>.<j>.pre`` and ``.post``, ten of each.

    Each of the first five stacks ends in 2x2 max-pooling. A map whose height or width is already 1 is pooled
    no more, so that images smaller than 32x32 pass (8x8 is pooled three times); what is left of larger images
    after the five poolings is averaged. At 32x32 the last map is 1x1 and both rules are idle.
    """

    def __init__(self, options: Options, sizes: Sizes, dropout: torch.Generator | None) -> None:
        super().__init__()
        if len(sizes.input_shape) != 3:
            raise ValueError(f"takes images of shape (channels, height, width), got {sizes.input_shape}")
        channels, height, width = sizes.input_shape
        stacks: list[nn.Module] = []
        for index, (convolutions, probability) in enumerate(zip(STACKS, DROPOUT, strict=True)):
            layers: list[nn.Module] = []
            for kernel, base in convolutions:
                outputs = (base if index == 0 else base * options.width_factor) // options.width_divisor
                layers.append(
                    Activated(
                        same_convolution(channels, outputs, kernel),
                        options.activation,
                        "nchw",
                        (outputs, height, width),
                        options.scalar_bias,
                    )
                )
                channels = outputs
            if index < len(STACKS) - 1 and min(height, width) > 1:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            if options.dropout and probability > 0:
                layers.append(Dropout(probability, dropout))
            stacks.append(nn.Sequential(*layers))
        self.stacks = nn.Sequential(*stacks)
        self.classifier = nn.Conv2d(channels, sizes.outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.stacks(images)).mean((2, 3))


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> ConvolutionalNetwork:
    """The network with every weight drawn from ``initialisation``, and all biases 0."""
    model = ConvolutionalNetwork(options, sizes, dropout)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            draw_weight(layer.weight, options.initialisation, initialisation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model
