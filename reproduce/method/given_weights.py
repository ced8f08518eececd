"""Weights that a forward pass was given by `torch.func.functional_call`: penalties are of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class GivenWeights:
    """Remembers the parameters of the last forward pass, and puts them in again while a penalty reads the model.

    `functional_call` takes its tensors out of the modules when it returns, and a penalty that comes then would read,
    and send its gradient to, the model's own.
    """

    def __init__(self, is_watching: bool = True) -> None:
        self.is_watching = is_watching
        self.used: dict[str, Tensor] = {}
        self.had_gradients = False
        self.n_passes = 0  # that were noted since the last penalty

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (False,)  # a copy of the model has a hook that does nothing

    def hook(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.note)

    def note(self, model: nn.Module, arguments: Any) -> None:
        """Forward pre-hook of the whole model."""
        if not self.is_watching or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if any(module.training for module in model.modules()):
            self.used = dict(model.named_parameters(remove_duplicate=False))
            self.n_passes += 1
            self.had_gradients = any(tensor.requires_grad for tensor in self.used.values())

    def forget(self) -> None:
        self.used, self.n_passes = {}, 0

    def reading(self, model: nn.Module, read: Callable[[], Tensor], reads_weights_alone: bool) -> Tensor:
        """What ``read`` returns where the model has the parameters of its last forward pass.

        Raises:
            ValueError: of a method that reads weights alone: what computes their gradient is over, or it cannot be told
                whether they were given or have been replaced since.
        """
        now = dict(model.named_parameters(remove_duplicate=False))
        given = {name: used for name, used in self.used.items() if _is_other(used, now.get(name))}
        self.forget()
        if not given:
            return read()
        penalty: Tensor = functional_call(
            _Reading(model, read), {f"model.{name}": each for name, each in given.items()}
        )
        is_over = self.had_gradients and not penalty.requires_grad and torch.is_grad_enabled()
        is_unclear = any(isinstance(each, nn.Parameter) for each in given.values())
        if reads_weights_alone and (is_over or is_unclear) and read().requires_grad:
            raise ValueError(
                f"the last forward pass had another {next(iter(given))!r} than the model has now: after "
                "torch.func.functional_call, give it tensors that are no nn.Parameter and call penalty() inside the "
                "function that is differentiated; after replacing a parameter, call the model once before this"
            )
        return penalty


def _is_other(used: Tensor, now: Tensor | None) -> bool:
    """FSDP2 too puts other parameters in for a forward pass, of one in shards the whole, and may leave it there."""
    return now is not None and used is not now and not any(hasattr(each, "full_tensor") for each in (used, now))


class _Reading(nn.Module):
    """What `functional_call` calls."""

    def __init__(self, model: nn.Module, read: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.read = model, read

    def forward(self) -> Tensor:
        return self.read()
