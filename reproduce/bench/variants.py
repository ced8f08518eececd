"""A method's `variants.toml`: its configurations for bench and battery, and the functions that the bench compares."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.toml import Strict, read_toml


class Variant(Strict):
    """One configuration of a method whose training step is timed against vanilla's."""

    params: dict[str, Any] = Field(default={}, description="Parameters of the method.")
    limit: float | None = Field(
        default=None, description="The ratio to vanilla's step on a CPU that this project promises."
    )
    limit_on: tuple[str, ...] = Field(default=(), description="On which of the bench's workloads it is promised.")
    operations: int | None = Field(
        default=None, description="At most so many operations has one step on ResNet-56, as this project promises."
    )
    workloads: tuple[str, ...] | None = Field(
        default=None,
        description="Time it on these only. Left out: on all that the method accepts, but those that must be named.",
    )


class FunctionPair(Strict):
    """A loss function against its plainer relative, forward and backward, on activations of some shapes."""

    name: str = Field(description="The function, in the method's method.py.")
    against: str = Field(description="The plainer one, there too.")
    shapes: tuple[tuple[int, ...], ...] = Field(description="Of the activations that both are given.")
    at_least: float | None = Field(default=None, description="So many times as fast it is, as this project promises.")


class Variants(Strict):
    """A method's `variants.toml`."""

    variants: dict[str, Variant] = Field(default={}, description="By name: ways of computing the method.")
    functions: tuple[FunctionPair, ...] = Field(default=(), description="Functions that are timed against others.")


def read_variants(folder: MethodFolder) -> Variants:
    path = folder.path / "variants.toml"
    return read_toml(path, Variants) if path.exists() else Variants()
