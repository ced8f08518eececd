"""What the figures take from a Result: the laws that its outputs were to follow, and none where there were none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from methods.activity_prior import figures

EXPONENTIAL = {"kind": "exponential", "rate": 1.0}
HUMPS = {"kind": "histogram", "edges": [0.0, 1.0, 2.0], "counts": [1.0, 3.0]}


def result(**params: Any) -> Any:
    shares = {f"output_{output}_bin_{place}": 0.25 for output in (0, 1) for place in range(4)}
    record = SimpleNamespace(step=5, test={**shares, "histogram_distance": 0.5})
    config = SimpleNamespace(
        params=params, recipe=SimpleNamespace(batch_size=8), task=SimpleNamespace(dataset="digits")
    )
    return SimpleNamespace(id=str(params), status="completed", epochs=(record,), config=config)


LAWS = result(mode="prior", prior=[EXPONENTIAL, HUMPS], distance="kl")
NORMALIZED = result(mode="l2_after_batchnorm", prior={"kind": "normal", "mean": 0.0, "std": 1.0}, distance="kl")


def test_l2_after_batch_normalization_follows_no_law() -> None:
    assert figures._laws(NORMALIZED) == (())
    assert figures._laws(LAWS) == [EXPONENTIAL, HUMPS]
    assert figures._label(NORMALIZED) == "L2 after batch normalization, batch 8"


@pytest.mark.parametrize("results", [[NORMALIZED, LAWS], [LAWS, NORMALIZED], [NORMALIZED]])
@pytest.mark.parametrize("draw", [figures.histograms, figures.distance])
def test_it_is_drawn_beside_the_others(draw: Any, results: list[Any]) -> None:
    figure = draw(results)
    assert figure is not None
    assert len(figure.axes) == (2 if draw is figures.histograms else 1)


def test_masses_are_those_of_the_laws() -> None:
    edges = np.array([0.0, 0.5, 1.0, 1.5, 2.0])
    exponential = np.diff(1 - np.exp(-edges))
    exponential[-1] += np.exp(-2.0)  # what lies above is in the last bin
    np.testing.assert_allclose(figures._masses(EXPONENTIAL, edges), exponential)
    np.testing.assert_allclose(figures._masses(HUMPS, edges), [0.125, 0.125, 0.375, 0.375])
