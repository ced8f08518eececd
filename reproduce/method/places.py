"""Where in somebody's model the modules of a method live, so that the model's own code does not meet them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

_WALKED = (nn.Sequential, nn.ModuleList, nn.ModuleDict, ParametrizationList)


def host_of(model: nn.Module, module: nn.Module, own: type[nn.Module]) -> nn.Module:
    """The module that takes a child on behalf of ``module``: itself, or the last part of it without children.

    Code that goes through the children of a module (``for layer in self``, ``self[-1]``, `nn.Sequential`) would call
    the child too, and a module without children has no such code. Children of type ``own`` do not count.
    """
    leaves = list(_leaves(module, own)) or list(_leaves(model, own))
    return module if module in leaves or not leaves else leaves[-1]


def _leaves(module: nn.Module, own: type[nn.Module]) -> Iterator[nn.Module]:
    children = [
        child
        for name, child in module.named_children()
        if not isinstance(child, own | ParametrizationList) and name != "parametrizations"
    ]
    if not children and not isinstance(module, _WALKED):
        yield module
    for child in children:
        yield from _leaves(child, own)
