"""Corruptions of images on the device, at the five severities of CIFAR-10-C or Tiny-ImageNet-C.

Strengths are those of Hendrycks & Dietterich's published generators (ICLR 2019; github.com/hendrycks/robustness,
ImageNet-C/create_c/make_cifar_c.py and make_tinyimagenet_c.py). What is computed otherwise than there is said at each
function; results are cut to whole pixel values, as there. Images are uint8 (n, channels, height, width) in and out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reproduce.experiment.shifts import CORRUPTIONS, SEVERITIES, Corruption, Severities

CHUNK = 1000  # images that draw together: the draws, and so the images, do not depend on the size of a batch
_SEED = 20190501  # ours; the same corrupted images for every Run, as a published set is
_NEGLIGIBLE = 1e-6  # of the nearest point's weight: far below half of one pixel value
Strength = float | tuple[float, float]

STRENGTHS: Mapping[Severities, Mapping[Corruption, tuple[Strength, ...]]] = {
    "cifar10_c": {
        "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # deviation, of pixels in [0, 1]
        "shot_noise": (500.0, 250.0, 100.0, 75.0, 50.0),  # photons of a white pixel
        "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),  # fraction of values
        "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # deviation, in pixels
        "motion_blur": ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),  # radius and deviation, in pixels
        "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # side of the smaller image
        "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of a pixel's distance from the mean
        "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value of HSV
    },
    "tiny_imagenet_c": {
        "gaussian_noise": (0.04, 0.08, 0.12, 0.15, 0.18),
        "shot_noise": (250.0, 100.0, 50.0, 30.0, 15.0),
        "impulse_noise": (0.01, 0.02, 0.05, 0.08, 0.14),
        "gaussian_blur": (0.5, 0.75, 1.0, 1.25, 1.5),
        "motion_blur": ((10, 1.0), (10, 1.5), (10, 2.0), (10, 2.5), (12, 3.0)),
        "pixelate": (0.9, 0.8, 0.7, 0.6, 0.5),
        "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
        "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    },
}


def corrupted(images: Tensor, kind: Corruption, severity: int, severities: Severities = "cifar10_c") -> Tensor:
    """Images uint8 (n, channels, height, width) with one corruption at a severity from 1 to 5.

    The same numbers for the same images on the same kind of device: draws come from a generator of its own, and the
    first n images of a set come out the same whatever follows, in whole chunks of 1000.

    Raises:
        ValueError: an unknown corruption or severity, or other images.
    """
    if kind not in CORRUPTIONS or severity not in SEVERITIES or severities not in STRENGTHS:
        raise ValueError(
            f"expected one of {', '.join(CORRUPTIONS)} at a severity from 1 to 5 of {' or '.join(STRENGTHS)}, "
            f"got {kind!r} at {severity} of {severities!r}"
        )
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"images are uint8 (n, channels, height, width), got {images.dtype} of shape {tuple(images.shape)}"
        )
    generator = torch.Generator(images.device)
    generator.manual_seed(_SEED + 10 * CORRUPTIONS.index(kind) + severity)
    strength = STRENGTHS[severities][kind][severity - 1]
    return torch.cat([_pixels(_FUNCTIONS[kind](part, strength, generator)) for part in images.split(CHUNK)])


def _pixels(values: Tensor) -> Tensor:
    """Values in [0, 1], and what lies beyond, as whole pixel values: cut off, not rounded.

    The hair that is added keeps a whole value that is missed by its last bits.
    """
    return (values.clamp(0, 1) * 255 + 1e-6).to(torch.uint8)


def _unit(images: Tensor) -> Tensor:
    return images.double() / 255  # single precision would cut one value off many whole ones


def gaussian_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """``x + deviation * z``, z normal at each value."""
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=torch.float64)
    return _unit(images) + deviation * noise


def shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """``Poisson(photons * x) / photons`` at each value."""
    return torch.poisson(_unit(images) * photons, generator=generator) / photons


def impulse_noise(images: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Each value is black or white, one as likely as the other, with probability ``fraction``."""
    drawn = torch.rand(images.shape, generator=generator, device=images.device)
    values = torch.where(drawn < fraction, 1.0, _unit(images))
    return torch.where(drawn < fraction / 2, 0.0, values)


def gaussian_blur(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """A Gaussian kernel cut off at four deviations; beyond its borders an image goes on as at its border."""
    values = _unit(images)
    across, down = (_blur_matrix(values.shape[axis], deviation).to(values) for axis in (-1, -2))
    return down @ values @ across.mT


def _blur_matrix(size: int, deviation: float) -> Tensor:
    """What blurs one axis as a matrix (size, size), float64; its rows sum to one."""
    radius = int(4 * deviation + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    kernel = torch.exp(-offsets.double().square() / (2 * deviation**2))
    places = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    weights = (kernel / kernel.sum()).expand(size, -1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, places, weights)


def motion_blur(images: Tensor, strength: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A mean along a line from each pixel, at one angle of an image in [-45, 45] degrees, weighted by half a bell.

    Of ``2 radius + 1`` points a pixel apart the i-th weighs ``exp(-i^2 / (2 deviation^2))``; each is rounded to the
    nearest pixel, and those of no weight are left out. Beyond its borders an image goes on as at its border. The
    published sets were made by ImageMagick, whose rounding may differ.
    """
    radius, deviation = strength
    n, _, height, width = images.shape
    uniform = torch.rand(n, generator=generator, device=images.device)
    angle = (uniform - 0.5) * (math.pi / 2)
    weights = [math.exp(-(i**2) / (2 * deviation**2)) for i in range(2 * int(radius) + 1)]
    weights = [weight for weight in weights if weight > _NEGLIGIBLE]
    values, blurred = _unit(images), torch.zeros(images.shape, device=images.device, dtype=torch.float64)
    example = torch.arange(n, device=images.device).view(-1, 1, 1)
    for i, weight in enumerate(weights):
        rows = _shifted(height, (i * angle.sin()).round())
        columns = _shifted(width, (i * angle.cos()).round())
        moved = values[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        blurred += weight / sum(weights) * moved
    return blurred


def _shifted(size: int, offset: Tensor) -> Tensor:
    """The places 0, ..., size - 1 plus an offset for each image, kept within the borders: (n, size)."""
    places = torch.arange(size, device=offset.device) + offset.long().unsqueeze(1)
    return places.clamp(0, size - 1)


def pixelate(images: Tensor, side: float, generator: torch.Generator) -> Tensor:
    """Down to ``int(side * size)`` pixels and up again, as Pillow does with its box filter, rounding in between."""
    height, width = images.shape[-2:]
    smaller = _boxed(_boxed(images.double(), -2, int(side * height)), -1, int(side * width)).add(0.5).floor()
    return _boxed(_boxed(smaller, -2, height), -1, width) / 255


def _boxed(values: Tensor, axis: int, size: int) -> Tensor:
    """Resize one axis: each new value is the mean of the old ones whose centres lie in its window."""
    before = values.shape[axis]
    scale = before / size
    support = 0.5 * max(scale, 1.0)  # when it grows, a window is as wide as an old value
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    distance = (torch.arange(before, dtype=torch.float64) + 0.5) - centre[:, None]
    inside = ((distance > -support) & (distance <= support)).double()
    weights = (inside / inside.sum(1, keepdim=True)).to(values)
    return (values.transpose(axis, -1) @ weights.mT).transpose(axis, -1)


def contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """``mean + factor * (x - mean)``, with the mean of each channel of each image."""
    values = _unit(images)
    mean = values.mean((2, 3), keepdim=True)
    return mean + factor * (values - mean)


def brightness(images: Tensor, added: float, generator: torch.Generator) -> Tensor:
    """More of HSV's value, the largest channel, at the same hue and saturation: a common factor of all channels."""
    values = _unit(images)
    largest = values.amax(1, keepdim=True)
    target = (largest + added).clamp(0, 1)
    return torch.where(largest > 0, values * (target / largest.clamp_min(1 / 255)), target)


_FUNCTIONS: Mapping[Corruption, Callable[[Tensor, Any, torch.Generator], Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "gaussian_blur": gaussian_blur,
    "motion_blur": motion_blur,
    "pixelate": pixelate,
    "contrast": contrast,
    "brightness": brightness,
}
