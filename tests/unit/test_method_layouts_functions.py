"""Axes of activations that functions made of the outputs of layers: products, sums, joined and cut tensors, views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.vcreg.method import VCReg
from reproduce.method.attach import attach
from tests.unit.own_models import L2, Wired, assert_penalty, by_map, by_step, layouts

Case = tuple[Callable[[], Wired], tuple[int, ...], str, int, Callable[[Tensor], Tensor]]


def conv(**options: Any) -> nn.Module:
    return nn.Conv1d(3, 8, 3, padding=1, **options)


def gated_map() -> Wired:
    def wire(model: Any, signal: Tensor) -> Tensor:
        hidden = model.conv(signal)
        return model.act(hidden * model.gate(hidden).sigmoid())

    return Wired(wire, conv=conv(), gate=nn.Linear(20, 1), act=nn.ReLU())


def gated_between_convolutions() -> Wired:
    def wire(model: Any, signal: Tensor) -> Tensor:
        hidden = model.conv(signal)
        return model.out(model.act(hidden * model.gate(hidden).softmax(1)))

    return Wired(wire, conv=conv(), gate=nn.Linear(20, 1), act=nn.ReLU(), out=nn.Conv1d(8, 5, 1))


def gated_before_the_map() -> Wired:
    """The gate is seen first, and then the convolution."""

    def wire(model: Any, signal: Tensor) -> Tensor:
        with torch.no_grad():
            gate = model.gate(model.conv(signal))
        return model.act(model.conv(signal) * gate)

    return Wired(wire, conv=conv(), gate=nn.Linear(20, 1), act=nn.ReLU())


def gated_steps() -> Wired:
    def wire(model: Any, steps: Tensor) -> Tensor:
        hidden = model.linear(steps)
        return model.act(hidden * model.gate(hidden).sigmoid())

    return Wired(wire, linear=nn.Linear(3, 8), gate=nn.Conv1d(20, 1, 1), act=nn.ReLU())


def squeezed_and_excited() -> Wired:
    def wire(model: Any, signal: Tensor) -> Tensor:
        hidden = nn.functional.conv1d(signal, model.kernel)  # the layer itself is not seen
        return model.act(hidden * model.gate(model.pool(hidden)).sigmoid())

    model = Wired(wire, pool=nn.AdaptiveAvgPool1d(1), gate=nn.Conv1d(8, 8, 1), act=nn.ReLU())
    model.register_parameter("kernel", nn.Parameter(torch.randn(8, 3, 1)))
    return model


def joined_channels() -> Wired:
    return Wired(
        lambda model, signal: model.act(torch.cat([model.conv(signal), model.other(signal)], 1)),
        conv=conv(),
        other=nn.Conv1d(3, 4, 1),
        act=nn.ReLU(),
    )


def cut_in_length() -> Wired:
    return Wired(lambda model, signal: model.act(model.conv(signal)[..., 3:] * 2), conv=conv(), act=nn.ReLU())


def flattened_map() -> Wired:
    return Wired(
        lambda model, images: model.out(model.act(model.conv(images).flatten(2))),
        conv=nn.Conv2d(3, 8, 3, padding=1),
        act=nn.ReLU(),
        out=nn.Linear(20, 5),  # over places: it would have twenty features
    )


def patches() -> Wired:
    return Wired(
        lambda model, images: model.act(model.conv(images).flatten(2).transpose(1, 2)[:, 1:]),
        conv=nn.Conv2d(3, 8, 3, padding=1),
        act=nn.ReLU(),
    )


def with_dropout_after_transposition() -> Wired:
    return Wired(
        lambda model, signal: model.act(model.dropout(model.conv(signal).transpose(1, 2))[:, :8]),
        conv=conv(),
        dropout=nn.Dropout(0.1),
        act=nn.ReLU(),
    )


CASES: list[Case] = [
    (gated_map, (16, 3, 20), "ncl", 8, by_map),
    (gated_between_convolutions, (16, 3, 20), "ncl", 8, by_map),
    (gated_before_the_map, (16, 3, 20), "ncl", 8, by_map),
    (gated_steps, (16, 20, 3), "ntc", 8, by_step),
    (squeezed_and_excited, (16, 3, 20), "ncl", 8, by_map),
    (joined_channels, (16, 3, 20), "ncl", 12, by_map),
    (cut_in_length, (16, 3, 20), "ncl", 8, by_map),
    (flattened_map, (16, 3, 4, 5), "ncl", 8, by_map),
    (patches, (16, 3, 4, 5), "ntc", 8, by_step),
    (patches, (16, 3, 3, 3), "ntc", 8, by_step),  # eight places of eight channels
    (with_dropout_after_transposition, (16, 3, 20), "ntc", 8, by_step),  # eight steps of eight channels
]


@pytest.mark.parametrize(("make", "shape", "axes", "features", "by_hand"), CASES)
@pytest.mark.parametrize("has_example", [False, True])
def test_the_axes_are_those_of_what_the_functions_were_given(
    make: Callable[[], Wired],
    shape: tuple[int, ...],
    axes: str,
    features: int,
    by_hand: Callable[[Tensor], Tensor],
    has_example: bool,
) -> None:
    torch.manual_seed(0)
    model, inputs = make(), torch.randn(shape)
    handle = attach(L2, model, sites=["act"], example=inputs if has_example else None)
    for _ in range(2):
        model(inputs)
        assert_penalty(handle, by_hand(model.recorded))
    assert layouts(handle) == [(axes, features)]


def joined_with_other_positions() -> Wired:
    """A convolution says that the second axis has channels, a linear layer on it that the last one has."""

    def wire(model: Any, signal: Tensor) -> Tensor:
        hidden = model.conv(signal)
        return model.act(torch.cat([hidden, model.linear(hidden)], 2))

    return Wired(wire, conv=conv(), linear=nn.Linear(20, 12), act=nn.ReLU())


def gated_by_all_positions() -> Wired:
    def wire(model: Any, signal: Tensor) -> Tensor:
        hidden = model.conv(signal)
        return model.act(hidden * model.gate(hidden).sigmoid())

    return Wired(wire, conv=conv(), gate=nn.Linear(20, 20), act=nn.ReLU())


@pytest.mark.parametrize("make", [joined_with_other_positions, gated_by_all_positions])
def test_layers_that_say_two_things_are_refused_and_axes_is_the_way_out(make: Callable[[], Wired]) -> None:
    torch.manual_seed(0)
    model, signal = make(), torch.randn(16, 3, 20)
    handle = attach(L2, model, sites=["act"])
    model(signal)
    with pytest.raises(ValueError, match="Site 'act': no layer beside it says whether its axes are 'ntc' or 'ncl': gi"):
        handle.penalty()
    handle.remove()
    for axes, by_hand in (("ncl", by_map), ("ntc", by_step)):
        told = attach(L2, model, sites=["act"], axes=axes)  # type: ignore[arg-type]
        model(signal)
        assert_penalty(told, by_hand(model.recorded))
        told.remove()


class Locations(nn.Module):
    """A module of one's own that multiplies channels or features by a matrix, (out, in)."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.weight, self.equation = nn.Parameter(torch.randn(6, 4)), equation

    def forward(self, value: Tensor) -> Tensor:
        return torch.einsum(self.equation, self.weight, value)


@pytest.mark.parametrize(("equation", "is_last"), [("oi,nil->nol", False), ("oi,nli->nlo", True)])
def test_a_matrix_of_ones_own_is_believed_where_sizes_tell_and_else_refused(equation: str, is_last: bool) -> None:
    for length in (9, 6):
        model = nn.Sequential(Locations(equation), nn.ReLU())
        signal = torch.randn((5, length, 4) if is_last else (5, 4, length))
        if length == 6:
            handle = attach(VCReg(), model, example=signal)
            model(signal)
            with pytest.raises(ValueError, match=r"no layer beside it says whether its axes are .*: give axes="):
                handle.penalty()
            handle.remove()
        (site,) = attach(VCReg(), model, example=signal, axes="ntc" if is_last else "ncl").sites
        assert (site.axes, site.features) == (("ntc", 6) if is_last else ("ncl", 6))
        if length == 9:
            (site,) = attach(VCReg(), model, example=signal).sites
            assert (site.axes, site.features) == (("ntc", 6) if is_last else ("ncl", 6))
