"""Dropout that draws its masks from a given generator: of elements, locked over time, of words, for SELU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from reproduce.method.parts import current_part

# What SELU tends to for very negative inputs: -lambda * alpha of Klambauer et al. 2017.
SELU_SATURATION = -1.0507009873554804934 * 1.6732632423543772848


class Drawing(nn.Module):
    """A module that draws from ``generator``, on the device of the activations; a deep copy of the model shares it."""

    def __init__(self, generator: torch.Generator | None) -> None:
        super().__init__()
        self.generator = generator

    def _drawn(
        self, like: Tensor, shape: Sequence[int], draw: Callable[[Tensor], Tensor], batch_axis: int = 0
    ) -> Tensor:
        """What ``draw`` fills, of this shape; where a part of a batch passes, its part of what the whole one draws."""
        part = current_part()
        if part is None:
            return draw(like.new_empty(shape))
        whole = list(shape)
        whole[batch_axis] *= part.size
        return part.own(draw(like.new_empty(whole)), batch_axis).clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if self.generator is not None:
            memo[id(self.generator)] = self.generator  # shared: a run has one stream of draws
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied


class Dropout(Drawing):
    """Zero each element with ``probability``, scale the others by 1 / (1 - probability); identity in eval.

    Args:
        probability: in [0, 1).
        generator: source of the masks, on the device of the activations; a deep copy of the model shares it.

    Raises:
        ValueError: if ``probability`` is outside [0, 1), or a mask is needed and there is no generator.

    Source: Srivastava et al. 2014, in the scaling of ``torch.nn.Dropout``.
    """

    batch_axis = 0

    def __init__(self, probability: float, generator: torch.Generator | None) -> None:
        super().__init__(generator)
        if not 0.0 <= probability < 1.0:
            raise ValueError(f"a dropout probability lies in [0, 1), got {probability!r}")
        self.probability = probability

    def mask_shape(self, activation: Tensor) -> tuple[int, ...]:
        """Shape of the mask for one call: that of the activation."""
        return tuple(activation.shape)

    def forward(self, activation: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return activation
        if self.generator is None:  # bernoulli_ would silently take torch's global generator
            raise ValueError(f"dropout {self.probability} needs a generator while training, got None")
        mask = self._drawn(activation, self.mask_shape(activation), self._bernoulli, self.batch_axis)
        return self.masked(activation, mask)

    def _bernoulli(self, mask: Tensor) -> Tensor:
        return mask.bernoulli_(1.0 - self.probability, generator=self.generator)

    def masked(self, activation: Tensor, mask: Tensor) -> Tensor:
        """The activation with 1 in the mask kept and 0 dropped; the mask may be overwritten."""
        return activation * mask.div_(1.0 - self.probability)

    def extra_repr(self) -> str:
        return f"{self.probability}"


class LockedDropout(Dropout):
    """Dropout with one mask (1, B, d) per call, the same at every time step of activations (T, B, d).

    Source: Gal & Ghahramani 2016 (variational dropout).
    """

    batch_axis = 1

    def mask_shape(self, activation: Tensor) -> tuple[int, ...]:
        """One mask for all times: (1, B, d)."""
        return (1, *activation.shape[1:])


class WordDropout(Dropout):
    """Dropout of whole rows of an embedding (V, d) by one mask (V, 1) per call: of words, for a whole window.

    Source: Gal & Ghahramani 2016, the paragraph on word embeddings.
    """

    def mask_shape(self, activation: Tensor) -> tuple[int, ...]:
        """One number for each word: (V, 1)."""
        return (len(activation), 1)


class AlphaDropout(Dropout):
    """Dropout that keeps mean 0 and variance 1, for networks of SELU: a (x d + alpha' (1 - d)) + b.

    With keep probability q and SELU's saturation alpha', a = (q + alpha'^2 q (1 - q))^(-1/2) and
    b = -a (1 - q) alpha', so that inputs of mean 0 and variance 1 keep both. Dropped elements become a alpha' + b.

    Source: Klambauer et al. 2017, "Self-Normalizing Neural Networks", the paragraph on a new dropout technique.
    """

    def masked(self, activation: Tensor, mask: Tensor) -> Tensor:
        """The activation with 1 in the mask kept and 0 put to SELU's saturation, then scaled and shifted."""
        keep = 1.0 - self.probability
        scale = 1.0 / math.sqrt(keep + SELU_SATURATION**2 * keep * self.probability)
        shift = -scale * self.probability * SELU_SATURATION
        dropped = (1.0 - mask).mul_(scale * SELU_SATURATION)
        return activation * mask.mul_(scale) + dropped.add_(shift)
