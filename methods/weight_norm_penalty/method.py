"""Kernel penalties: L1 and L2 norms of weights, the relative that activity penalties are compared with."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from reproduce.method import Kernel, Method, NonNegative, Role, Trace, errors_in, in_float32, kernels_of, refuse_frozen


def kernel_l1(weight: Tensor) -> Tensor:
    """``sum |w|``, the sum of absolute values of all elements; 0-dim, computed in float32 at least.

    A weight has any shape. The gradient at zero is zero (torch's convention). Tibshirani (1996), on a layer.

    Raises:
        ValueError: a weight that is empty or not floating point.
        TypeError: no tensor.
    """
    return _checked(weight).abs().sum()


def kernel_l2(weight: Tensor) -> Tensor:
    """``sum w^2``, the sum of squares of all elements; as `kernel_l1`.

    Its gradient is 2 w: under SGD ``strength`` acts as a weight decay of twice its size. Krogh & Hertz (1991), eq. 2,
    without their factor 1/2.
    """
    return _checked(weight).square().sum()


def _checked(weight: Tensor) -> Tensor:
    if not isinstance(weight, Tensor):
        raise TypeError(f"a weight is a tensor, got {type(weight).__name__}: give layer.weight")
    if weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(f"a weight must be floating point and not empty, got {weight.dtype} {tuple(weight.shape)}")
    return in_float32(weight)


class WeightNormPenalty(Method):
    """``strength`` times the sum over weights of `kernel_l1` or `kernel_l2`.

    Weights are those of two or more axes as the layers use them (`kernels_of`): no biases, no scales of normalizations.
    ``layers`` keeps those whose name holds one of these fragments, or whose kind it is ("linear", "conv", "recurrent",
    "embedding"; all, where it is empty), and ``exclude`` then leaves out others: embeddings, whose rows are
    activations rather than a kernel. A decoder tied to its embedding is one, and bears its name.
    """

    recorded_roles: ClassVar[frozenset[Role]] = frozenset()  # it reads weights

    kind: Literal["l1", "l2"] = "l2"
    strength: NonNegative = 1e-4  # lambda; ours: that of activity_norm, so that the defaults can be compared
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ("embedding",)

    @model_validator(mode="after")
    def _fragments_are_words(self) -> WeightNormPenalty:
        if "" in (*self.layers, *self.exclude):
            raise ValueError("an empty fragment in layers or exclude matches every name: leave it out")
        return self

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted penalty.

        Raises:
            ValueError: as `weights`, or all of them are frozen in a model that trains.
        """
        kernels = self._kernels(trace.model)
        refuse_frozen(trace.model, [kernel.weight for kernel in kernels])
        return self.strength * torch.stack([self._term(kernel) for kernel in kernels]).sum()

    def _term(self, kernel: Kernel) -> Tensor:
        with errors_in(f"kernel {kernel.name!r}"):
            return kernel_l1(kernel.weight) if self.kind == "l1" else kernel_l2(kernel.weight)

    def weights(self, model: nn.Module) -> list[Tensor]:
        """The weights that count, each once.

        Raises:
            ValueError: the model has none; the message lists the names it has.
        """
        return [kernel.weight for kernel in self._kernels(model)]

    def _kernels(self, model: nn.Module) -> list[Kernel]:
        found = kernels_of(model)
        kept = [
            kernel
            for kernel in found
            if (not self.layers or _is_meant(kernel, self.layers)) and not _is_meant(kernel, self.exclude)
        ]
        if not kept:
            names = ", ".join(kernel.name for kernel in found) or "none"
            raise ValueError(
                f"the penalty needs a weight with layers {list(self.layers)} and without {list(self.exclude)} in its "
                f"name; the model has {names}"
            )
        return kept


def _is_meant(kernel: Kernel, fragments: tuple[str, ...]) -> bool:
    return any(part in kernel.name or part == kernel.kind for part in fragments)
