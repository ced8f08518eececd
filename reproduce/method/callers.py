"""Who calls a module where a method has put something: one activation module may serve two models."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from types import FrameType

import torch
from torch import nn

from reproduce.method.functions import is_in_backward
from reproduce.method.sites import Site


class Callers:
    """Tells calls in an attached model from those in another one, by the modules whose code makes the call.

    The innermost that is a part of the model, holds it or shares a layer with weights is in place, as what is built of
    some of its layers; one that has weights and shares none is another model; others tell nothing. A call from outside
    of all modules is one of the part alone. A compiled model cannot tell.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.in_place: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def refuse_other(self, module: nn.Module, name: str) -> None:
        """
        Raises:
            ValueError: the module of this name is called in a model that shares it, and no weights, with this one.
        """
        if torch.compiler.is_compiling() or is_in_backward():
            return
        for caller in calling(module):
            if caller in self.in_place:
                return
            own, added = set(self.model.modules()), _at_sites(self.model)
            weighted = {part for part in caller.modules() if part not in added and _has_weights(part)}
            if caller in own or not weighted.isdisjoint(own):
                self.in_place.add(caller)
                return
            if weighted:
                raise ValueError(
                    f"module {name!r} is called in a {type(caller).__name__} too that is no part of the model, and "
                    "what the method put there would change that too: give each model activation modules of its own"
                )


def _at_sites(model: nn.Module) -> set[nn.Module]:
    """What methods have put there: whoever shares the module that holds it has it too."""
    return {part for site in model.modules() if isinstance(site, Site) for part in site.modules()}


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def calling(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose code calls this one, from a hook of it: the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if "self" in frame.f_code.co_varnames[:1]:
            found = frame.f_locals.get("self")
            is_hook = frame.f_globals.get("__name__", "").startswith("reproduce.method.")
            if isinstance(found, nn.Module) and found is not module and not is_hook:
                yield found
        frame = frame.f_back
