"""What experiment files say shorter: tasks spanned by axes, and workloads that several methods share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reproduce.cli.chosen import chosen_experiments
from reproduce.errors import UserError
from reproduce.experiment import files, places
from reproduce.experiment import folder as folders
from reproduce.experiment.files import WORKLOADS, read_columns, read_experiment, read_matrix, read_workloads
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods, find_method
from reproduce.experiment.schema import Experiment
from reproduce.training.plan import plan

SPANNED = """\
title = "Tables"
scale = "quick"
source = "ours"
seeds = [0]
[tasks.uci]
kind = "table_classification"
dataset = ["uci_car", "uci_yeast"]
fold = [0, 2]
model = "mlp"
[tasks.digits]
kind = "image_classification"
dataset = "digits"
model = "mlp"
[recipe]
epochs = 2
batch_size = 16
learning_rate = 0.1
[arms.plain]
tasks = ["car_2", "digits"]
"""

COLUMN = """\
title = "Matrix, more: digits"
scale = "reduced"
source = "ours"
seeds = [0, 1]
baseline = "start"
deviations = ["said once"]
[tasks.more]
kind = "image_classification"
dataset = "digits"
model = "mlp"
model_options = { width = 8, depth = 1 }
[recipe]
epochs = 2
batch_size = 16
learning_rate = 0.1
[arms.start]
label = "nothing"
"""

ROWS = """\
[more]
deviations = ["of this method"]

[more.arms.weak]
method = "per"
params = { strength = 1e-3 }
"""

JOINED = """\
workload = "matrix_more"
title = "Another title"

[arms.weak]
method = "per"
params = { strength = 1e-3 }
"""


@pytest.fixture
def workloads(tmp_path: Path) -> Path:
    """A copy of the workloads, with one new file."""
    copy = Path(shutil.copytree(WORKLOADS, tmp_path / "workloads"))
    (copy / "matrix_more.toml").write_text(COLUMN, "utf-8")
    return copy


def written(folder: Path, text: str, name: str = "file.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_axes_span_tasks_in_order(tmp_path: Path) -> None:
    experiment = read_experiment(written(tmp_path, SPANNED))
    assert list(experiment.tasks) == ["car_0", "car_2", "yeast_0", "yeast_2", "digits"]
    assert [(task.dataset, task.fold) for task in experiment.tasks.values()] == [
        ("uci_car", 0),
        ("uci_car", 2),
        ("uci_yeast", 0),
        ("uci_yeast", 2),
        ("digits", None),
    ]
    assert experiment.axes["yeast_2"] == {"dataset": "yeast", "fold": 2}
    assert set(experiment.axes) == set(experiment.tasks) - {"digits"}


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("fold = [0, 2]", "folds = [0, 2]", 8, "tasks.uci.folds: unknown key"),
        ("fold = [0, 2]", "fold = [0, -2]", 8, "tasks.uci.fold: Input should be greater than or equal to 0, found -2"),
        ("fold = [0, 2]", "fold = [0, 0]", 5, "tasks.uci: two tasks are called 'car_0'"),
        ("fold = [0, 2]", "fold = []", 8, "tasks.uci.fold: an axis without a value"),
        ("[tasks.digits]", "[tasks.car_2]", 10, "tasks.car_2: two tasks are called 'car_2'"),
        ("seeds = [0]", "seeds = [0]\naxes = {}", 5, "axes: unknown key"),
        ('"car_2", "digits"', '"car_1"', 19, "arms.plain.tasks: 'car_1' is none of the tasks car_0, car_2,"),
    ],
)
def test_a_wrong_axis_is_one_line(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    assert SPANNED.count(old) == 1
    path = written(tmp_path, SPANNED.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_experiment(path)
    assert str(caught.value).startswith(f"{path}:{line}: {expected}")


def test_every_workload_is_used() -> None:
    used = {name for folder in all_methods().values() for name in folder.experiments()}
    files = {line for path in METHODS.glob("*/experiments/*.toml") for line in path.read_text("utf-8").splitlines()}
    unused = [name for name in read_workloads() if name not in used and f'workload = "{name}"' not in files]
    assert not unused


def test_a_matrix_joins_arms_to_a_column(tmp_path: Path, workloads: Path) -> None:
    columns = read_columns(workloads)
    joined = read_matrix(written(tmp_path, ROWS), columns)
    assert list(joined) == ["matrix_more"]
    experiment, column = joined["matrix_more"], columns["matrix_more"]
    assert list(experiment.arms) == ["start", "weak"]
    assert experiment.deviations == ("of this method",)
    shared = set(Experiment.model_fields) - {"arms", "deviations"}
    assert {key for key in shared if getattr(experiment, key) != getattr(column, key)} == set()


MINE = COLUMN.replace("Matrix, more: digits", "Matrix, mine").replace("[tasks.more]", "[tasks.flowers]")


def with_mine(workloads: Path, arms_of: str) -> Path:
    return written(workloads, f'arms_of = "{arms_of}"\n' + MINE, "matrix_mine.toml")


def test_a_column_takes_the_arms_of_another(tmp_path: Path, workloads: Path) -> None:
    """The arms alone: what the table says of its own column, as deviations, is not said of this one."""
    with_mine(workloads, "more")
    columns = read_columns(workloads)
    joined = read_matrix(written(tmp_path, ROWS), columns)
    assert list(joined) == ["matrix_more", "matrix_mine"]
    mine = joined["matrix_mine"]
    assert mine.arms == joined["matrix_more"].arms
    assert (mine.title, mine.deviations, list(mine.tasks)) == ("Matrix, mine", (), ["flowers"])


def test_a_table_of_its_own_comes_before_that_of_the_other_column(tmp_path: Path, workloads: Path) -> None:
    with_mine(workloads, "more")
    own = ROWS.replace("[more", "[mine").replace(".weak]", ".strong]")
    joined = read_matrix(written(tmp_path, f"{ROWS}\n{own}"), read_columns(workloads))
    assert list(joined["matrix_more"].arms) == ["start", "weak"]
    assert list(joined["matrix_mine"].arms) == ["start", "strong"]


def test_a_method_without_the_other_table_does_not_join(tmp_path: Path, workloads: Path) -> None:
    with_mine(workloads, "more")
    (tmp_path / "empty").mkdir()
    assert read_matrix(written(tmp_path / "empty", ""), read_columns(workloads)) == {}


@pytest.mark.parametrize("named", ["mroe", "mine"])
def test_arms_of_no_column_is_one_line(named: str, workloads: Path) -> None:
    path = with_mine(workloads, named)
    with pytest.raises(UserError) as caught:
        read_columns(workloads)
    expected = f"{path}:1: arms_of: {named!r} is no column with arms of its own: "
    assert str(caught.value).startswith(expected)
    assert "more" in str(caught.value).removeprefix(expected)


def test_only_a_column_has_arms_of_another(tmp_path: Path, workloads: Path) -> None:
    said = "arms_of: only a column of the matrix has it, workloads/matrix_*.toml"
    path = written(tmp_path, 'arms_of = "images"\n' + SPANNED)
    with pytest.raises(UserError) as caught:
        read_experiment(path)
    assert str(caught.value) == f"{path}:1: {said}"
    path = written(workloads, 'arms_of = "more"\n' + MINE, "flowers.toml")
    with pytest.raises(UserError) as caught:
        read_workloads(workloads)
    assert str(caught.value) == f"{path}:1: {said}"


def test_what_is_wrong_with_an_arm_is_shown_in_the_table_that_it_comes_from(
    tmp_path: Path, workloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "WORKLOADS", workloads)
    with_mine(workloads, "more")
    folder = MethodFolder("x", tmp_path)
    path = tmp_path / "matrix.toml"
    path.write_text(ROWS, "utf-8")
    line = ROWS.splitlines().index("[more.arms.weak]") + 1
    assert places.place_of(folder, "matrix_mine", [("arms", "weak")]) == f"{path}:{line}"


def test_an_experiment_joins_a_workload(tmp_path: Path, workloads: Path) -> None:
    experiment = read_experiment(written(tmp_path, JOINED), workloads)
    assert (experiment.title, experiment.seeds, experiment.baseline) == ("Another title", (0, 1), "start")
    assert list(experiment.arms) == ["start", "weak"]
    assert experiment.deviations == ()


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("[more.arms.weak]", "[more.arms.start]", 4, "more.arms.start: the workload has an arm of this name"),
        ("deviations =", "seeds = [0]\ndeviations =", 2, "more.seeds: unknown key"),
        ("params = {", "parms = {", 6, "more.arms.weak.parms: unknown key"),
        ("method =", "recipe = { epochs = 0 }\nmethod =", 5, "more.arms.weak.recipe.epochs: Input should be greater"),
        ("method =", 'tasks = ["less"]\nmethod =', 5, "more.arms.weak.tasks: 'less' is none of the tasks more"),
        ("\n[more.", "\n[mole]\n[more.", 4, "mole: unknown workload 'mole': did you mean more?"),
    ],
)
def test_a_wrong_matrix_is_one_line(
    tmp_path: Path, workloads: Path, old: str, new: str, line: int, expected: str
) -> None:
    assert ROWS.count(old) == 1
    path = written(tmp_path, ROWS.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_matrix(path, read_columns(workloads))
    assert str(caught.value).startswith(f"{path}:{line}: {expected}")


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ('"matrix_more"', '"matrix_mere"', 1, "workload: unknown workload 'matrix_mere': did you mean matrix_more?"),
        ('title = "Another', 'scale = "paper"\ntitle = "Another', 2, "scale: unknown key"),
    ],
)
def test_a_wrong_join_is_one_line(
    tmp_path: Path, workloads: Path, old: str, new: str, line: int, expected: str
) -> None:
    path = written(tmp_path, JOINED.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_experiment(path, workloads)
    assert str(caught.value).startswith(f"{path}:{line}: {expected}")


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("epochs = 2", "epoch = 2", 13, "recipe.epoch: unknown key"),
        ('baseline = "start"\n', "", 15, "arms.start: a workload has one arm, its baseline"),
        ("[arms.start]", "[arms.other]\n[arms.start]", 16, "arms.other: a workload has one arm, its baseline"),
    ],
)
def test_a_wrong_workload_is_one_line(workloads: Path, old: str, new: str, line: int, expected: str) -> None:
    path = written(workloads, COLUMN.replace(old, new), "matrix_more.toml")
    with pytest.raises(UserError) as caught:
        read_workloads(workloads)
    assert str(caught.value).startswith(f"{path}:{line}: {expected}")


def test_a_column_that_does_not_read_stops_no_other(workloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = find_method("per").experiments()
    broken = written(workloads, COLUMN.replace("scale =", "scales ="), "matrix_more.toml")
    lent = COLUMN.replace("[tasks", 'arms_of = "nothing"\n\n[tasks', 1)
    lost = written(workloads, lent, "matrix_lost.toml")
    monkeypatch.setattr(folders, "WORKLOADS", workloads)
    monkeypatch.setattr(files, "WORKLOADS", workloads)
    unread: dict[str, str] = {}
    assert find_method("per").experiments(unread) == wanted
    assert {name: line.partition(":")[0] for name, line in unread.items()} == {
        "matrix_more": str(broken),
        "matrix_lost": str(lost),
    }
    told: list[str] = []
    (chosen,) = chosen_experiments("per", None, "matrix_images", told).values()
    assert (list(chosen), told) == (["matrix_images"], [])
    every = chosen_experiments("all", "quick", "", told)
    assert {folder.name for folder in every} == {*all_methods()}
    assert sorted(told) == sorted(unread.values())  # once, not once for each method
    for method in ("per", "all"):
        with pytest.raises(UserError) as caught:
            chosen_experiments(method, None, "matrix_more", told)
        assert str(caught.value) == unread["matrix_more"]


def test_a_file_that_does_not_read_stops_no_other_of_its_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(METHODS / "per", tmp_path / "more" / "private"))
    path = written(copy / "experiments", "title = 3", "quick_digits.toml")
    monkeypatch.setenv(folders.MORE_METHODS, str(copy.parent))
    told: list[str] = []
    found = {folder.name: chosen for folder, chosen in chosen_experiments("all", "quick", "", told).items()}
    assert found["private"].keys() == found["per"].keys() - {"quick_digits"}
    assert [line.partition(":")[0] for line in told] == [str(path)]
    assert "private" not in {folder.name for folder in chosen_experiments("all", None, "", [], whole=True)}
    (chosen,) = chosen_experiments("private", None, "quick_topics", []).values()
    assert list(chosen) == ["quick_topics"]
    with pytest.raises(UserError) as caught:  # all of this method, so this one too
        chosen_experiments("private", "quick", "", [])
    assert str(caught.value).startswith(str(path))


def test_a_new_column_is_one_file(workloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline's method has it at once; the others are absent until their matrix.toml names it."""
    monkeypatch.setattr(folders, "WORKLOADS", workloads)
    having = [name for name, folder in all_methods().items() if "matrix_more" in folder.experiments()]
    assert having == ["vanilla"]
    experiment = find_method("vanilla").experiments()["matrix_more"]
    assert experiment.deviations == ("said once",)
    assert [run.label for run in plan({"matrix_more": experiment}, None)] == [
        "matrix_more / start / seed 0",
        "matrix_more / start / seed 1",
    ]


def test_a_method_enters_a_new_column_by_its_own_file(
    workloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "WORKLOADS", workloads)
    copy = Path(shutil.copytree(METHODS / "per", tmp_path / "per"))
    (copy / "matrix.toml").write_text((copy / "matrix.toml").read_text("utf-8") + "\n" + ROWS, "utf-8")
    found = MethodFolder("per", copy).experiments()
    assert list(found) == sorted(found)
    assert [run.label for run in plan({"matrix_more": found["matrix_more"]}, None, (0,))] == [
        "matrix_more / start / seed 0",
        "matrix_more / weak / seed 0",
    ]


def test_an_experiment_is_not_called_like_a_column(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(METHODS / "per", tmp_path / "per"))
    path = written(copy / "experiments", SPANNED, "matrix_words.toml")
    with pytest.raises(UserError) as caught:
        MethodFolder("per", copy).experiments()
    assert str(caught.value).startswith(f"{path}: matrix_words is a column of the matrix")
