"""Weights that are no parameters: a parametrization or a hook makes them from some."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from reproduce.method.own_parts import own_attribute, own_parametrizations
from reproduce.method.rng import GlobalRandomness

# What parametrizations made in the last forward pass, by their ids: see `LastPass`.
_MADE: ContextVar[Mapping[int, Tensor] | None] = ContextVar("weights that a forward pass made", default=None)

_ANY_DRAW: ContextVar[bool] = ContextVar("a weight that another read would not give will do", default=False)


class MadeByHook(NamedTuple):
    """How an older hook of `torch.nn.utils` makes a weight before each forward pass, and from which parameters."""

    make: Callable[[], Tensor]
    originals: tuple[str, ...]


def made_by_hooks(module: nn.Module) -> dict[str, MadeByHook]:
    """By the weight's name. ``module.weight`` itself is but what the last forward pass left there."""
    return {name: made for hook in module._forward_pre_hooks.values() for name, made in _made_by(hook, module)}


def _made_by(hook: object, module: nn.Module) -> Iterator[tuple[str, MadeByHook]]:
    if isinstance(hook, WeightNorm):
        yield hook.name, MadeByHook(partial(hook.compute_weight, module), (f"{hook.name}_g", f"{hook.name}_v"))
    elif isinstance(hook, SpectralNorm):
        make = partial(hook.compute_weight, module, do_power_iteration=False)
        yield hook.name, MadeByHook(make, (f"{hook.name}_orig",))
    elif isinstance(hook, BasePruningMethod):
        name: str = hook._tensor_name
        yield name, MadeByHook(partial(hook.apply_mask, module), (f"{name}_orig",))


@contextmanager
def made_in_pass(made: Mapping[int, Tensor]) -> Iterator[None]:
    """Within it, `weight_in_use` gives what a forward pass has used where that cannot be made again.

    Args:
        made: what a parametrization (`ParametrizationList`) returned in the pass, by its id.
    """
    token = _MADE.set(made)
    try:
        yield
    finally:
        _MADE.reset(token)


@contextmanager
def any_draw() -> Iterator[None]:
    """Within it, `weight_in_use` gives some weight where it cannot know which one trains: before training."""
    token = _ANY_DRAW.set(True)
    try:
        yield
    finally:
        _ANY_DRAW.reset(token)


def weight_in_use(module: nn.Module, name: str) -> Tensor:
    """A weight of a module as its parameters make it now, behind parametrizations and the older hooks of
    `torch.nn.utils` too. What makes it is left as it is: no buffer changes, and no random number is drawn.

    Raises:
        ValueError: it comes out differently each time, and it is not known what the forward pass has used; or two hooks
            make it, one from what the other left behind.
    """
    if made := made_by_hooks(module).get(name):
        for original in made.originals:
            if original not in module._parameters:
                raise ValueError(
                    f"{name!r} of {type(module).__name__} is made from {original!r}, which another hook makes, in the "
                    "pass before: prune the weight itself, or use torch.nn.utils.parametrize for one of the two"
                )
        with _on_copied_buffers([module]):
            return made.make()
    if made_by := own_parametrizations(module).get(name):
        return _parametrized(module, name, made_by)
    return getattr(module, name)  # type: ignore[no-any-return]


def is_function(made_by: ParametrizationList) -> bool:
    """Whether it gives the same weight each time, up to a power iteration: those of torch are known for it."""
    return all(map(is_of_torch, made_by.children()))


def is_of_torch(part: nn.Module) -> bool:
    return type(part).__module__ == parametrizations.__name__


def weight_as_drawn(module: nn.Module, name: str) -> Any:
    """`module.name` as reading it gives it, None if the module itself has none; of a parametrized one for its shape
    alone, since the forward pass reads another. As in `weight_in_use` nothing is moved.
    """
    made_by = own_parametrizations(module).get(name)
    if made_by is None:
        return own_attribute(module, name)
    with torch.no_grad():
        return _made_anew(made_by)[0]


def _parametrized(module: nn.Module, name: str, made_by: ParametrizationList) -> Tensor:
    cached = parametrize._cache.get((id(module), name)) if parametrize._cache_enabled else None
    if cached is not None:
        return cached
    weight, is_the_same_again = _made_anew(made_by)
    if is_the_same_again or _ANY_DRAW.get():
        return weight
    noted = (_MADE.get() or {}).get(id(made_by))
    if noted is None:
        raise ValueError(
            f"{name!r} of {type(module).__name__} is another weight each time that it is read, since its "
            "parametrization draws random numbers or changes its buffers, and it is not known which one trains: call "
            "penalty() after a training pass that reads it once (torch.nn.utils.parametrize.cached() sees to that), "
            "before the optimiser steps, and without torch.compile"
        )
    return noted


def _made_anew(made_by: ParametrizationList) -> tuple[Tensor, bool]:
    """A weight, and whether the next read gives the same."""
    # forward(), and not a call: hooks are for the reads of a forward pass.
    with _on_copied_buffers(made_by.modules()) as are_as_before, _no_power_iteration(made_by):
        if is_function(made_by):
            return made_by.forward(), True
        state = GlobalRandomness([next(made_by.parameters()).device])
        try:
            if not _gives_the_same_twice(made_by):
                with torch.no_grad():
                    return _twin(made_by).forward(), False
            state.put_back()
            weight = made_by.forward()
            return weight, are_as_before() and state.is_as_before()
        finally:
            state.put_back()


def _gives_the_same_twice(made_by: ParametrizationList) -> bool:
    """Tried on a copy: it may draw from a generator of its own, or count, and training goes on from there."""
    twin = _twin(made_by)
    with torch.no_grad():
        return bool(torch.equal(twin.forward(), twin.forward()))


def _twin(made_by: ParametrizationList) -> ParametrizationList:
    """A copy that shares its parameters."""
    return copy.deepcopy(made_by, {id(parameter): parameter for parameter in made_by.parameters()})


@contextmanager
def _on_copied_buffers(modules: Any) -> Iterator[Callable[[], bool]]:
    """Within it, modules have copies of their buffers: a graph may keep these, whatever a forward pass does to them.

    Gives a function that says whether they are as they were.
    """
    own = [(part._buffers, name, value) for part in modules for name, value in part._buffers.items()]
    held = [(buffers, name, value, value.clone()) for buffers, name, value in own if value is not None]
    versions = [copied._version for *_, copied in held]

    def are_as_before() -> bool:
        return all(
            buffers.get(name) is copied and copied._version == version
            for (buffers, name, _, copied), version in zip(held, versions, strict=True)
        )

    try:
        for buffers, name, _, copied in held:
            buffers[name] = copied
        yield are_as_before
    finally:
        for buffers, name, value, _ in held:
            buffers[name] = value


@contextmanager
def _no_power_iteration(made_by: nn.Module) -> Iterator[None]:
    training = [part for part in made_by.children() if is_of_torch(part) and part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
