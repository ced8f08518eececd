"""Experiment files are read strictly, and expand to the trainings that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reproduce.errors import UserError
from reproduce.experiment.cells import cells, parse_seeds
from reproduce.experiment.files import read_experiment
from reproduce.experiment.folder import METHODS, ROOT
from reproduce.experiment.identity import RunConfig, Start
from reproduce.experiment.recipe import Clip, CosineRate, Recipe, StepRate
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.results.store import read_results

GOOD = """\
title = "A table"
scale = "quick"
source = "Nobody 2020, Table 9"
seeds = [3, 1]
baseline = "plain"
[tasks.images]
kind = "image_classification"
dataset = "digits"
model = "mlp"
model_options = { width = 8, depth = 1 }
[tasks.more]
kind = "image_classification"
dataset = "mnist"
model = "mlp"
[recipe]
epochs = 2
batch_size = 16
learning_rate = 0.1
schedule = { kind = "cosine" }
[arms.plain]
[arms.step]
method = "per"
params = { mode = "exact" }
grid = { strength = [1e-3, 1e-4], n_slices = [8, 16] }
model = "cnn11"
model_options = { width = 9 }
recipe = { learning_rate = 0.5, schedule = { kind = "step", milestones = [1] } }
tasks = ["images"]
[arms.later]
method = "vcl"
pending = "not built yet"
[[claims]]
task = "images"
arm = "plain"
metric = "test.error"
value = 7.2
tolerance = 0.5
source = "row 1"
[[claims]]
task = "images"
arm = "step"
over = "plain"
metric = "test.error"
direction = "lower"
source = "row 2"
"""

# what is replaced, by what, the line of the error, the key, and a word of what was expected
BROKEN = {
    "unknown key": ("batch_size = 16", "batch_sise = 16", 17, "recipe.batch_sise", "unknown key"),
    "unknown key at the top": ('source = "Nobody', 'quelle = "Nobody', 3, "quelle", "unknown key"),
    "unknown key of an arm": ('model = "cnn11"', 'modell = "cnn11"', 25, "arms.step.modell", "unknown key"),
    "wrong type": ("batch_size = 16", 'batch_size = "16"', 17, "recipe.batch_size", "found '16'"),
    "wrong type in an array": ("[3, 1]", "[3, 1.5]", 4, "seeds.1", "found 1.5"),
    "truth is no number": ("epochs = 2", "epochs = true", 16, "recipe.epochs", "found True"),
    "not above zero": ("learning_rate = 0.1", "learning_rate = 0", 18, "recipe.learning_rate", "greater than 0"),
    "infinite": ("learning_rate = 0.1", "learning_rate = inf", 18, "recipe.learning_rate", "finite"),
    "unknown scale": ('"quick"', '"fast"', 2, "scale", "'paper', found 'fast'"),
    "no seeds": ("[3, 1]", "[]", 4, "seeds", "at least 1"),
    "claim without a source": ('source = "row 2"\n', "", 39, "claims.1.source", "missing key"),
    "claim with an empty source": ('source = "row 2"', 'source = ""', 45, "claims.1.source", "at least 1"),
    "claim without a tolerance": ("tolerance = 0.5\n", "", 32, "claims.0", "needs a tolerance"),
    "claim of both kinds": ('over = "plain"', "value = 1.0", 39, "claims.1", "exactly one of value and direction"),
    "claim of a direction without another arm": ('over = "plain"\n', "", 39, "claims.1", "'over'"),
    "claim on an unknown arm": (
        'arm = "step"',
        'arm = "stop"',
        41,
        "claims.1.arm",
        "'stop' is none of the arms plain,",
    ),
    "claim over an unknown arm": ('over = "plain"', 'over = "plane"', 42, "claims.1.over", "'plane' is none of"),
    "claim on an unknown task": (
        'task = "images"\narm = "s',
        'task = "x"\narm = "s',
        40,
        "claims.1.task",
        "images, more",
    ),
    "unknown task of an arm": ('tasks = ["images"]', 'tasks = ["image"]', 28, "arms.step.tasks", "'image' is none"),
    "unknown baseline": ('"plain"\n[tasks.images]', '"b"\n[tasks.images]', 5, "baseline", "'b' is none of the arms"),
    "two lengths": ("epochs = 2", "epochs = 2\nsteps = 9", 15, "recipe", "exactly one of epochs and steps"),
    "no length": ("epochs = 2\n", "", 15, "recipe", "exactly one of epochs and steps"),
    "two lengths by an arm": (
        "{ learning_rate = 0.5,",
        "{ steps = 5,",
        27,
        "arms.step.recipe",
        "exactly one of epochs",
    ),
    "unknown key in an arm's recipe": (
        "{ learning_rate = 0.5",
        "{ rate = 0.5",
        27,
        "arms.step.recipe.rate",
        "unknown key",
    ),
    "wrong type in an arm's recipe": ("= 0.5,", '= "0.5",', 27, "arms.step.recipe.learning_rate", "found '0.5'"),
    "unknown kind of schedule": (
        '"cosine"',
        '"cosinus"',
        19,
        "recipe.schedule",
        "'constant', 'step', 'decay', 'plateau'",
    ),
    "wrong type in a schedule": ("[1] }", '["1"] }', 27, "arms.step.recipe.schedule.milestones.0", "found '1'"),
    "key of another schedule": ('"cosine" }', '"cosine", after = 3 }', 19, "recipe.schedule.after", "unknown key"),
    "factors for other milestones": (
        "[1] }",
        "[1], factor = [0.1, 0.2] }",
        27,
        "recipe.schedule",
        "2 factors for 1 milestones",
    ),
    "warm-up without factor": ("epochs = 2", "epochs = 2\nwarmup_steps = 5", 15, "recipe", "go together"),
    "nesterov without momentum": (
        "epochs = 2",
        "epochs = 2\nnesterov = true",
        17,
        "recipe.nesterov",
        "sgd with momentum",
    ),
    "an empty grid": ("[8, 16]", "[]", 24, "arms.step.grid.n_slices", "at least 1"),
    "no examples": (
        'dataset = "mnist"',
        'dataset = "mnist"\ntrain_examples = 0',
        14,
        "tasks.more.train_examples",
        "or equal to 1",
    ),
}


def read(folder: Path, text: str) -> Experiment:
    path = folder / "table9.toml"
    path.write_text(text, "utf-8")
    return read_experiment(path)


def error_of(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("old", "new", "line", "key", "expected"), BROKEN.values(), ids=BROKEN)
def test_error_names_file_line_and_key(tmp_path: Path, old: str, new: str, line: int, key: str, expected: str) -> None:
    assert GOOD.count(old) == 1
    message = error_of(tmp_path, GOOD.replace(old, new))
    assert message.startswith(f"{tmp_path / 'table9.toml'}:{line}: ")
    assert f"{key}: " in message
    assert expected in message
    assert "Value error" not in message


def test_missing_key_at_the_top(tmp_path: Path) -> None:
    text = GOOD.replace('source = "Nobody 2020, Table 9"\n', "")
    assert error_of(tmp_path, text) == f"{tmp_path / 'table9.toml'}: source: missing key"


def test_several_problems_are_counted(tmp_path: Path) -> None:
    text = GOOD.replace("batch_size = 16", "batch_sise = 16")
    assert error_of(tmp_path, text).endswith(":17: recipe.batch_sise: unknown key: did you mean batch_size?")
    text = text.replace("epochs = 2", 'epochs = "2"')
    assert error_of(tmp_path, text).endswith(
        ":17: recipe.batch_sise: unknown key: did you mean batch_size?; also 16: recipe.epochs: Input should be a "
        "valid integer, found '2'"
    )
    text = text.replace("[recipe]", "[recipe]\na = 1\nb = 2\nc = 3\nd = 4")
    assert error_of(tmp_path, text).endswith("; also 19: recipe.d: unknown key (and 2 more)")


def test_plateau_has_no_warm_up_and_adam_no_momentum(tmp_path: Path) -> None:
    plateau = GOOD.replace('"cosine" }', '"plateau" }\nwarmup_steps = 3\nwarmup_factor = 0.1')
    assert "table9.toml:20: recipe.warmup_steps: a plateau schedule has no warm-up" in error_of(tmp_path, plateau)
    adam = GOOD.replace("epochs = 2", 'epochs = 2\noptimizer = "adam"\nmomentum = 0.9')
    assert "table9.toml:18: recipe.momentum: adam takes no momentum" in error_of(tmp_path, adam)


def test_bad_toml_names_line(tmp_path: Path) -> None:
    message = error_of(tmp_path, GOOD.replace("[recipe]", "[recipe"))
    assert message.startswith(f"{tmp_path / 'table9.toml'}: not valid TOML: ")
    assert "line 15" in message


def test_twice_the_same_key_is_bad_toml(tmp_path: Path) -> None:
    assert "not valid TOML" in error_of(tmp_path, GOOD.replace("epochs = 2", "epochs = 2\nepochs = 3"))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.toml: cannot be read \(No such file"):
        read_experiment(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes('title = "é"'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.toml: not valid TOML: .*utf-8"):
        read_experiment(tmp_path / "latin.toml")


def test_cells(tmp_path: Path) -> None:
    experiment = read(tmp_path, GOOD)
    found = cells(experiment)
    # Seeds outermost in the file's order; the grid's last key fastest; the pending arm nowhere.
    grid = [{"mode": "exact", "strength": s, "n_slices": n} for s in (1e-3, 1e-4) for n in (8, 16)]
    expected: list[tuple[int, str, str, dict[str, Any]]] = []
    for seed in (3, 1):
        expected += [(seed, "images", "plain", {})]
        expected += [(seed, "images", "step", point) for point in grid]
        expected += [(seed, "more", "plain", {})]
    assert [(c.seed, c.task_name, c.arm_name, c.params) for c in found] == expected

    plain, changed = found[0], found[1]
    assert (plain.method, plain.task, plain.recipe) == ("vanilla", experiment.tasks["images"], experiment.recipe)
    assert (changed.method, changed.task.model) == ("per", "cnn11")
    assert changed.task.model_options == {"width": 9, "depth": 1}
    assert changed.task.dataset == "digits"
    assert changed.recipe.learning_rate == 0.5
    assert changed.recipe.schedule == StepRate(kind="step", milestones=(1,))
    assert (changed.recipe.epochs, changed.recipe.batch_size) == (2, 16)


def test_cells_with_other_seeds(tmp_path: Path) -> None:
    experiment = read(tmp_path, GOOD)
    assert [cell.seed for cell in cells(experiment, (7,))] == [7] * 6


def test_arm_names_may_be_schedule_kinds(tmp_path: Path) -> None:
    message = error_of(tmp_path, GOOD.replace('params = { mode = "exact" }', "params = 3"))
    assert ":23: arms.step.params: " in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("3", (0, 1, 2)),
        ("1", (0,)),
        ("0,1,2", (0, 1, 2)),
        ("5,3", (5, 3)),
        ("3,", (3,)),
        ("0,", (0,)),
    ],
)
def test_parse_seeds(text: str, expected: tuple[int, ...] | None) -> None:
    assert parse_seeds(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "1,-2", "x", ",", "1,,2", "1.5"])
def test_parse_seeds_refuses(text: str) -> None:
    with pytest.raises(UserError, match=f"--seeds '{text}'"):
        parse_seeds(text)


SPELLED = RunConfig(
    task=TaskSpec(
        kind="image_classification",
        dataset="cifar10",
        model="resnet",
        model_options={"depth": 56, "width": 16, "variant": "fixup"},
        validation=5000,
        train_examples=40000,
        normalise="channel",
    ),
    dataset_checksum="0123456789abcdef" * 4,
    recipe=Recipe(
        epochs=200,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        decay_biases=False,
        bias_rate=0.1,
        schedule=StepRate(kind="step", milestones=(100, 150), factor=(0.2, 0.1), unit="epochs"),
        warmup_steps=400,
        warmup_factor=0.1,
        clip=Clip(norm=0.25, per="tensor"),
        augment="crop_flip",
        mixup=0.7,
        window=35,
        eval_batch_size=250,
        evaluate_every=2,
        selection="best_validation",
        precision="bfloat16",
        probe_examples=128,
    ),
    method="per",
    method_version=2,
    params={"strength": 3e-4, "mode": "sliced", "n_slices": 256, "sites": "post", "none": None},
    seed=7,
    loop_version=1,
)


def test_identity_of_a_spelled_run_never_moves() -> None:
    """All committed evidence hangs on this number: a change here orphans every sealed Result."""
    assert SPELLED.id == "74e0ba3dc8c46004"


def test_identity_of_a_run_of_defaults_never_moves() -> None:
    task = TaskSpec(kind="language_modeling", dataset="ptb", model="lstm")
    recipe = Recipe(steps=10, batch_size=20, learning_rate=20.0)
    config = RunConfig(
        task=task, dataset_checksum="x", recipe=recipe, method="vanilla", method_version=1, params={}, seed=0
    )
    assert config.id == "cce4b64aea5d38d6"


class LaterRecipe(Recipe):
    added: float | None = None


class LaterTask(TaskSpec):
    added: str | None = None


class LaterConfig(RunConfig):
    task: LaterTask
    recipe: LaterRecipe
    added: dict[str, int] | None = None


def test_a_new_field_that_is_none_moves_no_identity() -> None:
    content = SPELLED.model_dump()
    assert LaterConfig.model_validate(content).id == SPELLED.id
    changes = (
        {"added": {"a": 1}},
        {"task": content["task"] | {"added": "x"}},
        {"recipe": content["recipe"] | {"added": 0.0}},
    )
    moved = {LaterConfig.model_validate(content | change).id for change in changes}
    assert len(moved) == 3
    assert SPELLED.id not in moved


def test_every_field_of_a_config_is_in_its_identity() -> None:
    changes = {
        "task": SPELLED.task.model_copy(update={"validation": 4999}),
        "dataset_checksum": "fedcba",
        "recipe": SPELLED.recipe.model_copy(update={"schedule": CosineRate(kind="cosine")}),
        "method": "vanilla",
        "method_version": 3,
        "params": {**SPELLED.params, "n_slices": 255},
        "start": Start(method="variance_preserving_init", version=1, params={}),
        "seed": 8,
        "loop_version": 2,
    }
    assert set(changes) == set(RunConfig.model_fields)
    moved = {SPELLED.model_copy(update={field: value}).id for field, value in changes.items()}
    assert len(moved) == len(changes)
    assert SPELLED.id not in moved


def test_committed_evidence_reads() -> None:
    """Each file of reports/evidence is whole, sealed, and bears the id of its own config."""
    _, problems = read_results((ROOT / "reports" / "evidence").rglob("*.json"))
    assert problems == []


def test_every_experiment_reads_and_asks_for_something() -> None:
    paths = sorted(METHODS.glob("*/experiments/*.toml"))
    assert len(paths) >= 5
    for path in paths:
        experiment = read_experiment(path)
        runs = any(arm.pending is None for arm in experiment.arms.values())
        assert bool(cells(experiment)) == runs, path


def test_arm_merges_grid_over_params() -> None:
    arm = Arm(params={"a": 1, "b": 2}, grid={"b": (3, 4)})
    assert arm.points() == [{"a": 1, "b": 3}, {"a": 1, "b": 4}]
    assert Arm().points() == [{}]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("test.error@2", ""),
        ("test.error@4", "epoch 4 is not evaluated: expected a multiple of evaluate_every = 1 within 2 epochs"),
        ("test.error@0", "String should match pattern"),
    ],
)
def test_a_claim_at_an_epoch_names_one_that_is_evaluated(tmp_path: Path, metric: str, message: str) -> None:
    text = GOOD.replace('metric = "test.error"', f'metric = "{metric}"', 1)
    if message:
        assert message in error_of(tmp_path, text)
    else:
        path = tmp_path / "table9.toml"
        path.write_text(text, encoding="utf-8")
        assert metric in {claim.metric for claim in read_experiment(path).claims}
