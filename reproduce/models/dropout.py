"""Dropout that draws its masks from a given generator, elementwise or locked over time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero each element with ``probability``, scale the others by 1 / (1 - probability); identity in eval.

    Args:
        probability: in [0, 1).
        generator: source of the masks, on the device of the activations; a deep copy of the model shares it.

    Raises:
        ValueError: if ``probability`` is outside [0, 1), or a mask is needed and there is no generator.

    Source: Srivastava et al. 2014, in the scaling of ``torch.nn.Dropout``.
    """

    def __init__(self, probability: float, generator: torch.Generator | None) -> None:
        super().__init__()
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"a dropout probability lies in [0, 1), got {probability!r}")
        self.probability = probability
        self.generator = generator

    def mask_shape(self, activation: Tensor) -> tuple[int, ...]:
        """Shape of the mask for one call: that of the activation."""
        return tuple(activation.shape)

    def forward(self, activation: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return activation
        if self.generator is None:  # bernoulli_ would silently take torch's global generator
            raise ValueError(f"dropout {self.probability} needs a generator while training, got None")
        keep = 1.0 - self.probability
        mask = activation.new_empty(self.mask_shape(activation)).bernoulli_(keep, generator=self.generator)
        return activation * mask.div_(keep)

    def __deepcopy__(self, memo: dict[int, Any]) -> Dropout:
        if self.generator is not None:
            memo[id(self.generator)] = self.generator  # shared: a run has one stream of masks
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        return f"{self.probability}"


class LockedDropout(Dropout):
    """Dropout with one mask (1, B, d) per call, the same at every time step of activations (T, B, d).

    Source: Gal & Ghahramani 2016 (variational dropout).
    """

    def mask_shape(self, activation: Tensor) -> tuple[int, ...]:
        """One mask for all times: (1, B, d)."""
        return (1, *activation.shape[1:])
