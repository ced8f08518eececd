"""Models of several types: what a method puts at a Site has the type of what passes there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce import attach
from reproduce.method import Site, dtype_of

FILLING = ["batchnorm", "compound_batchnorm", "quantile_activation", "distribution_mismatch_correction", "vcl"]
TYPES = [
    (torch.float32, torch.float64),
    (torch.float64, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.bfloat16),
]


class Mixed(nn.Module):
    """Features of one type, and a head of another, between whose layers the Site is."""

    def __init__(self, first: torch.dtype, then: torch.dtype) -> None:
        super().__init__()
        self.features, self.before = nn.Linear(3, 4).to(first), nn.Tanh()
        self.hidden, self.act, self.head = nn.Linear(4, 4).to(then), nn.Tanh(), nn.Linear(4, 1).to(then)
        self.first, self.then = first, then

    def forward(self, value: Tensor) -> Tensor:
        hidden = self.hidden(self.before(self.features(value.to(self.first))).to(self.then))
        return self.head(self.act(hidden))


def mixed(first: torch.dtype, then: torch.dtype) -> tuple[Mixed, Tensor]:
    torch.manual_seed(0)
    return Mixed(first, then), torch.randn(12, 3)


@pytest.mark.parametrize(("first", "then"), TYPES)
@pytest.mark.parametrize("name", FILLING)
def test_each_site_has_the_type_of_its_activations(name: str, first: torch.dtype, then: torch.dtype) -> None:
    model, inputs = mixed(first, then)
    known = set(map(id, model.parameters()))
    options: dict[str, Any] = {"include_first": True} if name == "vcl" else {}
    handle = attach(name, model, sites="pre", example=inputs, **options)
    for site, of_activation in zip(handle.sites, (first, then), strict=True):
        expected = torch.float64 if of_activation == torch.float64 else torch.float32
        held = {tensor.dtype for tensor in (*site.parameters(), *site.buffers()) if tensor.is_floating_point()}
        assert held == {expected}
    output = model(inputs)
    assert output.dtype == then
    (output.square().mean() + handle.penalty()).backward()
    added = [parameter for parameter in model.parameters() if id(parameter) not in known]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in added)


def test_batch_normalization_in_double_precision_is_exact_behind_features_in_float32() -> None:
    model, inputs = mixed(torch.float32, torch.float64)
    handle = attach("batchnorm", model, sites=["hidden"], example=inputs)
    seen: list[Tensor] = []
    model.act.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    hidden = nn.functional.linear(
        model.before(model.features(inputs)).double(), model.hidden.weight, model.hidden.bias
    ).detach()
    model(inputs)
    transform = handle.sites[0].transform
    assert transform is not None
    by_hand = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + transform.eps).sqrt()
    torch.testing.assert_close(seen[0], by_hand, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("first", "then"), TYPES)
def test_a_decoder_of_latents_has_their_type(first: torch.dtype, then: torch.dtype) -> None:
    """The formula of its paper, in double precision: what is left of the target, as a share of its variance."""
    model, inputs = mixed(first, then)
    handle = attach("latent_density", model, sites="post", example=inputs, strength=1.0)
    target, latent = [], []
    model.before.register_forward_hook(lambda module, given, output: target.append(output.detach().double()))
    model.act.register_forward_hook(lambda module, given, output: latent.append(output.detach().double()))
    model(inputs)
    weight = handle.sites[-1].decoder.weight
    assert weight.dtype == (torch.float64 if then == torch.float64 else torch.float32)
    (t, z), w = (part - part.mean(0) for part in (target[0], latent[0])), weight.detach().double()
    left = t / (t.square().mean() + 1e-5).sqrt() - z / (z.square().mean() + 1.0).sqrt() @ w.T
    torch.testing.assert_close(handle.penalty().double(), left.square().mean(), rtol=1e-5, atol=1e-7)


def test_without_a_dry_run_the_first_parameter_says_it() -> None:
    model = Mixed(torch.float64, torch.float32)
    site = Site("post", "nc", (4,))
    assert dtype_of(model, site) == dtype_of(model) == torch.float64
    site.dtype = torch.bfloat16
    assert dtype_of(model, site) == torch.float32
