"""What each mode of statistics standardises in a model: units, or layers as a whole, by Python's own statistics."""

from __future__ import annotations

import statistics

import pytest

from methods.variance_preserving_init.test_method import mlp, pre_activations, prepared, seeded


@pytest.mark.parametrize("mode", ["sample_statistics", "layer_statistics"])
def test_the_first_batch_of_every_layer_has_mean_zero_and_deviation_one(mode: str) -> None:
    model = prepared(mlp(3, 8), mode=mode)
    for layer in pre_activations(model.train(), seeded(40, 16).float()):
        units = layer.double().T.tolist()
        taken = units if mode == "sample_statistics" else [layer.double().flatten().tolist()]
        for values in taken:
            assert statistics.fmean(values) == pytest.approx(0, abs=1e-5)
            assert statistics.pstdev(values) == pytest.approx(1, abs=1e-4)
        if mode == "layer_statistics":  # and its units are left as different as they were
            assert max(abs(statistics.fmean(values)) for values in units) > 0.1
            assert max(abs(statistics.pstdev(values) - 1) for values in units) > 0.1
