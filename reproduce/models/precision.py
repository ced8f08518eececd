"""What bfloat16 autocast leaves to a model: parameters that no matrix product casts, and some recurrent layers."""

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
    """``layer(inputs, state)``; in float32, with a float32 output, where bfloat16 autocast cannot run it.

    The layer is an `nn.RNNBase`, or what calls one. On CUDA, autocast would run cuDNN's recurrent layers in float16,
    whose range needs a gradient scaler. On processors of x86 without AVX-512, oneDNN has no LSTM in bfloat16.
    """
    kind = inputs.device.type
    if not (_is_bfloat16(kind) and recurs_in_float32(kind)):
        return layer(inputs, state)
    with torch.autocast(kind, enabled=False):
        return layer(inputs.float(), None if state is None else tuple(part.float() for part in state))


def recurs_in_float32(kind: str) -> bool:
    """Whether recurrent layers run in float32 under bfloat16 autocast, on this kind of device."""
    if kind == "cpu":
        return torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return kind == "cuda"


def _is_bfloat16(kind: str) -> bool:
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
