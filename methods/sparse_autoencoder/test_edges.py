"""Which latents count as silent, and codes and decoders at the edges of their ranges: by hand and by loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.sparse_autoencoder.method import SparseAutoencoder, kl_sparsity, l1_code_penalty
from methods.sparse_autoencoder.weights import weights_of
from reproduce.method.sites import Site, watch

D_IN, D_SAE = 3, 4


class Layers(nn.Module):
    """An autoencoder whose latents fire where the test says so; the reconstruction passes a Site that is no code."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(D_IN, D_SAE), nn.Linear(D_SAE, D_IN)
        self.code, self.after = Site("code", "nc", (D_SAE,)), Site("post", "nc", (D_IN,))
        self.gate = torch.ones(D_SAE)

    def forward(self, inputs: Tensor) -> Tensor:
        code = self.code((self.encoder(inputs).abs() + 1) * self.gate)
        decoded: Tensor = self.after(self.decoder(code))
        return decoded


def written(fired: list[list[list[int]]], every: int) -> list[list[int]]:
    """After each step the latents whose weights it has written; ``fired``: of each step and batch, those that fire."""
    model: Any = Layers()
    method, generator = SparseAutoencoder(resample_every=every, resample_until=1.0), torch.Generator().manual_seed(0)
    method.prepare(model, generator)
    trace, inputs, found = watch(model.train()), torch.randn(6, D_IN), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for batches in fired:
        trace.clear()
        before = model.decoder.weight.detach().clone()
        for latents in batches:
            model.gate = torch.tensor([float(latent in latents) for latent in range(D_SAE)])
            model(inputs)
            method.penalty(trace, torch.tensor(0.5), generator)
        method.after_step(model, optimizer, torch.tensor(0.5), generator)
        found.append((before != model.decoder.weight).any(0).nonzero().flatten().tolist())
    return found


@pytest.mark.parametrize("every", [2, 4, 6, 7])
def test_a_latent_is_dead_that_was_silent_over_the_last_half_of_the_steps(every: int) -> None:
    """Latent 0 always fires, 1 last in the step before that half, 2 in its first, and 3 never."""
    last = {0: every, 1: every - every // 2, 2: every - every // 2 + 1, 3: 0}
    fired = [[[latent for latent, until in last.items() if step <= until]] for step in range(1, every + 1)]
    assert written(fired, every) == [[]] * (every - 1) + [[1, 3]]


def test_a_latent_that_any_of_the_accumulated_batches_fires_is_alive() -> None:
    assert written([[[0], [0, 1], [0, 2]]] * 2, 2) == [[], [3]]


def test_a_mean_activity_above_one_is_not_a_number_and_one_rounded_up_is() -> None:
    for mean in (1.001, 1.5, 3.0):
        assert kl_sparsity(torch.full((4, 2), mean), 0.1).isnan()
        assert kl_sparsity(torch.tensor([[0.5, mean]] * 4), 0.1).isnan()
    rounded = kl_sparsity(torch.full((4, 1), 1 + 2e-6), 0.1).item()
    assert rounded == pytest.approx(0.1 * math.log(0.1) + 0.9 * math.log(0.9 / 2.0**-24), rel=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e14, 1e30])
def test_rows_of_a_decoder_of_any_size_have_their_norms(size: float) -> None:
    """Above 1e19 float32 has no number for their squares."""
    torch.manual_seed(0)
    decoder, code = size * torch.randn(D_SAE, D_IN), torch.rand(5, D_SAE) / 10
    norms = [math.hypot(*row) for row in decoder.double().tolist()]
    wanted = sum(f * norm for sample in code.double().tolist() for f, norm in zip(sample, norms, strict=True)) / 5
    assert l1_code_penalty(code, decoder).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["decoder", "encoder", "b_enc"])
@pytest.mark.parametrize("kind", ["Adam", "SGD", "Adagrad"])
def test_what_is_written_anew_has_no_moments_of_before(kind: str, name: str) -> None:
    """Moments that are not zero before: unlike those of latents that never fired."""
    model = Layers()
    weight: Any = getattr(weights_of(model), name)
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)
    model(torch.randn(6, D_IN)).square().sum().backward()
    optimizer.step()
    latents_axis = 1 if name == "decoder" else 0
    state = optimizer.state[weight.stored]
    before = {key: value.clone() for key, value in state.items()}
    old, new = weight.stored.detach().clone(), torch.full_like(weight.latents_first, 3.0)
    with torch.no_grad():
        weight.write(new, torch.tensor([False, True, False, True]), optimizer)
    for key, value in state.items():
        if value.dim() == 0:  # how many steps there were
            assert torch.equal(value, before[key])
            continue
        for latent in range(D_SAE):
            kept = before[key].select(latents_axis, latent)
            assert kept.abs().min() > 0
            expected = torch.zeros_like(kept) if latent in (1, 3) else kept
            assert torch.equal(value.select(latents_axis, latent), expected)
    for latent in range(D_SAE):
        kept = old.select(latents_axis, latent)
        expected = torch.full_like(kept, 3.0) if latent in (1, 3) else kept
        assert torch.equal(weight.stored.select(latents_axis, latent), expected)
