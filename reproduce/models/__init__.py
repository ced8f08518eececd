"""Models: one file each, built by name with strict options, every parameter drawn from a given generator."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from reproduce.errors import UserError, did_you_mean, explained

__all__ = ["ModelOptions", "Sizes", "build", "check_options", "known_models"]


class Sizes(NamedTuple):
    """What a dataset asks of a model: images ``(c, h, w)`` and classes, or words ``()`` and vocabulary."""

    input_shape: tuple[int, ...]
    outputs: int


class ModelOptions(BaseModel):
    """Base of every model's ``Options``: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def known_models() -> list[str]:
    """Names of the models: the files of this folder that define ``Options``."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return sorted(name for name in names if hasattr(importlib.import_module(f"{__name__}.{name}"), "Options"))


def check_options(name: str, options: dict[str, Any]) -> Any:
    """Validate the options of a model, and return its ``Options``.

    Raises:
        UserError: for an unknown model, an unknown option or a value out of range, in one line.
    """
    taken = _module(name).Options
    try:
        return taken.model_validate(options)
    except ValidationError as error:
        refused = explained(error, options, f"model {name!r}", taken)
        refused.location = ("model_options", *refused.location)
        raise refused from error


def build(
    name: str,
    options: dict[str, Any],
    sizes: Sizes,
    initialisation: torch.Generator,
    dropout: torch.Generator | None,
) -> nn.Module:
    """Build a model on the CPU; torch's global generator is left as it was.

    Args:
        name: a file of this folder.
        options: the fields of that file's ``Options``.
        sizes: shape of one input, and number of classes or words.
        initialisation: CPU generator, the only source of every parameter.
        dropout: generator of the masks, on the training device; None where nothing is dropped while training.

    Raises:
        UserError: for an unknown model, bad options, or an input that the model cannot take.
    """
    checked = check_options(name, options)
    with torch.random.fork_rng(devices=[]):  # torch's layers draw a default that the model then overwrites
        try:
            model: nn.Module = _module(name).build(checked, sizes, initialisation, dropout)
        except ValueError as error:
            raise UserError(f"model {name!r}: {error}") from error
    return model


@cache  # a plan asks thousands of times
def _module(name: str) -> ModuleType:
    known = known_models()
    if name not in known:
        raise UserError(f"unknown model {name!r}: {did_you_mean(name, known)}", ["model"])
    return importlib.import_module(f"{__name__}.{name}")
