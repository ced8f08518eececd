"""Oracles for latent density: loops in float64, least squares in closed form, gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.latent_density.method import LatentDensity, unexplained_fraction
from reproduce.method import Site
from reproduce.method.sites import watch


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(width: int = 6) -> nn.Sequential:
    model = nn.Sequential(
        nn.Linear(5, width),
        Site("pre", "nc", (width,)),
        nn.ReLU(),
        Site("post", "nc", (width,)),
        nn.Linear(width, 3),
        Site("pre", "nc", (3,)),
        nn.Tanh(),
        Site("post", "nc", (3,)),
        nn.Linear(3, 2),
    ).double()
    with torch.no_grad():
        for place, parameter in enumerate(model.parameters()):
            parameter.copy_(seeded(*parameter.shape, seed=place))
    return model


def scaled(values: Tensor, added: float) -> np.ndarray:
    centred = values.numpy() - values.numpy().mean(0)
    return centred / np.sqrt(np.mean(centred**2) + added)


def test_the_value_is_that_of_a_loop() -> None:
    latent, target, weight = 3 * seeded(9, 3) - 1, 2 * seeded(9, 4, seed=1) + 1, seeded(4, 3, seed=2)
    z, t = scaled(latent, 1.0), scaled(target, 0.1)
    left = [(t[i, j] - sum(float(weight[j, k]) * z[i, k] for k in range(3))) ** 2 for i in range(9) for j in range(4)]
    assert float(unexplained_fraction(latent, target, weight, eps=0.1)) == pytest.approx(np.mean(left), rel=1e-12)


def test_the_best_decoder_leaves_what_least_squares_leaves() -> None:
    latent, target = seeded(40, 3), seeded(40, 4, seed=1)
    target[:, :2] += latent[:, :2] * 2
    solution, residual, *_ = np.linalg.lstsq(scaled(latent, 1.0), scaled(target, 0.0), rcond=None)
    best = torch.from_numpy(solution.T)
    found = unexplained_fraction(latent, target, best, eps=0.0)
    assert float(found) == pytest.approx(residual.sum() / 160, rel=1e-10)
    assert 0.2 < float(found) < 0.8
    assert float(unexplained_fraction(latent, target, best + 0.01, eps=0.0)) > float(found)


def test_gradients_reach_the_latents_and_the_decoder_and_not_the_target() -> None:
    z, t, w = (seeded(*shape, seed=i).requires_grad_() for i, shape in enumerate([(6, 3), (6, 4), (4, 3)]))
    fixed = t.detach()
    assert torch.autograd.gradcheck(lambda z, w: unexplained_fraction(z, fixed, w), (z, w))
    unexplained_fraction(z, t, w).backward()
    assert t.grad is None


def test_neither_means_nor_the_targets_scale_count_and_silence_is_no_pole() -> None:
    z, t, w = seeded(9, 3), seeded(9, 4, seed=1), seeded(4, 3, seed=2)
    moved = unexplained_fraction(z - 2, 7 * t + 3, w, eps=0.0)
    torch.testing.assert_close(moved, unexplained_fraction(z, t, w, eps=0.0))
    silent = torch.zeros(9, 3, dtype=torch.float64, requires_grad=True)
    found = unexplained_fraction(silent, torch.zeros(9, 4, dtype=torch.float64), w)
    found.backward()
    assert float(found.detach()) == 0
    assert silent.grad is not None
    assert bool(silent.grad.isfinite().all())


def test_the_first_activation_is_decoded_from_the_last() -> None:
    model, values = network(), seeded(8, 5, seed=30)
    method = LatentDensity(strength=0.5)
    method.prepare(model, torch.Generator().manual_seed(0))
    decoder = model[7].decoder
    assert decoder.weight.shape == (6, 3)
    trace = watch(model)
    model(values)
    found = method.penalty(trace, torch.zeros(()), torch.Generator())
    first = (values @ model[0].weight.mT + model[0].bias).clamp_min(0)
    last = torch.tanh(first @ model[4].weight.mT + model[4].bias)
    torch.testing.assert_close(found, 0.5 * unexplained_fraction(last, first, decoder.weight))


def test_training_by_it_alone_keeps_more_of_the_input() -> None:
    model, values = network(), seeded(64, 5, seed=31)
    method = LatentDensity(strength=1.0)
    method.prepare(model, torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        trace = watch(model)
        model(values)
        loss = method.penalty(trace, torch.zeros(()), torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7
    assert losses[-1] < losses[20] < losses[0]


def test_maps_are_means_of_channels() -> None:
    latent, target = Site("post", "nchw", (3, 2, 2)), Site("post", "nhwc", (2, 4, 4))
    model = nn.ModuleDict({"target": target, "latent": latent})
    method = LatentDensity(strength=1.0)
    method.prepare(model, torch.Generator().manual_seed(0))
    before, after = seeded(5, 4, 4, 2).float(), seeded(5, 3, 2, 2, seed=1).float()
    trace = watch(model)
    target(before)
    latent(after)
    found = method.penalty(trace, torch.zeros(()), torch.Generator())
    decoder = latent.decoder
    wanted = unexplained_fraction(after.mean((2, 3)), before.mean((1, 2)), decoder.weight)
    torch.testing.assert_close(found, wanted)


def test_models_that_it_cannot_treat_are_refused() -> None:
    sequence = nn.ModuleList([Site("post", "nc", (3,)), Site("post", "tnc", (3,))])
    with pytest.raises(ValueError, match="holds a sequence"):
        LatentDensity().prepare(sequence, torch.Generator())
    with pytest.raises(ValueError, match="the only 'post' Site"):
        LatentDensity().prepare(nn.ModuleList([Site("post", "nc", (3,))]), torch.Generator())
    model = network()
    LatentDensity().prepare(model, torch.Generator())
    with pytest.raises(ValueError, match="already has a decoder"):
        LatentDensity().prepare(model, torch.Generator())
    other = network()
    trace = watch(other)
    other(seeded(4, 5))
    with pytest.raises(ValueError, match="call prepare"):
        LatentDensity().penalty(trace, torch.zeros(()), torch.Generator())


def test_unusable_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 3\), \(5, 2\), \(2, 3\)"):
        unexplained_fraction(torch.ones(4, 3), torch.ones(5, 2), torch.ones(2, 3))
    for target, weight in (((4, 4, 2), (2, 3)), ((4,), (4, 3)), ((4, 2), (5, 3)), ((4, 2), (1, 3)), ((4, 2), (2, 1))):
        with pytest.raises(ValueError, match=r"need weights \(m, d\), got \[\(4, 3\)"):
            unexplained_fraction(torch.ones(4, 3), torch.ones(target), torch.ones(weight))
    with pytest.raises(ValueError, match="int64"):
        unexplained_fraction(torch.ones(4, 3, dtype=torch.int64), torch.ones(4, 2), torch.ones(2, 3))


def test_a_nearly_silent_target_is_divided_by_little_more_than_its_deviation() -> None:
    """1e-5 beside a variance of 1e-4, where the caller gives none."""
    latent, target, weight = seeded(9, 3), 0.01 * seeded(9, 4, seed=1), seeded(4, 3, seed=2)
    left = scaled(target, 1e-5) - scaled(latent, 1.0) @ weight.numpy().T
    assert float(unexplained_fraction(latent, target, weight)) == pytest.approx(np.mean(left**2), rel=1e-12)


def test_the_decoder_begins_as_one_that_keeps_variances() -> None:
    """Means 0 and variances 1/d over 20,000 weights, within four standard errors."""
    model = nn.ModuleList([Site("post", "nc", (200,)), Site("post", "nc", (100,))])
    LatentDensity().prepare(model, torch.Generator().manual_seed(0))
    weight = model[1].decoder.weight.detach().double().numpy()
    assert weight.shape == (200, 100)
    assert abs(weight.mean()) < 4 * 0.1 / np.sqrt(weight.size)
    assert abs(weight.var() - 0.01) < 4 * 0.01 * np.sqrt(2 / weight.size)
