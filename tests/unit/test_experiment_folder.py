"""A method exists because its folder does."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproduce.errors import UserError
from reproduce.experiment import folder as discover
from reproduce.experiment.files import WORKLOADS
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods, find_method
from reproduce.method import Method


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(discover, "METHODS", tmp_path)
    for name in ("one", "two_words", "_template"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "method.py").write_text("", "utf-8")
    (tmp_path / "no_method").mkdir()
    (tmp_path / "method.py").write_text("", "utf-8")
    return tmp_path


def test_folders_are_the_methods(folder: Path) -> None:
    assert {name: found.path for name, found in all_methods().items()} == {
        "one": folder / "one",
        "two_words": folder / "two_words",
    }


def test_hyphens_and_underscores_are_the_same(folder: Path) -> None:
    assert find_method("two-words") == find_method("two_words") == MethodFolder("two_words", folder / "two_words")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("two_word", "did you mean two_words?"),
        ("", "there are one, two_words"),
        ("zzz", "there are one, two_words"),
        ("_template", "unknown method '_template'"),
        ("no_method", "unknown method 'no_method'"),
        ("../one", "unknown method '../one'"),
    ],
)
def test_unknown_methods(folder: Path, name: str, hint: str) -> None:
    with pytest.raises(UserError, match="unknown method") as caught:
        find_method(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_title_is_the_cards_first_heading(folder: Path) -> None:
    card = folder / "one" / "card.md"
    assert find_method("one").title == "one"
    card.write_text("# A fine idea\n\n## Idea\n", "utf-8")
    assert find_method("one").title == "A fine idea"
    card.write_text("", "utf-8")
    assert find_method("one").title == "one"


def test_every_folder_of_this_repository_loads() -> None:
    methods = all_methods()
    assert set(methods) >= {"vanilla", "batchnorm", "activity_norm", "per"}
    assert set(methods) == {path.parent.name for path in METHODS.glob("[a-z]*/method.py")}
    for found in methods.values():
        assert issubclass(found.load(), Method)


def test_a_file_without_the_class_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import methods.vanilla.method as module

    monkeypatch.delattr(module, "Vanilla")
    with pytest.raises(UserError, match=r"vanilla/method\.py: one subclass of Method is expected, found none"):
        find_method("vanilla").load()


def test_two_classes_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    import methods.vanilla.method as module

    second = type("Second", (Method,), {"__module__": module.__name__})
    monkeypatch.setattr(module, "Second", second, raising=False)
    with pytest.raises(UserError, match="one subclass of Method is expected, found Vanilla, Second"):
        find_method("vanilla").load()


def test_the_base_is_no_method() -> None:
    """An import of ``Method`` where a method's own class is meant trains nothing silently."""
    for make in (Method, lambda: Method.model_validate({})):
        with pytest.raises(TypeError, match="base of all methods"):
            make()


def test_experiments_by_file_name() -> None:
    found = find_method("per")
    files = {path.stem for path in (METHODS / "per" / "experiments").glob("*.toml")}
    columns = {path.stem for path in WORKLOADS.glob("matrix_*.toml")}
    assert files
    assert columns
    assert list(found.experiments()) == sorted(files | columns)
