"""The battery, first part: what the folder of every method holds.

A check is one function: add it to CHECKS, and every discovered method and the template are checked. Nothing is
skipped, and the number of checks that ran is itself asserted.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from pydantic import ValidationError

from reproduce import plan
from reproduce.discover import METHODS, find_method
from reproduce.method import Method
from reproduce.report.card import SECTIONS, Card, to_html

RAN: Counter[str] = Counter()


def holds_its_files(subject: Any, problems: Any) -> None:
    for name in ("method.py", "card.md", "test_method.py", "experiments"):
        assert (subject.path / name).exists(), f"{subject.path / name} is missing"
    assert not (subject.path / "__init__.py").exists(), "methods are folders, not packages"
    tests = ast.parse((subject.path / "test_method.py").read_text("utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tests))
    if subject.changes_something:
        assert subject.variants, f"{subject.path / 'bench.toml'}: names no variant to time"


def has_a_complete_card(subject: Any, problems: Any) -> None:
    card = Card(subject.path)
    missing = [name for name in SECTIONS if name not in card.sections]
    assert not missing, f"{subject.path / 'card.md'} has nothing under {missing}"
    nothing = re.compile("None[.:]")
    deviations, citation = card.sections["Deviations"], card.sections["Citation"]
    assert re.search(r"^1\. ", deviations, re.M) or nothing.match(deviations), "deviations are numbered, or 'None: why'"
    assert re.search(r"\b(19|20)\d\d\b", citation) or nothing.match(citation), (
        "a citation has a year, or is 'None: why'"
    )
    for name, text in card.sections.items():
        shown = re.sub(r"<(code|annotation)\b.*?</\1>", "", to_html(text), flags=re.S)
        assert "$" not in shown, f"{subject.path / 'card.md'}: mathematics under {name} does not render"


def is_frozen_and_strict(subject: Any, problems: Any) -> None:
    method_class = subject.method_class
    assert issubclass(method_class, Method)
    assert method_class.__doc__ != Method.__doc__, "the class says in its docstring what it does"
    assert method_class.version >= 1
    for method in subject.configurations.values():
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


def explains_its_fields(subject: Any, problems: Any) -> None:
    """Every number carries a comment with its source (or "ours"), any other field that or a word in the docstring."""
    method_class = subject.method_class
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
            assert explained, f"{subject.name}: field {name} says no source: a comment names it, or says 'ours'"


def survives_json(subject: Any, problems: Any) -> None:
    method_class = subject.method_class
    for method in subject.configurations.values():
        assert method_class.model_validate_json(method.model_dump_json()) == method


def weights_its_penalty(subject: Any, problems: Any) -> None:
    assert subject.strengths or not subject.adds_a_penalty, (
        "a method with a penalty has a field that ends in `strength` or `coefficient`, and at 0 it is vanilla"
    )


def accepts_a_task(subject: Any, problems: Any) -> None:
    for name, method in subject.configurations.items():
        reasons = [problem.refusal(method) for problem in problems]
        assert None in reasons, f"{subject.name} {name} refuses every task: {reasons}"


def has_experiments_that_resolve(subject: Any, problems: Any) -> None:
    kinds = {problem.spec.kind for problem in problems}
    quick = set()
    # The template is no method for the command line, and its experiments must resolve all the same.
    with mock.patch.object(plan, "find_method", lambda n: subject.folder if n == subject.name else find_method(n)):
        for name, experiment in subject.folder.experiments().items():
            assert experiment.seeds
            planned = plan.plan({name: experiment}, None, experiment.seeds[:1])
            assert planned or all(arm.pending for arm in experiment.arms.values()), f"{name} trains nothing"
            assert all(claim.source.strip() for claim in experiment.claims)
            used = {run.config.task.kind for run in planned}
            assert used <= kinds, f"{name}: the battery has no tiny task of kind {used - kinds}"
            if experiment.scale == "quick":
                quick |= {run.config.task.kind for run in planned if run.config.method == subject.name}
    if subject.changes_something:
        methods = subject.configurations.values()
        wanted = {p.spec.kind for p in problems if any(p.refusal(method) is None for method in methods)}
        assert quick >= wanted, f"{subject.path / 'experiments'}: no quick experiment for {sorted(wanted - quick)}"


CHECKS: tuple[Callable[[Any, Any], None], ...] = (
    holds_its_files,
    has_a_complete_card,
    is_frozen_and_strict,
    explains_its_fields,
    survives_json,
    weights_its_penalty,
    accepts_a_task,
    has_experiments_that_resolve,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_folder(subject: Any, check: Callable[[Any, Any], None], problems: Any) -> None:
    RAN[subject.name] += 1
    check(subject, problems)


def test_every_check_ran_on_every_folder() -> None:
    """Runs last. Counted from the disk, so that no folder drops out unseen."""
    on_disk = {path.name for path in METHODS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert dict.fromkeys(on_disk, len(CHECKS)) == RAN
