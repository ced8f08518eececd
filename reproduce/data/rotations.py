"""Images turned about their centre, as Rotated MNIST is made."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images uint8 (n, channels, height, width) turned counterclockwise, bicubic, black where nothing was.

    Each channel by Pillow, as the domains of Gulrajani & Lopez-Paz (2021) are made, on the CPU: the same pixels for
    every device.

    Raises:
        ValueError: other images.
    """
    from PIL import Image  # what has no second domain needs none

    if images.dim() != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images are uint8 (n, channels, height, width), got {images.dtype} {tuple(images.shape)}")
    planes = images.cpu().flatten(0, 1).numpy()
    turned = [
        np.asarray(Image.fromarray(plane).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=0)) for plane in planes
    ]
    pixels = np.stack(turned) if turned else planes
    return torch.from_numpy(pixels).reshape(images.shape)
