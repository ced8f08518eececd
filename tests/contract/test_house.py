"""The rules of the house, read from the source: who imports whom, who knows which name, what never exists."""

from __future__ import annotations

import ast
import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from reproduce.experiment.dataset_card import DatasetCard, card_names
from reproduce.experiment.folder import METHODS, ROOT, all_methods

SOURCES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "reproduce").rglob("*.py"))}
METHOD_FILES = sorted(
    path for path in METHODS.glob("*/*.py") if path.stem != "figures" and not path.stem.startswith("test_")
)
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}
TASKS = {path.stem for path in (ROOT / "reproduce" / "tasks").glob("*.py")} - {"__init__"}
FORMATS = set(get_args(DatasetCard.model_fields["format"].annotation))

# (file, name): why a name stands in the harness all the same.
NAMED_ON_PURPOSE = {
    ("reproduce/models/row_rnn.py", "orthogonal"): "the customary name of an initialisation",
    ("reproduce/bench/workloads.py", "image_classification"): "the speeds promised are of two stated workloads",
    ("reproduce/bench/workloads.py", "language_modeling"): "the speeds promised are of two stated workloads",
    ("reproduce/bench/workloads.py", "autoencoding"): "methods that act on a code are timed on an autoencoder",
    ("reproduce/bench/workloads.py", "table_classification"): "small networks are timed on the one of the UCI tables",
    **{("reproduce/bench/tiny_tasks.py", kind): "the battery and `check` go over every kind of Task" for kind in TASKS},
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


def test_the_contracts_of_the_layers_hold() -> None:
    """Who may import whom stands in `pyproject.toml`; import-linter reads it."""
    found = lint_imports(ROOT)
    assert found.returncode == 0, found.stdout
    assert "Contracts: 7 kept, 0 broken." in found.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("reproduce/results/judge.py", "import reproduce.report.page", "A higher room imports lower ones"),
        ("reproduce/report/tables.py", "import reproduce.training.plan", "A higher room imports lower ones"),
        ("reproduce/method/sites.py", "import reproduce.experiment.toml", "A higher room imports lower ones"),
        ("reproduce/results/stats.py", "import torch", "loads no torch"),
        ("methods/vcl/method.py", "import methods.per.method", "No method imports another"),
        ("methods/vcl/method.py", "import reproduce.experiment.schema", "A method sees its interface alone"),
        ("reproduce/integrations/__init__.py", "import reproduce.results.stats", "A higher room imports lower ones"),
        ("reproduce/integrations/__init__.py", "import reproduce.experiment.schema", "An integration sees what"),
        ("methods/vcl/figures.py", "import torch", "Figures of a method need no torch"),
        ("reproduce/experiment/folder.py", "import methods.per.method", "The harness imports no method"),
    ],
)
def test_a_contract_finds_a_wrong_import(file: str, line: str, broken: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("reproduce", "methods"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    found = lint_imports(tmp_path)
    assert found.returncode == 1
    kept_or_broken = re.sub(r"\s+", " ", found.stdout.partition("Broken contracts")[0])
    assert re.search(f"{broken}[^.]*? BROKEN", kept_or_broken), found.stdout


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Without `site`, so that the installed checkout does not add its own methods to those of the folder."""
    command = [sys.executable, "-S", "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), sysconfig.get_path("purelib")])}
    return subprocess.run(
        [*command, "--no-cache"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_line_starts_without_torch() -> None:
    """`list`, `status` and `new` answer at once: what trains or draws is imported by the commands that do so."""
    program = "import sys, reproduce.cli.commands; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert "typer" in loaded
    heavy = {"torch", "torchvision", "tensorboard", "datasets", "numpy", "scipy", "pandas", "matplotlib", "sklearn"}
    assert not loaded & heavy


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_method_stands_on_torch_and_pydantic(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imports(ast.parse(path.read_text("utf-8")), everywhere=True)}
    assert roots <= {"reproduce", "methods", "torch", "pydantic"} | sys.stdlib_module_names


def literals(tree: ast.AST) -> Iterator[str]:
    """Text in the code, docstrings apart."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


def test_only_discover_looks_into_the_methods() -> None:
    looking = {file for file, tree in TREES.items() if any(re.match(r"methods[./]?$", text) for text in literals(tree))}
    # Figures are given a folder, and only spell the name of a module in it; note and bundle take the whole tree along.
    looking -= {"reproduce/report/own_figures.py", "reproduce/results/source.py", "reproduce/cli/bundle.py"}
    assert looking == {"reproduce/experiment/folder.py"}


def test_the_harness_names_no_method_task_or_dataset() -> None:
    known = set(all_methods()) | TASKS | set(card_names())
    assert {"per", "language_modeling", "cifar10", "image_classification", "ptb"} <= known
    found = {(file, text) for file, tree in TREES.items() for text in literals(tree) if text in known}
    formats = {
        (file, text)
        for file, text in found
        if file.startswith(("reproduce/experiment/dataset_card.py", "reproduce/data/"))
    }
    assert {text for _, text in formats} <= FORMATS  # some formats bear the name of their one dataset
    assert found - formats <= set(NAMED_ON_PURPOSE)


def test_the_loop_knows_no_name_of_a_task_or_method() -> None:
    for file in ("loop", "step"):
        tree = TREES[f"reproduce/training/{file}.py"]
        known = set(all_methods()) | TASKS
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & known
        project = {name for name in imports(tree, everywhere=True) if name.startswith("reproduce.tasks")}
        assert project == {"reproduce.tasks", "reproduce.tasks.Task"}


def test_one_loop() -> None:
    """`backward` is called by the one step, and by the bench, which times bare steps and plain loops; by no method."""
    trees = TREES | {str(path): ast.parse(path.read_text("utf-8")) for path in METHOD_FILES}
    calling = set()
    for file, tree in trees.items():
        called = {
            node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")
        }
        if "backward" in called:
            calling.add(file)
    assert calling == {"reproduce/training/step.py", "reproduce/bench/measure.py", "reproduce/bench/plain.py"}


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


def test_methods_and_cards_are_folders_of_the_checkout() -> None:
    assert (ROOT / "pyproject.toml").exists()
    assert not (METHODS / "__init__.py").exists()
    assert len(METHOD_FILES) >= 5
