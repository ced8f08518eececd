"""What a module holds itself, and not what a wrapper passes on from the module that it is around.

`torch.compile`, `torch.distributed`'s `checkpoint_wrapper`, FSDP and wrappers of one's own answer for an attribute that
they lack with that of the module inside, by a ``__getattr__``: `hasattr`, `getattr` and
`torch.nn.utils.parametrize.is_parametrized` take a wrapper for a layer.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

_ABSENT: Any = object()


def own_attribute(module: nn.Module, name: str, default: Any = None) -> Any:
    """An attribute, parameter, buffer or part of the module itself, or what its class defines; else ``default``."""
    # All attributes of a scripted module come from its __getattr__, and it wraps nothing.
    if isinstance(module, torch.jit.ScriptModule) or name in vars(module) or _is_of_class(module, name):
        return getattr(module, name, default)
    for held in (module._parameters, module._buffers, module._modules):
        if name in held:
            return held[name]
    return default


def own_parametrizations(module: nn.Module) -> dict[str, ParametrizationList]:
    """By the name of the weight that each makes."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    found = module._modules.get("parametrizations")
    return dict(found.items()) if isinstance(found, nn.ModuleDict) else {}  # type: ignore[arg-type]


def holder_of(module: nn.Module, name: str) -> nn.Module | None:
    """The module itself if it has this attribute, or the one inside that it passes it on from; None: neither."""
    while own_attribute(module, name, _ABSENT) is _ABSENT:
        inside = list(module.children())
        if len(inside) != 1 or not hasattr(module, name):
            return None
        module = inside[0]
    return module


def defined_in(module: nn.Module) -> str:
    """The package and file of the class whose ``forward`` it has, with dots.

    That of its type may be another: parametrizations and FSDP2 make classes of their own from one.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return str(module._c._type().qualified_name()).removeprefix("__torch__.")
    return next((kind.__module__ for kind in type(module).__mro__ if "forward" in vars(kind)), "")


def _is_of_class(module: nn.Module, name: str) -> bool:
    return inspect.getattr_static(type(module), name, _ABSENT) is not _ABSENT
