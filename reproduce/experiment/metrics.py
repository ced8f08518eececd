"""What Tasks measure: each metric's unit, its bounds, and which values are better. Declared once, without torch."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from reproduce.errors import UserError, did_you_mean
from reproduce.experiment.shifts import (
    CORRUPTED_ERROR,
    CORRUPTIONS,
    OOD_AUROC,
    OOD_DENSITY_AUROC,
    SEVERITIES,
    SOURCE_ERROR,
    error_of_kind,
    error_of_severity,
)


class Metric(NamedTuple):
    """A number that a Task computes on a split."""

    name: str
    better: Literal["lower", "higher"] | None  # None: it describes, and neither end is the better one
    unit: str = ""
    low: float = -math.inf  # no value lies below
    high: float = math.inf


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "lower"),
        Metric("objective", "lower"),  # what training minimises: the loss with the method's penalty
        Metric("error", "lower", "%", 0, 100),
        Metric("accuracy", "higher", "%", 0, 100),  # of no Task yet: papers state it
        Metric("classifier_error", "lower", "%", 0, 100),
        Metric("balanced_error", "lower", "%", 0, 100),  # the mean of classes' errors
        # Of corrupted test images: over all, of one corruption over severities, of one severity over corruptions.
        *(
            Metric(name, "lower", "%", 0, 100)
            for name in (CORRUPTED_ERROR, *map(error_of_kind, CORRUPTIONS), *map(error_of_severity, SEVERITIES))
        ),
        *(Metric(name, "higher", "%", 0, 100) for name in (OOD_AUROC, OOD_DENSITY_AUROC)),
        Metric(SOURCE_ERROR, "lower", "%", 0, 100),
        Metric("perplexity", "lower", low=1),
        Metric("bits_per_character", "lower", "bits", low=0),
        Metric("mse", "lower", low=0),
        Metric("histogram_distance", "lower", low=0),
        # Of reconstructions and codes.
        Metric("fvu", "lower", low=0),
        Metric("relative_reconstruction_bias", None),  # 1 is best
        Metric("l0", None, low=0),
        Metric("dead_fraction", "lower", low=0, high=1),
        Metric("decoder_norm", None, low=0),
        # Of a language model whose activations are reconstructed or ablated.
        Metric("ce_loss_with_sae", "lower", "nats"),
        Metric("ce_loss_without_sae", None, "nats"),  # this and the next two are the language model's own
        Metric("ce_loss_with_zero_ablation", None, "nats"),
        Metric("ce_loss_with_mean_ablation", None, "nats"),
        Metric("ce_loss_increase", "lower", "nats"),
        Metric("ce_loss_score", "higher"),
        Metric("ce_loss_score_mean", "higher"),
    )
}


class MetricPlace(NamedTuple):
    """What `test.error@20` says, piece by piece."""

    split: str
    name: str
    epoch: int | None  # None: the one that counts


def place_of_metric(text: str) -> MetricPlace:
    """`test.error`, or `test.error@20` at the end of an epoch; a name without a split has "" there."""
    address, _, epoch = text.partition("@")
    split, _, name = address.rpartition(".")
    return MetricPlace(split, name, int(epoch) if epoch else None)


def metric_named(name: str) -> Metric:
    """The metric of that name.

    Raises:
        UserError: no such metric; names of splits ("test.error") are no part of it.
    """
    if name not in METRICS:
        raise UserError(f"unknown metric {name!r}: {did_you_mean(name, METRICS)}")
    return METRICS[name]
