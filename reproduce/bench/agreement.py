"""Whether a device computes what the CPU computes, never waits in a step, and replays what it steps."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol

import torch

from reproduce.bench.draws import DrawsOfTheCpu
from reproduce.bench.stepper import Stepper
from reproduce.bench.tiny_tasks import CPU, PROBLEMS, Problem
from reproduce.bench.waits import forbidden_waits
from reproduce.bench.workloads import Workload
from reproduce.experiment.recipe import CosineRate
from reproduce.method import Method
from reproduce.training.run import own_stream
from reproduce.training.step import Step

# Of a quantity's own size. Sums are taken in another order there: on the CPU, other kernels made at most 2e-5 of it.
# Random directions meet a map's values in the order of memory: kernels that lay maps out in another way draw others.
TOLERANCE_BESIDE_CPU = 1e-3
TOLERANCE_OF_REPLAY = 1e-5  # on CUDA, where some sums have no fixed order; elsewhere a replay has the same bits
SMALLEST = 1e-3  # below it, a quantity is measured as if it were this large
PROGRESS = 0.5  # some penalties grow from zero at the start


@dataclass(frozen=True)
class Quantities:
    """What a step, or several, came to."""

    loss: float
    penalty: float
    norm: float  # L2, of the gradients after a step, of the parameters after several

    def differences(self, other: Quantities) -> dict[str, float]:
        """Relative differences by name; two that are both not finite differ by infinity."""
        return {name: _difference(value, getattr(other, name)) for name, value in vars(self).items()}


def _difference(one: float, other: float) -> float:
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf
    return abs(one - other) / max(SMALLEST, abs(one), abs(other))


@contextmanager
def ieee_float32() -> Iterator[None]:
    """float32 multiplied as float32 where CUDA would round it to TF32, and the same kernels each time."""
    owners = [attrgetter(name)(torch.backends) for name in ("cudnn.conv", "cudnn.rnn", "cuda.matmul")]
    before = [owner.fp32_precision for owner in owners]
    deterministic = torch.backends.cudnn.deterministic
    try:
        for owner in owners:
            owner.fp32_precision = "ieee"
        torch.backends.cudnn.deterministic = True
        yield
    finally:
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = precision
        torch.backends.cudnn.deterministic = deterministic


def one_step(method: Method, problem: Problem, device: torch.device) -> Quantities:
    """The third step, as in the middle of training, with the CPU's random numbers on every device.

    Two steps come before it, since some networks begin with layers that are zero, and hide what is behind them.

    Raises:
        ValueError: the method refuses the Task.
    """
    with DrawsOfTheCpu(), ieee_float32():
        session = problem.session(method, device=device)
        for _ in range(3):
            session.step.progress.fill_(PROGRESS)
            session.steps(1)
    gradients = [parameter.grad for parameter in session.model.parameters() if parameter.grad is not None]
    squares = sum(float(gradient.double().square().sum()) for gradient in gradients)
    return Quantities(float(session.step.loss), float(session.step.penalty), math.sqrt(squares))


def step_beside_cpu(method: Method, problem: Problem, device: torch.device) -> list[str] | None:
    """One line for each quantity of a step that is not the CPU's, and for a wait; None: the method refuses the Task.

    Beside the CPU itself stands the same step once more, which shows a method that remembers what it should not.
    """
    try:
        expected = one_step(method, problem, CPU)
    except ValueError:  # its refusal; the battery sees to it that it is clear
        return None
    found = one_step(method, problem, device)
    lines = [
        f"{name} of a step is {getattr(found, name):.7g}, on the CPU {getattr(expected, name):.7g}"
        for name, difference in found.differences(expected).items()
        if not difference <= TOLERANCE_BESIDE_CPU
    ]
    session = problem.session(method, device=device)
    session.step()  # what a first step makes, the optimiser's state and constants, may be brought to the device
    try:
        with forbidden_waits(device):
            session.step()
    except RuntimeError as error:
        lines.append(f"a step waits: {_first_line(error)}")
    return lines


class _Steps(Protocol):
    """A Session or a Stepper."""

    step: Step


def two_tasks(method: Method) -> list[Problem]:
    """Maps and a recurrent layer, where the method accepts them, else others."""
    by_wish = sorted(PROBLEMS, key=lambda problem: problem.spec.model not in ("resnet", "lstm"))
    accepted = (problem for problem in by_wish if problem.refusal(method) is None)
    return [problem for problem, _ in zip(accepted, range(2), strict=False)]


def replay_on_tiny_task(method: Method, problem: Problem, device: torch.device, steps: int) -> list[str]:
    """One line for each quantity in which so many replayed steps differ from as many eager ones."""
    changing: dict[str, Any] = {"device": device, "rate_on_device": True, "schedule": CosineRate(kind="cosine")}
    return _replayed(
        lambda captured: problem.session(method, captured=captured, **changing),
        lambda session: session.steps(steps),
        device,
    )


def replay_on_network(workload: Workload, method: Method, device: torch.device, steps: int) -> list[str]:
    """As `replay_on_tiny_task`, on a network of the size at which papers train it."""

    def take(stepper: Stepper) -> None:
        for _ in range(steps - 1):  # it took its first step when it was made
            stepper()

    make = functools.partial(Stepper, workload, method, device, rate_on_device=True)
    return _replayed(lambda captured: make(captured=captured), take, device)


def _replayed(make: Callable[[bool], Any], take_steps: Callable[[Any], None], device: torch.device) -> list[str]:
    def trained(captured: bool) -> tuple[Quantities, Step]:
        stepping: _Steps = make(captured)
        take_steps(stepping)
        return _quantities(stepping.step), stepping.step

    with ExitStack() as stack:
        stack.enter_context(ieee_float32())
        stack.enter_context(own_stream(device))
        if device.type == "cpu":  # the LSTM of oneDNN keeps a workspace that no tape can hold
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings(
                "ignore", "TF32 acceleration"
            )  # torch warns of what the switch does on Intel's GPUs
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        eager, _ = trained(captured=False)
        replayed, step = trained(captured=True)
        if step.mode == "eager":
            return ["its steps cannot be captured"]
        tolerance = TOLERANCE_OF_REPLAY if device.type == "cuda" else 0.0
        found = {n: d for n, d in replayed.differences(eager).items() if not d <= tolerance}
        if not found:
            return []
        again = trained(captured=False)[0].differences(eager)  # the device's own noise
    return [
        f"{name} after replayed steps differs by {difference:.2g} from that after eager ones, which themselves differ "
        f"by {again[name]:.2g} when repeated"
        for name, difference in found.items()
    ]


def _quantities(step: Step) -> Quantities:
    loss, penalty = step.sums.means()
    squares = sum(float(parameter.detach().double().square().sum()) for parameter in step.parameters)
    return Quantities(loss, penalty, math.sqrt(squares))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
