"""What separates test from training on purpose: corrupted test images, and a long tail of training classes."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch

from reproduce.data import Images
from reproduce.data.corruptions import corrupted
from reproduce.errors import UserError
from reproduce.experiment.shifts import CORRUPTED_ERROR, SEVERITIES, CorruptedSpec, error_of_kind, error_of_severity


def corrupted_errors(spec: CorruptedSpec, test: Images, error: Callable[[Images], float]) -> dict[str, float]:
    """The error on each corruption over severities, on each severity over corruptions, and over all.

    Args:
        error: of a set of images; it is called with one corruption at one severity at a time.

    Raises:
        UserError: fewer test images than the spec asks for.
    """
    images, labels = test.images[: spec.examples], test.labels[: spec.examples]
    if len(labels) < (spec.examples or 0):
        raise UserError(f"task.corrupted.examples = {spec.examples}: there are only {len(labels)} test images")
    errors = {
        (kind, severity): error(Images(corrupted(images, kind, severity, spec.severities), labels))
        for kind in spec.kinds
        for severity in SEVERITIES
    }
    by_kind = {error_of_kind(kind): fmean(errors[kind, severity] for severity in SEVERITIES) for kind in spec.kinds}
    by_severity = {
        error_of_severity(severity): fmean(errors[kind, severity] for kind in spec.kinds) for severity in SEVERITIES
    }
    return {CORRUPTED_ERROR: fmean(errors.values()), **by_kind, **by_severity}


def long_tailed(train: Images, imbalance: float, classes: int) -> Images:
    """The k-th of K classes keeps its first ``int(n * imbalance^(-k / (K - 1)))`` examples, in their order.

    n is the size of the smallest class, so that the proportions are exact where classes are not equally large. Cui et
    al. (2019), section 5.1, in the form of Cao et al. (2019), whose code cuts to whole numbers too.

    Raises:
        UserError: a class that would keep none.
    """
    counts = torch.bincount(train.labels, minlength=classes)
    smallest = int(counts.min())
    kept = [int(smallest * imbalance ** (-k / max(1, classes - 1))) for k in range(classes)]
    if min(kept) < 1:
        raise UserError(
            f"task.imbalance = {imbalance:g} leaves class {kept.index(min(kept))} none of {smallest} examples"
        )
    one_hot = torch.nn.functional.one_hot(train.labels, classes)
    place = (one_hot.cumsum(0) - 1).gather(1, train.labels[:, None]).squeeze(1)  # among its class's own
    chosen = place < torch.tensor(kept)[train.labels]
    return Images(train.images[chosen], train.labels[chosen])
