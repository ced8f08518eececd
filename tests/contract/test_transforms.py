"""Every public function of tensors: under `torch.func.grad`, under `torch.vmap`, and where samples are all equal."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.compound_batchnorm.method import Mixture
from methods.recurrent_batchnorm.method import Normalization
from reproduce.experiment.folder import all_methods

BATCH = 3


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def discovered() -> dict[str, Callable[..., Any]]:
    """Functions of a tensor that return tensors, by method and name; not those that write in place."""
    found = {}
    for method in all_methods():
        module = importlib.import_module(f"methods.{method}.method")
        for name, function in vars(module).items():
            if not inspect.isfunction(function) or function.__module__ != module.__name__ or name.startswith("_"):
                continue
            notes = list(inspect.signature(function).parameters.values())
            takes_tensors = (
                notes and "Tensor" in str(notes[0].annotation) and "Callable" not in str(notes[0].annotation)
            )
            if takes_tensors and not name.endswith("_"):
                found[f"{method}.{name}"] = function
    return found


FUNCTIONS = discovered()
MIXTURE = Mixture(seeded(3, 5, seed=21).softmax(0), seeded(3, 5, seed=22), seeded(3, 5, seed=23).exp())
GAUSSIANS = seeded(7, 5, seed=24), seeded(7, 5, seed=25).exp()
DIRECTIONS = torch.nn.functional.normalize(seeded(9, 5, seed=1), dim=1)
# What a function is given beside its first argument; `Several` gets a list of two as that.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "compound_batchnorm.batch_components": {"mixture": MIXTURE, "shares": seeded(12, 3, 5, seed=15).softmax(1)},
    "compound_batchnorm.compound_normalize": {
        **{"shares": seeded(12, 3, 5, seed=15).softmax(1), "means": MIXTURE.means, "variances": MIXTURE.variances},
        **{"scale": seeded(3, 5, seed=16), "shift": seeded(3, 5, seed=17)},
    },
    "compound_batchnorm.responsibilities": {"mixture": MIXTURE},
    "latent_density.unexplained_fraction": {
        **{"target": seeded(12, 4, seed=18), "weight": seeded(4, 5, seed=19)},
    },
    "distribution_mismatch_correction.match_quantiles": {"reference": seeded(5, 8, seed=3).sort(dim=1).values},
    "kl_domain_adaptation.mixture_divergence": {"own": GAUSSIANS, "other": (GAUSSIANS[1], GAUSSIANS[0].exp())},
    "kl_domain_adaptation.mixture_log_density": {"mean": GAUSSIANS[0], "deviation": GAUSSIANS[1]},
    "energy_distance.attraction": {"dimension": 5},
    "energy_distance.energy_distances": {"feature_axes": 1, "n_groups": 2, "orders": [torch.arange(12).flip(0)] * 2},
    "energy_distance.sliced_energy_distance": {"directions": DIRECTIONS},
    "orthogonal.scheduled": {"schedule": "paper"},
    "orthogonal.srip": {"start": seeded(5, seed=2)},
    "per.matched_noise": {"directions": torch.stack([DIRECTIONS, DIRECTIONS.flip(0)])},
    "per.noisy_per_loss": {"directions": torch.stack([DIRECTIONS, DIRECTIONS.flip(0)])},
    "per.sliced_per_loss": {"directions": DIRECTIONS},
    "per.value_and_slope": {"dimension": 5},
    "quantile_activation.reference_quantile": {"reference": seeded(5, 8, seed=3).sort(dim=1).values},
    "recurrent_batchnorm.batch_normalized_lstm": {
        **{"hidden": seeded(3, 2, seed=6), "cell": seeded(3, 2, seed=7)},
        **{"weight_ih": seeded(8, 5, seed=8), "weight_hh": seeded(8, 2, seed=9), "bias": seeded(8, seed=10)},
        "normalizations": {
            "input": Normalization(seeded(8, seed=11).exp()),
            "hidden": Normalization(seeded(8, seed=12).exp()),
            "cell": Normalization(seeded(2, seed=13).exp(), seeded(2, seed=14)),
        },
    },
    "sigreg.kernel_and_slope": {"dimension": 5},
    "sigreg.sigregs": {"feature_axes": 1, "n_groups": 2, "orders": [torch.arange(12).flip(0)] * 2},
    "sigreg.sliced_sigreg": {"directions": DIRECTIONS},
    "sliced_wasserstein.sliced_wasserstein": {"directions": DIRECTIONS},
    "sparse_autoencoder.explained_variance": {"reconstruction": seeded(12, 5, seed=4)},
    "sparse_autoencoder.fvu": {"reconstruction": seeded(12, 5, seed=4)},
    "sparse_autoencoder.kl_sparsity": {"target": 0.05},
    "sparse_autoencoder.relative_reconstruction_bias": {"reconstruction": seeded(12, 5, seed=4)},
    "variance_preserving_init.sample_variance_share": {"depth": 2},
    "vcl.variance_constancy_losses": {"betas": [torch.ones(5, dtype=torch.float64), seeded(5).exp()]},
    "activity_prior.prior_loss": {"prior": torch.distributions.Normal(0.0, 1.0)},
}
SHAPES = {
    "activity_norm.temporal_activation_regularization": (4, 3, 5),
    "recurrent_batchnorm.batch_normalized_lstm": (4, 3, 5),
}
IN_THE_UNIT_INTERVAL = ("kl_sparsity", "scheduled", "correlation_map", "sample_variance_share", "slope", "attraction")
OPTIONS: dict[str, dict[str, Any]] = {
    "energy_distance.energy_distance in groups": {"group_size": 4},
    "orthogonal.soft_orthogonality spectral": {"norm": "spectral"},
    "orthogonal.mutual_coherence normalised": {"normalised": True},
    "per.per_loss of maps": {"feature_axes": 2},
    "quantile_activation.quantile_transform moving": {"context": "moving", "output": "normal"},
    "sigreg.sigreg in groups": {"group_size": 5},
    "sliced_wasserstein.sliced_wasserstein first": {"directions": DIRECTIONS, "order": 1},
    "sparse_autoencoder.l1_code_penalty weighted": {"decoder": seeded(5, 4, seed=5)},
    "vcreg.covariance_penalty of few": {},
}
CASES = [*FUNCTIONS, *OPTIONS]


def inputs_of(case: str) -> Tensor:
    name = case.split(" ")[0]
    shape = (4, 5) if case.endswith("of few") else SHAPES.get(name, (12, 5))
    values = seeded(BATCH, *shape)
    return torch.sigmoid(values) if any(part in name for part in IN_THE_UNIT_INTERVAL) else values


def as_scalar(case: str) -> Callable[[Tensor], Tensor]:
    """The function as one of a tensor to a number, whose gradient tells its outputs apart."""
    name = case.split(" ")[0]
    function, options = FUNCTIONS[name], OPTIONS.get(case, ARGUMENTS.get(name, {}))
    first = next(iter(inspect.signature(function).parameters.values()))

    def call(values: Tensor) -> Tensor:
        found = function([values, 2 * values] if "Sequence" in str(first.annotation) else values, **options)
        total = values.new_zeros(())
        for part in found if isinstance(found, tuple) else (found,):
            weights = torch.linspace(1, 2, max(1, part.numel()), dtype=torch.float64).view(part.shape)
            total = total + (part * weights).sum()
        return total

    return call


def looks_at_values(case: str) -> bool:
    """What the documentation says: these cannot be mapped."""
    return "`torch.vmap`" in (inspect.getdoc(FUNCTIONS[case.split(" ")[0]]) or "")


def expected(call: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    values, gradients = [], []
    for entry in inputs:
        own = entry.clone().requires_grad_()
        value = call(own)
        if value.requires_grad:
            value.backward()
        values.append(value.detach())
        gradients.append(torch.zeros_like(own) if own.grad is None else own.grad)
    return torch.stack(values), torch.stack(gradients)


@pytest.mark.parametrize("case", CASES)
def test_grad_is_autograds(case: str) -> None:
    call, inputs = as_scalar(case), inputs_of(case)
    _, gradients = expected(call, inputs[:1])
    torch.testing.assert_close(torch.func.grad(call)(inputs[0]), gradients[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_vmap_is_a_loop(case: str) -> None:
    call, inputs = as_scalar(case), inputs_of(case)
    if looks_at_values(case):
        with pytest.raises(RuntimeError, match="vmap"):
            torch.vmap(call)(inputs)
        return
    values, gradients = expected(call, inputs)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(torch.vmap(call)(inputs), values, **close)
    torch.testing.assert_close(torch.vmap(call, in_dims=-1)(inputs.movedim(0, -1)), values, **close)
    torch.testing.assert_close(torch.vmap(torch.func.grad(call))(inputs), gradients, **close)
    of_sum = torch.func.grad(lambda stacked: torch.vmap(call)(stacked).sum())(inputs)
    torch.testing.assert_close(of_sum, gradients, **close)


def test_few_cannot_be_mapped() -> None:
    assert sum(map(looks_at_values, FUNCTIONS)) <= 4
    assert len(FUNCTIONS) >= 40


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("per.per_loss", {"feature_axes": 3}),
        ("energy_distance.energy_distance", {"feature_axes": 3, "group_size": 4}),
        ("sigreg.sigreg", {"feature_axes": 3, "group_size": 4}),
        ("vcl.variance_constancy_loss", {}),
    ],
)
def test_whole_maps_in_both_layouts(case: str, options: dict[str, Any], layout: torch.memory_format) -> None:
    maps = [seeded(11, 3, 4, 5, seed=seed).to(memory_format=layout) for seed in range(BATCH)]
    call = lambda values: FUNCTIONS[case](values, **options)  # noqa: E731
    gradients = []
    for entry in maps:
        own = entry.clone(memory_format=torch.preserve_format).requires_grad_()
        call(own).backward()
        gradients.append(own.grad)
    wanted = torch.stack(gradients)
    torch.testing.assert_close(torch.vmap(torch.func.grad(call))(torch.stack(maps)), wanted)
    torch.testing.assert_close(torch.func.grad(lambda m: torch.vmap(call)(m).sum())(torch.stack(maps)), wanted)


@pytest.mark.parametrize("case", ["per.per_loss", "sigreg.sigreg", "vcl.variance_constancy_loss"])
def test_second_derivatives_that_are_promised(case: str) -> None:
    call, inputs = as_scalar(case), inputs_of(case)[0]
    own, along = inputs.clone().requires_grad_(), seeded(*inputs.shape, seed=6)
    (gradient,) = torch.autograd.grad(call(own), own, create_graph=True)
    (wanted,) = torch.autograd.grad((gradient * along).sum(), own)
    found = torch.func.grad(lambda values: (torch.func.grad(call)(values) * along).sum())(inputs)
    torch.testing.assert_close(found, wanted)


# Zero divided by zero: no reconstruction explains inputs without a variance, nor has one of nothing a bias.
NOT_FINITE = ("fvu", "explained_variance", "relative_reconstruction_bias")


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("case", [case for case in CASES if not case.split(".")[1].startswith(NOT_FINITE)])
def test_samples_that_are_all_equal_have_a_finite_value_and_gradient(case: str, value: float) -> None:
    inputs = torch.full_like(inputs_of(case)[0], value).requires_grad_()
    found = as_scalar(case)(inputs)
    assert found.isfinite()
    if found.requires_grad:
        found.backward()
        assert inputs.grad.isfinite().all()
