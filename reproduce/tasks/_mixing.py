"""Images mixed with partners of their batch: mixup, CutMix, or one of the two at random for each batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.special
import torch
from torch import Tensor

from reproduce.experiment.recipe import Recipe


class Mixing:
    """For each batch of an epoch: how much of its inputs and labels is its own, the rest being a partner's.

    ``weights`` are those of a batch's own labels, ``shares`` those of its own pixels outside of a box, whose pixels are
    the partner's: mixup has no box and equal weight and share, CutMix (Yun et al. 2019, section 3.2) share 1 and, as
    weight, what the box leaves of the image. All are drawn on the host, and written in place, where a recorded step
    reads them.

    Args:
        recipe: its ``mixup`` and ``cutmix`` are alphas of Beta(alpha, alpha); with both, each batch throws a coin.
        n_batches: of an epoch.
        size: height and width of the inputs; without CutMix they need none.
        device: where they are read.
    """

    def __init__(self, recipe: Recipe, n_batches: int, size: tuple[int, ...], device: torch.device) -> None:
        self.mixup, self.cutmix, self.size = recipe.mixup, recipe.cutmix, size
        self.weights = torch.zeros(n_batches if self.mixes else 0, device=device)
        self.shares = torch.zeros(n_batches if self.cutmix else 0, device=device)
        # top, bottom, left, right
        self.boxes = torch.zeros((n_batches if self.cutmix else 0, 4), dtype=torch.int64, device=device)

    @property
    def mixes(self) -> bool:
        """Whether the recipe asks for either."""
        return bool(self.mixup or self.cutmix)

    def draw(self, generator: torch.Generator) -> None:
        """Draw those of a new epoch."""
        if not self.mixes:
            return
        weights = self._beta(self.mixup, generator) if self.mixup else None
        if self.cutmix:
            boxes = self._boxes(self._beta(self.cutmix, generator), generator)
            own = 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (self.size[0] * self.size[1])
            cut = np.ones(len(own), dtype=bool) if weights is None else self._uniform(generator) < 0.5
            shares = np.ones(len(own)) if weights is None else np.where(cut, 1.0, weights)
            weights = np.where(cut, own, shares)
            self.boxes.copy_(torch.from_numpy(np.where(cut[:, None], boxes, 0)))
            self.shares.copy_(torch.from_numpy(shares.astype(np.float32)))
        self.weights.copy_(torch.from_numpy(np.asarray(weights, dtype=np.float32)))

    def mixed(self, inputs: Tensor, partners: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of batch ``index`` mixed with their partners, both (N, ...); and the weight of their own labels."""
        weight = self.weights.index_select(0, index.view(1)).squeeze(0)
        if not self.cutmix:
            return weight * inputs + (1 - weight) * partners, weight
        share = self.shares.index_select(0, index.view(1)).squeeze(0)
        top, bottom, left, right = self.boxes.index_select(0, index.view(1)).squeeze(0)
        rows, columns = (torch.arange(length, device=inputs.device) for length in inputs.shape[-2:])
        inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
        share = torch.where(inside, 0.0, share)
        return share * inputs + (1 - share) * partners, weight

    def _uniform(self, generator: torch.Generator) -> np.ndarray:
        drawn: np.ndarray = torch.rand(len(self.weights), generator=generator, dtype=torch.float64).numpy()
        return drawn

    def _beta(self, alpha: float, generator: torch.Generator) -> np.ndarray:
        return np.asarray(scipy.special.betaincinv(alpha, alpha, self._uniform(generator)))

    def _boxes(self, weights: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Of an area of 1 - weight of the image around a uniform pixel, cut at the borders; int64 (n, 4)."""
        sides = []
        for length in self.size:
            half = (length * np.sqrt(1 - weights)).astype(np.int64) // 2
            centre = (length * self._uniform(generator)).astype(np.int64)
            sides += [(centre - half).clip(0, length), (centre + half).clip(0, length)]
        return np.stack(sides, axis=1)

    def state_dict(self) -> dict[str, Tensor]:
        """Without what only CutMix has where the recipe has none, as checkpoints of old."""
        cut = {"shares": self.shares, "boxes": self.boxes} if self.cutmix else {}
        return {"mix": self.weights, **cut}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, own in self.state_dict().items():
            own.copy_(state[name])
