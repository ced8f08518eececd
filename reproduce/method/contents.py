"""What lists, dictionaries, tensors and generators hold, so that it can be put back."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reproduce.method.restore import Values

_SEQUENCES = (list, deque)
_TABLES = (dict, OrderedDict, defaultdict, set)


class Contents:
    """The contents of some values: of lists, dictionaries and sets the entries, of tensors the numbers, of generators
    their state; and the contents of entries. What is in other objects is not looked at.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.known: dict[int, Any] = {}  # by id; they are kept, so that no other has the same id
        self.changes: list[Callable[[], Any]] = []
        self.tensors: list[Tensor] = []
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if id(value) not in self.known:
                self.known[id(value)] = value
                waiting += self._take(value)
        self.values = Values(self.tensors)

    def put_back(self) -> None:
        for change in self.changes:
            change()
        self.values.put_back()

    def _take(self, value: Any) -> list[Any]:
        """Note how it is put back; what is in it."""
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not (
                isinstance(value, nn.Parameter) or value.is_nested or value.is_meta
            ):
                self.tensors.append(value)
        elif isinstance(value, torch.Generator):
            self.changes.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, random.Random):
            self.changes.append(partial(value.setstate, value.getstate()))
        elif isinstance(value, np.random.RandomState):
            self.changes.append(partial(value.set_state, value.get_state()))
        elif isinstance(value, np.random.Generator):
            self.changes.append(partial(setattr, value.bit_generator, "state", value.bit_generator.state))
        elif isinstance(value, np.ndarray):
            self.changes.append(partial(_write, value, value.copy()))
        elif type(value) in (*_SEQUENCES, *_TABLES):
            entries = value.copy()
            self.changes.append(partial(_refill, value, entries))
            return list(entries.values()) if isinstance(entries, dict) else list(entries)
        elif isinstance(value, Mapping):  # an example, say, of which only the tensors are known
            return list(value.values())
        return list(value) if isinstance(value, tuple) else []


def _refill(value: Any, entries: Any) -> None:
    if _identities(value) != _identities(entries):  # else another thread may be reading it
        value.clear()
        (value.extend if isinstance(value, _SEQUENCES) else value.update)(entries)


def _identities(value: Any) -> list[Any]:
    found = [*value, *value.values()] if isinstance(value, dict) else value
    return list(map(id, found))


def _write(array: Any, numbers: Any) -> None:
    if array.shape == numbers.shape and array.flags.writeable:
        array[...] = numbers
