"""An autoencoder of linear layers is treated as the one with W_dec and W_enc: the same numbers, turned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.sparse_autoencoder.method import SparseAutoencoder
from methods.sparse_autoencoder.test_method import autoencoder, penalty, recorded, seeded
from methods.sparse_autoencoder.weights import weights_of
from reproduce.method.sites import Site, watch
from reproduce.models.autoencoder import UnitRows

D_IN, D_SAE = 5, 7


class Layers(nn.Module):
    """The same function as the suite's own autoencoder, of `nn.Linear`; a code Site where it is asked for."""

    def __init__(self, own: Any, unit_norm: bool, deep: bool) -> None:
        super().__init__()
        encoder, self.decoder = nn.Linear(D_IN, D_SAE), nn.Linear(D_SAE, D_IN)
        with torch.no_grad():
            encoder.weight.copy_(own.W_enc.mT)
            encoder.bias.copy_(own.b_enc)
            self.decoder.weight.copy_(weights_of(own).decoder.stored.mT)
            self.decoder.bias.copy_(own.b_dec)
        if unit_norm:
            parametrize.register_parametrization(self.decoder, "weight", UnitRows(dim=0))
        self.encoder = nn.Sequential(nn.Identity(), encoder, nn.ReLU()) if deep else encoder
        self.code = Site("code", "nc", (D_SAE,))

    def forward(self, inputs: Tensor) -> Any:
        code = self.code(self.encoder(inputs - self.decoder.bias).relu())
        return {"code": code, "reconstruction": self.decoder(code)}


def pair(unit_norm: bool = False, deep: bool = False) -> tuple[Any, Layers]:
    own = autoencoder(D_IN, D_SAE, decoder="unit_norm" if unit_norm else "free", initial_norm=0.7)
    with torch.no_grad():
        own.b_dec.copy_(0.1 * seeded(D_IN, seed=8).float())
        own.b_enc.copy_(0.1 * seeded(D_SAE, seed=9).float())
    return own, Layers(own, unit_norm, deep)


def tensors(model: Any) -> dict[str, Tensor]:
    weights = weights_of(model)
    found = {name: getattr(weights, name) for name in ("decoder", "encoder", "b_enc")}
    return {name: weight.latents_first for name, weight in found.items()} | {"b_dec": weights.b_dec}


@pytest.mark.parametrize("unit_norm", [False, True])
def test_a_penalty_weighted_by_norms_is_the_same(unit_norm: bool) -> None:
    own, layers = pair(unit_norm)
    inputs = seeded(9, D_IN).float()
    found = []
    for model in (own, layers):
        value = penalty(recorded(model, inputs), norm_weighted=True, l1_coefficient=0.3)
        value.backward()
        found.append((value, weights_of(model).decoder.stored.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1].mT)
    assert found[0][1].isfinite().all()
    assert unit_norm == (found[0][1].abs().max() < 1e-6)  # a norm of 1 has no gradient


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_training_with_resampling_is_the_same(kind: Any, unit_norm: bool, deep: bool) -> None:
    options = {"lr": 1e-2, "momentum": 0.9} if kind is torch.optim.SGD else {"lr": 1e-2}
    ends = []
    for model in pair(unit_norm, deep):
        method = SparseAutoencoder(resample_every=4, resample_until=1.0, norm_weighted=True, l1_coefficient=0.01)
        generator = torch.Generator().manual_seed(3)
        method.prepare(model, generator)
        with torch.no_grad():
            weights_of(model).b_enc.stored[[1, 4]] = -1e4  # never fires
        optimizer = kind(model.parameters(), **options)
        trace = watch(model.train())
        for step in range(9):
            inputs = seeded(16, D_IN, seed=step).float()
            trace.clear()
            optimizer.zero_grad()
            output = model(inputs)
            output = output["reconstruction"] if isinstance(output, dict) else output
            loss = (output - inputs).square().sum(1).mean()
            (loss + method.penalty(trace, torch.tensor(0.5), generator)).backward()
            optimizer.step()
            method.after_step(model, optimizer, torch.tensor(0.5), generator)
        assert weights_of(model).b_enc.stored[[1, 4]].min() > -10  # both have begun anew
        ends.append(tensors(model))
    for name, wanted in ends[0].items():
        torch.testing.assert_close(ends[1][name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_columns_of_a_unit_norm_decoder_have_length_one(unit_norm: bool) -> None:
    lengths = pair(unit_norm)[1].decoder.weight.norm(dim=0)
    torch.testing.assert_close(lengths, torch.full((D_SAE,), 1.0 if unit_norm else 0.7))


def test_a_site_inside_the_encoder_finds_the_autoencoder_around_it() -> None:
    layers = pair(deep=True)[1]
    layers.code = nn.Identity()
    layers.encoder.append(Site("code", "nc", (D_SAE,)))
    method = SparseAutoencoder(resample_every=4)
    method.prepare(layers, torch.Generator())
    assert layers.resampling.idle.shape == (D_SAE,)


def test_what_cannot_be_resampled_is_refused_in_one_line() -> None:
    layers = pair()[1]
    nn.utils.parametrizations.weight_norm(layers.decoder)
    with pytest.raises(ValueError, match=r"Site 'code': weight of .*Linear is made from several parameters"):
        SparseAutoencoder(resample_every=4).prepare(layers, torch.Generator())
    layers = pair()[1]
    layers.encoder = nn.Linear(D_IN, D_SAE, bias=False)
    with pytest.raises(ValueError, match=r"resampling needs W_dec and b_enc beside it, that is .* with a bias"):
        SparseAutoencoder(resample_every=4).prepare(layers, torch.Generator())
    layers = pair()[1]
    SparseAutoencoder(resample_every=4).prepare(layers, torch.Generator())
    watch(layers)
    layers.decoder = nn.Linear(D_SAE, 1)
    with pytest.raises(ValueError, match=r"returns a reconstruction of its inputs \(2, 5\), found dict"):
        layers(torch.ones(2, D_IN))


def test_of_several_layers_those_beside_the_code_hold_a_latent_s_weights() -> None:
    """The last of the encoder and the first of the decoder; norms of columns by numpy's own."""
    model = nn.Module()
    model.encoder = nn.Sequential(nn.Linear(D_IN, 6), nn.ReLU(), nn.Linear(6, D_SAE), nn.ReLU())
    model.decoder = nn.Sequential(nn.Linear(D_SAE, 6), nn.ReLU(), nn.Linear(6, D_IN))
    found = weights_of(model)
    assert found.encoder.stored is model.encoder[2].weight
    assert found.b_enc.stored is model.encoder[2].bias
    assert found.decoder.stored is model.decoder[0].weight
    assert (found.encoder.d_in, found.decoder.d_in) == (6, 6)
    wanted = np.linalg.norm(model.decoder[0].weight.detach().double().numpy(), axis=0)
    np.testing.assert_allclose(found.decoder.latents_first.norm(dim=1).detach(), wanted, rtol=1e-6)


@pytest.mark.parametrize("width", [3, D_IN])
def test_an_autoencoder_of_several_layers_is_refused_where_it_is_resampled(width: int) -> None:
    """Its latents' rows lie in a hidden layer, where no input belongs, as long as one or not."""
    method = SparseAutoencoder(resample_every=4)
    for name, sizes in (("encoder", (D_IN, width, D_SAE)), ("decoder", (D_SAE, width, D_IN))):
        layers = pair()[1]
        setattr(layers, name, nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:])))
        with pytest.raises(ValueError, match=f"Site 'code': .*, and {name} has several linear layers"):
            method.prepare(layers, torch.Generator())


def test_rows_that_no_input_fits_into_are_refused_where_it_is_resampled() -> None:
    method, short = SparseAutoencoder(resample_every=4), D_IN - 2
    layers = pair()[1]
    as_map = nn.Unflatten(1, (1, -1))
    layers.encoder = nn.Sequential(as_map, nn.Conv1d(1, 1, 3), nn.Flatten(), nn.Linear(short, D_SAE))
    with pytest.raises(ValueError, match=rf"Site 'code': .* whose rows have {D_IN} and {short} entries"):
        method.prepare(layers, torch.Generator())
    layers.decoder = nn.Sequential(nn.Linear(D_SAE, short), as_map, nn.ConvTranspose1d(1, 1, 3), nn.Flatten())
    layers.decoder.bias = torch.zeros(D_IN)  # which this encoder subtracts
    method.prepare(layers, torch.Generator())
    trace = watch(layers)
    layers(seeded(6, D_IN).float())
    method.penalty(trace, torch.tensor(0.5), torch.Generator())
    optimizer = torch.optim.SGD(layers.parameters(), 0.1)
    with pytest.raises(ValueError, match=rf"has {short} entries, and inputs have shape \(6, {D_IN}\): encoder"):
        method.after_step(layers, optimizer, torch.tensor(0.5), torch.Generator())
