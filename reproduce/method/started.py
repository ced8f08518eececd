"""A method on a network that another method has prepared: how a start and a penalty are told apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reproduce.method.interface import Method
from reproduce.method.sites import Role, Trace


class Started(Method):
    """``start`` prepares the network and follows its steps; the penalty is that of ``method`` alone."""

    start: Method
    method: Method

    @property
    def recorded_roles(self) -> frozenset[Role]:
        return self.method.recorded_roles | (self.start.recorded_roles if self.start.acts_after_step else frozenset())

    @property
    def acts_after_step(self) -> bool:
        return self.start.acts_after_step or self.method.acts_after_step

    @property
    def is_mean_over_samples(self) -> bool:
        return self.method.is_mean_over_samples and not (self.start.acts_after_step and self.start.recorded_roles)

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        self.start.prepare(model, generator)
        self.method.prepare(model, generator)

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return self.method.penalty(trace, progress, generator)

    def after_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Tensor, generator: torch.Generator
    ) -> None:
        self.start.after_step(model, optimizer, progress, generator)
        self.method.after_step(model, optimizer, progress, generator)
