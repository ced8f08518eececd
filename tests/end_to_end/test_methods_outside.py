"""`--methods PATH`: methods outside the repository are listed, planned, trained and reported like the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reproduce.errors import UserError
from reproduce.experiment.folder import METHODS, MORE_METHODS, all_methods, load_method, methods_outside

pytestmark = pytest.mark.slow


def write_method(folder: Path, experiment: str = "") -> Path:
    """A copy of the template under the folder's name, with this one experiment."""
    shutil.copytree(
        METHODS / "_template", folder, ignore=shutil.ignore_patterns("__pycache__", "experiments", "matrix.toml")
    )
    for path in folder.glob("*.*"):
        path.write_text(path.read_text("utf-8").replace("_template", folder.name), "utf-8")
    if experiment:
        (folder / "experiments").mkdir()
        (folder / "experiments" / "tiny.toml").write_text(experiment, "utf-8")
    return folder


@pytest.fixture
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one method, named in the environment."""
    folder = tmp_path / "ideas"
    write_method(folder / "outsider")
    monkeypatch.setenv(MORE_METHODS, str(folder))
    return folder


def test_a_method_outside_is_found_and_loaded(ideas: Path) -> None:
    assert list(all_methods())[-1] == "outsider"
    method = load_method("outsider", strength=0.5)
    assert (type(method).__module__, method.strength) == ("methods.outsider.method", 0.5)
    assert load_method("per").strength > 0  # the others are where they were


def test_the_repositorys_own_folder_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MORE_METHODS, str(METHODS))
    assert methods_outside() is None


def test_what_cannot_be_added_is_said_in_one_line(ideas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_method(ideas / "per")
    with pytest.raises(UserError, match=rf"^{ideas}/per: there is a method per already, in {METHODS}/per$"):
        all_methods()
    (ideas / "per").rename(ideas / "Two Words")
    with pytest.raises(UserError, match=rf"^{ideas}/Two Words: a method's folder is named in lower-case letters"):
        all_methods()
    monkeypatch.setenv(MORE_METHODS, str(ideas / "outsider"))
    with pytest.raises(UserError, match=rf"^--methods {ideas}/outsider: no folder in it holds a method\.py$"):
        all_methods()
    monkeypatch.setenv(MORE_METHODS, "nowhere")
    with pytest.raises(UserError, match=r"^--methods nowhere: no such folder$"):
        all_methods()


def test_a_method_outside_is_listed_planned_trained_and_reported(
    checkout: Any, tiny: str, tmp_path: Path, sealed_in: Callable[[Path], dict[str, Any]]
) -> None:
    experiment = tiny.replace("[arms.per]", "[arms.outsider]").replace('arm = "per"', 'arm = "outsider"')
    experiment = experiment.replace('method = "per"', 'method = "outsider"')
    experiment = experiment.replace('strength = 1e-3, mode = "sliced", n_slices = 16', "strength = 1e-3")
    write_method(tmp_path / "ideas" / "outsider", experiment)
    added, runs = ["--methods", str(tmp_path / "ideas")], ["--runs", str(tmp_path / "runs")]
    output = tmp_path / "pages"
    where = ["--results", str(tmp_path / "runs"), "--output", str(output)]
    commands = (
        ["list", *added],
        ["plan", "outsider", *added, *runs],
        ["run", "outsider", "--jobs", "1", "--device", "cpu", *added, *runs],  # in a worker process, as always
        ["report", "outsider", *added, *where],
        ["report", *added, *where],
        ["list", "--methods", "nowhere"],
    )
    *answers, refused = checkout.commands(*((arguments, {}) for arguments in commands))
    assert [(answer.code, answer.stderr) for answer in answers] == [(0, "")] * 5
    listed, planned, _, reported, _ = answers
    assert "outsider" in listed.stdout
    assert "2 runs, 2 to train" in planned.stdout
    results = sealed_in(tmp_path / "runs").values()
    assert {result["config"]["method"]: result["status"] for result in results} == {
        "batchnorm": "completed",
        "outsider": "completed",
    }
    assert reported.stdout == f"2 Results, 0 unreadable; 1 pages in {output}\n"
    page = (output / "outsider.html").read_text("utf-8")
    assert all(f"{result['final']['test']['error']:.2f}" in page for result in results)
    assert "outsider" in (output / "index.md").read_text("utf-8")
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == "error: --methods nowhere: no such folder\n"
