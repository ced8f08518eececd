"""Two domains in one image task: labelled images of the source, and images of a target without their labels."""

from __future__ import annotations

import torch
from torch import Tensor

from reproduce.data import ImageData
from reproduce.data.rotations import rotated
from reproduce.errors import UserError
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.shifts import TargetSpec


class TargetDomain:
    """The target's training images, in an order of their own; a step takes as many as of the source.

    Where there are fewer than of the source, an epoch begins anew with the first ones of its order.

    Args:
        images: uint8 (n, c, h, w), not yet rotated.

    Raises:
        UserError: fewer images than a batch, or a recipe that mixes or replaces images of the source alone.
    """

    def __init__(self, spec: TargetSpec, images: Tensor, recipe: Recipe, device: torch.device) -> None:
        if len(images) < recipe.batch_size:
            raise UserError(
                f"batch_size {recipe.batch_size} is larger than the {len(images)} images of the target domain",
                ["target_domain"],
            )
        if recipe.mixup or recipe.cutmix or recipe.augment == "crop_flip_randaugment":
            raise UserError("recipe.mixup, cutmix and RandAugment are for one domain; target_domain takes crop_flip")
        self.images = rotated(images, spec.rotation).to(device)
        # Written in place from epoch to epoch: a recorded step reads it where it is.
        self.order = torch.zeros(len(images), dtype=torch.int64, device=device)

    def start_epoch(self, generator: torch.Generator) -> None:
        self.order.copy_(torch.randperm(len(self.order), generator=generator))

    def batch(self, rows: Tensor) -> Tensor:
        """The images at these places of the epoch's order."""
        return self.images[self.order.index_select(0, rows % len(self.order))]


def left_for_target(spec: TargetSpec, data: ImageData, source_examples: int, validation: int) -> Tensor:
    """The training images behind the source's and before validation's, as many as the spec says."""
    images = data.train.images
    return images[source_examples : len(images) - validation][: spec.examples]
