"""How often a forward pass of a whole model calls one of its layers."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from reproduce.method import is_in_backward


class OneCall:
    """Refuses a layer that is called twice in one forward pass of the model, in each thread by itself.

    Calls outside such a pass, and what a checkpoint computes again, count as nothing. A compiled model cannot tell.
    """

    def __init__(self) -> None:
        self.called: dict[int, set[int]] = {}  # layers by their ids, of the pass that each thread is in

    def hook(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.begin, prepend=True)
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, model: nn.Module, arguments: Any) -> None:
        if not torch.compiler.is_compiling():
            self.called[threading.get_ident()] = set()

    def end(self, model: nn.Module, arguments: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.called.pop(threading.get_ident(), None)

    def note(self, layer: nn.Module, name: str) -> None:
        """
        Raises:
            ValueError: this pass has called the layer already.
        """
        if torch.compiler.is_compiling() or is_in_backward():
            return
        called = self.called.get(threading.get_ident())
        if called is None:
            return
        if id(layer) in called:
            raise ValueError(
                f"LSTM {name!r} is called more than once in a forward pass, and recurrent batch normalization counts "
                "the steps of one call: give it the whole sequence in one, or each call an LSTM of its own"
            )
        called.add(id(layer))
