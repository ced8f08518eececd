"""From `make new-method NAME=x` to a method that passes the battery, in a copy of the project."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reproduce.cli.new import KINDS, TAKEN, create_method
from reproduce.errors import UserError
from reproduce.experiment.folder import METHODS, ROOT, all_methods

PATIENCE = 600  # seconds, for a busy machine


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project with the template and one method."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("reproduce", "datasets", "tests/contract", "methods/_template", "methods/vanilla"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(project)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.slow
def test_a_new_method_passes_its_own_tests_and_the_battery_at_once(project: Path) -> None:
    for name, kind in {"squeezed-means": (), **{f"squeezed-{kind}": ("--kind", kind) for kind in KINDS[1:]}}.items():
        made = run(project, "reproduce", "new", name, *kind)
        assert made.returncode == 0, made.stderr
        assert f"methods/{name.replace('-', '_')}" in made.stdout
    new = {"squeezed_means", *(f"squeezed_{kind}" for kind in KINDS[1:])}
    assert {path.name for path in (project / "methods").iterdir()} == {"_template", "vanilla", *new}

    # The battery's own tests, and those of the other methods, are run where they lie.
    folders = [f"methods/{name}" for name in sorted(new)]
    checks = [*folders, "tests/contract/test_battery.py", "tests/contract/test_battery_folders.py"]
    checked = run(project, "pytest", "-vv", "-p", "no:cacheprovider", "-k", "squeezed", *checks)
    assert checked.returncode == 0, checked.stdout[-3000:]
    # And none is skipped.
    assert re.fullmatch(r"=+ \d+ passed, \d+ deselected(, \d+ warnings?)? in .+ =+", checked.stdout.splitlines()[-1])
    for test, file in (("test_behaviour", "test_battery.py"), ("test_folder", "test_battery_folders.py")):
        given = (ROOT / "tests" / "contract" / file).read_text("utf-8").partition("\nCHECKS")[2].partition("\n)\n")[0]
        ran = re.findall(rf"::{test}\[(\S+)\] PASSED", checked.stdout)
        for check, name in itertools.product(re.findall(r"^    (\w+),$", given, re.MULTILINE), new):
            assert any(check in one and name in one for one in ran), (check, name)

    planned = run(project, "reproduce", "plan", "squeezed-means", "--json")
    assert planned.returncode == 0, planned.stderr
    assert {row["run"].split(" / ")[1] for row in json.loads(planned.stdout)} == {"vanilla", "penalised"}

    calibrated = run(project, "reproduce", "calibrate", "squeezed-means", "quick_digits", "--json", "--strengths", "1")
    assert calibrated.returncode == 0, calibrated.stderr
    (row,) = json.loads(calibrated.stdout)
    assert (row["arm"], row["weight"]) == ("penalised", "strength")
    assert row["ratio"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a new method needs a name: make new-method NAME=my_method"),
        ("3x", "method name '3x': expected lower-case letters"),
        ("two words", "method name 'two words': expected"),
        ("../x", "method name '../x': expected"),
        ("Upper", "method name 'Upper': expected"),
        ("_hidden", "method name '_hidden': expected"),
        ("lambda", "method name 'lambda': lambda is a keyword of Python: choose another name"),
        ("statistics", "method name 'statistics': statistics is a module of Python's standard library"),
        ("sum", "method name 'sum': sum is a built-in name of Python"),
        ("reproduce", "method name 'reproduce': reproduce is a room of the harness"),
        ("methods", "method name 'methods': methods is a room of the harness"),
        ("training", "method name 'training': training is a room of the harness"),
        ("errors", "method name 'errors': errors is a room of the harness"),
        ("index", "method name 'index': index is a page over all methods"),
        ("matrix", "method name 'matrix': matrix is a page over all methods"),
        ("all", "method name 'all': all is the command line's word for every method"),
        ("taken", "method name 'taken': .*taken exists already"),
        ("ta-ken", "method name 'ta-ken': .*ta_ken exists already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_leaves_nothing(name: str, message: str, tmp_path: Path) -> None:
    for folder in ("_template", "taken", "ta_ken"):
        (tmp_path / folder).mkdir()
    with pytest.raises(UserError, match=message) as refused:
        create_method(name, tmp_path)
    assert "\n" not in str(refused.value)
    assert {path.name for path in tmp_path.iterdir()} == {"_template", "taken", "ta_ken"}


def test_a_page_over_all_methods_keeps_its_name() -> None:
    """A page that is not a method's may not be overwritten by a method of that name."""
    stems = {path.stem for path in (ROOT / "reports").glob("*.html")}
    pages = {stem for stem in stems if "." not in stem} - set(all_methods())  # no name of a method has a dot
    assert {"index", "matrix"} <= pages
    assert pages <= TAKEN["a page over all methods"]


def test_outside_the_repository_a_name_of_its_methods_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method name 'vanilla': .*/methods/vanilla exists already"):
        create_method("vanilla", tmp_path, METHODS / "_template")
    assert list(tmp_path.iterdir()) == []
    assert create_method("my-idea", tmp_path, METHODS / "_template") == tmp_path / "my_idea"


def test_files_name_a_schema_to_editors_where_it_is_in_reach(tmp_path: Path) -> None:
    inside, outside = tmp_path / "checkout" / "methods", tmp_path / "ideas"
    shutil.copytree(ROOT / "docs" / "schemas", tmp_path / "checkout" / "docs" / "schemas")
    for methods in (inside, outside):
        methods.mkdir()
        folder = create_method("idea", methods, METHODS / "_template")
        for path in sorted(folder.rglob("*.toml")):
            hint = re.match("#:schema (.+)\n", path.read_text("utf-8"))
            assert (hint is not None) == (methods == inside), path
            if hint:
                assert (path.parent / hint[1]).resolve().parent == tmp_path / "checkout" / "docs" / "schemas"


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_complete_folder(kind: str, tmp_path: Path) -> None:
    made = create_method("my_idea", tmp_path, METHODS / "_template", kind)
    expected = {path.relative_to(METHODS / "_template") for path in (METHODS / "_template").rglob("*.*")}
    expected = {path for path in expected if not {"kinds", "__pycache__"} & set(path.parts)}
    assert {path.relative_to(made) for path in made.rglob("*.*")} == expected
    for path in made.rglob("*.*"):
        assert "_template" not in path.read_text("utf-8"), path
    hook = {"activations": "trace.select(", "weights": "trace.model", "network": "def prepare("}[kind]
    assert hook in (made / "method.py").read_text("utf-8")


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown kind 'weight': did you mean weights\?"):
        create_method("my_idea", tmp_path, METHODS / "_template", "weight")
    assert list(tmp_path.iterdir()) == []


def test_without_a_template_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the template to copy is missing"):
        create_method("x", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_names_end_in_one_line_and_exit_code_2() -> None:
    refused = run(ROOT, "reproduce", "new", "class")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: method name 'class'")
