"""Models of other people in a few lines, and what their penalties are by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from methods.activity_norm.method import ActivityNorm
from reproduce.method.attach import Handle

L2 = ActivityNorm(kind="l2", strength=1.0)  # a sum over a sample, the mean over samples


class Wired(nn.Module):
    """Modules, and a function that says how data goes through them: ``wire(self, *inputs)``.

    ``recorded`` is what last went through its module ``act``.
    """

    def __init__(self, wire: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.wire = wire
        self.recorded = torch.empty(0)
        for name, module in modules.items():
            self.add_module(name, module)
        self.act.register_forward_hook(self._record)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def _record(self, module: nn.Module, arguments: Any, output: Tensor) -> None:
        self.recorded = output.detach()

    def forward(self, *inputs: Any) -> Any:
        return self.wire(self, *inputs)


def by_map(activation: Tensor) -> Tensor:
    """The L2 penalty where a sample is a whole map."""
    return activation.double().square().flatten(1).sum(1).mean()


def by_step(activation: Tensor) -> Tensor:
    """The L2 penalty where a sample is a vector of features, which are last."""
    return activation.double().square().sum(-1).mean()


def layouts(handle: Handle) -> list[tuple[str, int]]:
    """What was found of each Site, and its number of features."""
    return [("|".join((site.axes, *site.could_be)), (site.shape or (0,))[0]) for site in handle.sites]


def assert_penalty(handle: Handle, expected: Tensor, mask: Tensor | None = None) -> None:
    torch.testing.assert_close(handle.penalty(mask=mask).double(), expected, rtol=1e-6, atol=0)
