"""The layouts that activations of one module had: what is known where layers are not looked at any more."""

from __future__ import annotations

import torch
from torch import Tensor

from reproduce.method.layouts import Layouts
from reproduce.method.readings import UNKNOWN, with_other_order
from reproduce.method.sites import Axes

Shape = tuple[int, ...]


class KnownLayouts:
    """By the number of axes: the layouts met, the shapes that had them, and the functions that made those.

    A layout that is known is used again where the sizes fit, and where a pass says less.

    Args:
        name: of the module, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.met: dict[int, dict[tuple[Axes, ...], list[Shape]]] = {}
        self.makers: dict[tuple[Axes, ...], set[tuple[str, ...]]] = {}

    def add(self, axes: tuple[Axes, ...], activation: Tensor) -> None:
        shapes = self.met.setdefault(activation.dim(), {}).setdefault(axes, [])
        shape = tuple(activation.shape)
        if shape not in shapes:
            shapes.append(shape)
        maker = _maker_of(activation)
        if maker:
            self.makers.setdefault(axes, set()).add(maker)

    def doubt_order(self) -> None:
        """Sequences may have batch and time exchanged."""
        for dim, met in self.met.items():
            self.met[dim] = {with_other_order(axes): shapes for axes, shapes in met.items()}
        self.makers = {with_other_order(axes): makers for axes, makers in self.makers.items()}

    def narrowed(self, found: tuple[Axes, ...]) -> tuple[Axes, ...]:
        """The one of these that is known, if it is one."""
        known = [axes for axes in self.met.get(len(found[0]), {}) if len(axes) == 1 and axes[0] in found]
        return known[0] if len(found) > 1 and len(known) == 1 else found

    def fitting(self, activation: Tensor, layouts: Layouts) -> tuple[Axes, ...]:
        """The layout whose activations had this size, or as many channels, if it is one; nothing if none did.

        Raises:
            ValueError: several may be meant, or another that a layer has.
        """
        shape = tuple(activation.shape)
        met = self.met[len(shape)]
        if len(met) == 1 and (len(shape) == 2 or next(iter(met)) == UNKNOWN.get(len(shape))):
            return next(iter(met))
        of_size = [axes for axes, shapes in met.items() if any(shape[1:] == other[1:] for other in shapes)]
        channels = {axes: axes[0].index("c") for axes in met}
        of_width = [
            axes for axes, shapes in met.items() if shape[channels[axes]] in [s[channels[axes]] for s in shapes]
        ]
        for fits in (of_size, of_width):
            if len(fits) == 1:
                self._refuse_other_makers(fits[0], activation, layouts, bool(of_size))
                return fits[0]
        if of_size or of_width or len(met) > 1:
            self._refuse_several(shape)
        return ()

    def refuse_others(self, shape: Shape) -> None:
        """Raises a ValueError: no layer says anything of sizes that were not met."""
        axes, shapes = next(iter(self.met[len(shape)].items()))
        raise ValueError(
            f"module {self.name!r} had activations {shapes[0]} with axes {axes[0]!r}, and those of {shape} may be "
            "others: give axes=, an example that meets both, or each call a module of its own"
        )

    def _refuse_other_makers(
        self, axes: tuple[Axes, ...], activation: Tensor, layouts: Layouts, is_size_known: bool
    ) -> None:
        """Where its sizes fit a layer with channels elsewhere too, only what the same functions made has known axes."""
        if torch.compiler.is_compiling():
            return
        maker, makers = _maker_of(activation), self.makers.setdefault(axes, set())
        if not maker:
            return
        is_new = maker not in makers and (bool(makers) or not is_size_known)
        if is_new and layouts.rivals(axes, tuple(activation.shape)):
            self._refuse_several(tuple(activation.shape))
        makers.add(maker)

    def _refuse_several(self, shape: Shape) -> None:
        raise ValueError(
            f"module {self.name!r} meets activations of several layouts, and {shape} may be of any: give each call "
            "a module of its own, or axes= where all have the same"
        )


def _maker_of(activation: Tensor) -> tuple[str, ...]:
    """The names of the last functions in its graph, two deep: the last may be that of the module itself.

    Empty where it has no graph, or in a compiled model, which has it later.
    """
    if torch.compiler.is_compiling() or activation.grad_fn is None:
        return ()
    before = (function.name() for function, _ in activation.grad_fn.next_functions if function is not None)
    return activation.grad_fn.name(), *before
