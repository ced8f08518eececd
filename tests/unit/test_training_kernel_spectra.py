"""Singular values of kernels: right against constructed and built-in spectra, and no trace in a Run that keeps them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reproduce.experiment.recipe import Recipe
from reproduce.results.store import read_result
from reproduce.training.kernel_spectra import MOST, kernel_spectra
from reproduce.training.run import RunSettings, execute
from tests.unit.small_runs import ARMS, RECIPE, planned


def spectra(model):
    return {one.name: one.singular_values for one in kernel_spectra(model)}


def orthonormal(rows, columns, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


def test_a_kernel_has_the_singular_values_that_it_was_made_of():
    expected = [3.0, 1.5, 0.25, 0.0]
    layer = nn.Conv2d(2, 4, 3)
    made = orthonormal(4, 4, 0) @ np.diag(expected) @ orthonormal(18, 4, 1).T
    layer.weight.data = torch.tensor(made, dtype=torch.float32).reshape(4, 2, 3, 3)
    assert spectra(layer)["weight"] == pytest.approx(expected, abs=1e-5)


def test_gates_and_groups_are_kernels_of_their_own_and_tables_are_none():
    model = nn.ModuleDict({"table": nn.Embedding(9, 3), "lstm": nn.LSTM(3, 5), "groups": nn.Conv1d(4, 6, 2, groups=2)})
    found = spectra(model)
    gates = [f"lstm.weight_{part}_l0.{gate}" for part in ("ih", "hh") for gate in range(4)]
    assert list(found) == [*gates, "groups.weight.0", "groups.weight.1"]
    weight = model["lstm"].weight_hh_l0.detach().double().numpy()
    assert found["lstm.weight_hh_l0.2"] == pytest.approx(np.linalg.svd(weight[10:15], compute_uv=False), rel=1e-4)
    half = model["groups"].weight[3:].detach().double().numpy().reshape(3, 4)
    assert found["groups.weight.1"] == pytest.approx(np.linalg.svd(half, compute_uv=False), rel=1e-4)


def test_of_many_singular_values_some_are_kept_evenly_with_both_ends():
    model = nn.Linear(200, 150, bias=False)
    model.weight.data = torch.zeros(150, 200).diagonal_scatter(torch.arange(150.0, 0, -1))
    values = spectra(model)["weight"]
    assert (len(values), values[0], values[-1]) == (MOST, 150, 1)
    assert set(np.diff(values)) == {-2, -3}


def test_a_kernel_without_finite_numbers_has_no_singular_values():
    model = nn.Linear(3, 2)
    model.weight.data[0, 0] = torch.inf
    assert np.isnan(spectra(model)["weight"]).tolist() == [True, True]


def test_a_run_that_keeps_them_trains_to_the_same_bits_and_reads_back(tmp_path: Path):
    keeping = Recipe.model_validate(RECIPE.model_dump() | {"kernel_spectra": True})
    (plain,), (with_spectra,) = (planned({"vanilla": ARMS["vanilla"]}, recipe) for recipe in (RECIPE, keeping))
    assert plain.id != with_spectra.id
    settings = RunSettings(tmp_path, None, tmp_path / "cache", "cpu", threads=1)
    before, after = execute(plain, settings), execute(with_spectra, settings)
    assert [e.train_loss for e in before.epochs] == [e.train_loss for e in after.epochs]
    assert [e.sites for e in before.epochs] == [e.sites for e in after.epochs]
    assert before.epochs[-1].kernels is None
    read = read_result(tmp_path / with_spectra.config.folder / "result.json")
    names = [f"{name}.weight" for name in ("layers.0.layer", "layers.1.layer", "classifier")]
    assert [[one.name for one in record.kernels] for record in read.epochs] == [names] * len(read.epochs)
    assert read == after
