"""The battery, first part: what the folder of every method holds.

A check is one function: add it to CHECKS, and every discovered method and the template are checked. Nothing is
skipped, and the number of checks that ran is itself asserted.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from pydantic import ConfigDict, ValidationError, field_serializer

from reproduce.errors import UserError
from reproduce.experiment.files import read_columns, read_matrix
from reproduce.experiment.folder import METHODS, ROOT, MethodFolder, find_method
from reproduce.experiment.schema import Arm
from reproduce.method import Method
from reproduce.report.method_card import SECTIONS, MethodCard, to_html
from reproduce.training import plan

RAN: Counter[str] = Counter()


def holds_its_files(subject: Any, problems: Any) -> None:
    for name in ("method.py", "card.md", "test_method.py", "experiments"):
        assert (subject.path / name).exists(), f"{subject.path / name} is missing"
    assert not (subject.path / "__init__.py").exists(), "methods are folders, not packages"
    tests = ast.parse((subject.path / "test_method.py").read_text("utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tests))
    if subject.changes_something:
        assert subject.variants, f"{subject.path / 'variants.toml'}: names no variant to time"


def has_a_complete_card(subject: Any, problems: Any) -> None:
    card = MethodCard(subject.path)
    missing = [name for name in SECTIONS if name not in card.sections]
    assert not missing, f"{subject.path / 'card.md'} has nothing under {missing}: headings '## {missing[0]}', in full"
    nothing = re.compile("None[.:]")
    deviations = card.sections["Deviations"]
    assert re.search(r"^1\. ", deviations, re.M) or nothing.match(deviations), (
        f"{subject.path / 'card.md'}: Deviations are a list that begins with '1. ', or begin with 'None: why'"
    )
    assert card.citations or nothing.match(card.sections["Citation"]), (
        f"{subject.path / 'card.md'}: a Citation is a fenced block of bibtex, or begins with 'None: why'"
    )
    for method in subject.configurations.values():
        card.batch_of(method.model_dump(mode="json"))  # or an error that says what Mathematics lacks
    for name, text in card.sections.items():
        made = to_html(text)
        shown = re.sub(r"<(code|annotation)\b.*?</\1>", "", made, flags=re.S)
        problem = f"{subject.path / 'card.md'}: mathematics under {name} does not render"
        assert "$" not in shown, problem
        assert '<code class="formula">' not in made, problem


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
                method_class.model_validate({**fields, name: [{"no field": str(value)}]})
            if isinstance(value, bool | int | float):  # strict: no text is taken for a number
                with pytest.raises(ValidationError, match=name):
                    method_class.model_validate({**fields, name: str(value)})


def gives_the_source_of_its_numbers(subject: Any, problems: Any) -> None:
    """Every field that is a number by default carries a comment with its source, or the word "ours"."""
    source = textwrap.dedent(inspect.getsource(subject.method_class))
    lines = source.splitlines()
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            described = subject.method_class.model_fields.get(node.target.id)
            if described is not None and type(described.default) in (int, float) and not described.description:
                above = lines[node.lineno - 2].strip().startswith("#")
                beside = any("#" in line for line in lines[node.lineno - 1 : node.end_lineno])
                assert above or beside, f"{subject.name}: field {node.target.id} has no comment that names its source"


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
    kinds = {path.stem for path in (ROOT / "reproduce" / "tasks").glob("[a-z]*.py")}
    quick = set()
    # The template is no method for the command line, and its experiments must resolve all the same.
    with mock.patch.object(plan, "find_method", lambda n: subject.folder if n == subject.name else find_method(n)):
        columns: dict[str, str] = {}
        read_columns(broken=columns)  # one that does not read is told by `list` and `plan`, and no fault of a method
        unread: dict[str, str] = {}
        experiments = subject.folder.experiments(unread)
        assert unread.keys() <= columns.keys(), next(line for name, line in unread.items() if name not in columns)
        for name, experiment in experiments.items():
            assert experiment.seeds
            planned = plan.plan({name: experiment}, None, experiment.seeds[:1])
            assert planned or all(arm.pending for arm in experiment.arms.values()), f"{name} trains nothing"
            assert all(claim.source.strip() for claim in experiment.claims)
            used = {run.config.task.kind for run in planned}
            assert used <= kinds, f"{name}: there is no task of kind {used - kinds}"
            if experiment.scale == "quick":
                quick |= {run.config.task.kind for run in planned if run.config.method == subject.name}
    if subject.changes_something:
        methods = subject.configurations.values()
        accepted = {p.spec.kind for p in problems if any(p.refusal(method) is None for method in methods)}
        wanted = accepted & {"image_classification", "language_modeling"} or accepted
        assert quick >= wanted, f"{subject.path / 'experiments'}: no quick experiment for {sorted(wanted - quick)}"


def has_its_rows_in_the_matrix(subject: Any, problems: Any) -> None:
    """In each column that its matrix.toml names it has arms, each with three coefficients to choose from or none.

    A method whose matrix.toml leaves a column out is shown as absent from it: a new column asks nothing of the methods.
    """
    unread: dict[str, str] = {}
    path, columns = subject.path / "matrix.toml", read_columns(broken=unread)
    assert columns, "the matrix has no column"
    if not subject.changes_something and not path.exists():
        return  # the baseline, which stands in the workloads themselves
    assert path.exists(), f"{path} is missing: what {subject.name} does there, or an arm with pending = 'why'"
    lost = dict(unread)
    joined = read_matrix(path, columns, lost)
    assert lost == unread, next(line for name, line in lost.items() if name not in unread)
    assert joined, f"{path} names no column"
    for name, experiment in joined.items():
        own = {key: arm for key, arm in experiment.arms.items() if key != experiment.baseline}
        assert subject.name in {arm.method for arm in own.values()}, f"{path}: no arm of {subject.name} in {name}"
        for key, arm in own.items():
            where = f"{path}: arm {key} of {name}"
            assert not {**arm.recipe, **arm.recipe_grid}, f"{where} has a recipe of its own; the budget is one for all"
            assert arm.tasks is None, f"{where} leaves out a task; pending = 'why' says what it cannot do"
            if not arm.pending:
                has_three_coefficients(where, arm, subject)


def has_three_coefficients(where: str, arm: Arm, subject: Any) -> None:
    """One coefficient varies, over three values ten times apart; nothing else is chosen."""
    method_class = subject.method_class if arm.method == subject.name else find_method(arm.method).load()
    strengths = [name for name in method_class.model_fields if name.endswith(("strength", "coefficient"))]
    if not strengths:
        assert not arm.grid, f"{where}: {arm.method} has no coefficient to choose, and nothing else is chosen"
        return
    assert len(arm.grid) == 1, f"{where}: the grid varies one coefficient, found {list(arm.grid) or 'none'}"
    ((name, values),) = arm.grid.items()
    assert name in strengths, f"{where}: the grid varies one of {', '.join(strengths)}, found {name}"
    apart = [float(large) / float(small) for small, large in itertools.pairwise(values)]
    assert len(values) == 3, f"{where}: {name} takes three values, found {list(values)}"
    assert apart == pytest.approx([10.0, 10.0]), f"{where}: {name} takes values ten times apart, found {list(values)}"


CHECKS: tuple[Callable[[Any, Any], None], ...] = (
    holds_its_files,
    has_a_complete_card,
    is_frozen_and_strict,
    gives_the_source_of_its_numbers,
    survives_json,
    weights_its_penalty,
    accepts_a_task,
    has_experiments_that_resolve,
    has_its_rows_in_the_matrix,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_folder(subject: Any, check: Callable[[Any, Any], None], problems: Any) -> None:
    RAN[subject.name] += 1
    check(subject, problems)


def test_every_check_ran_on_every_folder() -> None:
    """Runs last. Counted from the disk, so that no folder drops out unseen."""
    on_disk = {path.name for path in METHODS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert dict.fromkeys(on_disk, len(CHECKS)) == RAN


# The checks themselves: each must find the fault that it is there for.

REMOVED = ""
MATRIX = "matrix.toml"
ROWS = "[images.arms.penalised]"


@pytest.mark.parametrize(
    ("check", "file", "old", "new"),
    [
        (holds_its_files, "test_method.py", "def test_", "def check_"),
        (holds_its_files, "test_method.py", REMOVED, REMOVED),
        (holds_its_files, "card.md", REMOVED, REMOVED),
        (has_a_complete_card, "card.md", "## Ambiguities", "## Doubts"),
        (has_a_complete_card, "card.md", "**Several devices.** Own batch", "**Several devices.** Own"),
        (has_a_complete_card, "card.md", "1. The paper says", "The paper says"),
        (has_a_complete_card, "card.md", "None: this is an example", "An example"),
        (has_a_complete_card, "card.md", r"$\lambda$", r"$\lambda"),
        (has_experiments_that_resolve, "experiments/quick_digits.toml", "strength =", "strenght ="),
        (has_experiments_that_resolve, "experiments/quick_digits.toml", "width = 32", "depths = 32"),
        (has_experiments_that_resolve, "experiments/quick_topics.toml", 'scale = "quick"', 'scale = "paper"'),
        (has_experiments_that_resolve, "experiments/quick_topics.toml", 'method = "_template"', 'method = "vanilla"'),
        (has_its_rows_in_the_matrix, MATRIX, REMOVED, REMOVED),
        (has_its_rows_in_the_matrix, MATRIX, ROWS, f"[images]\nseeds = [0, 1]\n\n{ROWS}"),
        (has_its_rows_in_the_matrix, MATRIX, ROWS, f"[images]\nbaseline = 'penalised'\n\n{ROWS}"),
        (has_its_rows_in_the_matrix, MATRIX, ROWS, f"[images.recipe]\nepochs = 30\n\n{ROWS}"),
        (has_its_rows_in_the_matrix, MATRIX, ROWS, "[images.arms.vanilla]"),
        (has_its_rows_in_the_matrix, MATRIX, ROWS, "[pictures.arms.penalised]"),
        (has_its_rows_in_the_matrix, MATRIX, 'method = "_template"', 'method = "vanilla"'),
        (has_its_rows_in_the_matrix, MATRIX, 'label = "example"', "recipe = { epochs = 30 }"),
        (has_its_rows_in_the_matrix, MATRIX, 'label = "example"', "tasks = []"),
        (has_its_rows_in_the_matrix, MATRIX, "grid = { strength = [", "grid = { strength = [1e-5, "),
        (has_its_rows_in_the_matrix, MATRIX, "grid = { strength = [1e-2", "grid = { strength = [5e-2"),
        (has_its_rows_in_the_matrix, MATRIX, "grid = {", "params = {"),
        (has_its_rows_in_the_matrix, MATRIX, "grid = { strength", "grid = { sites"),
    ],
)
def test_a_check_finds_a_faulty_file(
    check: Callable[[Any, Any], None], file: str, old: str, new: str, subjects: Any, problems: Any, tmp_path: Path
) -> None:
    sound = subjects["_template"]
    path = shutil.copytree(sound.path, tmp_path / "copy")
    copy = SimpleNamespace(**{**vars(sound), "path": path, "folder": MethodFolder(sound.name, path)})
    check(copy, problems)
    text = (path / file).read_text("utf-8")
    assert old in text
    (path / file).write_text(text.replace(old, new), "utf-8") if old else (path / file).unlink()
    with pytest.raises((AssertionError, UserError, OSError)):
        check(copy, problems)


class Loose(Method):
    """Takes what it should not."""

    model_config = ConfigDict(extra="ignore", strict=False, frozen=False)

    rate: float = 0.1


class Forgetful(Method):
    """Does not survive JSON."""

    rate: float = 0.1  # ours

    @field_serializer("rate")
    def _round(self, rate: float) -> int:
        return round(rate)


@pytest.mark.parametrize(
    ("check", "method_class"),
    [
        (is_frozen_and_strict, Loose),
        (gives_the_source_of_its_numbers, Loose),
        (survives_json, Forgetful),
        (weights_its_penalty, Forgetful),
    ],
)
def test_a_check_finds_a_faulty_class(
    check: Callable[[Any, Any], None], method_class: type[Method], problems: Any
) -> None:
    configurations = {"defaults": method_class()}
    faulty = SimpleNamespace(
        name="faulty", method_class=method_class, configurations=configurations, strengths=[], adds_a_penalty=True
    )
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(faulty, problems)


def test_a_check_finds_a_method_that_refuses_everything(problems: Any) -> None:
    class Unwilling(Method):
        def penalty(self, trace: Any, progress: Any, generator: Any) -> Any:
            raise ValueError("needs something else")

    with pytest.raises(AssertionError, match="refuses every task"):
        accepts_a_task(SimpleNamespace(name="unwilling", configurations={"defaults": Unwilling()}), problems)
