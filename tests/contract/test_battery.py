"""The battery: what every method's folder must hold, and how each of its configurations behaves on tiny tasks.

A check is one function: add it to FOLDER_CHECKS or BEHAVIOUR_CHECKS, and every method is checked. Methods and their
configurations (the defaults, and the variants of bench.toml) are found, not listed. Nothing is skipped: a task that
a method refuses must be refused clearly, and the number of checks that ran is itself asserted.
"""

from __future__ import annotations

import ast
import inspect
import json
import random
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reproduce import plan
from reproduce.bench import read_spec
from reproduce.discover import METHODS, MethodFolder, all_methods, find_method
from reproduce.method import Method
from reproduce.report.card import SECTIONS, Card, to_html

TEMPLATE = MethodFolder("_template", METHODS / "_template")
FOLDERS = {**all_methods(), TEMPLATE.name: TEMPLATE}


def acts_on_loss(method_class: type[Method]) -> bool:
    return method_class.penalty is not Method.penalty


def acts(method_class: type[Method]) -> bool:
    return acts_on_loss(method_class) or method_class.prepare is not Method.prepare


def strengths(method_class: type[Method]) -> list[str]:
    """The fields that weight the penalty."""
    return [name for name in method_class.model_fields if name.endswith(("strength", "coefficient"))]


def configurations(folder: MethodFolder) -> dict[str, Method]:
    """The defaults and the variants of bench.toml, each once."""
    method_class = folder.load()
    required = any(described.is_required() for described in method_class.model_fields.values())
    params: dict[str, dict[str, Any]] = {} if required else {"defaults": {}}
    params |= {name: variant.params for name, variant in read_spec(folder).variants.items()}
    found: dict[str, Method] = {}
    for name, chosen in params.items():
        method = method_class.model_validate_json(json.dumps(chosen))
        if method not in found.values():
            found[name] = method
    return found


CONFIGURATIONS = {
    f"{folder.name}-{name}": method for folder in FOLDERS.values() for name, method in configurations(folder).items()
}


# Checks of a folder: (folder, the tiny tasks) -> None, or an AssertionError.


def holds_its_files(folder: MethodFolder, problems: Any) -> None:
    for name in ("method.py", "card.md", "test_method.py", "experiments"):
        assert (folder.path / name).exists(), f"{folder.path / name} is missing"
    assert not (folder.path / "__init__.py").exists(), "methods are folders, not packages"
    tests = ast.parse((folder.path / "test_method.py").read_text("utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tests))
    if acts(folder.load()):
        assert read_spec(folder).variants, f"{folder.path / 'bench.toml'}: names no variant to time"


def has_a_complete_card(folder: MethodFolder, problems: Any) -> None:
    card = Card(folder.path)
    missing = [name for name in SECTIONS if name not in card.sections]
    assert not missing, f"{folder.path / 'card.md'} has nothing under {missing}"
    nothing = re.compile("None[.:]")
    deviations, citation = card.sections["Deviations"], card.sections["Citation"]
    assert re.search(r"^1\. ", deviations, re.M) or nothing.match(deviations), "deviations are numbered, or 'None: why'"
    assert re.search(r"@\w+\{", citation) or nothing.match(citation), "a citation is BibTeX, or 'None: why'"
    for name, text in card.sections.items():
        shown = re.sub(r"<(code|annotation)\b.*?</\1>", "", to_html(text), flags=re.S)
        assert "$" not in shown, f"{folder.path / 'card.md'}: mathematics under {name} does not render"


def is_frozen_and_strict(folder: MethodFolder, problems: Any) -> None:
    method_class = folder.load()
    assert issubclass(method_class, Method)
    assert method_class.__doc__ != Method.__doc__, "the class says in its docstring what it does"
    assert method_class.version >= 1
    for method in configurations(folder).values():
        fields = method.model_dump()
        with pytest.raises(ValidationError, match="unknown_field"):
            method_class.model_validate({**fields, "unknown_field": 1})
        for name, value in fields.items():
            with pytest.raises(ValidationError, match="frozen"):
                setattr(method, name, value)
            with pytest.raises(ValidationError, match=name):
                method_class.model_validate({**fields, name: [str(value)]})
            if isinstance(value, bool | int | float):  # strict: no text is taken for a number
                with pytest.raises(ValidationError, match=name):
                    method_class.model_validate({**fields, name: str(value)})


def explains_its_fields(folder: MethodFolder, problems: Any) -> None:
    """Every number carries a comment with its source (or "ours"), any other field that or a word in the docstring."""
    method_class = folder.load()
    source = textwrap.dedent(inspect.getsource(method_class))
    lines = source.splitlines()
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            described = method_class.model_fields.get(name)
            above = lines[node.lineno - 2].strip()
            commented = above.startswith("#") or any("#" in line for line in lines[node.lineno - 1 : node.end_lineno])
            mentioned = f"``{name}" in (method_class.__doc__ or "")
            is_number = described is not None and type(described.default) in (int, float)
            explained = commented or (described and described.description) or (mentioned and not is_number)
            assert explained, f"{folder.name}: field {name} says no source: a comment names it, or says 'ours'"


def survives_json(folder: MethodFolder, problems: Any) -> None:
    method_class = folder.load()
    for method in configurations(folder).values():
        assert method_class.model_validate_json(method.model_dump_json()) == method


def weights_its_penalty(folder: MethodFolder, problems: Any) -> None:
    method_class = folder.load()
    assert bool(strengths(method_class)) >= acts_on_loss(method_class), (
        "a method with a penalty has a field that ends in `strength` or `coefficient`, and at 0 it is vanilla"
    )


def accepts_a_task(folder: MethodFolder, problems: Any) -> None:
    for name, method in configurations(folder).items():
        reasons = [problem.refusal(method) for problem in problems]
        assert None in reasons, f"{folder.name} {name} refuses every task: {reasons}"


def has_experiments_that_resolve(folder: MethodFolder, problems: Any) -> None:
    kinds = {problem.spec.kind for problem in problems}
    quick = set()
    with mock.patch.object(plan, "find_method", lambda name: FOLDERS.get(name) or find_method(name)):
        for name, experiment in folder.experiments().items():
            assert experiment.seeds
            planned = plan.plan({name: experiment}, None, experiment.seeds[:1])
            assert planned or all(arm.pending for arm in experiment.arms.values()), f"{name} trains nothing"
            assert all(claim.source.strip() for claim in experiment.claims)
            used = {run.config.task.kind for run in planned}
            assert used <= kinds, f"{name}: the battery has no tiny task of kind {used - kinds}"
            if experiment.scale == "quick":
                quick |= {run.config.task.kind for run in planned if run.config.method == folder.name}
    if acts(folder.load()):
        methods = configurations(folder).values()
        wanted = {p.spec.kind for p in problems if any(p.refusal(method) is None for method in methods)}
        assert quick >= wanted, f"{folder.path / 'experiments'}: no quick experiment for {sorted(wanted - quick)}"


FOLDER_CHECKS: tuple[Callable[[MethodFolder, Any], None], ...] = (
    holds_its_files,
    has_a_complete_card,
    is_frozen_and_strict,
    explains_its_fields,
    survives_json,
    weights_its_penalty,
    accepts_a_task,
    has_experiments_that_resolve,
)


# Checks of behaviour: (method, tiny task that it accepts) -> None, or an AssertionError.


class NoHostSync(TorchDispatchMode):
    """Raises where an operation waits for a tensor's value, or has a shape that depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = torch.Tag.data_dependent_output in func.tags
        if torch.Tag.dynamic_output_shape in func.tags:
            masks = args[1] if func is torch.ops.aten.index.Tensor else ()
            is_masked = any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in masks)
            waits |= func is not torch.ops.aten.index.Tensor or is_masked
        assert not waits, f"{func} waits for the device: no .item(), no branch on a value, no mask as index in a step"
        return func(*args, **(kwargs or {}))


class NoCopyToHost(TorchFunctionMode):
    """Raises for the copies to the host that no operation on a CPU shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in ("tolist", "numpy", "__array__", "cpu"), f"Tensor.{name} waits for the device"
        return func(*args, **(kwargs or {}))


def _clone(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors}


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _gradients_are_finite(model: nn.Module) -> bool:
    return all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def adds_a_finite_number(method: Method, problem: Any) -> None:
    for progress in (0.0, 0.5, 1.0):
        session = problem.session(method)
        loss = session.forward()
        penalty = session.penalty(progress)
        assert penalty.shape == ()
        assert penalty.dtype in (torch.float32, torch.float64)
        assert torch.isfinite(penalty)
        (loss + penalty).backward()
        assert _gradients_are_finite(session.model)


def works_in_bfloat16(method: Method, problem: Any) -> None:
    session = problem.session(method, precision="bfloat16")
    loss = session.forward()
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
                session = problem.session(type(method).model_validate({**method.model_dump(), name: choice}))
                loss = session.forward()
                penalty = session.penalty()
            except ValueError as error:
                assert is_clear(str(error)), f"{name} = {choice!r}: {error}"
                continue
            (loss + penalty).backward()
            assert penalty.shape == (), f"{name} = {choice!r}"
            assert torch.isfinite(penalty), f"{name} = {choice!r}"
            assert _gradients_are_finite(session.model), f"{name} = {choice!r}"


def at_strength_zero_is_vanilla(method: Method, problem: Any) -> None:
    """Bit for bit after 5 steps. A method that adds nothing to the loss has no strength, and is exempt."""
    if not strengths(type(method)):
        RAN["exempt"] += 1
        return
    zero = type(method).model_validate({**method.model_dump(), **dict.fromkeys(strengths(type(method)), 0.0)})
    vanilla, other = problem.trained_once(Method(), 5), problem.trained(zero, 5)
    assert _same(vanilla.state, {name: value for name, value in other.state.items() if name in vanilla.state})
    assert [epoch.train_loss for epoch in vanilla.epochs] == [epoch.train_loss for epoch in other.epochs]
    assert all(epoch.penalty == 0 for epoch in other.epochs)


def draws_only_from_its_generator(method: Method, problem: Any) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    session, again = problem.session(method), problem.session(method)
    session.forward()
    state = session.generators.state_dict()
    first = session.penalty()
    after = session.generators.state_dict()
    session.generators.method.set_state(state["method"])
    assert torch.equal(first, session.penalty()), "the same generator gives another penalty: there is state elsewhere"
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


def never_waits_for_the_device(method: Method, problem: Any) -> None:
    session = problem.session(method)
    session.forward()
    progress = torch.tensor(0.5)
    with NoCopyToHost(), NoHostSync():
        penalty = method.penalty(session.trace, progress, session.generators.method)
        if penalty.requires_grad:
            penalty.backward()


def learns(method: Method, problem: Any) -> None:
    first, *_, last = problem.trained_once(method).epochs
    assert last.train_loss < first.train_loss


def gives_the_same_numbers_twice(method: Method, problem: Any) -> None:
    one, other = problem.trained_once(method), problem.trained(method)
    assert one.epochs == other.epochs
    assert _same(one.state, other.state)


def goes_on_from_a_checkpoint(method: Method, problem: Any) -> None:
    whole, resumed = problem.trained_once(method), problem.trained(method, stop_after=7)
    assert whole.epochs == resumed.epochs
    assert _same(whole.state, resumed.state)


BEHAVIOUR_CHECKS: tuple[Callable[[Method, Any], None], ...] = (
    adds_a_finite_number,
    works_in_bfloat16,
    every_choice_works_or_is_refused,
    at_strength_zero_is_vanilla,
    draws_only_from_its_generator,
    leaves_the_model_alone,
    never_waits_for_the_device,
    learns,
    gives_the_same_numbers_twice,
    goes_on_from_a_checkpoint,
)


# The battery itself.

RAN: Counter[str] = Counter()


def is_clear(refusal: str) -> bool:
    """A refusal names the Site that it cannot use, or says what it needs."""
    return re.search(r"\bSites?\b|\bneeds?\b", refusal) is not None


@pytest.mark.parametrize("check", FOLDER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", FOLDERS)
def test_folder(name: str, check: Callable[[MethodFolder, Any], None], problems: Any) -> None:
    RAN["folder"] += 1
    check(FOLDERS[name], problems)


@pytest.mark.parametrize("check", BEHAVIOUR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_behaviour(name: str, check: Callable[[Method, Any], None], problem: Any) -> None:
    RAN["behaviour"] += 1
    reason = problem.refusal(CONFIGURATIONS[name])
    if reason is None:
        check(CONFIGURATIONS[name], problem)
    else:
        RAN["refused"] += 1
        assert is_clear(reason), f"{name} refuses {problem.name}, and does not say what it needs: {reason}"


def test_every_check_ran_on_every_method(problems: Any) -> None:
    """Runs last. Counted anew from the folders on disk, so that nothing can drop out unseen."""
    on_disk = {path.name for path in METHODS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(FOLDERS) == on_disk
    assert RAN["folder"] == len(on_disk) * len(FOLDER_CHECKS)
    methods = [method for name in on_disk for method in configurations(FOLDERS[name]).values()]
    assert RAN["behaviour"] == len(methods) * len(problems) * len(BEHAVIOUR_CHECKS)
    refused = [(method, problem) for method in methods for problem in problems if problem.refusal(method)]
    assert RAN["refused"] == len(refused) * len(BEHAVIOUR_CHECKS)
    without = [method for method in methods if not acts_on_loss(type(method))]
    assert RAN["exempt"] == sum(problem.refusal(method) is None for method in without for problem in problems)
