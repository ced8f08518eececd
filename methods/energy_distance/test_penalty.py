"""The energy distance on recorded activations: what is a sample, which draws, and how Sites add up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from methods.energy_distance.method import EnergyDistance, energy_distance, sliced_energy_distance
from reproduce.method import sample_directions
from reproduce.method.sites import Site, Trace, watch


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recorded(axes: str, *activations: Tensor) -> Trace:
    """The Trace of a model that passed each activation through a post Site of its own."""
    channel = 1 if axes == "nchw" else -1
    sites = [Site("post", axes, (value.shape[channel],)) for value in activations]
    trace = watch(nn.ModuleList([*sites, nn.Linear(1, 1)]).train())
    for site, value in zip(sites, activations, strict=True):
        site(value)
    return trace


def penalty(trace: Trace, seed: int = 0, **fields) -> Tensor:
    return EnergyDistance(**fields).penalty(trace, torch.tensor(0.5), torch.Generator().manual_seed(seed))


def test_penalty_sums_layers_and_is_weighted() -> None:
    first, second = seeded(4, 6), seeded(4, 40)
    wanted = 0.3 * (energy_distance(first) + energy_distance(second))
    torch.testing.assert_close(penalty(recorded("nc", first, second), strength=0.3), wanted)


def test_examples_are_grouped_as_they_come_and_draw_nothing() -> None:
    units, maps = seeded(12, 6), seeded(12, 3, 4, 5)
    found = [penalty(recorded("nc", units), seed, strength=1.0, group_size=4) for seed in (0, 1)]
    assert found[0] == found[1] == energy_distance(units, 1, 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        trace = recorded("nchw", maps.to(memory_format=layout))
        torch.testing.assert_close(
            penalty(trace, strength=1.0, group_size=4), energy_distance(maps.reshape(12, 60), 1, 4)
        )


def test_time_steps_and_locations_are_grouped_at_random() -> None:
    outputs, maps = seeded(7, 4, 10), seeded(2, 3, 4, 5)
    locations = maps.permute(0, 2, 3, 1).reshape(40, 3)
    for trace, samples in (
        (recorded("tnc", outputs), outputs.reshape(28, 10)),
        (recorded("nchw", maps), locations),
    ):
        options = {"strength": 1.0, "group_size": 5, "features": "channels"}
        found = penalty(trace, 3, **options)
        torch.testing.assert_close(found, energy_distance(samples, 1, 5, torch.Generator().manual_seed(3)))
        assert found != penalty(trace, 4, **options)
        torch.testing.assert_close(
            penalty(trace, 4, **{**options, "group_size": 21}), energy_distance(samples)
        )  # one group draws nothing


def test_layers_of_one_width_share_the_slices_of_a_step() -> None:
    h, other = seeded(4, 6), seeded(4, 9)
    options = {"mode": "sliced", "n_slices": 3, "strength": 1.0}
    generator = torch.Generator().manual_seed(0)
    draws = [sample_directions(value.shape[1], 3, generator) for value in (h, other)]
    wanted = [sliced_energy_distance(value, directions=draw) for value, draw in zip((h, other), draws, strict=True)]
    torch.testing.assert_close(penalty(recorded("nc", h, other, h), **options), 2 * wanted[0] + wanted[1])


@pytest.mark.parametrize("mode", ["exact", "sliced"])
def test_strength_zero_is_exactly_zero_whatever_the_activations(mode: str) -> None:
    found = penalty(recorded("nc", torch.full((1, 3), math.nan)), strength=0.0, mode=mode)
    assert found.item() == 0.0
    assert found.shape == ()


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 samples are needed"):
        penalty(recorded("nc", torch.ones(1, 3)))


@pytest.mark.parametrize("fields", [{"strength": -1.0}, {"mode": "fast"}, {"group_size": 1}, {"n_slices": 0}])
def test_unusable_hyperparameters_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        EnergyDistance(**fields)
