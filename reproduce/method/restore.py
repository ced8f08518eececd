"""What a method changes in somebody's model, so that it can be taken back: what it is made of, and its values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_ABSENT: Any = object()


@dataclass(frozen=True)
class Change:
    """One entry of a module that was added, taken away or replaced.

    ``container`` is the attribute that holds it, as "_parameters" or "_forward_hooks"; "" where it is one itself.
    """

    module: nn.Module
    container: str
    name: Any
    before: Any
    after: Any

    @property
    def path(self) -> tuple[int, str, Any]:
        return id(self.module), self.container, self.name


class Structure:
    """What the modules of a model are made of: classes, attributes, and entries of what holds parameters and hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.modules())
        self.classes = [type(module) for module in self.modules]
        self.entries = [dict(_entries(module)) for module in self.modules]
        self.trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def changes(self) -> Changes:
        """What has become different since."""
        return Changes(self)


class Changes:
    """What became of a `Structure`, and how it is undone; what others have changed stays."""

    def __init__(self, before: Structure) -> None:
        self.order = [(module, entries) for module, entries in zip(before.modules, before.entries, strict=True)]
        self.classes = [
            (module, was, type(module))
            for module, was in zip(before.modules, before.classes, strict=True)
            if type(module) is not was
        ]
        self.frozen = [(one, required) for one, required in before.trainable if one.requires_grad != required]
        self.list: list[Change] = []
        for module, entries in self.order:
            now = dict(_entries(module))
            for key in [*entries, *(key for key in now if key not in entries)]:
                was, found = entries.get(key, _ABSENT), now.get(key, _ABSENT)
                if was is not found:
                    self.list.append(Change(module, *key, was, found))
        touched = {change.path[:2] for change in self.list}
        self.order = [one for one in self.order if any(path[0] == id(one[0]) for path in touched)]

    def replaced(self) -> list[Change]:
        """Parameters, buffers and modules that others have come in the place of."""
        kinds = ("_parameters", "_buffers", "_modules")
        return [
            change
            for change in self.list
            if change.container in kinds and _ABSENT not in (change.before, change.after) and change.before is not None
        ]

    def added(self) -> set[tuple[int, str, Any]]:
        """Where parameters, buffers, modules and hooks are that were not there before."""
        return {change.path for change in self.list if change.before is _ABSENT}

    def undo(self) -> None:
        """Take back what was added, and put back what is gone; parameters that come back have their trained values."""
        trained = [(change.before, _trained(change)) for change in self.list if isinstance(change.before, nn.Parameter)]
        for module, was, became in self.classes:
            if type(module) is became:
                module.__class__ = was
        for change in reversed(self.list):
            _put_back(change)
        for parameter, value in trained:
            if value is not None:
                parameter.data = value
        for parameter, required in self.frozen:
            parameter.requires_grad_(required)
        for module, entries in self.order:
            _reorder(module, entries)
        self.list.clear()
        self.classes.clear()
        self.frozen.clear()
        self.order.clear()


class Values:
    """The values of tensors, copied to the CPU."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.copies = [(tensor, _memory(tensor).to("cpu", copy=True)) for tensor in tensors if not _is_lazy(tensor)]

    @torch.no_grad()
    def put_back(self) -> None:
        """Write what is different: a tensor that a graph has saved for its gradient stays as it is."""
        for tensor, copied in self.copies:
            own = _memory(tensor)
            if own.shape == copied.shape and _differs(own, copied):
                # A tensor made in inference mode can be written in that mode alone.
                with torch.inference_mode() if tensor.is_inference() else contextlib.nullcontext():
                    own.copy_(copied)


def _differs(tensor: Tensor, copied: Tensor) -> bool:
    """Of one that is sparse or in shards it is not asked."""
    is_plain = tensor.layout == torch.strided and not hasattr(tensor, "full_tensor")
    return not is_plain or not torch.equal(tensor.to("cpu"), copied)


def _memory(tensor: Tensor) -> Tensor:
    """The tensor; or the memory that it lies in, where several entries may lie in one place, as after `expand`."""
    own = tensor.detach()
    if own.layout != torch.strided or not own.numel():
        return own
    reach, overlaps = 0, False  # of the axes with smaller strides
    for stride, size in sorted(zip(own.stride(), own.shape, strict=True)):
        if size > 1:
            overlaps = overlaps or stride <= reach
            reach += stride * (size - 1)
    return own.as_strided((reach + 1,), (1,)) if overlaps else own


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from model.parameters()
    yield from model.buffers()


def _entries(module: nn.Module) -> Iterator[tuple[tuple[str, Any], Any]]:
    """Every attribute, and every entry of the dictionaries and sets in which torch keeps parts and hooks."""
    for attribute, value in vars(module).items():
        yield ("", attribute), value
        if attribute.startswith("_") and isinstance(value, dict):
            yield from (((attribute, name), entry) for name, entry in value.items())
        elif attribute.startswith("_") and isinstance(value, set):
            yield from (((attribute, name), True) for name in value)


def _put_back(change: Change) -> None:
    holder = vars(change.module) if not change.container else vars(change.module).get(change.container)
    if isinstance(holder, set):
        (holder.discard if change.before is _ABSENT else holder.add)(change.name)
    elif not isinstance(holder, dict):
        return
    elif change.before is _ABSENT:
        holder.pop(change.name, None)
    elif change.container or any(holder.get(change.name, _ABSENT) is value for value in (change.after, _ABSENT)):
        now = holder.get(change.name)
        is_buffer = isinstance(change.before, Tensor) and not isinstance(change.before, nn.Parameter)
        holder[change.name] = change.before.to(now.device) if is_buffer and isinstance(now, Tensor) else change.before


def _trained(change: Change) -> Tensor | None:
    """What a parameter is now that a method replaced, or computes from others: as `torch.nn.utils.parametrize` does."""
    if change.container != "_parameters":
        return None
    with torch.no_grad():
        value = getattr(change.module, change.name, None)
        if not isinstance(value, Tensor) or value.shape != change.before.shape:
            return None
        return value.detach().clone()


def _reorder(module: nn.Module, entries: dict[tuple[str, Any], Any]) -> None:
    """The order of what was there: that of `state_dict` and of the optimiser."""
    for container in ("_parameters", "_buffers", "_modules"):
        holder = vars(module)[container]
        first = [name for kind, name in entries if kind == container and name in holder]
        ordered = {name: holder[name] for name in [*first, *(name for name in holder if name not in first)]}
        if list(ordered) != list(holder):
            holder.clear()
            holder.update(ordered)


def _is_lazy(tensor: Tensor) -> bool:
    return nn.parameter.is_lazy(tensor)
