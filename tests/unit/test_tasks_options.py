"""Which options of a TaskSpec a kind of Task takes; the others are refused before anything is loaded or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reproduce import tasks
from reproduce.errors import UserError
from reproduce.experiment.cells import Cell
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods, find_method
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.training.plan import resolve

HOST = {"model": "lstm", "site": "layers.0.post", "recipe": {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}}
VALUES: dict[str, Any] = {
    "validation": 3,
    "train_examples": 3,
    "symbols": "characters",
    "token_errors": True,
    "word_cache": {"share": 0.1, "sharpness": 1.0, "length": 5},
    "dropout_samples": 3,
    "imbalance": 10.0,
    "corrupted": {"kinds": ("contrast",), "examples": 3},
    "out_of_distribution": "mnist",
    "target_domain": {"rotation": 30.0},
    "normalise": "unit",
    "reconstruction": "pixel_mean",
    "objective": "with_penalty",
    "classifier_iterations": 3,
    "classifier_strength": "chosen",
    "host": HOST,
    "fold": 0,
    "fold_convention": "swapped",
}
IMAGES = {"validation", "train_examples", "normalise"}
WORDS = {"train_examples", "symbols", "token_errors", "word_cache", "dropout_samples"}
USED = {
    "image_classification": IMAGES | {"host", "imbalance", "corrupted", "out_of_distribution", "target_domain"},
    "regression": IMAGES,
    "autoencoding": IMAGES | {"reconstruction", "objective", "classifier_iterations", "classifier_strength"},
    "language_modeling": WORDS,
    "code_language_modeling": WORDS,
    "activation_autoencoding": {"train_examples", "host"},
    "table_classification": {"fold", "fold_convention"},
}
NEEDED = {"activation_autoencoding": {"host"}, "table_classification": {"fold", "fold_convention"}}
KINDS = sorted(path.stem for path in Path(tasks.__file__).parent.glob("[a-z]*.py"))


def spec(kind: str, **fields: Any) -> TaskSpec:
    return TaskSpec.model_validate({"kind": kind, "dataset": "digits", "model": "mlp", **fields})


def test_every_option_has_a_value_here() -> None:
    assert set(VALUES) == {name for name, field in TaskSpec.model_fields.items() if field.default is None}


@pytest.mark.parametrize("kind", KINDS)
def test_options_are_taken_or_refused(kind: str) -> None:
    used = USED[kind]
    together = [set[str]()]
    if kind == "image_classification":  # not all at once
        together = [
            {"host", "target_domain"},
            {"imbalance", "target_domain"},
            {"host", "corrupted", "out_of_distribution"},
        ]
    for apart in together:
        taken = tasks.check_options(spec(kind, **{name: VALUES[name] for name in used - apart}))
        assert set(type(taken).model_fields) == used
    for name in NEEDED.get(kind, set()):
        with pytest.raises(UserError, match=f"^a task of kind '{kind}': {name}: missing key$"):
            tasks.check_options(spec(kind, **{other: VALUES[other] for other in used - {name}}))
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1)
    device = torch.device("cpu")
    given = {needed: VALUES[needed] for needed in NEEDED.get(kind, set())}
    for name in set(VALUES) - used:
        data: Any = None  # it is not looked at
        with pytest.raises(UserError, match=f"^a task of kind '{kind}' takes .* and no '{name}', found .*$"):
            tasks.build(spec(kind, **given, **{name: VALUES[name]}), recipe, data, Generators.seeded(0, device), device)


def test_a_host_would_be_trained_on_other_images_than_a_long_tail() -> None:
    with pytest.raises(UserError, match="option 'imbalance' goes with no 'host'"):
        tasks.check_options(spec("image_classification", host=HOST, imbalance=10.0))


def test_the_value_zero_is_given_too() -> None:
    with pytest.raises(UserError, match="no 'fold', found 0"):
        tasks.check_options(spec("regression", fold=0))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown task kind 'image_clasification': did you mean image_classification"):
        tasks.check_options(spec("image_clasification"))


def test_an_experiment_is_refused_before_anything_is_trained() -> None:
    cell = Cell(
        task_name="a",
        arm_name="b",
        task=spec("regression", host=HOST),
        recipe=HOST["recipe"],
        method="vanilla",
        params={},
        seed=0,
    )
    with pytest.raises(UserError, match="no 'host', found"):
        resolve(cell, find_method("vanilla"), None)


def test_no_experiment_gives_an_option_in_vain() -> None:
    folders = [*all_methods().values(), MethodFolder("_template", METHODS / "_template")]
    given = [task for folder in folders for one in folder.experiments().values() for task in one.tasks.values()]
    assert len(given) > 50
    for task in given:
        tasks.check_options(task)
