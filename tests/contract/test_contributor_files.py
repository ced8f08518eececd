"""What contributors meet outside the code says what the code says: workflow, hooks, container, forms, architecture."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from reproduce.experiment.folder import ROOT

FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


def pinned(package: str) -> str:
    """The version in constraints.txt."""
    (version,) = re.findall(f"(?m)^{re.escape(package)}==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"))
    return version


def oldest_python() -> str:
    """The version in `requires-python`."""
    return PROJECT["project"]["requires-python"].removeprefix(">=")


def test_the_workflow_runs_what_everybody_runs() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML 1.1 reads the key `on` as true
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert job["strategy"]["matrix"]["python"] == [oldest_python(), "3.x"]


def test_the_hook_runs_the_ruff_of_the_constraints() -> None:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"].endswith("/ruff-pre-commit")
    assert repository["rev"] == f"v{pinned('ruff')}"
    assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_the_container_runs_the_commands_of_the_readme() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    commands = set(re.findall(r"^make [a-z-]+", (ROOT / "README.md").read_text("utf-8").split("```")[1], re.MULTILINE))
    assert commands == {"make reproduce-per", "make test"}
    assert all(command in dockerfile for command in commands)
    assert f"FROM python:{oldest_python()}-slim\n" in dockerfile
    ignored = set((ROOT / ".dockerignore").read_text("utf-8").split())
    assert {".venv", "runs", "data"} <= ignored  # what a container makes anew, or is given


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_can_be_filled_in(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    assert form.keys() >= {"name", "description", "body"}
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    assert {field["type"] for field in form["body"]} <= {"input", "textarea"}
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_facts_of_a_card_are_asked_for() -> None:
    form = read_yaml(".github/ISSUE_TEMPLATE/method.yml")
    asked = {field["id"] for field in form["body"] if field.get("validations", {}).get("required")}
    assert {"paper", "equation", "table", "figures"} <= asked
    request = (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").read_text("utf-8")
    for fact in ("Paper", "Equations", "Tables", "Figures"):
        assert re.search(f"(?m)^- {fact}\\b.*:$", request), fact


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    """docs/architecture.py, a script that belongs to no package."""
    found = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_architecture_is_drawn_from_the_contracts(architecture: ModuleType) -> None:
    page = architecture.PAGE.read_text("utf-8")
    assert page == architecture.drawn(page), "make architecture"


CONTRACTS = """
[[tool.importlinter.contracts]]
name = "Down only"
type = "layers"
layers = ["house.attic | house.cellar"]
[[tool.importlinter.contracts]]
name = "Light"
type = "forbidden"
source_modules = ["house.cellar"]
forbidden_modules = ["torch"]
ignore_imports = ["a -> b"]
"""


def test_another_contract_draws_another_picture(architecture: ModuleType, tmp_path: Path) -> None:
    for room in ("attic", "cellar"):
        (tmp_path / "house" / room).mkdir(parents=True)
        (tmp_path / "house" / room / "__init__.py").write_text(f'"""The {room}, dry.\n\nMore."""\n', "utf-8")
    (tmp_path / "pyproject.toml").write_text(CONTRACTS, "utf-8")
    page = architecture.drawn(f"before\n{architecture.BEGIN}old{architecture.END}after\n", tmp_path)
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "        house.attic\n        house.cellar:::torch_free\n" in page
    assert "1. - **house.attic**: The attic, dry.\n   - **house.cellar**: The cellar, dry.\n" in page
    assert "- Light.\n  One exception: `a -> b`.\n" in page
    assert "Down only" not in page


def test_every_room_is_in_the_picture(architecture: ModuleType) -> None:
    drawn = {room for layer in architecture.layers(architecture.contracts(ROOT)) for room in layer}
    folders = {f"reproduce.{path.parent.name}" for path in (ROOT / "reproduce").glob("*/__init__.py")}
    assert drawn == folders | {"reproduce.errors"}


def test_contributing_knows_the_rooms_and_names_what_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = text.partition("| room |")[2].partition("\n\n")[0]
    described = set(re.findall("`([a-z]+)/`", table))
    assert described == {path.parent.name for path in (ROOT / "reproduce").glob("*/__init__.py")}
    tops = ("reproduce", "tests", "docs", "datasets", "reports", "methods")
    named = set(re.findall(rf"`((?:{'|'.join(tops)})/[a-z_/.]*)`", text))
    assert {"reproduce/training/loop.py", "reproduce/experiment/identity.py"} <= named
    missing = {name for name in named if not (ROOT / name).exists()}
    assert {name for name in missing if not name.startswith(("methods/x/", "methods/my_method/"))} == set()
