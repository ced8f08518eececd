"""A method in somebody's model and process: where its modules live, and what may be about them."""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

Named = tuple[str, nn.Module]
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
    """Where in the model the modules stand that hold hooks or Sites: one that is replaced takes them along."""

    def __init__(self) -> None:
        self.model = nn.Module()
        self.hooked: list[Named] = []
        self.filled: list[Named] = []
        self._look()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a copy of the model has a hook that does nothing

    def hook(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.before_pass)

    def watch(self, model: nn.Module, hooked: Sequence[Named], filled: Sequence[Named]) -> None:
        """Begin.

        Args:
            model: which all of them are in.
            hooked: modules whose activations pass Sites.
            filled: what holds the Sites of those where a method has put something, in their `host_of`, each with the
                name of the module that is hooked.
        """
        self.model = model
        self.hooked = [(name, module) for name, module in hooked if module is not model]
        self.filled = list(filled)
        self._look()

    def release(self) -> None:
        """Watch no more."""
        self.watch(nn.Module(), [], [])

    def before_pass(self, model: nn.Module, arguments: Any) -> None:
        """Forward pre-hook of the whole model: with what a method has put there, every pass is another one.

        Passes of other models are looked at when a penalty asks.
        """
        if not torch.compiler.is_compiling() and self.filled:
            self.refuse_replaced()

    def refuse_replaced(self) -> None:
        """
        Raises:
            ValueError: a module does not stand in as many places of the model any more.
        """
        if all(parent._modules.get(key) is child for parent, key, child in self.links):
            return
        places = _places(self.model)
        for name, module in self.hooked:
            if len(places[id(module)]) < self.counts[id(module)]:
                raise ValueError(
                    f"module {name!r} was replaced after attach(), and its Sites with it: remove() the handle, and "
                    "attach() to the model as it is"
                )
        for name, tap in self.filled:
            if len(places[id(tap)]) < self.counts[id(tap)]:
                raise ValueError(
                    f"module {self.hosts[id(tap)]!r} was replaced after attach(), and with it what the method put "
                    f"there for module {name!r}: remove() the handle, and attach() to the model as it is"
                )
        self._look()

    def _look(self) -> None:
        places = _places(self.model)
        watched = [module for _, module in (*self.hooked, *self.filled)]
        self.counts = {id(module): len(places[id(module)]) for module in watched}
        self.hosts = {id(tap): places[id(tap)][0].rpartition(".")[0] for _, tap in self.filled}
        found: dict[tuple[int, str], tuple[nn.Module, str, nn.Module]] = {}
        for path in {path for module in watched for path in places[id(module)]}:
            parent = self.model
            for key in path.split("."):
                child: nn.Module = parent._modules[key]  # type: ignore[assignment]
                found[id(parent), key] = parent, key, child
                parent = child
        self.links = list(found.values())


def _places(model: nn.Module) -> dict[int, list[str]]:
    """All names of each module, by its id."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        places[id(module)].append(name)
    return places


def forget_compiled() -> None:
    """Let `torch.compile` compile anew what it has compiled: it does not notice hooks that come later."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@contextlib.contextmanager
def usual_defaults(device: torch.device) -> Iterator[None]:
    """Within it, what a method makes has float32, as in a usual process, and lies where the model does.

    Another default of the user's, by `torch.set_default_dtype` or `torch.set_default_device`, is then as it was.
    """
    dtype = torch.get_default_dtype()
    is_elsewhere = not torch.compiler.is_compiling() and torch.get_default_device() != torch.device("cpu")
    if dtype == torch.float32 and not is_elsewhere:  # nothing that would cut a compiled penalty
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device(device) if is_elsewhere else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)
