"""Vanilla leaves the network, its random numbers and its loss alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from methods.vanilla.method import Vanilla
from reproduce.method import Site
from reproduce.method.sites import watch


def test_nothing_is_changed_and_nothing_is_added() -> None:
    site = Site("post", "nc", (3,))
    model = nn.Sequential(nn.Linear(3, 3), site)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    Vanilla().prepare(model, generator)
    trace = watch(model)
    model(torch.full((2, 3), math.nan))
    penalty = Vanilla().penalty(trace, torch.tensor(0.5), generator)
    assert penalty.item() == 0.0
    assert penalty.shape == ()
    assert site.transform is None
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(generator.get_state(), state)
