"""An example to replace: kernels that are smaller, by one factor, when training begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reproduce.method import Method, Positive


def scaled(weight: Tensor, gain: float = 1.0) -> Tensor:
    """``gain * weight``. Write here: the equation's number, shapes, units and source.

    Raises:
        ValueError: a weight that has fewer than two axes, is empty or not floating point.
    """
    if weight.dim() < 2 or weight.numel() == 0 or not weight.is_floating_point():
        raise ValueError(f"a weight must be floating point, (outputs, ...), got {weight.dtype} {tuple(weight.shape)}")
    return gain * weight


class Example(Method):
    """Every parameter of two or more axes, once before training, is `scaled`; nothing is added to the loss.

    What changes the network's form instead puts its modules into Sites (`fill_sites`), as batch normalization does.
    """

    gain: Positive = 0.9  # g; ours

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        """Scale the kernels.

        Raises:
            ValueError: the model has none.
        """
        kernels = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
        if not kernels:
            raise ValueError("the method needs a kernel, a parameter of two or more axes; the model has none")
        with torch.no_grad():
            for kernel in kernels:
                kernel.copy_(scaled(kernel, self.gain))
