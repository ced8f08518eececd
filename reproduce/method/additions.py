"""Modules that a model has got after `attach`, of the kinds that were asked for: they have no Sites."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from reproduce.method.sites import Site

Kinds = tuple[type[nn.Module], ...]


class Additions:
    """Notices modules of some kinds that were not in the model before.

    Each look compares one flat list of all children with that of before; only where they differ is the model walked
    through, which takes ten times as long.
    """

    def __init__(self) -> None:
        self.model = nn.Module()
        self.kinds: Kinds = ()
        self.known: set[int] = set()
        self.tables: list[dict[str, nn.Module | None]] = []
        self.children: list[nn.Module | None] = []

    def watch(self, model: nn.Module, kinds: Kinds) -> None:
        """Begin; with no kinds nothing is looked at."""
        self.model, self.kinds = model, kinds
        self.known = {id(module) for _, module in self._of_kinds()}
        self._note()

    def release(self) -> None:
        """Watch no more."""
        self.watch(nn.Module(), ())

    def refuse(self) -> None:
        """
        Raises:
            ValueError: the model has a module of these kinds that it had not.
        """
        if torch.compiler.is_compiling() or self._children() == self.children:
            return
        added = next((name for name, module in self._of_kinds() if id(module) not in self.known), None)
        if added is not None:
            raise ValueError(
                f"module {added!r} was added after attach(), and would be left out: remove() the handle, and attach() "
                "to the model as it is"
            )
        self._note()

    def _note(self) -> None:
        modules = self.model.modules() if self.kinds else ()
        self.tables = [module._modules for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        self.children = self._children()

    def _children(self) -> list[nn.Module | None]:
        return [child for table in self.tables if table for child in table.values()]

    def _of_kinds(self) -> Iterator[tuple[str, nn.Module]]:
        """But for what a method has put at a Site, and what makes a weight."""
        if not self.kinds:
            return
        inside = (part for part in self.model.modules() if isinstance(part, Site | ParametrizationList))
        skipped = {id(part) for found in inside for part in found.modules()}
        for name, module in self.model.named_modules():
            if isinstance(module, self.kinds) and id(module) not in skipped:
                yield name, module
