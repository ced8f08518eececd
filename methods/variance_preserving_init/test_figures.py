"""The card's figures: their recursion and draws against the method's functions, and Results in the right order."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from methods.variance_preserving_init import figures
from methods.variance_preserving_init.method import sample_variance_share


def test_the_figures_recursion_is_the_methods_and_its_draws_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DEPTH", 3)
    monkeypatch.setattr(figures, "WIDTH", 512)  # at 128 the samples' lengths differ enough to be seen
    for centred in (False, True):
        wanted = [sample_variance_share(0.5, depth, centred).item() for depth in range(6)]
        np.testing.assert_allclose(figures.shares(0.5, 5, centred), wanted)
        drawn = figures.drawn_shares(0.5, centred, np.random.default_rng(0))[:, 3]
        assert abs(drawn.mean() - wanted[3]) < 3 * drawn.std(ddof=1) / math.sqrt(len(drawn))


def test_figures_of_formulas_need_no_results_and_the_other_is_none_without() -> None:
    for name, (_, draw) in figures.FIGURES.items():
        figure = draw([])
        assert (figure is None) == (name == "measured"), name


def test_measured_shares_order_layers_by_number_and_arms_by_file() -> None:
    def result(method: str, params: dict[str, str], seed: int, kept: float | None = None) -> SimpleNamespace:
        sites = {}
        for layer in range(12):
            site = SimpleNamespace(
                unit_quantiles=(-1.03645, 0, 0, 0, 1.03645), mean_square=float(layer + 1), sample_variance=kept
            )
            sites |= {f"layers.{layer}.pre": site, f"layers.{layer}.post": None}
        task = SimpleNamespace(dataset="digits", model_options={"width": 128, "depth": 16, "initialisation": "he"})
        config = SimpleNamespace(
            task=task, recipe=SimpleNamespace(warmup_factor=1e-9), method=method, params=params, seed=seed
        )
        epoch = SimpleNamespace(sites=dict(sorted(sites.items())))
        defaults = {"mode": "closed_form"} if params else {}
        return SimpleNamespace(id=f"{method} {seed}", config=config, defaults=defaults, epochs=(epoch,))

    ours = result("variance_preserving_init", {"mode": "layer_statistics"}, 0)
    found = figures.measured_shares([ours, result("vanilla", {}, 1), result("vanilla", {}, 0)])
    assert {label: len(seeds) for label, seeds in found.items()} == {"He": 2, "first batch, whole layer": 1}
    np.testing.assert_allclose(found["He"][0], 1 / np.arange(1, 13), rtol=1e-4)
    (seed,) = figures.measured_shares([result("vanilla", {}, 0, kept=3.0)])["He"]
    np.testing.assert_allclose(seed, 3 / np.arange(1, 13))
    colors = {"vanilla 0": "#575c68", "variance_preserving_init 0": "#006eca"}
    both = {
        line.get_label(): line.get_color()
        for line in figures.measured([ours, result("vanilla", {}, 0)], colors).axes[0].lines
    }
    assert (both["He"], both["first batch, whole layer"]) == ("#575c68", "#006eca")
    (panel,) = figures.measured([result("vanilla", {}, 0, kept=0.5)]).axes
    theory = next(line for line in panel.lines if str(line.get_label()).startswith("He, by"))
    np.testing.assert_allclose(theory.get_ydata(), figures.shares(0.5, 11, centred=False))
