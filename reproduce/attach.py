"""The former home of `attach`. Importing it warns once: write ``from reproduce import attach``."""

from __future__ import annotations

import inspect
import sys
import warnings
from types import ModuleType
from typing import Any

import reproduce
from reproduce.method.attach import Handle
from reproduce.method.taps import ACTIVATIONS, RECURRENT

__all__ = ["ACTIVATIONS", "RECURRENT", "Handle", "attach"]

attach = reproduce.attach

warnings.warn("reproduce.attach is deprecated: write `from reproduce import attach`", DeprecationWarning, stacklevel=2)


class _CallableModule(ModuleType):
    """Importing this module puts it in the place of the function `reproduce.attach`; so it can be called like it."""

    def __call__(self, *arguments: Any, **options: Any) -> Handle:
        return attach(*arguments, **options)


__signature__ = inspect.signature(attach)
sys.modules[__name__].__class__ = _CallableModule
