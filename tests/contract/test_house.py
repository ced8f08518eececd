"""The rules of the house, read from the source: who imports whom, who knows which name, what never exists."""

from __future__ import annotations

import ast
import importlib.machinery
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from reproduce.cards import Card, card_names
from reproduce.discover import METHODS, ROOT, all_methods

SOURCES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "reproduce").rglob("*.py"))}
METHOD_FILES = sorted(
    path for path in METHODS.glob("*/*.py") if path.stem != "figures" and not path.stem.startswith("test_")
)
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
TASKS = {path.stem for path in (ROOT / "reproduce" / "tasks").glob("*.py")} - {"__init__"}
FORMATS = set(get_args(Card.model_fields["format"].annotation))

# What answers at once: none of these may load torch, by whatever way.
LIGHT = ("spec", "records", "stats", "judge", "cards", "discover", "new", "__main__")

# (file, name): why a name stands in the harness all the same.
NAMED_ON_PURPOSE = {
    ("reproduce/spec.py", "vanilla"): "an arm that names no method has none",
    ("reproduce/models/row_rnn.py", "orthogonal"): "the customary name of an initialisation",
    ("reproduce/bench.py", "vanilla"): "what every step is timed against",
    ("reproduce/bench.py", "image_classification"): "the speeds promised are of two stated workloads",
    ("reproduce/bench.py", "language_modeling"): "the speeds promised are of two stated workloads",
    ("reproduce/bench.py", "autoencoding"): "methods that act on a code are timed on an autoencoder",
}


def imports(tree: ast.AST, everywhere: bool = False) -> Iterator[str]:
    """Dotted names that a file imports when it is loaded; with ``everywhere``, in functions as well."""
    children = ast.walk(tree) if everywhere else _loaded(tree)
    for node in children:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _loaded(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _loaded(child)


def file_of(module: str) -> str | None:
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in SOURCES), None)


def reached_from(module: str) -> set[str]:
    """All modules, of the project and others, that loading this one loads directly or through the project."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        for ancestor in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
            if ancestor in seen:
                continue
            seen.add(ancestor)
            file = file_of(ancestor)
            if file is not None:
                waiting += imports(TREES[file])
    return seen


def modules_of(folder: str) -> list[str]:
    return [name.removesuffix(".py").replace("/", ".") for name in SOURCES if name.startswith(f"reproduce/{folder}/")]


@pytest.mark.parametrize("module", [*(f"reproduce.{name}" for name in LIGHT), *modules_of("report")])
def test_loads_no_torch(module: str) -> None:
    heavy = {name.split(".")[0] for name in reached_from(module)} & {"torch", "torchvision", "tensorboard", "datasets"}
    assert not heavy


def test_the_search_for_torch_finds_it() -> None:
    """`tasks` loads torch itself, `plan` only through others."""
    assert "torch" in set(imports(TREES["reproduce/tasks/__init__.py"]))
    assert "torch" not in set(imports(TREES["reproduce/plan.py"]))
    assert {"torch", "reproduce.models"} <= reached_from("reproduce.plan")
    assert len(modules_of("report")) >= 5


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_method_imports_its_interface_only(path: Path) -> None:
    for name in imports(ast.parse(path.read_text("utf-8")), everywhere=True):
        root = name.split(".")[0]
        interface = name in ("reproduce", "reproduce.method") or name.startswith("reproduce.method.")
        own = f"methods.{path.parent.name}"
        interface = interface or name == own or name.startswith(f"{own}.")
        assert interface or root in {"torch", "pydantic"} | sys.stdlib_module_names, f"{path}: imports {name}"


@pytest.mark.parametrize("path", sorted(METHODS.glob("*/figures.py")), ids=lambda path: path.parent.name)
def test_figures_of_a_method_need_no_torch(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(ast.parse(path.read_text("utf-8")), everywhere=True)}
    assert not roots & {"torch", "methods", "datasets"}


def test_the_harness_imports_no_method() -> None:
    for file, tree in TREES.items():
        assert not [name for name in imports(tree, everywhere=True) if name.split(".")[0] == "methods"], file


def literals(tree: ast.AST) -> Iterator[str]:
    """Text in the code, docstrings apart."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_only_discover_looks_into_the_methods() -> None:
    looking = {file for file, tree in TREES.items() if any(re.match(r"methods[./]?$", text) for text in literals(tree))}
    # Both are given a folder by discover, and only spell the name of a module in it.
    looking -= {"reproduce/report/page.py", "reproduce/bench.py"}
    assert looking == {"reproduce/discover.py"}


def test_the_harness_names_no_method_task_or_dataset() -> None:
    known = set(all_methods()) | TASKS | set(card_names())
    assert {"per", "language_modeling", "cifar10", "image_classification", "ptb"} <= known
    found = {(file, text) for file, tree in TREES.items() for text in literals(tree) if text in known}
    formats = {(file, text) for file, text in found if file.startswith(("reproduce/cards.py", "reproduce/data/"))}
    assert {text for _, text in formats} <= FORMATS  # some formats bear the name of their one dataset
    assert found - formats <= set(NAMED_ON_PURPOSE)


def test_the_loop_knows_no_name_of_a_task_or_method() -> None:
    tree = TREES["reproduce/train.py"]
    known = set(all_methods()) | TASKS
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & known
    project = {name for name in imports(tree, everywhere=True) if name.startswith("reproduce.tasks")}
    assert project == {"reproduce.tasks", "reproduce.tasks.Task"}
    assert {name for name in imports(tree, everywhere=True) if name.startswith("reproduce.method")} == {
        "reproduce.method",
        "reproduce.method.Method",
    }


def test_one_loop() -> None:
    """`backward` and `step` are called in `train`, and by the bench, which times bare steps; by no method."""
    trees = TREES | {str(path): ast.parse(path.read_text("utf-8")) for path in METHOD_FILES}
    calling = set()
    for file, tree in trees.items():
        called = {
            node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")
        }
        if "backward" in called:
            calling.add(file)
    assert calling == {"reproduce/train.py", "reproduce/bench.py"}


DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal"}
DRAWS |= {f"{name}_" for name in ("random", "uniform", "normal", "bernoulli", "exponential", "trunc_normal")}
NEVER = {"manual_seed_all", "rand_like", "randn_like", "randint_like", "seed"}


def draws_without_generator(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, ast.unparse(node.func.value)
            global_seed = name == "manual_seed" and owner == "torch"
            given = any(keyword.arg == "generator" for keyword in node.keywords)
            if name in NEVER or global_seed or (name in DRAWS and not given):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def test_every_draw_has_its_generator() -> None:
    trees = TREES | {str(path): ast.parse(path.read_text("utf-8")) for path in METHOD_FILES}
    assert {file: found for file, tree in trees.items() if (found := draws_without_generator(tree))} == {}
    sample = "torch.rand(3)\ntorch.manual_seed(0)\nx.normal_()\ntorch.rand(3, generator=g)\ng.manual_seed(0)"
    assert len(draws_without_generator(ast.parse(sample))) == 3


def test_no_assert_outside_tests() -> None:
    trees = TREES | {str(path): ast.parse(path.read_text("utf-8")) for path in METHOD_FILES}
    assert [file for file, tree in trees.items() if any(isinstance(node, ast.Assert) for node in ast.walk(tree))] == []


def test_datasets_is_that_of_hugging_face() -> None:
    assert list((ROOT / "datasets").rglob("*.py")) == []
    # As `python -m` sees it in a checkout: the folder of cards comes first on the path.
    found = importlib.machinery.PathFinder.find_spec("datasets", [str(ROOT), *sys.path])
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).parent != ROOT / "datasets"
    assert (Path(found.origin).parent / "load.py").exists()


def python_files() -> list[Path]:
    return [
        path
        for folder in ("reproduce", "methods", "examples", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]


def test_no_cupboards() -> None:
    cupboards = {"utils", "util", "helpers", "helper", "common", "misc", "registry"}
    assert [path for path in python_files() if cupboards & {*path.relative_to(ROOT).parts[:-1], path.stem}] == []


def test_no_registry() -> None:
    """Folders are the registration: nothing is put into a list by hand or by a decorator."""
    for file, tree in TREES.items():
        named = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        named |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not [name for name in named if re.search("registr|^register", name, re.IGNORECASE)], file


@pytest.mark.parametrize("path", python_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_are_short(path: Path) -> None:
    n_lines = len(path.read_text("utf-8").splitlines())
    assert n_lines <= 400


def test_methods_and_cards_are_folders_of_the_checkout() -> None:
    assert (ROOT / "pyproject.toml").exists()
    assert not (METHODS / "__init__.py").exists()
    assert len(METHOD_FILES) >= 5
