"""How codes behave when they are trained: ten of a hundred units active, and the two ways in which that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import reproduce.method
from methods.sparse_autoencoder.method import SparseAutoencoder
from reproduce import data, models, tasks
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.method.sites import watch
from reproduce.models import Sizes
from reproduce.training.loop import train

CPU = torch.device("cpu")
DIGITS = data.load("digits")


def trained(
    folder: Path, method: reproduce.method.Method, task: Any = None, recipe: Any = None, **options: Any
) -> dict[str, float]:
    """Test metrics of an autoencoder of digits with 100 latents."""
    usual = {"epochs": 20, "batch_size": 32, "optimizer": "adam", "learning_rate": 4e-3, "evaluate_every": 20}
    chosen = Recipe.model_validate(usual | (recipe or {}))
    problem = {"kind": "autoencoding", "dataset": "digits", "model": "autoencoder", "normalise": "unit"}
    spec = TaskSpec.model_validate({**problem, "model_options": {"d_sae": 100, **options}, **(task or {})})
    generators = Generators.seeded(0, CPU)
    folder.mkdir(exist_ok=True)
    built = tasks.build(spec, chosen, DIGITS, generators, CPU)
    return train("digits", chosen, built, method, generators, CPU, folder).epochs[-1].test


def test_a_soft_limit_keeps_ten_of_a_hundred_active_and_beats_a_hard_one(tmp_path: Path) -> None:
    soft = trained(tmp_path / "soft", SparseAutoencoder(l1_coefficient=0.4), decoder="unit_norm")
    hard = trained(tmp_path / "hard", Unregularized(), d_sae=10)
    assert 8 <= soft["l0"] <= 14
    assert soft["dead_fraction"] <= 0.01
    assert soft["fvu"] < 0.85 * hard["fvu"]
    assert soft["relative_reconstruction_bias"] < 0.98  # the price of L1: shrinkage


def test_the_literal_sum_over_the_batch_kills_every_unit(tmp_path: Path) -> None:
    fast = {"epochs": 100, "batch_size": 128, "evaluate_every": 100}
    literal = SparseAutoencoder(l1_coefficient=1e-3, reduction="batch_sum")
    found = trained(tmp_path, literal, {"reconstruction": "pixel_mean"}, fast, centred=False)
    assert found["l0"] == 0
    assert found["dead_fraction"] == 1
    assert found["fvu"] == pytest.approx(1, abs=0.01)  # the decoder's bias is the mean image


def test_a_free_decoder_grows_to_make_small_codes(tmp_path: Path) -> None:
    free = trained(tmp_path / "free", SparseAutoencoder(l1_coefficient=0.4))
    weighted = trained(tmp_path / "weighted", SparseAutoencoder(l1_coefficient=0.4, norm_weighted=True))
    assert free["decoder_norm"] > 1.5 * weighted["decoder_norm"]
    assert free["l0"] > weighted["l0"]


def test_kl_brings_the_mean_activity_of_every_unit_to_its_target() -> None:
    generators = Generators.seeded(0, CPU)
    options = {"d_sae": 20, "activation": "sigmoid"}
    model: Any = models.build("autoencoder", options, Sizes((64,), 64), generators.initialisation, None)
    inputs = torch.rand(200, 64, generator=generators.order)
    method = SparseAutoencoder(l1_coefficient=0.0, kl_coefficient=3.0, target_density=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    trace = watch(model.train())
    for _ in range(300):
        trace.clear()
        error = (model(inputs) - inputs).square().sum(1).mean()
        penalty = method.penalty(trace, torch.tensor(1.0), generators.method)
        optimizer.zero_grad()
        (error + penalty).backward()
        optimizer.step()
    means = model.encode(inputs).mean(0)
    assert means.sub(0.1).abs().max() < 0.05
