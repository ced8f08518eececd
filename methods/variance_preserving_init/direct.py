"""Whether a Site reads what the layer before it gives, and nothing that was made of that."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reproduce.method import Site, version_of


class DirectlyBefore:
    """Hooks of a kernel and of the Site after it, which refuse in training what was done in between.

    The order in which modules are defined need not be that in which they are called, and functions are no modules. A
    compiled model cannot tell.

    Args:
        site: what reads; it holds a transform that says by ``is_folded`` when nothing depends on it any more.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.given: Tensor | None = None  # kept until the Site is passed: else others could lie in its memory
        self.version = 0  # of it

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.site,)  # a copy of the model has seen nothing yet

    def hook(self, kernel: nn.Module) -> None:
        kernel.register_forward_hook(self.note, prepend=True)  # before a Site at its output is passed
        self.site.register_forward_pre_hook(self.refuse_others)

    def note(self, kernel: nn.Module, arguments: Any, output: Tensor) -> None:
        if not self._is_over():
            self.given, self.version = output, version_of(output)

    def refuse_others(self, site: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """
        Raises:
            ValueError: the activation is not what the kernel gave last.
        """
        if not site.training or self._is_over():
            return
        given, self.given = self.given, None
        if given is None or not _is_view_of(given, arguments[0]) or version_of(given) != self.version:
            raise ValueError(
                f"Site {self.site.name!r} needs the output of a kernel right before it, into which its statistics are "
                "moved: what reaches it was changed in between, or is of another layer: name in sites the modules "
                "without it"
            )

    def _is_over(self) -> bool:
        return torch.compiler.is_compiling() or getattr(self.site.transform, "is_folded", True)


def _is_view_of(given: Tensor, other: Tensor) -> bool:
    """Whether it is the same numbers in the same memory, with axes in any order."""
    if other is given:
        return True
    axes, others = (
        {(size, stride) for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1} for t in (given, other)
    )
    return given.data_ptr() == other.data_ptr() and axes == others
