"""The activation in what a module takes or gives: its first tensor, in tuples, mappings, dataclasses and so on."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def at_first_tensor(value: Any, act: Callable[[Tensor, bool], Tensor]) -> Any:
    """``value`` with ``act`` done to the first floating-point tensor in it; None where it holds none, or a complex one
    before it.

    ``act`` is told whether it is the data of a packed sequence.
    """
    if isinstance(value, Tensor):
        return act(value, False) if value.is_floating_point() else None
    if isinstance(value, PackedSequence):
        data = act(value.data, True)
        return value if data is value.data else PackedSequence(data, *value[1:])
    parts: dict[Any, Any] = {}
    if isinstance(value, Mapping):
        parts = dict(value)
    elif dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple | list):
        parts = dict(enumerate(value))
    for key, part in parts.items():
        if isinstance(part, Tensor) and part.is_complex():  # the activation, which no method takes
            return None
        new = at_first_tensor(part, act)
        if new is not None:
            return value if new is part else _with(value, key, new)
    return None


def _with(value: Any, key: Any, new: Any) -> Any:
    """A copy of a mapping, dataclass, tuple or list with one part exchanged."""
    if isinstance(value, Mapping):
        copied: Any = copy.copy(value)
        copied[key] = new
        return copied
    if isinstance(value, tuple | list):
        parts = [*value[:key], new, *value[key + 1 :]]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return dataclasses.replace(value, **{key: new})
