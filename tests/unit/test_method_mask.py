"""Padding that a mask leaves out of penalties, on models whose inputs are padded."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.orthogonal.method import OrthogonalRegularization
from methods.per.method import PER, per_loss
from methods.sigreg.method import SIGReg
from methods.vcl.method import VCL
from methods.vcreg.method import VCReg
from reproduce.method.attach import attach

LENGTHS = torch.tensor([5, 2, 3])
MASK = torch.arange(5) < LENGTHS.unsqueeze(1)
READING = [
    PER(strength=1.0),
    PER(strength=1.0, reduction="sum"),
    VCReg(),
    SIGReg(),
    ActivityNorm(kind="l1", strength=1.0),
]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))


def encoder(batch_first: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.GELU(), batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("method", READING, ids=repr)
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_does_not_see_its_padding(method: Any, batch_first: bool, tokens: Tensor) -> None:
    model = encoder(batch_first)
    handle = attach(method, model)
    found, without = [], []
    for filling in (0.0, 9.0):
        padded = torch.where(MASK.unsqueeze(-1), tokens, filling)
        padded = padded if batch_first else padded.transpose(0, 1)
        for penalties, mask in ((found, MASK), (without, None)):
            model(padded, src_key_padding_mask=~MASK)
            penalties.append(handle.penalty(mask=mask))
    torch.testing.assert_close(found[0], found[1])
    assert abs(without[0] - without[1]) > 1e-3 * abs(without[0])


def test_the_penalty_is_that_of_the_sentences_one_by_one(tokens: Tensor) -> None:
    model = encoder()
    handle = attach(PER(strength=1.0), model)
    hidden: list[list[Tensor]] = [[], []]
    hooks = [
        layer.activation.register_forward_hook(lambda module, arguments, output, rows=rows: rows.append(output[0]))
        for layer, rows in zip(model.layers, hidden, strict=True)
    ]
    for sentence, length in zip(tokens, LENGTHS, strict=True):
        model(sentence[None, :length])
    for hook in hooks:
        hook.remove()
    expected = sum(per_loss(torch.cat(rows)) for rows in hidden)
    model(tokens, src_key_padding_mask=~MASK)
    torch.testing.assert_close(handle.penalty(mask=MASK), expected)


@pytest.mark.parametrize("method", READING, ids=repr)
def test_a_packed_sequence_holds_no_padding(method: Any, tokens: Tensor) -> None:
    """It is what a mask leaves of the same layer unpacked; a mask beside it changes nothing."""
    torch.manual_seed(0)
    model = nn.LSTM(8, 6, batch_first=True)
    handle = attach(method, model)
    model(tokens)
    masked = handle.penalty(mask=MASK)
    for mask in (None, MASK):
        model(pack_padded_sequence(tokens, LENGTHS, batch_first=True, enforce_sorted=False))
        torch.testing.assert_close(handle.penalty(mask=mask), masked)


def test_rows_of_examples_are_left_as_they_are(tokens: Tensor) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.act, self.pooled, self.last = nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Tanh()

        def forward(self, value: Tensor) -> Tensor:
            hidden = self.act(self.token(value)) * MASK.unsqueeze(-1)
            return self.last(self.pooled(hidden.sum(1)))

    model = Classifier()
    handle = attach(ActivityNorm(strength=1.0), model)
    output = model(tokens)
    rows = model.token(tokens).relu()[MASK]
    expected = rows.square().sum(1).mean() + output.square().sum(1).mean()
    torch.testing.assert_close(handle.penalty(mask=MASK), expected)


def test_locations_of_signals_take_a_mask(tokens: Tensor) -> None:
    model = nn.Sequential(nn.Conv1d(8, 6, 3, padding=1), nn.ReLU())
    handle = attach(VCReg(), model)
    rows = model(tokens.transpose(1, 2)).transpose(1, 2)[MASK]
    masked = handle.penalty(mask=MASK)
    alone = nn.Sequential(nn.Identity(), nn.Identity())
    other = attach(VCReg(), alone, sites=["1"])
    alone(rows)
    torch.testing.assert_close(masked, other.penalty())


class StepByStep(nn.Module):
    """One module at each step: its rows are of one step, and their number says nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(8, 6), nn.ReLU()

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.stack([self.act(self.layer(step)) for step in tokens.unbind(1)], 1)


@pytest.mark.parametrize(
    ("method", "model", "mask", "message"),
    [
        (
            VCL(sites="post", sample_size=1, unbiased=False),
            nn.LSTM(8, 6, batch_first=True),
            MASK,
            "reads its activations whole",
        ),
        (
            ActivityNorm(kind="ar_tar", strength=0.0, temporal_strength=1.0),
            nn.LSTM(8, 6, batch_first=True),
            MASK,
            "whole",
        ),
        (
            BatchNorm(sites="post"),
            nn.Sequential(nn.Conv1d(5, 6, 1), nn.ReLU()),
            MASK,
            "BatchNorm1d, which has seen padded",
        ),
        (PER(), nn.Sequential(nn.Conv1d(5, 6, 1), nn.ReLU()), MASK, "choose features = 'channels', where it has them"),
        (PER(), nn.Sequential(nn.Linear(8, 6), nn.ReLU()), MASK.int(), "a mask is Boolean"),
        (PER(), nn.Sequential(nn.Linear(8, 6), nn.ReLU()), MASK[0], "(n, positions...), True where a position is real"),
        (PER(), nn.Sequential(nn.Linear(8, 6), nn.ReLU()), MASK.T, "a mask (5, 3) does not fit activations (3, 5, 6)"),
        (PER(), nn.Sequential(nn.Flatten(0, 1), nn.Linear(8, 6), nn.ReLU()), MASK, "holds 15 rows without positions"),
        (PER(), StepByStep(), MASK, "met 5 times in the forward pass"),
        (PER(), nn.Sequential(nn.Linear(8, 6), nn.ReLU()), torch.zeros_like(MASK), "the mask is False everywhere"),
    ],
)
def test_a_mask_that_cannot_be_honoured_is_refused(
    method: Any, model: nn.Module, mask: Tensor, message: str, tokens: Tensor
) -> None:
    handle = attach(method, model, example=tokens)
    model(tokens)
    with pytest.raises(ValueError, match=re.escape(message)):
        handle.penalty(mask=mask)
    model(tokens)
    assert torch.isfinite(handle.penalty())  # without the mask, as before


def test_a_penalty_on_weights_knows_no_padding(tokens: Tensor) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU())
    handle = attach(OrthogonalRegularization(strength=1.0), model)
    found = []
    for mask in (None, MASK):
        model(tokens)
        found.append(handle.penalty(mask=mask))
    assert torch.equal(*found)
