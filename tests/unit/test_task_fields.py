"""Which optional fields of a TaskSpec a Task uses; the others are refused before anything is loaded or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from reproduce import tasks
from reproduce.errors import UserError
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods
from reproduce.experiment.schema import Cell, Recipe, TaskSpec
from reproduce.method.rng import Generators
from reproduce.training.plan import resolve

HOST = {"model": "lstm", "site": "layers.0.post", "recipe": {"epochs": 1, "batch_size": 2, "learning_rate": 0.1}}
VALUES: dict[str, Any] = {
    "validation": 3,
    "train_examples": 3,
    "normalise": "unit",
    "reconstruction": "pixel_mean",
    "classifier_iterations": 3,
    "host": HOST,
    "fold": 0,
    "fold_convention": "swapped",
}
IMAGES = {"validation", "train_examples", "normalise"}
USED = {
    "image_classification": IMAGES,
    "regression": IMAGES,
    "autoencoding": IMAGES | {"reconstruction", "classifier_iterations"},
    "language_modeling": {"train_examples"},
    "code_language_modeling": {"train_examples"},
    "activation_autoencoding": {"train_examples", "host"},
    "table_classification": {"fold", "fold_convention"},
}
KINDS = sorted(path.stem for path in Path(tasks.__file__).parent.glob("[a-z]*.py"))


def spec(kind: str, **fields: Any) -> TaskSpec:
    return TaskSpec.model_validate({"kind": kind, "dataset": "digits", "model": "mlp", **fields})


def test_every_optional_field_has_a_value_here() -> None:
    assert set(VALUES) == {name for name, field in TaskSpec.model_fields.items() if field.default is None}


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_used_or_refused(kind: str) -> None:
    used = USED[kind]
    tasks.check_fields(spec(kind))
    tasks.check_fields(spec(kind, **{name: VALUES[name] for name in used}))
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1)
    device = torch.device("cpu")
    for name in set(VALUES) - used:
        data: Any = None  # it is not looked at
        with pytest.raises(UserError, match=f"^a task of kind '{kind}' takes .* and no '{name}', found .*$"):
            tasks.build(spec(kind, **{name: VALUES[name]}), recipe, data, Generators.seeded(0, device), device)


def test_the_value_zero_is_given_too() -> None:
    with pytest.raises(UserError, match="no 'fold', found 0"):
        tasks.check_fields(spec("regression", fold=0))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown task kind 'image_clasification': there are .*image_classification"):
        tasks.check_fields(spec("image_clasification"))


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
        resolve(cell, None)


def test_no_experiment_gives_a_field_in_vain() -> None:
    folders = [*all_methods().values(), MethodFolder("_template", METHODS / "_template")]
    given = [task for folder in folders for one in folder.experiments().values() for task in one.tasks.values()]
    assert len(given) > 50
    for task in given:
        tasks.check_fields(task)
