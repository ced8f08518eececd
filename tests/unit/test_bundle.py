"""What goes into a bundle: wheels that an image lacks, data of the chosen experiments, and no more than fits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reproduce.cli import bundle, commands, wheels
from reproduce.errors import UserError
from reproduce.experiment import dataset_card
from reproduce.experiment.folder import MORE_METHODS, ROOT


def names(image_has: str) -> set[str]:
    return {pin.partition("==")[0] for pin in wheels.lacking(ROOT, image_has.split(","))}


def test_an_image_for_training_lacks_little() -> None:
    small = {"pydantic", "pydantic-core", "annotated-types", "typing-inspection", "latex2mathml", "mdit-py-plugins"}
    assert names(wheels.IMAGE_HAS) == small
    assert names(f"{wheels.IMAGE_HAS}, pydantic") == {"latex2mathml", "mdit-py-plugins"}


def test_what_an_image_lacks_comes_with_its_requirements() -> None:
    """Here typer requires pydantic; an image's older typer may not, so naming typer is not naming pydantic."""
    assert {"torch", "pydantic", "numpy"}.isdisjoint(names(f"{wheels.IMAGE_HAS},pydantic"))
    without_pandas = wheels.IMAGE_HAS.replace("pandas,", "")
    assert names(without_pandas) - names(wheels.IMAGE_HAS) == {"pandas"}
    without_rich = wheels.IMAGE_HAS.replace("rich,", "").replace("typer,", "")
    assert {"typer", "rich", "shellingham"} <= names(without_rich)


def test_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").lower().replace("_", "-").splitlines()
    assert set(wheels.lacking(ROOT, wheels.IMAGE_HAS.split(","))) <= set(lines)


def test_a_version_that_nobody_fixed_is_told(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["pydantic>=2"]\n')
    (tmp_path / "constraints.txt").write_text("# pydantic==1.0\ntorch==2.15.0\n")
    with pytest.raises(
        UserError, match=r"constraints.txt: no version of annotated-types, which the image lacks: add it"
    ):
        wheels.lacking(tmp_path, ["torch"])


CARD = """\
title = "Words"
format = "text"
source = "made for this test"
licence = "none"
get = "write them"
exact = true
columns = ["text"]
[words]
minimum_count = 1
[files]
"{name}/train.txt" = {{ md5 = "{md5}" }}
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with two datasets, of which ``many`` is larger, and their cards; a third has no files."""
    cards, root = tmp_path / "cards", tmp_path / "data"
    cards.mkdir()
    for name, text in {"few": "a b\n", "many": "c d\n" * 1000, "gone": "e"}.items():
        (cards / f"{name}.toml").write_text(CARD.format(name=name, md5=hashlib.md5(text.encode()).hexdigest()))
        (root / name).mkdir(parents=True)
        if name != "gone":
            (root / name / "train.txt").write_text(text)
    (root / "few" / "other.txt").write_text("is not on the card")
    monkeypatch.setattr(dataset_card, "CARDS", cards)
    monkeypatch.setattr(bundle, "WORKING_FOLDER", tmp_path)
    return root


def test_only_the_data_of_the_chosen_experiments_go_along(data: Path, tmp_path: Path) -> None:
    used = bundle._archive_data({"few"}, data, tmp_path / "made")
    assert used == {"few.tar.xz": ["few"]}
    with tarfile.open(tmp_path / "made" / "few.tar.xz") as archive:
        assert archive.getnames() == ["few/train.txt"]
        content = archive.extractfile("few/train.txt")
        assert content is not None
        assert content.read() == (data / "few" / "train.txt").read_bytes()


def test_data_that_lie_nowhere_or_are_damaged_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: missing gone/train.txt \(looked in .*; to get it: write them"):
        bundle._archive_data({"few", "gone"}, data, tmp_path / "made")
    (data / "few" / "train.txt").write_text("damaged")
    with pytest.raises(UserError, match=r"train.txt: md5 is .*, expected"):
        bundle._archive_data({"few"}, data, tmp_path / "again")


def folder_of(tmp_path: Path, **sizes: int) -> Path:
    """A bundle with parts of these sizes; names with an underscore are archives of data."""
    for name, size in sizes.items():
        path = tmp_path / "made" / name.replace("data_", "data/") / "file"
        if name.startswith("data_"):
            path = path.parent.with_suffix(".tar.xz")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size * 2**20)  # nothing is written: a file with a hole
    return tmp_path / "made"


def test_what_fits_is_measured(tmp_path: Path) -> None:
    made = folder_of(tmp_path, code=2, wheels=3, data_a=25, data_b=30)
    sizes = bundle._checked_sizes(made, {"a.tar.xz": ["one"], "b.tar.xz": ["two"]})
    assert sizes == {"code": 2 * 2**20, "wheels": 3 * 2**20, "data/a.tar.xz": 25 * 2**20, "data/b.tar.xz": 30 * 2**20}


def test_a_bundle_too_large_names_what_to_leave_out(tmp_path: Path) -> None:
    made = folder_of(tmp_path, code=2, wheels=3, data_a=25, data_b=31)
    with pytest.raises(UserError) as caught:
        bundle._checked_sizes(made, {"a.tar.xz": ["one"], "b.tar.xz": ["two", "three"]})
    assert str(caught.value) == (
        "the bundle has 61.0 MiB, at most 60 go along (data/b.tar.xz 31.0, data/a.tar.xz 25.0, wheels 3.0, code 2.0): "
        "leave out the experiments on two, three: choose others with --only"
    )
    with pytest.raises(UserError, match=r"wheels 300\.0, .*: no data can be left out for it"):
        bundle._checked_sizes(folder_of(tmp_path / "other", wheels=300, data_a=1), {"a.tar.xz": ["one"]})


def test_a_method_that_does_not_read_stops_no_bundle_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for `plan` and `run`: the one is named in a line, and the exit code says so."""
    broken = tmp_path / "outside" / "unreadable"
    (broken / "experiments").mkdir(parents=True)
    (broken / "method.py").write_text("")
    (broken / "experiments" / "quick.toml").write_text("title = = 1")
    monkeypatch.setenv(MORE_METHODS, str(broken.parent))
    monkeypatch.setattr(wheels, "download", lambda pins, target, *of: target.mkdir(parents=True))
    monkeypatch.chdir(tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [tmp_path / f".made.{number}.x" for number in (gone.pid, os.getpid())]  # of a bundle that was killed
    for folder in left:
        (folder / "made").mkdir(parents=True)
    answer = CliRunner().invoke(commands.app, ["bundle", "all", "--only", "quick_digits", "--output", "made"])
    assert answer.exit_code == 2, answer
    assert [folder.exists() for folder in left] == [False, True]
    (line,) = (line for line in answer.stderr.splitlines() if line.startswith("error: "))
    assert "quick.toml: not valid TOML" in line
    assert "of them sealed here; carry it over; there: bash made/run.sh" in answer.stdout
    assert (tmp_path / "made" / "run.sh").is_file()
    assert (tmp_path / "made" / "methods_outside" / "unreadable").is_dir()  # where `run` names it as well
    alone = CliRunner().invoke(commands.app, ["bundle", "unreadable", "--output", "none"])
    assert alone.exit_code == 2
    assert not (tmp_path / "none").exists()
