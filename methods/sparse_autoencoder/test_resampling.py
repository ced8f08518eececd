"""Resampling in autoencoders and loops of one's own, through `attach`: what is drawn from, and what has fired."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from methods.sparse_autoencoder.method import SparseAutoencoder, l1_code_penalty
from methods.sparse_autoencoder.weights import weights_of
from reproduce import attach

DEAD, D_IN, D_SAE = [1, 4], 4, 7


def layers() -> OrderedDict[str, nn.Module]:
    """Latents 1 and 4 never fire; the loss is about the squared length of the input."""
    torch.manual_seed(0)
    found: OrderedDict[str, nn.Module] = OrderedDict(
        encoder=nn.Linear(D_IN, D_SAE), act=nn.ReLU(), decoder=nn.Linear(D_SAE, D_IN)
    )
    with torch.no_grad():
        found["encoder"].bias.fill_(10.0)
        found["encoder"].bias[DEAD] = -1e9
        found["decoder"].weight.mul_(1e-3)
    return found


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, layer in layers().items():
            self.add_module(name, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(self.act(self.encoder(inputs)))
        return decoded


class Session:
    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model: Any = model
        method = SparseAutoencoder(resample_every=2)
        self.handle = attach(method, model, sites={"act": "code"}, example=example)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def part(self, inputs: Tensor, **options: Any) -> None:
        self.model(inputs)
        self.handle.penalty(**options).backward()

    def step(self) -> None:
        self.optimizer.step()
        self.handle.after_step(self.optimizer)

    def expect_rows_towards(self, target: Tensor) -> None:
        expected = nn.functional.normalize(target - self.model.decoder.bias, dim=0)
        torch.testing.assert_close(self.model.decoder.weight[:, DEAD].mT, expected.expand(2, D_IN))


def inputs_with_an_outlier(*shape: int, place: int) -> tuple[Tensor, Tensor]:
    """Inputs (..., d_in), and the one whose loss is so much larger that it is the one drawn."""
    inputs = torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1))
    inputs.view(-1, D_IN)[place] *= 1e4
    return inputs, inputs.view(-1, D_IN)[place]


def test_codes_of_sequences_are_drawn_position_by_position() -> None:
    inputs, target = inputs_with_an_outlier(3, 5, place=7)
    session = Session(Coder(), inputs)
    for _ in range(2):
        session.part(inputs)
        session.step()
    session.expect_rows_towards(target)


def test_an_autoencoder_may_be_a_sequential_and_be_called_by_name() -> None:
    inputs, target = inputs_with_an_outlier(16, place=3)
    model = nn.Sequential(layers())
    expected = model(inputs)
    session = Session(model, inputs)
    torch.testing.assert_close(model(input=inputs), expected)
    for _ in range(2):
        session.model(input=inputs)
        session.handle.penalty().backward()
        session.step()
    session.expect_rows_towards(target)


@pytest.mark.parametrize("place", [2, 13])
def test_of_accumulated_batches_any_may_be_drawn(place: int) -> None:
    inputs, target = inputs_with_an_outlier(16, place=place)
    session = Session(Coder(), inputs)
    for _ in range(2):
        for part in inputs.split(8):
            session.part(part)
        session.step()
    session.expect_rows_towards(target)
    assert not session.model.resampling.batches


def test_a_pass_without_gradients_or_without_its_penalty_is_not_drawn_from() -> None:
    inputs, target = inputs_with_an_outlier(16, place=3)
    other = torch.full((8, D_IN), 1e6)
    session = Session(Coder(), inputs)
    for _ in range(2):
        session.model(other)
        session.part(inputs)
        with torch.no_grad():
            session.model(other)
        session.step()
    session.expect_rows_towards(target)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_call_of_the_autoencoder_alone_is_not_drawn_from(is_whole: bool) -> None:
    """What is drawn is what was recorded: of a part the other input would be, of the whole both are passes."""
    inputs, target = inputs_with_an_outlier(16, place=3)
    other = torch.full((8, D_IN), 1e6)
    coder = Coder()
    model = coder if is_whole else nn.Sequential(OrderedDict(before=nn.Identity(), coder=coder))
    sites = {"act" if is_whole else "coder.act": "code"}
    handle = attach(SparseAutoencoder(resample_every=2), model, sites=sites, example=inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        (model if is_whole else coder)(other)
        model(inputs)
        if not is_whole:
            coder(other)
        handle.penalty().backward()
        optimizer.step()
        handle.after_step(optimizer)
    expected = nn.functional.normalize(target - coder.decoder.bias, dim=0)
    torch.testing.assert_close(coder.decoder.weight[:, DEAD].mT, expected.expand(2, D_IN))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_what_a_checkpoint_computes_again_is_not_kept(use_reentrant: bool) -> None:
    """Nor does it stay in memory where no step follows."""
    inputs, _ = inputs_with_an_outlier(16, place=3)
    session = Session(Coder(), inputs)
    output = checkpoint(session.model, inputs.requires_grad_(), use_reentrant=use_reentrant)
    if not use_reentrant:
        (output.sum() + session.handle.penalty()).backward()
        assert len(session.model.resampling.batches) == 1
    else:
        output.sum().backward()
    assert session.model.resampling.batch is None


def test_a_mask_is_refused_since_padding_would_count_as_fired() -> None:
    inputs = torch.randn(3, 5, D_IN)
    session = Session(Coder(), inputs)
    session.model(inputs)
    with pytest.raises(ValueError, match=r"'act': resampling counts and draws padded positions too: give no mask"):
        session.handle.penalty(mask=torch.ones(3, 5, dtype=torch.bool))


def test_norms_of_a_pruned_decoder_are_of_the_weights_in_use_and_it_cannot_be_resampled() -> None:
    model = Coder()
    prune.l1_unstructured(model.decoder, "weight", 0.5)
    with torch.no_grad():
        model.decoder.weight_orig.mul_(2)
    rows = weights_of(model).decoder.latents_first
    torch.testing.assert_close(rows.mT, model.decoder.weight_orig * model.decoder.weight_mask)
    code = torch.rand(6, D_SAE)
    norms = (model.decoder.weight_orig * model.decoder.weight_mask).double().square().sum(0).sqrt()
    torch.testing.assert_close(l1_code_penalty(code, rows).double(), (code.double() * norms).sum(1).mean())
    with pytest.raises(ValueError, match=r"'act': weight of Linear is no parameter, and resampling writes one"):
        Session(model, torch.randn(2, D_IN))
