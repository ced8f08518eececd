"""Weights that are no parameters: a parametrization or a hook makes them from some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class MadeByHook(NamedTuple):
    """How an older hook of `torch.nn.utils` makes a weight before each forward pass, and from which parameters."""

    make: Callable[[], Tensor]
    originals: tuple[str, ...]


def made_by_hooks(module: nn.Module) -> dict[str, MadeByHook]:
    """By the weight's name. ``module.weight`` itself is but what the last forward pass left there."""
    return {name: made for hook in module._forward_pre_hooks.values() for name, made in _made_by(hook, module)}


def _made_by(hook: object, module: nn.Module) -> Iterator[tuple[str, MadeByHook]]:
    if isinstance(hook, WeightNorm):
        yield hook.name, MadeByHook(partial(hook.compute_weight, module), (f"{hook.name}_g", f"{hook.name}_v"))
    elif isinstance(hook, SpectralNorm):
        make = partial(hook.compute_weight, module, do_power_iteration=False)
        yield hook.name, MadeByHook(make, (f"{hook.name}_orig",))
    elif isinstance(hook, BasePruningMethod):
        name: str = hook._tensor_name
        yield name, MadeByHook(partial(hook.apply_mask, module), (f"{name}_orig",))


def weight_in_use(module: nn.Module, name: str) -> Tensor:
    """A weight of a module as its parameters make it now, behind parametrizations and the older hooks of
    `torch.nn.utils` too; what makes it is left as it is.
    """
    if made := made_by_hooks(module).get(name):
        return made.make()
    if is_parametrized(module, name):
        made_by: Any = module.parametrizations[name]  # type: ignore[index]
        with _buffers_kept(made_by):
            return getattr(module, name)  # type: ignore[no-any-return]
    return getattr(module, name)  # type: ignore[no-any-return]


@contextmanager
def _buffers_kept(parametrizations: nn.Module) -> Iterator[None]:
    """Those that have buffers may change them in training mode: spectral_norm takes a power iteration at each read."""
    training = [part for part in parametrizations.modules() if part.training and [*part.buffers(recurse=False)]]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
