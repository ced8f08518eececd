"""Layouts where several sizes are equal: right, or a guess that is refused where it matters."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce import attach
from tests.unit.own_models import L2, Wired, assert_penalty, by_map


def joined(axis: int) -> Wired:
    """As in a layer of a one-dimensional DenseNet."""

    def wire(model: Any, signal: Tensor) -> Tensor:
        hidden = model.first(signal)
        return model.act(torch.cat([hidden, -hidden], axis))

    return Wired(wire, first=nn.Conv1d(3, 16, 3, padding=1), act=nn.ReLU())


@pytest.mark.parametrize("batch", [15, 16])
def test_joined_channels_are_refused_where_as_many_examples_and_locations_leave_them_open(batch: int) -> None:
    """Before, those of 16 channels, examples and locations passed for a sequence of 32 steps."""
    torch.manual_seed(0)
    model, signal = joined(1), torch.randn(batch, 3, 16)
    handle = attach(L2, model, sites=["act"])
    model(signal)
    with pytest.raises(ValueError, match="axes="):
        handle.penalty()
    handle.remove()
    told = attach(L2, model, sites=["act"], axes="ncl")
    model(signal)
    assert_penalty(told, by_map(model.recorded))


@pytest.mark.parametrize(("batch", "length"), [(16, 20), (9, 20), (20, 9)])
def test_other_sizes_leave_nothing_open(batch: int, length: int) -> None:
    torch.manual_seed(0)
    model, signal = joined(1), torch.randn(batch, 3, length)
    handle = attach(L2, model, sites=["act"])
    model(signal)
    assert_penalty(handle, by_map(model.recorded))


def test_a_batch_joined_to_another_has_the_axes_of_both() -> None:
    torch.manual_seed(0)
    model, signal = joined(0), torch.randn(16, 3, 20)
    handle = attach(L2, model, sites=["act"])
    model(signal)
    assert_penalty(handle, by_map(model.recorded))


class Walk:
    """A network of a few random layers and functions, and the axes of its activation, followed by name.

    What is before the first layer is not moved, and time stays second: which of batch and time comes first no layer
    here says.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.sizes = self.rng.choice([[4, 8], [8, 16], [3, 6, 12], [5, 6, 7, 8]])
        self.axes = self.rng.choice(["nchw", "ncl", "nlc"])
        self.size = {axis: self.rng.choice(self.sizes) for axis in self.axes}
        self.input = tuple(self.size[axis] for axis in self.axes)
        self.layers: list[nn.Module] = []
        self.steps: list[Any] = []
        self.layer()
        for _ in range(self.rng.randint(1, 4)):
            self.rng.choice([self.layer, self.turn, self.join, self.cut, self.scale, self.shrink])()

    def add(self, module: nn.Module) -> None:
        self.layers.append(module)
        self.steps.append(module)

    def layer(self) -> None:
        width, own = self.rng.choice(self.sizes), self.size["c"]
        if self.axes.endswith("c"):
            self.add(self.rng.choice([nn.LayerNorm(own), nn.Linear(own, width)]))
        else:
            of_maps = nn.Conv2d if len(self.axes) == 4 else nn.Conv1d
            self.add(self.rng.choice([nn.GroupNorm(1, own), of_maps(own, width, 3, padding=1)]))
        self.size["c"] = getattr(self.layers[-1], "out_channels", getattr(self.layers[-1], "out_features", own))

    def turn(self) -> None:
        rest = self.axes.replace("c", "")
        to = f"{rest}c" if self.axes[1] == "c" else f"nc{rest[1:]}"
        order, is_copied = [self.axes.index(axis) for axis in to], self.rng.random() < 0.7
        self.axes = to
        self.steps.append(lambda x: x.permute(order).contiguous() if is_copied else x.permute(order))

    def join(self) -> None:
        axis = self.axes.index("c")
        self.size["c"] *= 2
        self.steps.append(lambda x: torch.cat([x, -x], axis))

    def cut(self) -> None:
        axis, half = self.axes.index("c"), self.size["c"] // 2
        if half > 1:
            self.size["c"] = half
            self.steps.append(lambda x: x.narrow(axis, 0, half) * 1.0)

    def scale(self) -> None:
        self.steps.append(lambda x: 2 * x)

    def shrink(self) -> None:
        if len(self.axes) == 4:
            axis = self.axes.index("w")
            self.axes = self.axes.replace("w", "").replace("h", "l")
            self.size["l"] = self.size["h"]
            self.steps.append(lambda x: x.mean(axis))

    def model(self) -> Wired:
        def wire(model: Any, activation: Tensor) -> Tensor:
            for step in self.steps:
                activation = step(activation)
            return model.act(activation)

        return Wired(wire, layers=nn.ModuleList(self.layers), act=nn.Tanh())

    @property
    def true_axes(self) -> str:
        return {"nlc": "ntc", "nhwc": "nhwc"}.get(self.axes, self.axes)


def test_no_layout_is_sure_and_wrong_in_random_networks() -> None:
    found: Counter[str] = Counter()
    for seed in range(400):
        walk = Walk(seed)
        torch.manual_seed(seed)
        model = walk.model()
        handle = attach(L2, model, sites=["act"])
        model(torch.randn(walk.input))
        (site,) = handle.sites
        if site.could_be:
            found["guess"] += 1
            assert walk.true_axes in (site.axes, *site.could_be), seed
        else:
            found["sure"] += 1
            assert site.axes == walk.true_axes, seed
        handle.remove()
    assert found["sure"] > found["guess"] > 0
