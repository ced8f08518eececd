"""Warm-up, recording, replay, and what falls back to real steps; all on the CPU, with a tape in place of a graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce.training.capture import WARM_UP_STEPS, HostWaits, Repeated, can_be_recorded
from reproduce.training.tape import Tape


class Counter:
    """A function on tensors, and how often Python ran it."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        self.operation = operation
        self.value = torch.eye(2) * 0.5
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        self.value.copy_(self.operation(self.value))


def test_python_runs_for_the_warm_up_and_the_recording_alone() -> None:
    counter = Counter(lambda value: value * 2)
    repeated = Repeated(counter, Tape)
    for call in range(1, 8):
        repeated()
        assert counter.calls == min(call, WARM_UP_STEPS + 1)
        assert torch.equal(counter.value, torch.eye(2) * 0.5 * 2**call)
    assert repeated.mode == "captured"


def test_without_a_recording_every_call_is_real() -> None:
    counter = Counter(lambda value: value * 2)
    repeated = Repeated(counter, None)
    for _ in range(6):
        repeated()
    assert (counter.calls, repeated.mode) == (6, "eager")


def test_what_was_replaced_is_recorded_anew() -> None:
    counter = Counter(lambda value: value * 2)
    repeated = Repeated(counter, Tape)
    for _ in range(5):
        repeated()
    counter.value = torch.ones(2, 2)
    repeated.forget()
    for call in range(1, 6):
        repeated()
        assert torch.equal(counter.value, torch.full((2, 2), 2.0**call))
    assert counter.calls == 2 * (WARM_UP_STEPS + 1)


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("_local_scalar_dense", lambda value: value * (value.sum().item() + 1)),
        ("_linalg_eigh", lambda value: value + torch.linalg.eigvalsh(value)),
        ("_linalg_svd", lambda value: value + torch.linalg.svdvals(value)),
        ("index", lambda value: value + value[value > 0].sum()),
        ("nonzero", lambda value: value + len(value.nonzero())),
        ("masked_select", lambda value: value + value.masked_select(value > 0).sum()),
    ],
)
def test_what_waits_runs_for_real_and_says_so(
    name: str, operation: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    counter, plain = Counter(operation), Counter(operation)
    repeated = Repeated(counter, Tape)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            repeated()
            plain()
    assert torch.equal(counter.value, plain.value)
    assert (counter.calls, repeated.mode) == (6, "eager")
    (said,) = caplog.messages
    assert said == f"this run's steps are not captured: {name} waits for the device; they run eagerly"
    with pytest.raises(RuntimeError, match=rf"{name}.* waits for a value"):
        Tape().record(counter)


@pytest.mark.parametrize(
    "operation",
    [
        lambda value: value[torch.tensor([1, 0])],  # indices have a fixed shape, masks have not
        lambda value: torch.where(value > 0, value, 0),
        lambda value: value.masked_fill(value > 0, 2.0),
        lambda value: torch.linalg.vector_norm(value) + value,
    ],
)
def test_what_does_not_wait_is_recorded(operation: Callable[[Tensor], Tensor]) -> None:
    counter = Counter(operation)
    with HostWaits() as waits:
        counter()
    assert waits.found == []


def test_a_recording_that_fails_leaves_real_steps(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Tape):
        def record(self, function: Callable[[], None]) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nand more lines")

    counter = Counter(lambda value: value * 2)
    repeated = Repeated(counter, Broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            repeated()
    assert torch.equal(counter.value, torch.eye(2) * 0.5 * 2**6)
    assert repeated.mode == "eager"
    (said,) = caplog.messages
    assert "operation not permitted when stream is capturing; they run eagerly" in said


def test_a_tape_repeats_numbers_of_the_host_and_reads_tensors_anew() -> None:
    """What tells a recording from a call: this is why a learning rate must be a tensor."""
    number, tensor = [1.0], torch.tensor(1.0)
    total = torch.zeros(2)

    def function() -> None:
        total[0] += number[0]
        total[1] += tensor

    tape = Tape()
    tape.record(function)
    number[0] = 10.0
    tensor.fill_(10.0)
    tape.replay()
    assert total.tolist() == [2.0, 11.0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_tape_of_a_training_step(momentum: float) -> None:
    """Views, in-place operations, a draw, and a backward pass."""
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def trained(replay: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        model = nn.Linear(3, 2)
        with torch.no_grad():
            model.weight.fill_(0.1)
            model.bias.zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)

        def step() -> None:
            noise = torch.empty(8, 1).normal_(generator=generator)
            loss = (model(inputs + noise).t()[0].view(4, 2)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        repeated = Repeated(step, Tape if replay else None)
        for _ in range(10):
            repeated()
        return [parameter.detach() for parameter in model.parameters()]

    assert all(map(torch.equal, trained(True), trained(False)))


@pytest.mark.parametrize(
    ("operation", "arguments", "options", "recordable"),
    [
        (torch.ops.aten._to_copy.default, ("cpu",), {"device": torch.device("meta")}, False),
        (torch.ops.aten._to_copy.default, ("meta",), {"device": torch.device("meta"), "dtype": torch.float64}, True),
        (torch.ops.aten._to_copy.default, ("meta",), {"dtype": torch.float64}, True),
        (torch.ops.aten.copy_.default, ("meta", "cpu"), {}, False),
        (torch.ops.aten.copy_.default, ("meta", "meta"), {}, True),
    ],
)
def test_copies_between_devices_cannot_be_recorded(
    operation: Any, arguments: tuple[str, ...], options: dict[str, Any], recordable: bool
) -> None:
    tensors = tuple(torch.empty(2, device=device) for device in arguments)
    assert can_be_recorded(operation, tensors, options) == recordable


def test_a_recording_without_memory_is_not_a_reason_to_be_slow() -> None:
    class Large(Tape):
        def record(self, function: Callable[[], None]) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

    repeated = Repeated(Counter(lambda value: value * 2), Large)
    for _ in range(WARM_UP_STEPS):
        repeated()
    with pytest.raises(torch.OutOfMemoryError):
        repeated()
    assert repeated.mode == "captured"
