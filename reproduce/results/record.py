"""Results: the immutable record that a finished Run leaves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from reproduce.experiment.identity import RunConfig
from reproduce.experiment.schema import Selection

SCHEMA_VERSION = 1


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


QUANTILES = (0.15, 0.25, 0.5, 0.75, 0.85)
BINS = 24


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
    packages: dict[str, str]
    python: str
    platform: str
    device: str
    precision: str
    threads: int
    wall_seconds: float
    peak_memory_bytes: int
    finished: str  # UTC, ISO 8601
    resumed: int = 0  # how often the run went on from a checkpoint


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
    site_order: tuple[str, ...] | None = None  # in which the forward pass meets the Sites; None: not kept, as before
    final: Final | None
    environment: Environment
    seal: str = ""
