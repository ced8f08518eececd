"""docs/mutants.md is what docs/mutants.json and docs/mutants.toml say, and no formula of a method is left out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from reproduce.experiment.folder import METHODS, ROOT, all_methods


def script(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # where dataclasses look up their annotations
    found.loader.exec_module(module)
    return module


mutants = script("mutants")


def test_the_page_is_what_was_found() -> None:
    page = mutants.PAGE.read_text("utf-8")
    assert mutants.made(page) == page, "make references makes docs/mutants.md anew"


def test_every_file_that_a_method_loads_is_mutated() -> None:
    methods = {name: folder.load() for name, folder in all_methods().items()}
    places = {
        Path(file).resolve() for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))
    }
    loaded = {
        path.relative_to(ROOT).as_posix()
        for path in places
        if path.is_relative_to(METHODS) and path.relative_to(METHODS).parts[0] in methods
    }
    loaded = {path for path in loaded if not path.rpartition("/")[2].startswith(("test_", "figures", "__init__"))}
    assert len(loaded) >= len(methods)
    assert loaded <= mutants.targets().keys()


def test_every_file_has_tests_near_to_it() -> None:
    for file, tests in mutants.targets().items():
        assert (ROOT / file).is_file(), file
        assert tests, file


def test_no_survivor_is_open_where_the_file_is_as_it_was_run() -> None:
    judged = mutants.judgements()
    for file, entry in mutants.found().items():
        if entry["hash"] == mutants.content_hash(file):
            left = mutants.open_survivors(entry, judged.get(file, {}))
            assert not left, f"{file}: a test is missing, or a line in docs/mutants.toml; then make mutants FILE={file}"


def test_every_judgement_is_of_a_line_that_is_there() -> None:
    """Whether or not the newest sample has drawn that change: another one will draw it again."""
    for file, judged in mutants.judgements().items():
        text = (ROOT / file).read_text("utf-8")
        assert [change.line for change in judged if change.line not in text] == [], file


def test_numbers_of_an_entry_add_up() -> None:
    for file, entry in mutants.found().items():
        assert entry["run"] == entry["caught"] + entry["timed_out"] + len(entry["survivors"]), file
        assert entry["run"] <= entry["possible"], file


def outcome(number: int, word: str) -> dict[str, object]:
    return {"number": number, "at": 3, "line": "a + b", "changed": "a - b", "outcome": word}


def test_a_survivor_that_runs_again_is_counted_once() -> None:
    entry = {"possible": None, "run": 0, "caught": 0, "timed_out": 0, "survivors": []}
    mutants.add(entry, {"possible": 9})
    for number, word in ((0, "survived"), (1, "caught"), (2, "timed out"), (0, "survived")):
        mutants.add(entry, outcome(number, word))
    assert (entry["run"], entry["caught"], entry["timed_out"], len(entry["survivors"])) == (3, 1, 1, 1)
    mutants.add(entry, outcome(0, "caught"))
    assert (entry["possible"], entry["run"], entry["caught"], entry["survivors"]) == (9, 3, 2, [])


SOURCE = '''\
"""Twice 1 + 1."""

from __future__ import annotations


def mean(a: int | float, b: "1 + 1" = 0, *, whole: bool = False) -> int | float:
    if a != a:
        raise ValueError(f"{a + 1} and {1 - 2}")
    return (a + b) / 2


class Fields:
    strength: float = 0.5
    other = 3 * 4
'''
TESTS = """\
from formula import mean

def test_mean():
    assert mean(2, 2) == 2
    assert mean(2) == 1
"""


def test_formulas_alone_are_changed() -> None:
    pytest.importorskip("cosmic_ray")
    runs = script("mutant_runs")
    changes = [runs.mutant(SOURCE, *change) for change in runs.mutants(SOURCE, 0)]
    for change in changes:
        compile(change.text, "formula", "exec")
    assert {change.at for change in changes} == {6, 7, 9}
    of_return = {change.changed for change in changes if change.at == 9}
    assert {"return (a - b) / 2", "return (a + b) * 2", "return (a + b) / 3", "return (a + b) / 1"} <= of_return
    assert {change.changed for change in changes if change.at == 7} >= {"if a == a:", "if not a != a:"}
    assert runs.mutants(SOURCE, 1) != runs.mutants(SOURCE, 0) == runs.mutants(SOURCE, 0)


@pytest.mark.slow
def test_what_the_tests_cannot_tell_survives(tmp_path: Path) -> None:
    pytest.importorskip("cosmic_ray")
    (tmp_path / "formula.py").write_text(SOURCE, "utf-8")
    (tmp_path / "test_formula.py").write_text(TESTS, "utf-8")
    shutil.copy(ROOT / "docs/mutant_runs.py", tmp_path)
    work = {"file": "formula.py", "tests": ["test_formula.py"], "seed": 0, "again": [], "first": 0, "end": 99}
    command = [sys.executable, "mutant_runs.py", json.dumps(work)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    ran = {one["changed"]: one["outcome"] for one in said[1:]}
    assert said[0] == {"possible": len(said) - 1}
    assert ran["return (a - b) / 2"] == ran["return (a + b) * 2"] == ran["if a == a:"] == "caught"
    assert ran["if a > a:"] == "survived"  # nothing tests what is no number
    assert (tmp_path / "formula.py").read_text("utf-8") == SOURCE
