"""The package as `pip install` brings it: built, installed into an empty folder, used from outside the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import reproduce
from reproduce.experiment.dataset_card import card_names
from reproduce.experiment.folder import ROOT, all_methods, find_method
from reproduce.training.plan import plan

pytestmark = pytest.mark.slow

PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout without a network: hatchling is one of the packages for tests."""
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [*PIP, "wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-index", "--no-deps", "--target", str(target), str(wheel)], check=True)
    return target


def python(installed: Path, folder: Path, *arguments: str) -> str:
    """What Python prints in a folder where only the wheel is installed.

    Without `site` no .pth file is read, so that the checkout is out of reach; dependencies are those of the tests.
    """
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REPRODUCE_")}
    found = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


def test_the_wheel_holds_what_runs_and_nothing_at_the_top_that_is_anothers(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT)
        for folder in ("reproduce", "methods")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    tests = {path for path in expected if path.name.startswith("test_") and path.parts[1] != "_template"}
    cards = {f"reproduce/datasets/{name}.toml" for name in card_names()}
    assert names == {path.as_posix() for path in expected - tests} | cards
    assert "reproduce/py.typed" in names


def test_the_version_stands_in_one_place(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        (metadata,) = [name for name in content.namelist() if name.endswith(".dist-info/METADATA")]
        fields = message_from_bytes(content.read(metadata))
    assert fields["Version"] == reproduce.__version__
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8").splitlines()
    assert [line for line in citation if line.startswith("version:")] == [f"version: {reproduce.__version__}"]


def test_methods_and_cards_are_read_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(python(installed, tmp_path, "-m", "reproduce", "list", "--json"))
    assert {row["method"]: row["title"] for row in listed} == {
        name: folder.title for name, folder in all_methods().items()
    }
    program = """
import datasets, reproduce
from reproduce.experiment.dataset_card import card_names, read_card
print(reproduce.__file__, datasets.__file__, len(card_names()), read_card("digits").title, sep="\\n")
"""
    ours, theirs, n_cards, title = python(installed, tmp_path, "-c", program).splitlines()
    assert Path(ours) == installed / "reproduce" / "__init__.py"
    assert Path(theirs).is_relative_to(sysconfig.get_path("purelib"))
    assert int(n_cards) == len(card_names())
    assert "digits" in title.lower()


def test_a_run_has_the_id_that_it_has_in_the_checkout(installed: Path, tmp_path: Path) -> None:
    expected = plan(find_method("vanilla").experiments(), None)
    planned = json.loads(python(installed, tmp_path, "-m", "reproduce", "plan", "vanilla", "--json"))
    wanted = {
        run.label: run.id for run in expected if any(place.experiment.startswith("quick_") for place in run.places)
    }
    assert {row["run"]: row["id"] for row in planned} == wanted
    assert len(planned) == len(wanted)


def test_what_is_written_lies_in_the_current_folder(installed: Path, tmp_path: Path) -> None:
    before = {path for path in installed.rglob("*") if "__pycache__" not in path.parts}
    assert python(installed, tmp_path, "-m", "reproduce", "report", "vanilla").endswith("1 pages in reports\n")
    assert "<html" in (tmp_path / "reports" / "vanilla.html").read_text("utf-8")
    assert python(installed, tmp_path, "-m", "reproduce", "new", "my-idea").startswith("made methods/my_idea")
    listed = json.loads(python(installed, tmp_path, "-m", "reproduce", "list", "--methods", "methods", "--json"))
    assert "my_idea" in {row["method"] for row in listed}
    assert {path for path in installed.rglob("*") if "__pycache__" not in path.parts} == before
