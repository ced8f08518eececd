"""A batch without samples, or whose mask leaves none: one line for all methods, which names the Site."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reproduce import attach, load_method
from reproduce.method import Method

READING = [
    *("activity_norm", "energy_distance", "per", "sigreg", "sliced_wasserstein", "vcreg"),
    *("activity_prior", "sparse_autoencoder"),
]


def method(name: str) -> Method:
    fields = {"activity_prior": {"features": "channels"}, "sparse_autoencoder": {"sites": "post"}}
    return load_method(name, **fields.get(name, {}))


@pytest.mark.parametrize("name", READING)
def test_an_empty_batch_is_refused_by_site(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    handle = attach(method(name), model)
    model(torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"^Site '1': activations \(0, 6\) are empty, and a penalty needs a sample"):
        handle.penalty()


@pytest.mark.parametrize("name", READING)
def test_a_mask_that_leaves_nothing_is_refused_by_site(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    handle = attach(method(name), model)
    model(torch.randn(3, 5, 4))
    with pytest.raises(ValueError, match=r"^Site '1': the mask is False everywhere, and leaves no sample"):
        handle.penalty(mask=torch.zeros(3, 5, dtype=torch.bool))


def test_a_memory_keeps_what_it_has_where_a_batch_is_empty() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    handle = attach(load_method("activity_prior", memory=32), model, example=torch.randn(8, 4))
    model(torch.randn(8, 4))
    before = handle.sites[0].transform.memory.values.clone()
    model(torch.zeros(0, 4))
    assert torch.equal(handle.sites[0].transform.memory.values, before)
    assert before.count_nonzero() > 0
