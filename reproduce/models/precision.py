"""What bfloat16 autocast leaves to a model: parameters that no matrix product casts, and cuDNN's recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def like(parameter: Tensor, activation: Tensor) -> Tensor:
    """The parameter in the activation's type: a float32 offset would promote a bfloat16 map to float32.

    Without autocast both have one type, and this is the parameter itself.
    """
    return parameter.to(activation.dtype)


def run_recurrent(layer: Callable[..., Any], inputs: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
    """``layer(inputs, state)``; under bfloat16 autocast on CUDA in float32, with a float32 output.

    The layer is an `nn.RNNBase`, or what calls one. There autocast would run cuDNN's recurrent layers in float16, whose
    range needs a gradient scaler.
    """
    if not _would_run_in_float16(inputs.device):
        return layer(inputs, state)
    with torch.autocast("cuda", enabled=False):
        return layer(inputs.float(), None if state is None else tuple(part.float() for part in state))


def _would_run_in_float16(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
    )
