"""What methods share: checks, rows, groups, Chebyshev series, directions of a step, and the zero at strength zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.polynomial import chebyshev
from torch import Tensor, nn

from reproduce.errors import errors_in
from reproduce.method import (
    Method,
    NonNegative,
    SharedDirections,
    Site,
    Trace,
    check_activations,
    clenshaw,
    fill_sites,
    grouped,
    groups_of_samples,
    in_float32,
    is_channels_last,
    sample_rows,
    sites_with_role,
)


@pytest.mark.parametrize(
    ("activations", "options", "message"),
    [
        (torch.tensor(1.0), {}, r"not empty, got shape \(\)"),
        (torch.ones(0, 3), {}, r"not empty, got shape \(0, 3\)"),
        (torch.ones(2, 3, dtype=torch.int64), {}, "floating point, got torch.int64"),
        (torch.ones(2, 3), {"feature_axes": 3}, "feature_axes must be 1 to 2, got 3"),
        (torch.ones(1, 3), {"least_samples": 2}, r"at least 2 samples are needed, got activations of shape \(1, 3\)"),
        (torch.ones(2, 3), {"feature_axes": 2, "least_samples": 2}, "at least 2 samples are needed"),
    ],
)
def test_unusable_activations_are_refused(activations: Tensor, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_activations(activations, **options)


@pytest.mark.parametrize("given", [torch.nn.ReLU(), [torch.ones(2, 3)], None])
def test_what_is_no_tensor_is_said(given: Any) -> None:
    with pytest.raises(TypeError, match=rf"^activations are a tensor \(\.\.\., units\), got {type(given).__name__}$"):
        check_activations(given)


def test_usable_activations_pass() -> None:
    check_activations(torch.ones(2, 3), least_samples=2)
    check_activations(torch.ones(2, 1, 4, 4), feature_axes=3, least_samples=2)


def test_half_precision_becomes_float32_and_others_stay() -> None:
    kinds = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
    for kind, expected in kinds.items():
        assert in_float32(torch.ones(2, dtype=kind)).dtype == expected


def test_rows_hold_the_same_samples_in_either_layout() -> None:
    maps = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(0))
    last = maps.contiguous(memory_format=torch.channels_last)
    assert is_channels_last(last, 3)
    assert not is_channels_last(maps, 3)
    rows, others = sample_rows(maps, 3), sample_rows(last, 3)
    assert others.data_ptr() == last.data_ptr(), "no copy"
    for row, other in zip(rows, others, strict=True):
        assert sorted(row.tolist()) == sorted(other.tolist())
    assert torch.equal(sample_rows(maps), maps.reshape(-1, 5))


def test_groups_are_of_one_size_and_drawn_only_where_they_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert groups_of_samples(7, None, generator, torch.device("cpu")) == (1, None)
    assert groups_of_samples(7, 4, generator, torch.device("cpu")) == (1, None)
    assert torch.equal(generator.get_state(), before)
    n_groups, order = groups_of_samples(7, 3, generator, torch.device("cpu"))
    assert n_groups == 2
    assert order is not None
    assert sorted(order.tolist()) == list(range(7))
    assert groups_of_samples(7, 3, None, torch.device("cpu")) == (2, None)
    assert grouped(torch.arange(14.0).view(7, 2), 2).shape == (2, 3, 2)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        groups_of_samples(7, 1, None, torch.device("cpu"))


def test_clenshaw_sums_chebyshev_series() -> None:
    """Against numpy's own evaluation."""
    coefficients = np.random.default_rng(0).normal(size=(12, 2))
    points = np.linspace(-1, 1, 33)
    expected = np.stack([chebyshev.chebval(points, column) for column in coefficients.T])
    series = torch.from_numpy(coefficients).unsqueeze(-1).unbind()
    assert np.abs(clenshaw(series, torch.from_numpy(points)).numpy() - expected).max() < 1e-13


def test_directions_are_drawn_once_for_each_width() -> None:
    shared = SharedDirections(5, torch.Generator().manual_seed(0))
    first, other = shared.of(torch.ones(2, 3)), shared.of(torch.ones(2, 4))
    assert first.shape == (5, 3)
    assert other.shape == (5, 4)
    assert shared.of(torch.ones(7, 1, 3)) is first
    again = SharedDirections(5, torch.Generator().manual_seed(0))
    assert torch.equal(again.of(torch.ones(1, 3)), first)
    assert math.isclose(float(first.norm(dim=1).max()), 1, rel_tol=1e-6)


class Weighted(Method):
    strength: NonNegative = 1.0
    other_coefficient: NonNegative = 0.0

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        """Ours."""
        raise RuntimeError("computed")


class Inherits(Weighted):
    pass


class Unweighted(Method):
    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        raise RuntimeError("computed")


@pytest.mark.parametrize("kind", [Weighted, Inherits])
def test_a_penalty_is_computed_only_where_a_strength_is_above_zero(kind: type[Weighted]) -> None:
    trace, progress, generator = Trace(nn.Linear(2, 2)), torch.zeros(()), torch.Generator()
    assert kind.strengths() == ["strength", "other_coefficient"]
    assert float(kind(strength=0.0).penalty(trace, progress, generator)) == 0.0
    for method in (kind(), kind(strength=0.0, other_coefficient=0.1)):
        with pytest.raises(RuntimeError, match="computed"):
            method.penalty(trace, progress, generator)
    assert kind.penalty.__doc__ == "Ours."


class Mixed:
    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        raise RuntimeError("computed")


class MixesIn(Mixed, Method):
    strength: NonNegative = 0.0


class AddsToIt(Weighted):
    extra_coefficient: NonNegative = 1.0

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator, scale: float = 1.0) -> Tensor:
        return scale * self.extra_coefficient + super().penalty(trace, progress, generator)


def test_no_inherited_penalty_escapes_the_guard() -> None:
    given: Any = (Trace(nn.Linear(2, 2)), torch.zeros(()), torch.Generator())
    assert float(MixesIn().penalty(*given)) == 0.0
    with pytest.raises(RuntimeError, match="computed"):
        MixesIn(strength=1.0).penalty(*given)
    # The part of the parent is off where its own strengths are zero, whatever the subclass adds.
    assert float(AddsToIt(strength=0.0).penalty(*given, scale=3.0)) == 3.0
    assert float(AddsToIt(strength=0.0, extra_coefficient=0.0).penalty(*given)) == 0.0


def test_a_model_without_parameters_has_a_zero() -> None:
    assert float(Trace(nn.ReLU()).zero()) == 0.0


def test_a_penalty_without_strengths_is_always_computed() -> None:
    with pytest.raises(RuntimeError, match="computed"):
        Unweighted().penalty(Trace(nn.Linear(2, 2)), torch.zeros(()), torch.Generator())


def test_sites_are_filled_all_or_none() -> None:
    model = nn.Sequential(nn.Linear(2, 3), Site("pre", "nc", (3,)), Site("post", "nc", (3,)), Site("pre", "nc", (3,)))
    sites = sites_with_role(model, "pre")
    assert [site.name for site in sites] == ["1", "3"]
    with pytest.raises(ValueError, match="no 'code' Site"):
        sites_with_role(model, "code")

    def refuse_the_last(site: Site) -> nn.Module:
        if site.name == "3":
            raise ValueError("not this one")
        return nn.Identity()

    with pytest.raises(ValueError, match="not this one"):
        fill_sites(model, sites, refuse_the_last)
    assert [site.transform for site in sites] == [None, None]
    fill_sites(model, sites, lambda site: nn.BatchNorm1d(site.features))
    assert sites[0].transform is not sites[1].transform
    with pytest.raises(ValueError, match="Site '1' already holds BatchNorm1d"):
        fill_sites(model, sites, lambda site: nn.Identity())


def test_an_error_says_where() -> None:
    with pytest.raises(ValueError, match="Site 'a': too small"), errors_in("Site 'a'"):
        raise ValueError("too small")
