"""Oracles for compound batch normalization: loops, SciPy's densities, batch normalization, scikit-learn's EM."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn

from methods.compound_batchnorm.method import (
    CompoundBatchNorm,
    Mixture,
    batch_components,
    compound_normalize,
    followed,
    responsibilities,
)
from reproduce.method import Site


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mixture(components: int = 3, units: int = 4) -> Mixture:
    weights = seeded(components, units, seed=1).softmax(0)
    return Mixture(weights, seeded(components, units, seed=2), seeded(components, units, seed=3).exp())


def filled(axes: str, features: int, **fields: object) -> Site:
    """A Site that the method has filled, in double precision."""
    site = Site("pre", axes, (features,) if axes == "nc" else (features, 2, 5))
    model = nn.Sequential(site)
    CompoundBatchNorm(**fields).prepare(model, torch.Generator().manual_seed(0))
    return site.double()


@pytest.mark.parametrize("shared", [False, True])
def test_responsibilities_are_those_of_bayes(shared: bool) -> None:
    samples, mixed, eps = seeded(11, 4), mixture(), 0.01
    weights, means, variances = (part.numpy() for part in mixed)
    densities = np.array(
        [scipy.stats.norm.pdf(samples.numpy(), means[k], np.sqrt(variances[k] + eps)) for k in range(3)]
    )
    if shared:
        wanted = np.prod(densities, axis=2, keepdims=True) * weights[:, None, :1]
    else:
        wanted = densities * weights[:, None]
    wanted = (wanted / wanted.sum(0)).swapaxes(0, 1)
    found = responsibilities(samples, mixed, shared, eps)
    assert found.shape == ((11, 3, 1) if shared else (11, 3, 4))
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert float(found.max(1).values.min()) < 0.9, "not all are decided"


@pytest.mark.parametrize("shared", [False, True])
def test_statistics_of_a_batch_are_weighted_means_with_the_mixture_as_further_samples(shared: bool) -> None:
    samples, mixed = seeded(9, 4, seed=5), mixture()
    shares = responsibilities(samples, mixed, shared)
    means, variances = batch_components(samples, shares, mixed, pseudo_samples=2.5)
    for k in range(3):
        for unit in range(4):
            weights = np.append(shares[:, k, 0 if shared else unit], 2.5)
            m, v = float(mixed.means[k, unit]), float(mixed.variances[k, unit])
            wanted = np.average(np.append(samples[:, unit], m), weights=weights)
            around = np.append((samples[:, unit] - wanted) ** 2, v + (m - wanted) ** 2)
            assert float(means[k, unit]) == pytest.approx(wanted, abs=1e-12)
            assert float(variances[k, unit]) == pytest.approx(np.average(around, weights=weights), abs=1e-12)


def test_a_component_that_the_batch_leaves_empty_stays_as_it_is() -> None:
    samples, mixed = seeded(9, 4, seed=5), mixture()
    shares = torch.tensor([[1.0, 0.0, 0.0]] * 9, dtype=torch.float64).unsqueeze(2)
    means, variances = batch_components(samples, shares, mixed)
    torch.testing.assert_close(means[1:], mixed.means[1:])
    torch.testing.assert_close(variances[1:], mixed.variances[1:])
    moved = followed(mixed, samples, shares, momentum=0.2)
    torch.testing.assert_close(moved.means[1:], mixed.means[1:])
    torch.testing.assert_close(moved.weights[1:], 0.8 * mixed.weights[1:])


def test_values_are_those_of_a_loop() -> None:
    samples, mixed = seeded(6, 4, seed=5), mixture()
    shares = responsibilities(samples, mixed)
    scale, shift = seeded(3, 4, seed=6), seeded(3, 4, seed=7)
    found = compound_normalize(samples, shares, mixed.means, mixed.variances, scale, shift, eps=0.1)
    for i in range(6):
        for c in range(4):
            parts = []
            for k in range(3):
                hat = (samples[i, c] - mixed.means[k, c]) / (float(mixed.variances[k, c]) + 0.1) ** 0.5
                parts.append(shares[i, k, c] * (scale[k, c] * hat + shift[k, c]))
            assert float(found[i, c]) == pytest.approx(float(sum(parts)), abs=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_the_moving_mixture_averages_the_statistics_of_em(shared: bool) -> None:
    mixed, momentum = mixture(), 0.3
    if shared:
        mixed = mixed._replace(weights=mixed.weights[:, :1].repeat(1, 4))

    def statistics(of: Mixture) -> list[np.ndarray]:
        w, m, v = (part.numpy() for part in of)
        return [w, w * m, w * (v + m**2)]

    moving = statistics(mixed)
    for seed in range(4):
        samples = seeded(8, 4, seed=20 + seed)
        shares = responsibilities(samples, mixed, shared)
        mixed = followed(mixed, samples, shares, momentum)
        r, x = np.broadcast_to(shares.numpy(), (8, 3, 4)), samples.numpy()
        batch = [r.mean(0), np.einsum("ikc,ic->kc", r, x) / 8, np.einsum("ikc,ic->kc", r, x**2) / 8]
        moving = [(1 - momentum) * old + momentum * new for old, new in zip(moving, batch, strict=True)]
    for found, wanted in zip(statistics(mixed), moving, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_on_one_batch_it_is_the_em_of_scikit_learn() -> None:
    samples = torch.cat([seeded(60, 2) - 3, 0.5 * seeded(20, 2, seed=1) + 2])
    begun = Mixture(
        torch.full((2, 2), 0.5, dtype=torch.float64),
        torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64),
        torch.ones(2, 2, dtype=torch.float64),
    )
    mixed = begun
    for _ in range(25):
        mixed = followed(mixed, samples, responsibilities(samples, mixed, shared=True, eps=0.0), momentum=1.0)
    oracle = GaussianMixture(
        2,
        covariance_type="diag",
        reg_covar=0.0,
        tol=0.0,
        max_iter=25,
        weights_init=begun.weights[:, 0].numpy(),
        means_init=begun.means.numpy(),
        precisions_init=(1 / begun.variances).numpy(),
    )
    with pytest.warns(Warning, match="converge"):
        oracle.fit(samples.numpy())
    np.testing.assert_allclose(mixed.weights[:, 0], oracle.weights_, rtol=1e-8)
    np.testing.assert_allclose(mixed.means, oracle.means_, rtol=1e-8)
    np.testing.assert_allclose(mixed.variances, oracle.covariances_, rtol=1e-8)


@pytest.mark.parametrize("axes", ["nc", "nchw", "nhwc"])
def test_one_component_is_batch_normalization(axes: str) -> None:
    shape = {"nc": (7, 3), "nchw": (4, 3, 2, 5), "nhwc": (4, 2, 5, 3)}[axes]
    site = filled(axes, 3, components=1, pseudo_samples=0.0, eps=1e-3)
    values = (2 * seeded(*shape) + 5).requires_grad_()
    upstream = seeded(*shape, seed=1)
    found = site(values)
    (gradient,) = torch.autograd.grad((found * upstream).sum(), values)
    plain = nn.BatchNorm1d(3, eps=1e-3).double()
    last = values.movedim(1, -1) if axes == "nchw" else values
    wanted = plain(last.reshape(-1, 3)).view(last.shape)
    wanted = wanted.movedim(-1, 1) if axes == "nchw" else wanted
    (of_plain,) = torch.autograd.grad((wanted * upstream).sum(), values)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, of_plain)


def test_shares_are_constants_to_the_gradient() -> None:
    site = filled("nc", 3, components=2)
    site(seeded(8, 3, seed=9))  # placed
    layer, values = site.transform, seeded(6, 3, seed=4)
    mixed = Mixture(layer.weights.clone(), layer.means.clone(), layer.variances.clone())
    shares = responsibilities(values, mixed)

    def with_these_shares(samples: Tensor) -> Tensor:
        statistics = batch_components(samples, shares, mixed)
        return compound_normalize(samples, shares, *statistics, layer.scale.detach(), layer.shift.detach())

    assert torch.autograd.gradcheck(with_these_shares, values.clone().requires_grad_())
    upstream, leaf, other = seeded(6, 3, seed=5), values.clone().requires_grad_(), values.clone().requires_grad_()
    wanted = torch.autograd.grad((with_these_shares(other) * upstream).sum(), other)[0]
    torch.testing.assert_close(torch.autograd.grad((site(leaf) * upstream).sum(), leaf)[0], wanted)


def test_evaluation_is_by_the_moving_mixture_and_moves_nothing() -> None:
    site = filled("nc", 3, components=2)
    for seed in range(3):
        site(seeded(20, 3, seed=seed) + 4)
    layer = site.transform
    mixed = Mixture(layer.weights.clone(), layer.means.clone(), layer.variances.clone())
    values = seeded(5, 3, seed=11) + 4
    site.eval()
    found = site(values)
    shares = responsibilities(values, mixed)
    wanted = compound_normalize(values, shares, mixed.means, mixed.variances, layer.scale, layer.shift)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(site(values[:2]), found[:2])  # an example's value is its own
    for now, before in zip((layer.weights, layer.means, layer.variances), mixed, strict=True):
        assert torch.equal(now, before)


def test_components_find_the_groups_of_a_batch() -> None:
    site = filled("nc", 8, components=2, shared=True)
    common, rare = 6 * seeded(1, 8, seed=50), -6 * seeded(1, 8, seed=50)
    for seed in range(120):
        site(torch.cat([common + seeded(90, 8, seed=seed), rare + seeded(10, 8, seed=1000 + seed)]))
    layer = site.transform
    order = layer.weights[:, 0].argsort(descending=True)
    torch.testing.assert_close(
        layer.weights[order, 0], torch.tensor([0.9, 0.1], dtype=torch.float64), atol=0.02, rtol=0
    )
    torch.testing.assert_close(layer.means[order], torch.cat([common, rare]), atol=0.5, rtol=0)
    site.eval()
    of_rare = site(rare + seeded(200, 8, seed=7)).detach()
    assert abs(float(of_rare.mean())) < 0.3, "the rare group is standardised by its own statistics"
    assert float(of_rare.std()) == pytest.approx(1, abs=0.2)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    near, far = filled("nc", 3, components=2).float(), filled("nc", 3, components=2).float()
    values = seeded(50, 3, dtype=torch.float32)
    torch.testing.assert_close(far(values + 1000), near(values), atol=2e-3, rtol=0)


def test_sites_that_hold_a_sequence_are_refused() -> None:
    with pytest.raises(ValueError, match="holds a sequence"):
        CompoundBatchNorm().prepare(nn.ModuleList([Site("pre", "tnc", (3,))]), torch.Generator())


def test_unusable_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3\) and \[\(3, 4\), \(3, 4\), \(3, 4\)\]"):
        responsibilities(seeded(5, 3), mixture())
    with pytest.raises(ValueError, match=r"got \(5, 4, 4\) and"):
        responsibilities(seeded(5, 4, 4), mixture())
    with pytest.raises(ValueError, match=r"\(5, 3, 4\) here, got \(5, 2, 1\)"):
        batch_components(seeded(5, 4), seeded(5, 2, 1), mixture())
    with pytest.raises(ValueError, match="int64"):
        responsibilities(torch.ones(5, 4, dtype=torch.int64), mixture())
