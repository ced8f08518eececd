"""Parameters that only a penalty reads, made a part of the forward pass where several processes train."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reproduce.method.functions import TransformableFunction
from reproduce.method.sites import Site


class _Shown(TransformableFunction):
    """The activation as it is, with parameters that have no gradient from here."""

    @staticmethod
    def forward(activation: Tensor, *parameters: Tensor) -> Tensor:
        return activation.view_as(activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.n_parameters = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *(None,) * ctx.n_parameters


def show_in_forward(site: Site, names: Sequence[str]) -> None:
    """Make these parameters of a Site, by their paths in it, a part of the forward pass's graph.

    `DistributedDataParallel` with ``find_unused_parameters`` takes what its output does not reach as unused, reports it
    as ready before the backward pass, and fails at the gradient that the penalty then brings. Where one process trains
    nothing is done.
    """
    site.register_forward_hook(partial(_show, tuple(names)))


def _show(names: tuple[str, ...], site: Any, inputs: Any, activation: Tensor) -> Tensor | None:
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not (several and site.training and torch.is_grad_enabled()):
        return None
    shown: Tensor = _Shown.apply(activation, *map(site.get_parameter, names))  # type: ignore[no-untyped-call]
    return shown
