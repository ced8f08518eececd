"""The battery, second part: how every method in each of its configurations behaves on tiny tasks.

A check is one function: add it to CHECKS, and every discovered method and the template are checked. Nothing is
skipped: a task that a method refuses must be refused clearly, and the number of checks that ran is itself asserted.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, get_args, get_origin

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from reproduce.bench.tiny_tasks import CPU, STEPS
from reproduce.bench.waits import WaitsForTheDevice, forbidden_waits
from reproduce.experiment.folder import ROOT
from reproduce.experiment.recipe import CosineRate
from reproduce.method import Method, NonNegative, Record, Role, Trace, Unregularized
from reproduce.method.sites import ROLES
from reproduce.models.precision import recurs_in_float32
from reproduce.training.site_statistics import site_statistics

RAN: Counter[str] = Counter()


def _clone(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors of nested dictionaries and sequences, by their path."""
    if isinstance(state, Tensor):
        return {name: state}
    if not isinstance(state, dict | list | tuple):
        return {}
    found: dict[str, Tensor] = {}
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        found |= _tensors(value, f"{name}.{key}")
    return found


def _reachable(session: Any) -> dict[str, int]:
    """Where the tensors lie that the next step may read: those of the model, the task, the optimiser, the step."""
    step = session.step
    places = {
        **dict(step.model.named_parameters()),
        **dict(step.model.named_buffers()),
        **_tensors({"optimizer": list(step.optimizer.state.values())}),
        **_tensors({"task": vars(session.task), "step": vars(step), "sums": vars(step.sums)}),
    }
    for name, module in step.model.named_modules():
        places |= _tensors(vars(module), f"module.{name}")  # what is no parameter and no buffer
    return {name: tensor.data_ptr() for name, tensor in places.items() if tensor.numel()}


def _gradients_are_finite(model: nn.Module) -> bool:
    return all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


@functools.cache  # configurations differ from each other in the choices that another check makes in each of them
def adds_a_finite_number(method: Method, problem: Any) -> None:
    """At the beginning, in the middle and at the end. One gradient that is not finite makes the sum of all so."""
    session = problem.session(method)
    total = session.forward()
    for progress in (0.0, 0.5, 1.0):
        penalty = session.penalty(progress)
        assert penalty.shape == ()
        assert penalty.dtype in (torch.float32, torch.float64)
        assert torch.isfinite(penalty)
        total = total + penalty
    total.backward()
    assert _gradients_are_finite(session.model)


def works_in_bfloat16(method: Method, problem: Any) -> None:
    session = problem.session(method, precision="bfloat16")
    with session.trace.recording_every_role():
        loss = session.forward()
    has_recurrent = any(isinstance(module, nn.RNNBase) for module in session.model.modules())
    allowed = {torch.float32, torch.bfloat16} if has_recurrent and recurs_in_float32("cpu") else {torch.bfloat16}
    dtypes = {record.activation.dtype for record in session.trace.records}
    assert dtypes
    assert dtypes <= allowed
    penalty = session.penalty()
    assert penalty.shape == ()
    assert penalty.dtype in (torch.float32, torch.float64), "half precision is accumulated in float32"
    (loss + penalty).backward()
    assert torch.isfinite(penalty)
    assert _gradients_are_finite(session.model)


def every_choice_works_or_is_refused(method: Method, problem: Any) -> None:
    """Each value of each field with a fixed set of values, the others as they are."""
    for name, described in type(method).model_fields.items():
        choices = get_args(described.annotation) if get_origin(described.annotation) is Literal else ()
        for choice in (False, True) if described.annotation is bool else choices:
            try:
                other = type(method).model_validate({**method.model_dump(), name: choice})
                reason = problem.refusal(other)
            except ValidationError as error:  # two fields that do not go together
                reason = str(error)
            if reason is None:
                adds_a_finite_number(other, problem)
            else:
                assert is_clear(reason), f"{name} = {choice!r}: {unclear(reason)}"


def at_strength_zero_is_vanilla(method: Method, problem: Any) -> None:
    """Bit for bit after 5 steps. A method that adds nothing to the loss has no strength, and is exempt."""
    strengths = type(method).strengths()
    if not strengths:
        RAN["exempt"] += 1
        return
    zero = type(method).model_validate({**method.model_dump(), **dict.fromkeys(strengths, 0.0)})
    vanilla, other = problem.trained_once(Unregularized(), 5), problem.trained(zero, 5)
    assert _same(vanilla.state, {name: value for name, value in other.state.items() if name in vanilla.state})
    assert [epoch.train_loss for epoch in vanilla.epochs] == [epoch.train_loss for epoch in other.epochs]
    assert all(epoch.penalty == 0 for epoch in other.epochs)


def draws_only_from_its_generator(method: Method, problem: Any) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    session, again = problem.session(method), problem.session(method)
    session.forward()
    state = session.generators.state_dict()
    first = session.penalty()
    session.generators.method.set_state(state["method"])
    assert torch.equal(first, session.penalty()), "the same generator gives another penalty: there is state elsewhere"
    session.after_step()
    again.forward()
    again.penalty()
    again.after_step()
    after = session.generators.state_dict()
    assert _same({**state, "method": after["method"]}, after), "another stream of the run was drawn from"
    assert _same(_clone(session.model.named_parameters()), _clone(again.model.named_parameters()))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tobytes())


def leaves_the_model_alone(method: Method, problem: Any) -> None:
    """A penalty reads: the model, the records and what evaluation sees are the same after it."""
    session = problem.session(method)
    session.forward()
    records = list(session.trace.records)
    evaluated = session.task.evaluate()
    assert len(session.trace.records) == len(records), "a Site recorded in evaluation"
    state = _clone(session.model.state_dict().items())
    activations = [record.activation.detach().clone() for record in records]
    session.penalty()
    assert all(one is other for one, other in zip(records, session.trace.records, strict=True))
    assert all(torch.equal(one.activation, copy) for one, copy in zip(records, activations, strict=True))
    assert _same(state, _clone(session.model.state_dict().items()))
    assert session.task.evaluate() == evaluated


def records_exactly_what_it_reads(method: Method, problem: Any) -> None:
    """The roles whose activations the hooks look at; that no others are recorded changes no bit of training."""
    session, recording_all = problem.session(method), problem.session(method)
    session.forward()
    read: set[Role] = set()

    class Noted(Record):
        @property
        def activation(self) -> Tensor:
            read.add(self.site.role)
            return self[1]

    recorded = {record.site.role for record in session.trace.records}
    session.trace.records[:] = [Noted(*record) for record in session.trace.records]
    session.penalty()
    session.after_step()
    assert read == recorded
    session = problem.session(method)
    recording_all.trace.roles = ROLES
    for _ in range(3):
        session.step()
        recording_all.step()
    assert _same(_clone(session.model.state_dict().items()), _clone(recording_all.model.state_dict().items()))


def never_waits_for_the_device(method: Method, problem: Any) -> None:
    session = problem.session(method)
    with forbidden_waits(CPU):
        session.step()


def replays_as_it_steps(method: Method, problem: Any) -> None:
    """20 steps of which 16 repeat the operations of the fourth, on the same memory, equal 20 steps bit for bit.

    The rate falls on the way, epochs of two steps begin, and the model is evaluated.
    """
    changing = {"rate_on_device": True, "schedule": CosineRate(kind="cosine")}
    eager = problem.session(method, **changing)
    replayed = problem.session(method, captured=True, **changing)
    with torch.backends.mkldnn.flags(enabled=False):  # the LSTM of oneDNN keeps a workspace that no tape can hold
        for session in (eager, replayed):
            session.steps(STEPS // 2)
            session.task.evaluate()
            site_statistics(session.task, session.generators, session.trace)
            session.steps(STEPS // 2)
    RAN["replayed"] += replayed.step.mode == "captured"
    assert _same(_tensors(eager.step.state_dict()), _tensors(replayed.step.state_dict()))
    assert not torch.equal(eager.step.sums.loss, torch.zeros(()))


def nothing_is_rebound(method: Method, problem: Any) -> None:
    """What a step reads and writes stays where it is, epochs and evaluations in between."""
    session = problem.session(method)
    session.steps(3)  # the optimiser's state is made in the first step
    held = _reachable(session)
    session.steps(2)
    session.task.evaluate()
    site_statistics(session.task, session.generators, session.trace)
    session.steps(1)
    now = _reachable(session)
    assert held.keys() == now.keys()
    assert [name for name, place in held.items() if now[name] != place] == []


def learns(method: Method, problem: Any) -> None:
    first, *_, last = problem.trained_once(method).epochs
    assert last.train_loss < first.train_loss


def gives_the_same_numbers_also_from_a_checkpoint(method: Method, problem: Any) -> None:
    whole, resumed = problem.trained_once(method), problem.trained(method, stop_after=7)
    assert whole.epochs == resumed.epochs
    assert _same(whole.state, resumed.state)


LOOKED_FOR = ("Site", "Sites", "need", "needs")


def is_clear(refusal: str) -> bool:
    """A refusal names the Site that it cannot use, or says what it needs."""
    return re.search(rf"\b({'|'.join(LOOKED_FOR)})\b", refusal) is not None


def unclear(refusal: str) -> str:
    """What to do about one that does not."""
    return (
        f"a refusal holds one of the words {', '.join(LOOKED_FOR)}, and says which Site, or what is needed: {refusal!r}"
    )


CHECKS: tuple[Callable[[Method, Any], None], ...] = (
    adds_a_finite_number,
    works_in_bfloat16,
    every_choice_works_or_is_refused,
    at_strength_zero_is_vanilla,
    draws_only_from_its_generator,
    leaves_the_model_alone,
    records_exactly_what_it_reads,
    never_waits_for_the_device,
    replays_as_it_steps,
    nothing_is_rebound,
    learns,
    gives_the_same_numbers_also_from_a_checkpoint,
)


# What trains for longest: continuous integration takes a third of the configurations and tasks.
LONG = {
    *(every_choice_works_or_is_refused, records_exactly_what_it_reads, replays_as_it_steps, nothing_is_rebound, learns),
    gives_the_same_numbers_also_from_a_checkpoint,
}


@pytest.mark.parametrize(
    "check",
    [pytest.param(each, marks=pytest.mark.sampled(3)) if each in LONG else each for each in CHECKS],
    ids=lambda check: check.__name__,
)
def test_behaviour(configured: Any, check: Callable[[Method, Any], None], problem: Any) -> None:
    subject, method = configured
    RAN["checks"] += 1
    reason = problem.refusal(method)
    if reason is None:
        check(method, problem)
    else:
        RAN["refused"] += 1
        assert is_clear(reason), f"{subject.name} refuses {problem.name}: {unclear(reason)}"


def test_every_check_ran_on_every_method(subjects: Any, problems: Any, request: pytest.FixtureRequest) -> None:
    """Runs after all checks, so that none drops out unseen."""
    collected = [item for item in request.session.items if item.name.startswith(f"{test_behaviour.__name__}[")]
    assert RAN["checks"] == len(collected)
    if request.config.getoption("--sample"):
        return
    kinds = {path.stem for path in (ROOT / "reproduce" / "tasks").glob("[a-z]*.py")}
    assert {problem.spec.kind for problem in problems} == kinds
    pairs = [
        (subject, problem.refusal(method))
        for subject in subjects.values()
        for method in subject.configurations.values()
        for problem in problems
    ]
    assert RAN["checks"] == len(pairs) * len(CHECKS)
    assert RAN["refused"] == sum(reason is not None for _, reason in pairs) * len(CHECKS)
    assert RAN["replayed"] == sum(reason is None for _, reason in pairs)  # no configuration falls back to eager steps
    assert RAN["exempt"] == sum(reason is None and not subject.adds_a_penalty for subject, reason in pairs)


# The checks themselves: each must find the fault that it is there for.


class _Weighted(Method):
    strength: NonNegative = 1e-2
    recorded_roles: ClassVar[frozenset[Role]] = ROLES


def _read(trace: Trace) -> Tensor:
    return torch.stack([record.activation.float().square().mean() for record in trace.records]).sum()


def _adds_nan(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return trace.zero() + torch.nan


def _adds_a_vector(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return method.strength * torch.stack([record.activation.square().mean() for record in trace.records])


def _stays_in_half_precision(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return _read(trace).to(torch.bfloat16)


def _draws_globally(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return method.strength * _read(trace) * torch.rand(())


def _counts_its_calls(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    RAN["calls"] += 1
    return method.strength * _read(trace) * RAN["calls"]


def _clips_the_weights(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    with torch.no_grad():
        for parameter in trace.model.parameters():
            parameter.clamp_(-0.1, 0.1)
    return trace.zero()


def _clears_the_trace(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    total = _read(trace)
    trace.clear()
    return method.strength * total


def _reads_one_role(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return method.strength * trace.records[0].activation.square().mean()


def _branches_on_a_value(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return method.strength * _read(trace) if progress > 0.1 else trace.zero()


def _selects_by_a_mask(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    values = trace.records[0].activation
    return method.strength * values[values > 0].sum()


def _copies_to_the_host(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return method.strength * _read(trace) * sum(progress.reshape(1).tolist())


def _follows_the_host(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    """A schedule by a Python number, which a recording repeats."""
    return method.strength * _read(trace) * float(progress.detach().numpy())


def _remembers_in_a_new_tensor(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    trace.model.remembered = [*getattr(trace.model, "remembered", ()), progress.clone()][-9:]
    return method.strength * _read(trace)


def _works_against_the_task(method: Any, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
    return 10 * torch.stack([weight.square().sum() for weight in trace.model.parameters()]).sum()


@pytest.mark.parametrize(
    ("check", "penalty"),
    [
        (adds_a_finite_number, _adds_nan),
        (adds_a_finite_number, _adds_a_vector),
        (works_in_bfloat16, _stays_in_half_precision),
        (draws_only_from_its_generator, _draws_globally),
        (draws_only_from_its_generator, _counts_its_calls),
        (leaves_the_model_alone, _clips_the_weights),
        (leaves_the_model_alone, _clears_the_trace),
        (records_exactly_what_it_reads, _reads_one_role),
        (never_waits_for_the_device, _branches_on_a_value),
        (never_waits_for_the_device, _selects_by_a_mask),
        (never_waits_for_the_device, _copies_to_the_host),
        (replays_as_it_steps, _counts_its_calls),
        (replays_as_it_steps, _follows_the_host),
        (nothing_is_rebound, _remembers_in_a_new_tensor),
        (learns, _works_against_the_task),
        (gives_the_same_numbers_also_from_a_checkpoint, _counts_its_calls),
    ],
)
def test_a_check_finds_its_fault(check: Callable[[Method, Any], None], penalty: Any, problems: Any) -> None:
    sound = type("Sound", (_Weighted,), {"penalty": lambda self, trace, *_: self.strength * _read(trace)})
    faulty = type("Faulty", (_Weighted,), {"penalty": penalty})
    check(sound(), problems[0])
    with pytest.raises((AssertionError, ValueError, WaitsForTheDevice)):
        check(faulty(), problems[0])


class _PreparesAtAnyStrength(_Weighted):
    """What a penalty cannot forget any more, the other hooks can."""

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)


class _ActsAfterStepsAtAnyStrength(_Weighted):
    def after_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Tensor, generator: torch.Generator
    ) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(0.99)


@pytest.mark.parametrize("faulty", [_PreparesAtAnyStrength, _ActsAfterStepsAtAnyStrength])
def test_the_check_of_strength_zero_finds_its_fault(faulty: type[Method], problems: Any) -> None:
    with pytest.raises(AssertionError):
        at_strength_zero_is_vanilla(faulty(), problems[0])
