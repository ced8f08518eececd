"""Layers that run for the first time in a later pass, and modules that later passes use for something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.batchnorm.method import BatchNorm
from methods.vcreg.method import VCReg
from reproduce.method.attach import attach
from tests.unit.own_models import L2, Wired, assert_penalty, by_map, by_step, layouts

SEVERAL = "module 'act' meets activations of several layouts, and .* may be of any: give each call a module of its own"


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rare_layer() -> Wired:
    def wire(model: Any, signal: Tensor, is_rare: bool) -> Tensor:
        hidden = model.conv(signal)
        if is_rare:
            hidden = hidden + model.rare(hidden.mean(2)).mean()
        return model.out(model.act(hidden))

    conv, out = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(20, 5)
    return Wired(wire, conv=conv, rare=nn.Linear(8, 1), act=nn.ReLU(), out=out)


def experts() -> Wired:
    def wire(model: Any, signal: Tensor, expert: int) -> Tensor:
        hidden = model.conv(signal)
        gate = model.experts[expert](hidden.mean(2)).sigmoid()
        return model.out(model.act(hidden * gate[:, :, None]))

    parts = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
    conv, out = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(20, 5)
    return Wired(wire, conv=conv, experts=parts, act=nn.ReLU(), out=out)


@pytest.mark.parametrize(("make", "ways"), [(rare_layer, (False, True, True, False)), (experts, (0, 1, 0, 2, 1))])
@pytest.mark.parametrize("is_reversed", [False, True])
@pytest.mark.parametrize("has_example", [False, True])
def test_a_layer_that_runs_later_turns_no_axes(
    make: Callable[[], Wired], ways: tuple[Any, ...], is_reversed: bool, has_example: bool
) -> None:
    model, signal = make(), torch.randn(16, 3, 20)
    ways = ways[::-1] if is_reversed else ways
    handle = attach(L2, model, example=(signal, ways[0]) if has_example else None)
    for way in ways:
        model(signal, way)
        assert_penalty(handle, by_map(model.recorded))
    assert layouts(handle) == [("ncl", 8)]
    assert not any(module._forward_hooks for name, module in model.named_modules() if name not in ("", "act"))


def test_what_a_method_put_into_a_site_stays_in_use_where_a_layer_runs_later() -> None:
    model, signal = rare_layer(), torch.randn(16, 3, 20)
    attach(BatchNorm(), model, sites="pre", example=(signal, False))
    for is_rare in (False, True, False):
        output = model(signal, is_rare)
        hidden = model.conv(signal)
        hidden = hidden + model.rare(hidden.mean(2)).mean() if is_rare else hidden
        centred = hidden - hidden.mean((0, 2), keepdim=True)
        normalized = centred / (hidden.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(output, model.out(normalized.relu()), rtol=1e-4, atol=1e-5)


def test_layers_that_are_dropped_at_random_leave_the_order_of_time_as_it_is() -> None:
    def wire(model: Any, steps: Tensor, dropped: tuple[int, ...]) -> Tensor:
        hidden = model.first(steps)[0]
        for index, block in enumerate(model.blocks):
            hidden = hidden if index in dropped else hidden + block(hidden)
        return model.last(model.act(hidden).transpose(0, 1))[0]

    blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)])
    model = Wired(wire, first=nn.GRU(4, 6), blocks=blocks, act=nn.ReLU(), last=nn.GRU(6, 6, batch_first=True))
    handle, steps = attach(L2, model, sites=["act"]), torch.randn(12, 20, 4)
    mask = torch.rand(20, 12) > 0.4  # (n, t)
    for dropped in ((0,), (), (), (0, 1)):
        model(steps, dropped)
        kept = model.recorded.double().square().sum(2).transpose(0, 1)[mask]
        assert_penalty(handle, kept.mean(), mask)
    assert layouts(handle) == [("tnc", 6)]


def test_a_site_that_is_new_in_such_a_pass_is_right_or_refused() -> None:
    """The convolution before is not watched any more when the gate, and the activation after it, first run."""

    def wire(model: Any, signal: Tensor, is_gated: bool) -> Tensor:
        hidden = model.conv(signal)
        return model.act(hidden * model.gate(hidden)) if is_gated else model.usual(hidden)

    for width, is_told in ((1, True), (20, False)):
        modules = {"usual": nn.GELU(), "act": nn.ReLU(), "gate": nn.Linear(20, width)}
        model, signal = Wired(wire, conv=nn.Conv1d(3, 8, 3, padding=1), **modules), torch.randn(16, 3, 20)
        handle = attach(L2, model)
        for is_gated in (False, True, True):
            model(signal, is_gated)
            if is_told:
                assert_penalty(handle, by_map(model.recorded if is_gated else model.usual(model.conv(signal))))
            elif is_gated:  # a linear layer over positions, as large as the map
                with pytest.raises(ValueError, match=r"Site 'act': .* 'ntc' or 'ncl': give axes="):
                    handle.penalty()


def two_tasks() -> Wired:
    """Both layers run in each pass, and one activation module acts on one of them."""

    def wire(model: Any, signal: Tensor, task: int) -> Tensor:
        map_, steps = model.conv(signal), model.linear(signal.transpose(1, 2))
        return model.act(map_ if task == 0 else steps) + map_.mean() + steps.mean()

    return Wired(wire, conv=nn.Conv1d(3, 8, 3, padding=1), linear=nn.Linear(3, 6), act=nn.ReLU())


@pytest.mark.parametrize("length", [5, 6, 7])
@pytest.mark.parametrize("sites", ["pre", "post"])
def test_other_functions_before_a_module_are_no_proof_that_axes_are_as_before(length: int, sites: Any) -> None:
    model = two_tasks()
    handle = attach(L2.model_copy(update={"sites": sites}), model, sites=sites)
    for other in (length, 9, 10):  # of any length
        signal = torch.randn(16, 3, other)
        model(signal, 0)
        before = model.conv(signal)
        assert_penalty(handle, by_map(before if sites == "pre" else before.relu()))
    with pytest.raises(ValueError, match=SEVERAL):
        model(torch.randn(16, 3, 8), 1)  # as many steps as the map has channels


def test_an_example_of_other_sizes_is_no_proof_either() -> None:
    handle = attach(L2, model := two_tasks(), example=(torch.randn(16, 3, 5), 0))
    with pytest.raises(ValueError, match=SEVERAL):
        model(torch.randn(16, 3, 8), 1)
    handle.remove()
    handle = attach(L2, model, example=(torch.randn(16, 3, 6), 0))
    model(torch.randn(16, 3, 6), 0)  # as in the example, where the linear layer's six features fit too
    assert_penalty(handle, by_map(model.recorded))
    with torch.no_grad():  # evaluation is as before
        model(torch.randn(16, 3, 8), 1)


def test_a_shared_module_has_a_site_for_each_layout_that_is_met_while_layers_are_watched() -> None:
    def wire(model: Any, signal: Tensor) -> Tensor:
        return model.act(model.conv(signal)).mean() + model.act(model.linear(signal.transpose(1, 2))).mean()

    model = Wired(wire, conv=nn.Conv1d(3, 8, 3, padding=1), linear=nn.Linear(3, 6), act=nn.ReLU())
    handle, signal = attach(L2, model), torch.randn(16, 3, 20)
    for _ in range(2):
        model(signal)
        steps = model.linear(signal.transpose(1, 2)).relu()
        assert_penalty(handle, by_map(model.conv(signal).relu()) + by_step(steps))
    assert layouts(handle) == [("ncl", 8), ("ntc", 6)]


def test_a_pass_of_equal_sizes_takes_nothing_from_what_is_known() -> None:
    """While another branch has not been met layers are watched in each pass, also in those that tell less."""

    def wire(model: Any, signal: Tensor, is_rare: bool) -> Tensor:
        hidden = model.act(model.conv(signal).transpose(1, 2).contiguous())
        return model.rare(hidden) if is_rare else hidden

    model = Wired(wire, conv=nn.Conv1d(3, 8, 3, padding=1), act=nn.ReLU(), rare=nn.Tanh())
    handle = attach(VCReg(), model)
    for length in (9, 8):
        model(torch.randn(16, 3, length), False)
        rows = model.recorded.double().flatten(0, 1)
        covariance = rows.T.cov()
        hinge = (1 - (covariance.diagonal() + 1e-4).sqrt()).relu().mean()
        others = covariance.square().sum() - covariance.diagonal().square().sum()
        torch.testing.assert_close(handle.penalty().double(), 0.1 * hinge + 0.01 * others / 8, rtol=1e-4, atol=1e-6)
    assert layouts(handle)[0] == ("ntc", 8)
