"""A method in somebody's model and process: where its modules live, and what may be about them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

import torch
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


class Links:
    """How the modules with Sites hang in the model: one that is replaced takes its hooks along."""

    def __init__(self, model: nn.Module, named: Sequence[tuple[str, nn.Module]]) -> None:
        self.model = model
        self.named = [(name, module) for name, module in named if module is not model]
        self._look()

    def refuse_replaced(self) -> None:
        """
        Raises:
            ValueError: a module is no part of the model any more.
        """
        if all(parent._modules.get(key) is child for parent, key, child in self.links):
            return
        parts = set(map(id, self.model.modules()))
        for name, module in self.named:
            if id(module) not in parts:
                raise ValueError(
                    f"module {name!r} was replaced after attach(), and its Sites with it: remove() the handle, and "
                    "attach() to the model as it is"
                )
        self._look()

    def _look(self) -> None:
        self.links: list[tuple[nn.Module, str, nn.Module]] = []
        seen: set[tuple[int, str]] = set()
        for name, _ in self.named:
            parent = self.model
            for key in name.split("."):
                child = parent._modules.get(key)
                if child is None:  # it hangs elsewhere now
                    break
                if (id(parent), key) not in seen:
                    seen.add((id(parent), key))
                    self.links.append((parent, key, child))
                parent = child


def forget_compiled() -> None:
    """Let `torch.compile` compile anew what it has compiled: it does not notice hooks that come later."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@contextlib.contextmanager
def default_float32() -> Iterator[None]:
    """Within it, float32 is the default type: what a method makes has the type that it has in a usual process."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
