"""RandAugment on whole epochs: each image takes random operations, all images of one operation together."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Operation = Callable[[Tensor], Tensor]
N_OPERATIONS = 2  # Cubuk et al. 2020, section 4.1, CIFAR: N and M are chosen; these are torchvision's defaults
BINS, BIN = 31, 9  # of magnitudes: 9 of 0 to 30


def _level(most: float) -> float:
    """The magnitude of the bin where the last one's is ``most``, rounded as torchvision rounds it."""
    return float(torch.linspace(0.0, most, BINS)[BIN])


def _sheared(x: float, y: float) -> Operation:
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return lambda images: F.affine(images, 0.0, [0, 0], 1.0, degrees, center=[0, 0])


def _translated(x: int, y: int) -> Operation:
    return lambda images: F.affine(images, 0.0, [x, y], 1.0, [0.0, 0.0])


def operations(height: int, width: int) -> list[tuple[Operation, ...]]:
    """The 14 operations of Cubuk et al. 2020, Figure 2, at magnitude 9 as torchvision scales it.

    Each takes and gives uint8 (n, channels, height, width). Where a magnitude has a sign there are two of them, which
    are as likely as each other. What is moved in from outside is black.
    """
    right, down = (int(_level(150 / 331 * length)) for length in (width, height))
    signed: list[Callable[[int], Operation]] = [
        lambda sign: _sheared(sign * _level(0.3), 0.0),
        lambda sign: _sheared(0.0, sign * _level(0.3)),
        lambda sign: _translated(sign * right, 0),
        lambda sign: _translated(0, sign * down),
        lambda sign: lambda images: F.rotate(images, sign * _level(30.0)),
        lambda sign: lambda images: F.adjust_brightness(images, 1 + sign * _level(0.9)),
        lambda sign: lambda images: F.adjust_saturation(images, 1 + sign * _level(0.9)),
        lambda sign: lambda images: F.adjust_contrast(images, 1 + sign * _level(0.9)),
        lambda sign: lambda images: F.adjust_sharpness(images, 1 + sign * _level(0.9)),
    ]
    plain: list[Operation] = [
        lambda images: images,
        lambda images: F.posterize(images, round(8 - _level(4.0))),
        lambda images: F.solarize(images, 255 * (1 - _level(1.0))),
        F.autocontrast,
        F.equalize,
    ]
    return [(make(1), make(-1)) for make in signed] + [(operation,) for operation in plain]


def rand_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """`N_OPERATIONS` operations on each image, drawn for it: uint8 (n, channels, height, width) to the same.

    Source: Cubuk, Zoph, Shlens & Le 2020, Figure 2.
    """
    known = operations(*images.shape[2:])
    for _ in range(N_OPERATIONS):
        chosen = torch.randint(len(known), (len(images),), generator=generator, device=images.device)
        coin = torch.randint(2, (len(images),), generator=generator, device=images.device)
        augmented = images.clone()
        for index, signs in enumerate(known):
            for number, operation in enumerate(signs):
                rows = ((chosen == index) & (coin % len(signs) == number)).nonzero().squeeze(1)
                if len(rows):
                    augmented[rows] = operation(images[rows])
        images = augmented
    return images
