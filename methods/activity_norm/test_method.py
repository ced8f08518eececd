"""Oracles for the activity penalties: values by hand, naive loops, gradients, and what each one reads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from methods.activity_norm.method import (
    ActivityNorm,
    activation_regularization,
    l1_activity,
    l2_activity,
    temporal_activation_regularization,
)
from reproduce.method import Site
from reproduce.method.sites import Trace, watch


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recorded(*passed: tuple[str, str, Tensor]) -> Trace:
    """The Trace of a model that passed each activation through a Site of the given role and axes."""
    sites = [Site(role, axes, (value.shape[1 if axes == "nchw" else -1],)) for role, axes, value in passed]
    trace = watch(nn.ModuleList([*sites, nn.Linear(1, 1)]).train())
    for site, (_, _, value) in zip(sites, passed, strict=True):
        site(value)
    return trace


def penalty(trace: Trace, **fields) -> Tensor:
    return ActivityNorm(**fields).penalty(trace, torch.tensor(0.5), torch.Generator())


def test_norms_by_hand() -> None:
    h = torch.tensor([[1.0, -2.0, 0.0], [0.0, 3.0, -1.0]])  # |h|_1 = 3, 4 and |h|^2 = 5, 10
    assert l1_activity(h).item() == 3.5
    assert l2_activity(h).item() == 7.5
    assert l1_activity(h, "mean").item() == pytest.approx(3.5 / 3)
    assert l2_activity(h, "mean").item() == 2.5


def test_norms_equal_a_loop_over_samples() -> None:
    h = seeded(3, 4, 5)
    rows = h.reshape(-1, 5).tolist()
    assert l1_activity(h).item() == pytest.approx(sum(abs(x) for row in rows for x in row) / 12)
    assert l2_activity(h).item() == pytest.approx(sum(x * x for row in rows for x in row) / 12)


@pytest.mark.parametrize("term", [l1_activity, l2_activity, temporal_activation_regularization])
def test_gradients(term) -> None:
    assert torch.autograd.gradcheck(term, seeded(3, 2, 4).requires_grad_())


def test_the_gradient_of_l1_at_zero_is_zero() -> None:
    h = torch.zeros(2, 3, requires_grad=True)
    l1_activity(h).backward()
    assert torch.equal(h.grad, torch.zeros(2, 3))


def test_ar_and_tar_equal_a_loop_over_steps() -> None:
    outputs = seeded(4, 2, 3)
    steps = outputs.tolist()
    differences = [
        (later[n][unit] - now[n][unit]) ** 2
        for now, later in itertools.pairwise(steps)
        for n in range(2)
        for unit in range(3)
    ]
    squares = [x * x for step in steps for row in step for x in row]
    assert temporal_activation_regularization(outputs).item() == pytest.approx(sum(differences) / 18)
    assert activation_regularization(outputs).item() == pytest.approx(sum(squares) / 24)


def test_tar_of_constant_outputs_and_of_one_step_is_zero() -> None:
    assert temporal_activation_regularization(torch.ones(5, 2, 3)).item() == 0.0
    single = torch.ones(1, 2, 3, requires_grad=True)
    found = temporal_activation_regularization(single)
    assert found.item() == 0.0


def test_half_precision_does_not_overflow() -> None:
    h = torch.full((4, 2, 100), 3e4, dtype=torch.float16, requires_grad=True)
    assert l2_activity(h).item() == pytest.approx(100 * h[0, 0, 0].item() ** 2, rel=1e-6)
    assert l1_activity(h).item() == pytest.approx(100 * h[0, 0, 0].item(), rel=1e-6)
    assert activation_regularization(h).isfinite()


@pytest.mark.parametrize(
    "term", [l1_activity, l2_activity, activation_regularization, temporal_activation_regularization]
)
@pytest.mark.parametrize("activations", [torch.tensor(1.0), torch.zeros(0, 2, 3), torch.ones(2, 2, 3, dtype=torch.int)])
def test_unusable_activations_are_refused(term, activations: Tensor) -> None:
    with pytest.raises(ValueError, match="activations must be"):
        term(activations)


def test_unusable_shapes_and_reductions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(time, batch, units\), got \(2, 3\)"):
        temporal_activation_regularization(torch.ones(2, 3))
    with pytest.raises(ValueError, match="got 'median'"):
        l1_activity(torch.ones(2, 3), "median")


def test_penalty_sums_layers_and_is_weighted() -> None:
    first, second = seeded(4, 6), seeded(4, 9, seed=1)
    trace = recorded(("post", "nc", first), ("pre", "nc", seeded(4, 5)), ("post", "nc", second))
    for kind, term in (("l1", l1_activity), ("l2", l2_activity)):
        found = penalty(trace, kind=kind, strength=0.3)
        torch.testing.assert_close(found, 0.3 * (term(first) + term(second)))


def test_maps_are_one_sample_flattened_or_one_for_each_location() -> None:
    maps = seeded(2, 3, 4, 5)
    trace = recorded(("post", "nchw", maps))
    torch.testing.assert_close(penalty(trace, strength=1.0), maps.square().sum() / 2)
    torch.testing.assert_close(penalty(trace, strength=1.0, features="channels"), maps.square().sum() / 40)
    torch.testing.assert_close(penalty(trace, strength=1.0, reduction="mean"), maps.square().mean())


def test_ar_reads_the_last_dropped_output_and_tar_the_last_raw_one() -> None:
    raw, dropped = [seeded(4, 2, 3, seed=n) for n in (0, 1)], [seeded(4, 2, 3, seed=n) for n in (2, 3)]
    trace = recorded(
        ("post", "tnc", raw[0]), ("dropped", "tnc", dropped[0]), ("post", "tnc", raw[1]), ("dropped", "tnc", dropped[1])
    )
    options = {"kind": "ar_tar"}
    alpha, beta = activation_regularization(dropped[1]), temporal_activation_regularization(raw[1])
    torch.testing.assert_close(penalty(trace, strength=2.0, temporal_strength=0.5, **options), 2 * alpha + 0.5 * beta)
    torch.testing.assert_close(penalty(trace, strength=2.0, **options), 2 * alpha)
    torch.testing.assert_close(penalty(trace, strength=0.0, temporal_strength=0.5, **options), 0.5 * beta)


def test_tar_finds_time_in_batch_first_outputs() -> None:
    h = seeded(4, 2, 3)
    options = {"kind": "ar_tar", "strength": 0.0, "temporal_strength": 1.0}
    found = penalty(recorded(("post", "ntc", h.transpose(0, 1).contiguous())), **options)
    torch.testing.assert_close(found, temporal_activation_regularization(h))


def test_ar_and_tar_need_a_recurrent_output() -> None:
    with pytest.raises(ValueError, match=r"recurrent output.*'nc'"):
        penalty(recorded(("post", "nc", torch.ones(2, 3))), kind="ar_tar", temporal_strength=1.0, strength=0.0)
    with pytest.raises(ValueError, match="no 'dropped' Site"):
        penalty(recorded(("post", "tnc", torch.ones(2, 2, 3))), kind="ar_tar")


@pytest.mark.parametrize("kind", ["l1", "l2", "ar_tar"])
def test_strength_zero_is_exactly_zero_whatever_the_activations(kind: str) -> None:
    found = penalty(recorded(("post", "nc", torch.full((2, 3), math.nan))), kind=kind, strength=0.0)
    assert found.item() == 0.0
    assert found.shape == ()


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"strength": -1.0}, "strength"),
        ({"kind": "l3"}, "kind"),
        ({"kind": "l1", "temporal_strength": 1.0}, "temporal_strength 1.0 needs kind = 'ar_tar'"),
    ],
)
def test_unusable_hyperparameters_are_refused(fields: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ActivityNorm(**fields)


@pytest.mark.parametrize(
    ("fields", "roles"),
    [
        ({"kind": "l1", "sites": "pre"}, {"pre"}),
        ({"kind": "l2"}, {"post"}),
        ({"kind": "l2", "strength": 0.0}, set()),
        ({"kind": "ar_tar", "sites": "pre"}, {"dropped"}),
        ({"kind": "ar_tar", "temporal_strength": 1.0}, {"dropped", "post"}),
        ({"kind": "ar_tar", "strength": 0.0, "temporal_strength": 1.0}, {"post"}),
    ],
)
def test_it_asks_for_the_roles_that_it_reads_and_no_others(fields: dict, roles: set[str]) -> None:
    assert ActivityNorm(**fields).recorded_roles == roles


@pytest.mark.parametrize("term", [l1_activity, l2_activity])
@pytest.mark.parametrize("reduction", ["average", "none", "summed", "total"])
def test_another_reduction_is_refused(term, reduction: str) -> None:
    with pytest.raises(ValueError, match=f"reduction is 'sum' or 'mean', got '{reduction}'"):
        term(torch.ones(2, 3), reduction)
