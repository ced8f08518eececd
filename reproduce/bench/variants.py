"""A method's `variants.toml`: its configurations for bench and battery, and the functions that the bench compares."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.toml import Strict, read_toml


class Variant(Strict):
    """One configuration of a method whose training step is timed against vanilla's."""

    params: dict[str, Any] = {}
    limit: float | None = None  # the ratio on CPU that this project promises, on the workloads of `limit_on`
    limit_on: tuple[str, ...] = ()
    operations: int | None = None  # of one step on ResNet-56, counted: at most so many, as this project promises
    workloads: tuple[str, ...] | None = None  # only these; None: all that the method accepts, but those to be named


class FunctionPair(Strict):
    """A loss function against its plainer relative, forward and backward, on activations of some shapes."""

    name: str
    against: str
    shapes: tuple[tuple[int, ...], ...]
    at_least: float | None = None  # times faster


class Variants(Strict):
    """A method's `variants.toml`."""

    variants: dict[str, Variant] = {}
    functions: tuple[FunctionPair, ...] = Field(default=())


def read_variants(folder: MethodFolder) -> Variants:
    path = folder.path / "variants.toml"
    return read_toml(path, Variants) if path.exists() else Variants()
