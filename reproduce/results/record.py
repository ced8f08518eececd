"""Results: the immutable record that a finished Run leaves."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from reproduce.experiment.identity import RunConfig
from reproduce.experiment.recipe import Selection

SCHEMA_VERSION = 1

Value = TypeVar("Value")
# A field that came after Results were sealed. None, "not kept", is left out of the JSON: they keep their seals.
Added = Annotated[Value | None, Field(exclude_if=lambda value: value is None)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", defer_build=True)


class SiteStatistics(_Frozen):
    """Statistics of one Site's outputs in a training-mode pass over a fixed batch."""

    mean: float
    mean_square: float
    norm_dispersion: float  # std / mean of the samples' norms
    effective_rank: float  # exp of the entropy of the covariance's normalised eigenvalues
    unit_quantiles: tuple[float, ...]  # of one fixed unit, at QUANTILES
    unit_range: tuple[float, float] | None = None  # smallest and largest value of that unit
    unit_histogram: tuple[int, ...] | None = None  # its values in BINS equal parts of that range
    excess_kurtosis: float | None = None  # mean over units of E[(h - mean)^4] / variance^2 - 3
    sample_variance: Added[float] = None  # variance of a unit over samples, mean over units
    distance_to_normal: Added[float] = None  # W1 to N(0, I) over PROJECTIONS directions, which are always the same


QUANTILES = (0.15, 0.25, 0.5, 0.75, 0.85)
BINS = 24
PROJECTIONS = 64


class KernelSpectrum(_Frozen):
    """The singular values of one kernel, the largest first."""

    name: str
    singular_values: tuple[float, ...]


class EpochRecord(_Frozen):
    """One evaluation: after this many epochs and optimiser steps."""

    epoch: int
    step: int
    train_loss: float  # mean task loss since the last evaluation, penalty apart
    penalty: float
    learning_rate: float
    validation: dict[str, float] = {}
    test: dict[str, float] = {}
    sites: dict[str, SiteStatistics] = {}  # of a Run with many evaluations, at some of them
    kernels: Added[tuple[KernelSpectrum, ...]] = None  # in the model's order, where the recipe asks for them
    seconds_per_step: float


class Final(_Frozen):
    """The numbers that count, by the selection rule stated in the recipe."""

    selection: Selection
    epoch: int
    validation: dict[str, float]
    test: dict[str, float]


class Environment(_Frozen):
    """Where and with what a Run was made."""

    commit: str
    dirty: bool
    packages: dict[str, str | None]  # by name, their versions; None: not installed
    python: str
    platform: str
    device: str
    precision: str
    threads: int
    wall_seconds: float
    peak_memory_bytes: int
    finished: str  # UTC, ISO 8601
    resumed: int = 0  # how often the run went on from a checkpoint
    mode: Added[Literal["eager", "captured"]] = None  # how steps ran: one operation at a time, or as a recorded graph
    fp32_precision: Added[dict[str, str]] = None  # in which float32 convolutions, RNNs and matrix products are computed
    cudnn_benchmark: Added[bool] = None  # whether cuDNN chose algorithms by timing them, which may differ next time
    runs_on_device: Added[int] = None  # at most so many trained on the device at once, this one among them
    processes: Added[int] = None  # that trained it together, each on its part of every batch; None: one
    peak_memory_of: Added[Literal["run", "process"]] = None  # the process: other Runs in it count as well


def device_kind(device: str) -> str:
    """What the devices of one kind have in common in `Environment.device`: "cuda:1 (NVIDIA H100)" is an NVIDIA H100.

    Several processes that trained together are a kind of their own: "cuda:0 (NVIDIA H100, 2 processes)".
    """
    name = device.partition(" (")[2].removesuffix(")")
    return name or device


class Result(_Frozen):
    """One finished Run. ``seal`` is the hash of everything else: an edited Result does not read."""

    schema_version: int = SCHEMA_VERSION
    id: str
    config: RunConfig
    defaults: dict[str, Any]  # the method's own defaults then, so that an arm finds its Results without torch
    status: Literal["completed", "diverged"]
    diverged_step: int | None = None
    metric: str
    parameters: int
    epochs: tuple[EpochRecord, ...]
    site_order: Added[tuple[str, ...]] = None  # in which the forward pass meets the Sites
    final: Final | None
    environment: Environment
    seal: str = ""
