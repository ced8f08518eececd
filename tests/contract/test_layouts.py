"""What every method makes of every layout: one number for the same samples, however their axes are called and lie.

A method that cannot treat a layout must refuse it in one line, and in both of two layouts that are one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce.method import Method, Site
from reproduce.method.rng import Generators
from reproduce.method.sites import Axes, watch

N, C = 10, 4  # two samples of five fit into the batch


@dataclass
class Outcome:
    """What a method did: its penalty, the model's output, and the gradient of the first in what was recorded."""

    penalty: Tensor
    output: Tensor
    gradient: Tensor

    def moved(self, back: Callable[[Tensor], Tensor]) -> Outcome:
        return Outcome(self.penalty, back(self.output), back(self.gradient))


class OneLayer(nn.Module):
    """A kernel that reads each location by itself, then Sites of every role; it reads (..., 3), features last.

    ``W_dec`` and ``b_enc`` are for methods that read an autoencoder's.
    """

    def __init__(self, axes: Axes, shape: tuple[int, ...], lay: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lay = lay
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Linear(3, C)
        self.pre = Site("pre", axes, shape)
        self.act = nn.ReLU()
        self.post, self.dropped, self.code = (Site(role, axes, shape) for role in ("post", "dropped", "code"))
        self.W_dec, self.b_enc = nn.Parameter(torch.ones(C, 3)), nn.Parameter(torch.zeros(C))
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, value: Tensor) -> Tensor:
        self.hidden = self.lay(self.kernel(value))
        self.hidden.retain_grad()
        return self.code(self.dropped(self.post(self.act(self.pre(self.hidden)))))


def outcome(
    method: Method, axes: Axes, shape: tuple[int, ...], value: Tensor, lay: Any, mask: Tensor | None = None
) -> Outcome | str:
    """Of one step; the message where it is refused."""
    model = OneLayer(axes, shape, lay)
    trace = watch(model)
    generator = Generators.seeded(0, torch.device("cpu")).method
    try:
        method.prepare(model, generator)
        output = model(value)
        with trace.masked(mask):
            penalty = method.penalty(trace, torch.tensor(0.5), generator)
    except ValueError as error:
        return str(error)
    if penalty.requires_grad:
        penalty.backward()
    gradient = torch.zeros_like(model.hidden) if model.hidden.grad is None else model.hidden.grad
    return Outcome(penalty.detach(), output.detach(), gradient)


def same(axes: str, one: Outcome | str, other: Outcome | str) -> None:
    if isinstance(one, str) or isinstance(other, str):
        assert isinstance(one, str), f"{axes} is refused alone: {other}"
        assert isinstance(other, str), f"{axes} is not refused: {one}"
        assert "\n" not in one
        return
    torch.testing.assert_close(one.penalty, other.penalty, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(one.output, other.output, rtol=2e-5, atol=1e-5)
    torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-3, atol=1e-6)


def plain(value: Tensor) -> Tensor:
    return value


def values(*leading: int) -> Tensor:
    return torch.randn(*leading, 3, generator=torch.Generator().manual_seed(1))


def channels_second(value: Tensor) -> Tensor:
    """The same numbers in memory, with the channels as second axis."""
    return value.movedim(-1, 1)


def channels_last(value: Tensor) -> Tensor:
    return value.movedim(1, -1)


def test_channels_last_are_maps(configured: tuple[Any, Method]) -> None:
    _, method = configured
    value, shape = values(N, 2, 3), (C, 2, 3)
    expected = outcome(method, "nchw", shape, value, channels_second)
    moved = expected if isinstance(expected, str) else expected.moved(channels_last)
    same("nhwc", outcome(method, "nhwc", shape, value, plain), moved)


def test_volumes_too(configured: tuple[Any, Method]) -> None:
    _, method = configured
    value, shape = values(N, 2, 3, 2), (C, 2, 3, 2)
    expected = outcome(method, "ncdhw", shape, value, channels_second)
    moved = expected if isinstance(expected, str) else expected.moved(channels_last)
    same("ndhwc", outcome(method, "ndhwc", shape, value, plain), moved)


def test_signals_are_maps_of_height_one(configured: tuple[Any, Method]) -> None:
    _, method = configured
    value = values(N, 6)
    expected = outcome(method, "nchw", (C, 1, 6), value.unsqueeze(1), channels_second)
    moved = expected if isinstance(expected, str) else expected.moved(lambda map_: map_.squeeze(2))
    same("ncl", outcome(method, "ncl", (C, 6), value, channels_second), moved)


def test_volumes_are_maps_of_their_places(configured: tuple[Any, Method]) -> None:
    _, method = configured
    value = values(N, 2, 3, 2)
    expected = outcome(method, "nchw", (C, 6, 2), value.flatten(1, 2), channels_second)
    moved = expected if isinstance(expected, str) else expected.moved(lambda map_: map_.unflatten(2, (2, 3)))
    same("ncdhw", outcome(method, "ncdhw", (C, 2, 3, 2), value, channels_second), moved)


def _batch_and_time_first(method: Method, n: int, t: int) -> tuple[Outcome | str, Outcome | str]:
    value = values(n, t)
    one = outcome(method, "ntc", (C,), value, plain)
    other = outcome(method, "tnc", (C,), value.transpose(0, 1), plain)
    return one, other if isinstance(other, str) else other.moved(lambda output: output.transpose(0, 1))


def test_one_long_sequence_is_the_same_time_first(configured: tuple[Any, Method]) -> None:
    _, method = configured
    same("ntc", *_batch_and_time_first(method, 1, 15))


def test_sequences_are_the_same_time_first(configured: tuple[Any, Method]) -> None:
    """Of fewer samples than two groups have, because groups are drawn in the order in which samples lie; that of a
    memory, which keeps the last of them, is no part of this.
    """
    _, method = configured
    value = values(3, 5)
    orders = (value.flatten(0, 1), value.transpose(0, 1).flatten(0, 1))
    rows = [outcome(method, "nc", (C,), samples, plain) for samples in orders]
    one, other = _batch_and_time_first(method, 3, 5)
    if all(isinstance(each, Outcome) for each in (one, other, *rows)):
        if not torch.allclose(rows[0].penalty, rows[1].penalty, rtol=1e-5):
            return
        one.gradient = other.gradient  # compared above
    same("ntc", one, other)


@pytest.mark.parametrize("axes", ["ntc", "tnc", "ncl"])
def test_a_mask_leaves_padding_out(configured: tuple[Any, Method], axes: Axes) -> None:
    """The penalty is that of the real positions alone, as rows of a batch; other padding makes no difference."""
    _, method = configured
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [True, False, True, True, False]])
    lay = {"ntc": plain, "tnc": lambda value: value.transpose(0, 1), "ncl": channels_second}[axes]
    back = {"ntc": plain, "tnc": lambda value: value.transpose(0, 1), "ncl": channels_last}[axes]
    shape = (C, 5) if axes == "ncl" else (C,)
    value = values(3, 5)
    padded = torch.where(mask.unsqueeze(-1), value, 100.0)
    one, other = (outcome(method, axes, shape, given, lay, mask) for given in (value, padded))
    if isinstance(one, str):
        assert isinstance(other, str)
        assert "mask" in one or one == outcome(method, axes, shape, value, lay)
        return
    assert isinstance(other, Outcome)
    torch.testing.assert_close(one.penalty, other.penalty, rtol=0, atol=0)
    torch.testing.assert_close(one.gradient, other.gradient, rtol=0, atol=0)
    assert not back(one.gradient)[~mask].any()
    rows = outcome(method, "nc", (C,), value[mask], plain)
    assert isinstance(rows, Outcome), rows
    torch.testing.assert_close(one.penalty, rows.penalty, rtol=2e-5, atol=1e-6)
    torch.testing.assert_close(back(one.gradient)[mask], rows.gradient, rtol=1e-3, atol=1e-6)
