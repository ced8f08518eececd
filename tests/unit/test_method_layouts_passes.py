"""In which passes attach() finds axes: those in which it records, and again where a model takes another way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.vcreg.method import VCReg
from reproduce.method.attach import Handle, attach
from tests.unit.own_models import L2, assert_penalty, by_map, by_step, layouts


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("before", ["eval", "no_grad", "part", "error"])
def test_a_pass_that_records_nothing_settles_nothing(before: str) -> None:
    model, signal = nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(20, 5)), torch.randn(16, 3, 20)
    handle = attach(L2, model)
    if before == "eval":
        model.eval()(signal)
        model.train()
    elif before == "no_grad":
        with torch.no_grad():
            model(signal)
    elif before == "part":
        model[0](signal)
    else:
        with pytest.raises(RuntimeError):
            model(signal[:, :2])
    model(signal)
    assert layouts(handle) == [("ncl", 8)]
    assert_penalty(handle, by_map(model[1](model[0](signal))))


class Tasks(nn.Module):
    """Two branches, of which a pass takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.out = nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(20, 5)
        self.other, self.other_act, self.other_out = nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(20, 5)

    def forward(self, signal: Tensor, task: int) -> Any:
        if task == 0:
            return self.out(self.act(self.conv(signal)))
        return self.other_out(self.other_act(self.other(signal)))


@pytest.mark.parametrize("has_example", [False, True])
def test_a_branch_is_seen_when_it_is_first_taken(has_example: bool) -> None:
    model, signal = Tasks(), torch.randn(16, 3, 20)
    handle = attach(L2, model, example=(signal, 0) if has_example else None)
    for task in (0, 0, 1, 0, 1):
        model(signal, task)
        hidden = model.other_act(model.other(signal)) if task else model.act(model.conv(signal))
        assert_penalty(handle, by_map(hidden))
    assert layouts(handle) == [("ncl", 8)] * 2
    assert not any(module._forward_hooks for module in (model.conv, model.out, model.other, model.other_out))


class Shared(nn.Module):
    """One activation module in two branches of other layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.act = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(3, 8), nn.ReLU()

    def forward(self, signal: Tensor, task: int) -> Any:
        return self.act(self.conv(signal) if task == 0 else self.linear(signal.transpose(1, 2)))


def test_a_shared_activation_has_the_layout_of_each_branch() -> None:
    model, signal = Shared(), torch.randn(16, 3, 20)
    handle = attach(L2, model)
    for task in (0, 1, 0, 1):
        output = model(signal, task)
        assert_penalty(handle, by_step(output) if task else by_map(output))
    assert layouts(handle) == [("ncl", 8), ("ntc", 8)]
    square = torch.randn(16, 3, 8)  # as many positions as channels
    with pytest.raises(ValueError, match="module 'act' meets activations of several layouts"):
        model(square, 1)


def test_sizes_that_a_known_module_never_had_are_refused() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.act = nn.Conv1d(3, 8, 3, padding=1), nn.Linear(20, 8), nn.ReLU()

        def forward(self, signal: Tensor, is_last: bool) -> Any:
            hidden = self.linear(self.conv(signal))  # both have run when the first pass has ended
            return self.act(hidden.transpose(1, 2)[:, :7, :5]) if is_last else self.act(hidden)

    model, signal = Reused(), torch.randn(4, 3, 20)
    attach(L2, model)
    model(signal, False)
    with pytest.raises(ValueError, match=r"'act' had activations \(4, 8, 8\) .* those of \(4, 7, 5\) .* give axes="):
        model(signal, True)


def test_another_number_of_axes_than_before_is_refused_where_nothing_tells() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    handle = attach(L2, model)
    model(torch.randn(4, 8))
    with pytest.raises(ValueError, match=r"module '1', activations \(4, 5, 8\): it had another number of axes before"):
        model(torch.randn(4, 5, 8))
    handle.remove()
    handle = attach(L2, model, sites=["0"])  # a linear layer says it itself
    for shape in ((4, 8), (4, 5, 8)):
        assert_penalty_of_output(handle, model, torch.randn(shape))


def assert_penalty_of_output(handle: Handle, model: nn.Module, rows: Tensor) -> None:
    model(rows)
    assert_penalty(handle, by_step(F.linear(rows, model[0].weight, model[0].bias)))


class Copied(nn.Module):
    """A transposition whose result is copied: its strides are then those of any tensor."""

    def __init__(self, is_transposed: bool, between: nn.Module) -> None:
        super().__init__()
        self.conv, self.between, self.act = nn.Conv1d(3, 8, 3, padding=1), between, nn.ReLU()
        self.is_transposed = is_transposed

    def forward(self, signal: Tensor) -> Any:
        hidden = self.between(self.conv(signal))
        return self.act(hidden.transpose(1, 2).contiguous() if self.is_transposed else hidden)


@pytest.mark.parametrize("length", [8, 9])
@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(0.1), nn.Tanh()], ids=["none", "dropout", "tanh"])
def test_equal_sizes_are_no_proof_after_a_copy(length: int, between: nn.Module) -> None:
    signal = torch.randn(16, 3, length)
    straight = Copied(False, between)
    handle = attach(VCReg(), straight, sites=["act"])
    straight(signal)
    assert layouts(handle) == [("ncl", 8)]
    moved = Copied(True, between)
    handle = attach(VCReg(), moved, sites=["act"])
    moved(signal)
    if length == 9:
        assert layouts(handle) == [("ntc", 8)]
    else:
        with pytest.raises(ValueError, match="no layer beside it says whether its axes are 'ncl' or 'ntc': give axes="):
            handle.penalty()


def test_memory_that_has_channels_last_is_no_proof_after_a_copy() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()

        def forward(self, images: Tensor) -> Any:
            return self.act(self.conv(images).contiguous())

    model = Maps().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    handle = attach(VCReg(), model)
    model(torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match="'nchw' or 'nhwc': give axes="):
        handle.penalty()


def test_an_unused_branch_does_not_cut_a_compiled_model() -> None:
    model, signal = Tasks(), torch.randn(16, 3, 20)
    handle = attach(L2, model, example=(signal, 0))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(signal, 0)
    assert_penalty(handle, by_map(model.act(model.conv(signal))))
    with pytest.raises(ValueError, match=r"'other_act'.* it is met for the first time in a compiled model"):
        torch.compile(model, backend="eager")(signal, 1)
    model(signal, 1)  # as an example would
    handle.penalty()
    torch.compiler.reset()
    torch.compile(model, backend="eager", fullgraph=True)(signal, 1)
    assert_penalty(handle, by_map(model.other_act(model.other(signal))))
