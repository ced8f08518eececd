"""Which of batch and time comes first, where sequences are transposed and cut on their way to an activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from methods.quantile_activation.method import QAct
from methods.vcl.method import VCL
from reproduce.method.attach import attach
from tests.unit.own_models import L2, Wired, assert_penalty, layouts


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def tagger(cut: int | None, act: nn.Module | None = None, scale: float | None = None) -> Wired:
    """A recurrent layer with time first on a batch that has it second; its last steps are cut away."""

    def wire(model: Any, tokens: Tensor) -> Tensor:
        states = model.rnn(tokens.transpose(0, 1))[0].transpose(0, 1)[:, :cut]
        return model.act(model.head(states if scale is None else states * scale))

    return Wired(wire, rnn=nn.LSTM(4, 6), head=nn.Linear(6, 7), act=act or nn.ReLU())


def masked(activation: Tensor, mask: Tensor) -> Tensor:
    """L2 of batch-first activations at the positions of a mask (n, t), one by one."""
    rows = [activation[n, t].double().square().sum() for n, t in mask.nonzero().tolist()]
    return torch.stack(rows).mean()


def prefixes(n: int, t: int) -> Tensor:
    """A mask of sequences of other lengths: no two are alike, and it is not its own transpose."""
    return torch.arange(t).unsqueeze(0) < 1 + (torch.arange(n) * 5 % t).unsqueeze(1)


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("has_example", [False, True])
@pytest.mark.parametrize(("n", "t", "cut"), [(20, 5, -1), (12, 13, -1), (6, 6, None), (1, 5, -1), (5, 2, -1)])
def test_a_mask_fits_what_was_transposed_and_cut(
    n: int, t: int, cut: int | None, has_example: bool, scale: float | None
) -> None:
    model, tokens = tagger(cut, scale=scale), torch.randn(n, t, 4)
    handle = attach(L2, model, sites=["act"], example=tokens if has_example else None)
    model(tokens)
    steps = model.recorded.shape[1]
    mask = prefixes(n, steps)
    if scale is not None and n == steps:  # a function is between, and sizes do not tell
        with pytest.raises(ValueError, match=r"Site 'act': .* 'tnc' or 'ntc': give axes="):
            handle.penalty(mask=mask)
        return
    assert layouts(handle) == [("ntc", 7)]
    assert_penalty(handle, masked(model.recorded, mask), mask)


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("layer", ["attention", "encoder"])
def test_attention_with_time_first_on_a_batch_that_has_it_second(layer: str, is_transposed: bool) -> None:
    def wire(model: Any, tokens: Tensor) -> Tensor:
        steps = tokens.transpose(0, 1)
        attended = model.layer(steps) if layer == "encoder" else model.layer(steps, steps, steps)[0]
        return model.act(model.head(attended.transpose(0, 1)[:, 1:] + 1 if is_transposed else attended[1:] + 1))

    made = nn.MultiheadAttention(8, 2) if layer == "attention" else nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
    model, tokens = Wired(wire, layer=made, head=nn.Linear(8, 9), act=nn.ELU()), torch.randn(7, 6, 8)
    handle = attach(L2, model, sites=["act"])
    model(tokens)
    assert layouts(handle) == [("ntc" if is_transposed else "tnc", 9)]
    mask = prefixes(7, 5)
    assert_penalty(handle, masked(model.recorded if is_transposed else model.recorded.transpose(0, 1), mask), mask)


def test_attention_between_layers_with_the_batch_first() -> None:
    def wire(model: Any, tokens: Tensor) -> Tensor:
        states = model.rnn(tokens)[0]
        steps = states.transpose(0, 1)
        attended = model.attention(steps, steps, steps)[0].transpose(0, 1)
        return model.act(model.head(attended[:, :1] + states))

    modules = {"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 8), "act": nn.ReLU()}
    model, tokens = Wired(wire, rnn=nn.GRU(4, 8, batch_first=True), **modules), torch.randn(12, 5, 4)
    handle, mask = attach(L2, model, sites=["act"]), prefixes(12, 5)
    model(tokens)
    assert_penalty(handle, masked(model.recorded, mask), mask)


def test_queries_with_the_batch_first_beside_an_encoder_with_time_first() -> None:
    def wire(model: Any, tokens: Tensor, queries: Tensor) -> Tensor:
        last = model.rnn(tokens.transpose(0, 1))[1][0]
        return model.act(model.head(queries + last[:, None]))

    model = Wired(wire, rnn=nn.GRU(4, 8), head=nn.Linear(8, 8), act=nn.ReLU())
    handle, mask = attach(L2, model, sites=["act"]), prefixes(12, 7)
    model(torch.randn(12, 5, 4), torch.randn(12, 7, 8))
    assert layouts(handle) == [("ntc", 8)]
    assert_penalty(handle, masked(model.recorded, mask), mask)


@pytest.mark.parametrize("batch_first", [False, True], ids=["layer_time_first", "layer_batch_first"])
@pytest.mark.parametrize("padded_batch_first", [False, True], ids=["padded_time_first", "padded_batch_first"])
def test_a_packed_sequence_is_padded_in_either_order(batch_first: bool, padded_batch_first: bool) -> None:
    lengths = torch.tensor([5, 4, 3, 3, 2, 1, 1])

    def wire(model: Any, tokens: Tensor) -> Tensor:
        packed = pack_padded_sequence(tokens, lengths, batch_first=True)
        padded = pad_packed_sequence(model.rnn(packed)[0], batch_first=padded_batch_first)[0]
        return model.act(model.head(padded))

    rnn = nn.LSTM(4, 6, batch_first=batch_first)
    model, tokens = Wired(wire, rnn=rnn, head=nn.Linear(6, 7), act=nn.ReLU()), torch.randn(7, 5, 4)
    handle, mask = attach(L2, model, sites=["act"]), torch.arange(5) < lengths.unsqueeze(1)
    model(tokens)
    recorded = model.recorded if padded_batch_first else model.recorded.transpose(0, 1)
    assert_penalty(handle, masked(recorded, mask), mask)


def before_a_recurrent_layer(is_transposed: bool, scale: float | None = None) -> Wired:
    def wire(model: Any, steps: Tensor) -> Tensor:
        hidden = model.act(model.embed(steps))
        hidden = hidden if scale is None else hidden * scale
        return model.rnn(hidden.transpose(0, 1) if is_transposed else hidden)[0]

    return Wired(wire, embed=nn.Linear(4, 6), act=nn.ReLU(), rnn=nn.GRU(6, 5))


@pytest.mark.parametrize("has_example", [False, True])
@pytest.mark.parametrize(("scale", "shape"), [(None, (7, 5)), (2.0, (7, 5)), (None, (6, 6)), (2.0, (6, 6))])
def test_what_is_transposed_after_the_activation_is_refused_where_order_matters(
    scale: float | None, shape: tuple[int, int], has_example: bool
) -> None:
    model, steps = before_a_recurrent_layer(True, scale), torch.randn(*shape, 4)
    handle = attach(L2, model, sites=["act"], example=steps if has_example else None)
    for _ in range(2):
        model(steps)
        with pytest.raises(ValueError, match=r"Site 'act': .* 'tnc' or 'ntc': give axes="):
            handle.penalty(mask=prefixes(*shape))
        model(steps)
        handle.penalty()  # the order is no matter to a sum over features
    with pytest.raises(ValueError, match="'tnc' or 'ntc': give axes="):
        attach(VCL(sites="post"), before_a_recurrent_layer(True), sites=["act"], example=steps)


@pytest.mark.parametrize("shape", [(5, 7), (6, 6)])
def test_what_a_recurrent_layer_takes_as_it_is_has_its_order(shape: tuple[int, int]) -> None:
    model, steps = before_a_recurrent_layer(False), torch.randn(*shape, 4)
    handle, mask = attach(L2, model, sites=["act"]), prefixes(*shape[::-1])
    model(steps)
    assert_penalty(handle, masked(model.recorded.transpose(0, 1), mask), mask)


def test_a_convolution_says_how_large_the_batch_is() -> None:
    def wire(model: Any, signal: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
        return model.act(move(model.conv(signal)) * 2)

    for axes, move in (("ntc", lambda x: x.transpose(1, 2)), ("tnc", lambda x: x.permute(2, 0, 1))):
        model = Wired(wire, conv=nn.Conv1d(3, 8, 3), act=nn.ReLU(), rnn=nn.GRU(8, 5))
        handle = attach(L2, model, sites=["act"])
        model(torch.randn(16, 3, 20), move)
        assert layouts(handle) == [(axes, 8)]


@pytest.mark.parametrize("cut", [13, 12])
def test_a_quantile_activation_does_not_look_at_later_steps(cut: int) -> None:
    model, tokens = tagger(cut), torch.randn(20, 13, 4)
    attach(QAct(sites="post"), model, sites={"act": "post"}, example=tokens)
    later = tokens.clone()
    later[:, 11] += 3
    torch.testing.assert_close(model(tokens)[:, :11], model(later)[:, :11], rtol=0, atol=0)


def test_variance_constancy_is_over_the_batch_of_what_was_cut() -> None:
    tokens = torch.randn(20, 13, 4)
    values = []
    for axes in (None, "ntc"):
        torch.manual_seed(0)
        handle = attach(VCL(strength=1.0), model := tagger(12), sites="pre", example=tokens, seed=3, axes=axes)  # type: ignore[arg-type]
        model(tokens)
        values.append(handle.penalty())
    assert torch.equal(values[0], values[1])
