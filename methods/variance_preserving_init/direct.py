"""Whether a Site reads what the layer before it gives, and nothing that was made of that."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.method import Site


class DirectlyBefore:
    """Hooks of a kernel and of the Site after it, which refuse in training what was done in between.

    The order in which modules are defined need not be that in which they are called, and functions are no modules. A
    compiled model cannot tell.

    Args:
        site: what reads; it holds a transform that says by ``is_folded`` when nothing depends on it any more.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.given: weakref.ref[Tensor] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.site,)  # a copy of the model has seen nothing yet

    def hook(self, kernel: nn.Module) -> None:
        kernel.register_forward_hook(self.note, prepend=True)  # before a Site at its output is passed
        self.site.register_forward_pre_hook(self.refuse_others)

    def note(self, kernel: nn.Module, arguments: Any, output: Tensor) -> None:
        if not self._is_over():
            self.given = weakref.ref(output)

    def refuse_others(self, site: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """
        Raises:
            ValueError: the activation is not what the kernel gave last.
        """
        if not site.training or self._is_over():
            return
        if self.given is None or self.given() is not arguments[0]:
            raise ValueError(
                f"Site {self.site.name!r} needs the output of a kernel right before it, into which its statistics are "
                "moved: what reaches it was changed in between, or is of another layer: name in sites the modules "
                "without it"
            )

    def _is_over(self) -> bool:
        return torch.compiler.is_compiling() or getattr(self.site.transform, "is_folded", True)
