"""Metrics are declared once: which values are better is looked up, never guessed from a name."""

from __future__ import annotations

import pytest

from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS, metric_named
from reproduce.results.match import higher_is_better


def test_the_direction_is_declared() -> None:
    assert [higher_is_better(name) for name in ("test.accuracy", "test.error", "perplexity")] == [True, False, False]
    assert higher_is_better("validation.ce_loss_score")
    assert not higher_is_better("test.relative_reconstruction_bias")  # neither end is the better one
    assert all(name == metric.name for name, metric in METRICS.items())


def test_an_unknown_metric_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^unknown metric 'eror': did you mean error"):
        metric_named("eror")
    with pytest.raises(UserError, match="unknown metric 'top_accuracy'"):
        higher_is_better("test.top_accuracy")
