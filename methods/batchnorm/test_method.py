"""Oracles for batch normalization: the paper's Algorithm 1 and printed gradient in numpy, and its invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.batchnorm.method import BatchNorm
from reproduce.method import Site
from reproduce.method.sites import watch


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalized(axes: str, features: int, **fields) -> Site:
    """A Site that the method has filled, in double precision."""
    shape = (features,) if axes == "nc" else (features, 4, 5)
    site = Site("pre", axes, shape)
    BatchNorm(**fields).prepare(nn.Sequential(site), torch.Generator())
    return site.double()


def test_forward_and_backward_are_those_printed_in_the_paper() -> None:
    site = normalized("nc", 3, eps=1e-3)
    scale, shift = seeded(3, seed=1), seeded(3, seed=2)
    site.transform.weight.data.copy_(scale)
    site.transform.bias.data.copy_(shift)
    x = (seeded(7, 3, seed=3) * 2 + 1).requires_grad_()
    upstream = seeded(7, 3, seed=4)
    y = site(x)
    (y * upstream).sum().backward()

    m, eps = 7, 1e-3
    for k in range(3):
        column, dy = x.detach().numpy()[:, k], upstream.numpy()[:, k]
        gamma, beta = scale[k].item(), shift[k].item()
        mean = sum(column) / m
        variance = sum((value - mean) ** 2 for value in column) / m
        hat = (column - mean) / np.sqrt(variance + eps)
        np.testing.assert_allclose(y.detach().numpy()[:, k], gamma * hat + beta)
        d_hat = dy * gamma
        d_variance = (d_hat * (column - mean) * -0.5 * (variance + eps) ** -1.5).sum()
        d_mean = (d_hat * -1 / np.sqrt(variance + eps)).sum() + d_variance * (-2 * (column - mean)).sum() / m
        d_x = d_hat / np.sqrt(variance + eps) + d_variance * 2 * (column - mean) / m + d_mean / m
        np.testing.assert_allclose(x.grad.numpy()[:, k], d_x, atol=1e-12)
        np.testing.assert_allclose(site.transform.weight.grad[k], (dy * hat).sum())
        np.testing.assert_allclose(site.transform.bias.grad[k], dy.sum())


def test_maps_share_statistics_over_space() -> None:
    site = normalized("nchw", 2)
    x = seeded(3, 2, 4, 5) * 3 - 1
    y = site(x)
    for channel in range(2):
        values = x[:, channel]
        wanted = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(y[:, channel], wanted)


def test_evaluation_uses_moving_averages_with_the_unbiased_variance() -> None:
    site = normalized("nc", 2, momentum=0.25)
    x = seeded(6, 2) * 2 + 3
    site(x)
    mean, variance = 0.25 * x.mean(0), 0.75 + 0.25 * x.var(0, correction=1)
    site.eval()
    torch.testing.assert_close(site(x), (x - mean) / (variance + 1e-5).sqrt())


def test_output_ignores_the_scale_of_the_weights_and_their_gradient_shrinks_with_it() -> None:
    """Section 3.3: BN((aW)u) = BN(Wu), and d BN((aW)u) / d(aW) = (1/a) d BN(Wu) / dW."""
    u, weight, upstream = seeded(20, 4), seeded(4, 3, seed=1), seeded(20, 3, seed=2)
    outputs, gradients = [], []
    for a in (1.0, 50.0):
        site = normalized("nc", 3, eps=1e-12)
        scaled = (a * weight).requires_grad_()
        y = site(u @ scaled)
        (y * upstream).sum().backward()
        outputs.append(y.detach())
        gradients.append(a * scaled.grad)
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_every_site_of_the_role_gets_its_own_and_records_the_output() -> None:
    sites = [Site(role, "nc", (3,)) for role in ("pre", "post", "pre")]
    model = nn.Sequential(*sites)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state(), torch.get_rng_state()
    BatchNorm(initial_scale=0.5).prepare(model, generator)
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert [type(site.transform) for site in sites] == [nn.BatchNorm1d, type(None), nn.BatchNorm1d]
    assert sites[0].transform is not sites[2].transform
    assert sum(parameter.numel() for parameter in model.parameters()) == 12
    trace = watch(model)
    model(seeded(5, 3).float() * 9)
    for record in trace.select("pre"):
        torch.testing.assert_close(record.activation.std(0, correction=0), torch.full((3,), 0.5), rtol=1e-4, atol=0)


def test_role_and_affine_are_hyperparameters() -> None:
    site = Site("post", "nc", (3,))
    BatchNorm(sites="post", affine=False).prepare(nn.Sequential(site), torch.Generator())
    assert site.transform is not None
    assert list(site.transform.parameters()) == []


def test_sequences_are_refused_and_the_model_is_left_alone() -> None:
    model = nn.ModuleDict({"first": Site("pre", "nc", (3,)), "recurrent": Site("pre", "tnc", (3,))})
    with pytest.raises(ValueError, match=r"'recurrent'.*sequence.*'tnc'.*: recurrent_batchnorm is the method"):
        BatchNorm().prepare(model, torch.Generator())
    assert model["first"].transform is None


def test_missing_and_filled_sites_are_refused() -> None:
    with pytest.raises(ValueError, match="no 'pre' Site"):
        BatchNorm().prepare(nn.Sequential(nn.Linear(2, 2)), torch.Generator())
    model = nn.Sequential(Site("pre", "nc", (3,)))
    BatchNorm().prepare(model, torch.Generator())
    with pytest.raises(ValueError, match="already holds BatchNorm1d"):
        BatchNorm().prepare(model, torch.Generator())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"eps": 0.0}, "eps"),
        ({"momentum": 1.5}, "momentum"),
        ({"initial_scale": -1.0}, "initial_scale"),
        ({"affine": False, "initial_scale": 0.1}, "initial_scale 0.1 has no effect"),
        ({"affine": False, "initial_scale": 2.0}, "initial_scale 2.0 has no effect"),
    ],
)
def test_unusable_hyperparameters_are_refused(fields: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BatchNorm(**fields)


def test_statistics_of_the_test_batch_standardise_it() -> None:
    model = nn.ModuleList([Site("pre", "nc", (3,))])
    BatchNorm(statistics="batch", affine=False).prepare(model, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    model[0](torch.randn(20, 3, generator=generator))
    model.eval()
    shifted = 5 * torch.randn(50, 3, generator=generator) + 9
    wanted = (shifted - shifted.mean(0)) / (shifted.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(model[0](shifted), wanted, atol=1e-5, rtol=1e-5)
    assert "statistics" not in BatchNorm().model_dump()
