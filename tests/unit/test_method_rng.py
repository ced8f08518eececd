"""Streams of random numbers: named, repeatable, apart from each other."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import fields

import torch

from reproduce.method.rng import Generators, derived_seed

CPU = torch.device("cpu")
NAMES = ["initialisation", "order", "augmentation", "dropout", "method"]


def draws(generators: Generators) -> dict[str, list[float]]:
    return {name: torch.rand(4, generator=getattr(generators, name)).tolist() for name in NAMES}


def test_streams_are_these() -> None:
    """Their names and order are part of every sealed Result."""
    assert [field.name for field in fields(Generators)] == NAMES


def test_derived_seed_is_the_hash() -> None:
    expected = int(hashlib.sha256(b"7/dropout").hexdigest()[:16], 16) // 2
    assert derived_seed(7, "dropout") == expected
    assert Generators.seeded(7, CPU).dropout.initial_seed() == expected


def test_no_two_streams_share_a_seed() -> None:
    seeds = {derived_seed(seed, name) for seed, name in itertools.product(range(100), NAMES)}
    assert len(seeds) == 100 * len(NAMES)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_same_seed_same_numbers() -> None:
    first, second, other = (draws(Generators.seeded(seed, CPU)) for seed in (3, 3, 4))
    assert first == second
    assert all(first[name] != other[name] for name in NAMES)
    assert len({tuple(values) for values in first.values()}) == len(NAMES)


def test_state_goes_on_where_it_was() -> None:
    generators = Generators.seeded(0, CPU)
    draws(generators)
    saved = generators.state_dict()
    expected = draws(generators)
    elsewhere = Generators.seeded(99, CPU)
    elsewhere.load_state_dict(saved)
    assert draws(elsewhere) == expected
    generators.load_state_dict(saved)
    assert draws(generators) == expected
