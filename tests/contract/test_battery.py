"""The battery: what every method's folder must hold, and how each of its configurations must behave on tiny tasks.

A check is one function: add it to FOLDER_CHECKS or BEHAVIOUR_CHECKS, and every method is checked. The methods and their
configurations (the defaults, and the variants of bench.toml) are found, not listed. Nothing is skipped: a task that
a method refuses must be refused clearly, and the number of checks that ran is itself asserted.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import random
import re
import tempfile
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reproduce import plan, tasks
from reproduce.bench import read_spec
from reproduce.cards import Card as DataCard
from reproduce.cards import Statistics
from reproduce.data import ImageData, Images, WordData
from reproduce.discover import METHODS, MethodFolder, all_methods, find_method
from reproduce.method import Method, Role, Site, Trace, sites_of
from reproduce.randomness import Generators
from reproduce.records import EpochRecord
from reproduce.report.card import SECTIONS, Card, to_html
from reproduce.sites import watch
from reproduce.spec import Recipe, TaskSpec, cells
from reproduce.train import Interrupted, train

CPU = torch.device("cpu")
TEMPLATE = MethodFolder("_template", METHODS / "_template")
FOLDERS = {**all_methods(), TEMPLATE.name: TEMPLATE}


# Tiny tasks: a few random images and words that a small network can learn by heart; two steps are an epoch.


@dataclass(frozen=True)
class Problem:
    """A Task of every kind of Site: units, maps, and the outputs of a recurrent layer."""

    name: str
    spec: TaskSpec = field(compare=False)
    recipe: Recipe = field(compare=False)

    def build(self, generators: Generators, **changes: Any) -> tasks.Task:
        recipe = self.recipe.model_copy(update=changes)
        return tasks.build(self.spec, recipe, _DATA[self.spec.kind](), generators, CPU)


def _images() -> ImageData:
    pixels = torch.randint(0, 256, (16, 1, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Images(pixels, torch.arange(16) % 3)
    card = DataCard.model_construct(name="tiny", statistics=Statistics(mean=(0.5,), std=(0.3,), source="uniform"))
    return ImageData(card=card, train=split, validation=None, test=split, classes=3, origin="made here")


def _words() -> WordData:
    tokens = torch.arange(45) ** 2 % 7
    card = DataCard.model_construct(name="tiny")
    return WordData(card=card, train=tokens, validation=tokens, test=tokens, vocabulary=tuple("abcdefg"), origin="here")


def _problem(name: str, kind: str, options: dict[str, Any], **recipe: Any) -> Problem:
    spec = TaskSpec(kind=kind, dataset="tiny", model=name, model_options=options)
    return Problem(name, spec, Recipe(steps=20, evaluate_every=5, eval_batch_size=4, **recipe))


_DATA: dict[str, Callable[[], ImageData | WordData]] = {"image_classification": _images, "language_modeling": _words}
PROBLEMS = (
    _problem("mlp", "image_classification", {"width": 8, "depth": 2}, batch_size=8, learning_rate=0.2),
    _problem("resnet", "image_classification", {"depth": 8, "width": 2}, batch_size=8, learning_rate=0.5),
    _problem("lstm", "language_modeling", {"hidden": 8}, batch_size=4, window=5, learning_rate=2.0),
)


class Session:
    """A Task whose model a method prepared, its Trace and generators: all that a training step needs."""

    def __init__(self, method: Method, problem: Problem, **changes: Any) -> None:
        self.method = method
        self.generators = Generators.seeded(0, CPU)
        self.task = problem.build(self.generators, **changes)
        self.model = self.task.model
        method.prepare(self.model, self.generators.method)
        self.model.train()
        self.trace = watch(self.model)
        self.task.start_epoch()

    def forward(self) -> Tensor:
        self.trace.clear()
        return self.task.loss(0)

    def penalty(self, progress: float = 0.5) -> Tensor:
        return self.method.penalty(self.trace, torch.tensor(progress), self.generators.method)


@dataclass(frozen=True)
class Trained:
    """What a Run leaves: the model's tensors, and the records without their wall time."""

    state: dict[str, Tensor]
    epochs: list[EpochRecord]

    def same_as(self, other: Trained) -> bool:
        return self.epochs == other.epochs and _same(self.state, other.state)


def _trained(method: Method, problem: Problem, steps: int = 20, stop_after: int = 0) -> Trained:
    """Train in the one loop; with ``stop_after``, interrupted there and gone on from the checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        if stop_after:
            stops = iter([False] * (stop_after - 1) + [True])
            with pytest.raises(Interrupted):
                _train(method, problem, steps, Path(folder), lambda: next(stops))
        return _train(method, problem, steps, Path(folder), lambda: False)


def _train(method: Method, problem: Problem, steps: int, folder: Path, should_stop: Callable[[], bool]) -> Trained:
    generators = Generators.seeded(0, CPU)
    task = problem.build(generators)
    recipe = problem.recipe.model_copy(update={"steps": steps})
    outcome = train("battery", recipe, task, method, generators, CPU, folder, should_stop=should_stop)
    assert outcome.diverged_step is None
    epochs = [epoch.model_copy(update={"seconds_per_step": 0.0}) for epoch in outcome.epochs]
    return Trained(dict(task.model.state_dict()), epochs)


_trained_once = functools.cache(_trained)  # several checks compare with the same undisturbed Run


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@functools.cache
def refusal(method: Method, problem: Problem) -> str | None:
    """Why this method does not work on this task, in its own words; None where it does."""
    try:
        session = Session(method, problem)
        session.forward()
        session.penalty()
    except ValueError as error:
        return str(error)
    return None


def acts_on_loss(method_class: type[Method]) -> bool:
    return method_class.penalty is not Method.penalty


def acts(method_class: type[Method]) -> bool:
    return acts_on_loss(method_class) or method_class.prepare is not Method.prepare


def strengths(method_class: type[Method]) -> list[str]:
    """The fields that weight the penalty."""
    return [name for name in method_class.model_fields if name.endswith(("strength", "coefficient"))]


def _configurations(folder: MethodFolder) -> dict[str, Method]:
    """The defaults and the variants of bench.toml, each once."""
    method_class = folder.load()
    required = [name for name, described in method_class.model_fields.items() if described.is_required()]
    params = {} if required else {"defaults": {}}
    params |= {name: variant.params for name, variant in read_spec(folder).variants.items()}
    found: dict[str, Method] = {}
    for name, chosen in params.items():
        method = method_class.model_validate_json(json.dumps(chosen))
        if method not in found.values():
            found[name] = method
    return found


# Checks of a folder.


def holds_its_files(folder: MethodFolder) -> None:
    for name in ("method.py", "card.md", "test_method.py", "experiments"):
        assert (folder.path / name).exists(), f"{folder.path / name} is missing"
    assert not (folder.path / "__init__.py").exists(), "methods are folders, not packages"
    tests = ast.parse((folder.path / "test_method.py").read_text("utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tests))
    if acts(folder.load()):
        assert read_spec(folder).variants, "what a method costs is timed: bench.toml names its variants"


def has_a_complete_card(folder: MethodFolder) -> None:
    card = Card(folder.path)
    missing = [name for name in SECTIONS if name not in card.sections]
    assert not missing, f"{folder.path / 'card.md'} has nothing under {missing}"
    assert len(card.title) > 3
    none = re.compile("None[.:]")
    deviations, citation = card.sections["Deviations"], card.sections["Citation"]
    assert re.search(r"^1\. ", deviations, re.M) or none.match(deviations), "deviations are numbered, or None"
    assert re.search(r"@\w+\{", citation) or none.match(citation), "a citation is BibTeX, or None with its reason"
    for name in SECTIONS:
        rendered = to_html(card.sections[name])
        assert "merror" not in rendered, name
        assert "$" not in re.sub("<(code|annotation).*?</(code|annotation)>", "", rendered, flags=re.S), (
            f"mathematics in {name} did not render"
        )


def is_frozen_and_strict(folder: MethodFolder) -> None:
    method_class = folder.load()
    assert issubclass(method_class, Method)
    config = method_class.model_config
    assert (config["frozen"], config["strict"], config["extra"]) == (True, True, "forbid")
    assert method_class.__doc__ != Method.__doc__, "the class says in its docstring what it does"
    assert method_class.version >= 1
    for method in _configurations(folder).values():
        with pytest.raises(ValidationError, match="frozen"):
            method.version = 2  # type: ignore[misc]
        for name, value in method.model_dump().items():
            with pytest.raises(ValidationError, match=name):
                method_class.model_validate({**method.model_dump(), name: [value]})
        with pytest.raises(ValidationError, match="unknown_field"):
            method_class.model_validate({**method.model_dump(), "unknown_field": 1})


def explains_its_fields(folder: MethodFolder) -> None:
    """Every number carries a comment with its source (or "ours"); other fields this, or a word in the docstring."""
    method_class = folder.load()
    source = textwrap.dedent(inspect.getsource(method_class))
    lines = source.splitlines()
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
            described = method_class.model_fields.get(name)
            commented = any("#" in line for line in lines[node.lineno - 1 : node.end_lineno])
            commented |= lines[node.lineno - 2].lstrip().startswith("#")
            mentioned = f"``{name}" in (method_class.__doc__ or "")
            number = described is not None and type(described.default) in (int, float)
            explained = commented or (described and described.description) or (mentioned and not number)
            assert explained, f"{folder.name}: field {name} has no source: add a comment with it, or with 'ours'"


def survives_json(folder: MethodFolder) -> None:
    method_class = folder.load()
    for method in _configurations(folder).values():
        assert method_class.model_validate_json(method.model_dump_json()) == method


def weights_its_penalty(folder: MethodFolder) -> None:
    method_class = folder.load()
    assert bool(strengths(method_class)) >= acts_on_loss(method_class), (
        "a method with a penalty has a field that ends in `strength` or `coefficient`: at 0 it is vanilla"
    )


def accepts_a_task(folder: MethodFolder) -> None:
    for name, method in _configurations(folder).items():
        reasons = [refusal(method, problem) for problem in PROBLEMS]
        assert None in reasons, f"{folder.name} {name} refuses every task: {reasons}"


def has_experiments_that_resolve(folder: MethodFolder) -> None:
    experiments = folder.experiments()
    known = lambda name: FOLDERS.get(name.replace("-", "_")) or find_method(name)  # noqa: E731
    quick = set()
    with mock.patch.object(plan, "find_method", known):  # a template is no method of the command line
        for name, experiment in experiments.items():
            planned = plan.plan({name: experiment}, None, experiment.seeds[:1])
            for run in planned:
                assert run.config.task.kind in _DATA, f"{name}: unknown kind of task {run.config.task.kind!r}"
                if experiment.scale == "quick" and run.config.method == folder.name:
                    quick.add(run.config.task.kind)
            assert planned or all(arm.pending for arm in experiment.arms.values()), f"{name} trains nothing"
            assert all(claim.source.strip() for claim in experiment.claims)
    if acts(folder.load()):
        methods = _configurations(folder).values()
        wanted = {p.spec.kind for p in PROBLEMS if any(refusal(method, p) is None for method in methods)}
        assert quick >= wanted, f"{folder.path / 'experiments'}: no quick experiment for {sorted(wanted - quick)}"


FOLDER_CHECKS: tuple[Callable[[MethodFolder], None], ...] = (
    holds_its_files,
    has_a_complete_card,
    is_frozen_and_strict,
    explains_its_fields,
    survives_json,
    weights_its_penalty,
    accepts_a_task,
    has_experiments_that_resolve,
)
