"""What is misspelled is said with file and line, and with the name that was probably meant."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from reproduce.cli.new import create_method
from reproduce.errors import SYNONYMS, UserError, did_you_mean, fields_at, nearest
from reproduce.experiment.dataset_card import CARDS, DatasetCard
from reproduce.experiment.folder import METHODS, MORE_METHODS, MethodFolder, find_method
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Experiment
from reproduce.experiment.toml import read_toml
from reproduce.training.plan import plan


@pytest.fixture
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MethodFolder:
    """A copy of the template, outside the repository."""
    create_method("centred", tmp_path, METHODS / "_template")
    monkeypatch.setenv(MORE_METHODS, str(tmp_path))
    return find_method("centred")


def refused(method: MethodFolder, file: str, old: str, new: str) -> str:
    """What planning all its experiments says, once its file is changed; without the folder's address."""
    path = method.path / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(UserError) as caught:
        plan(method.experiments(), None, method=method.name)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{method.path}/", "")


DIGITS = "experiments/quick_digits.toml"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate = 0.1", "lr = 0.1", ":19: recipe.lr: unknown key: did you mean learning_rate?"),
        ("momentum = 0.9", 'optimiser = "sgd"', ":20: recipe.optimiser: unknown key: did you mean optimizer?"),
        ("seeds = [0, 1, 2]", "seeds = 3", ":5: seeds: expected an array, found 3: write seeds = [0, 1, 2]"),
        ("seeds = [0, 1, 2]", "seed = [0]", ":5: seed: unknown key: did you mean seeds?"),
        ('deviations = ["There', 'figures = "seeds"\ndeviations = ["There', 'write figures = ["seeds"]'),
        ("{ width = 32,", "{ widht = 32,", ":14: model 'mlp' takes width, "),
        ("{ width = 32,", "{ widht = 32,", "and no 'widht', found 32: did you mean width?"),
        ('model = "mlp"', 'model = "mpl"', ":12: unknown model 'mpl': did you mean mlp?"),
        ('dataset = "digits"', 'dataset = "digit"', ":11: unknown dataset 'digit': did you mean digits?"),
        ('"image_classification"', '"image_clasification"', ":10: unknown task kind 'image_clasification': did you"),
        ("{ strength = 1e-2 }", "{ strenght = 1e-2 }", ":29: arm 'penalised': method centred takes strength, "),
        ("{ strength = 1e-2 }", "{ weight = 1e-2 }", "and no 'weight', found 0.01: did you mean strength?"),
        ("{ strength = 1e-2 }", '{ strength = "a" }', ":29: arm 'penalised': method centred: strength: "),
        ("{ strength = 1e-2 }", '{ sites = "pots" }', "found 'pots': did you mean post?"),
        ('method = "centred"', 'method = "centered"', ":27: unknown method 'centered': did you mean centred?"),
        (
            'label = "none"',
            "recipe = { lr = 1 }",
            ":24: arms.vanilla.recipe.lr: unknown key: did you mean",
        ),
        ('label = "none"', "model_options = { widht = 3 }", ":24: model 'mlp' takes width, "),
        (
            'label = "none"',
            "recipe_grid = { lr = [1.0] }",
            ":24: arms.vanilla.recipe_grid.lr: unknown key: did",
        ),
        ('deviations = ["There', 'figures = ["seed"]\ndeviations = ["There', ":7: figures.0: "),
        ('deviations = ["There', 'figures = ["seed"]\ndeviations = ["There', "found 'seed': did you mean seeds?"),
        (
            'deviations = ["There',
            'metrics = ["test.l0"]\ndeviations = ["There',
            ":7: metrics: 'test.l0' is not",
        ),
    ],
)
def test_an_experiment_file(method: MethodFolder, old: str, new: str, said: str) -> None:
    found = refused(method, DIGITS, old, new)
    assert said in found
    assert found.startswith(DIGITS)


CLAIM = """
[[claims]]
task = "digits"
arm = "penalised"
over = "vanilla"
metric = "test.error"
direction = "lower"
source = "ours"
[[claims]]
task = "digits"
arm = "penalised"
metric = "METRIC"
value = 3.0
tolerance = 1.0
source = "ours"
"""
PUBLISHED = """
[published]
source = "Table 1, {arm}"
[[published.rows]]
task = "digits"
metric = "METRIC"
cells = { vanilla = 3.0 }
tolerance = 1.0
"""


@pytest.mark.parametrize(
    ("tables", "metric", "line", "said"),
    [
        (CLAIM, "test.eror", 12, "'test.eror' is not measured on a task of kind 'image_classification': did you mean"),
        (CLAIM, "test.perplexity", 12, "'test.perplexity' is not measured on a task of kind 'image_classification'"),
        (PUBLISHED, "test.accuracy", 6, "'test.accuracy' is not measured on a task of kind"),
    ],
)
def test_a_claim_on_what_is_not_measured(method: MethodFolder, tables: str, metric: str, line: int, said: str) -> None:
    path = method.path / DIGITS
    before = path.read_text("utf-8").partition("# What the paper states")[0]
    path.write_text(before, "utf-8")
    said_of = refused(method, DIGITS, before, before + tables.replace("METRIC", metric))
    assert said in said_of
    arm = "penalised" if tables is CLAIM else "vanilla"
    assert said_of.startswith(f"{DIGITS}:{len(before.splitlines()) + line}: a claim of arm '{arm}' on task 'digits'")


def test_a_claim_on_a_validation_split_that_is_not_there(method: MethodFolder) -> None:
    path = method.path / DIGITS
    text = path.read_text("utf-8").partition("# What the paper states")[0].replace('"digits"\nmodel', '"mnist"\nmodel')
    path.write_text(text, "utf-8")
    said = refused(method, DIGITS, text, text + CLAIM.replace("METRIC", "validation.error"))
    assert "'validation.error': the task has no validation split; set task.validation" in said


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("grid = {", "gird = {", "matrix.toml:4: images.arms.penalised.gird: unknown key: did you mean grid?"),
        ("strength = [", "strenght = [", "matrix.toml:4: arm 'penalised': method centred takes strength, sites and no"),
        ("[images.arms", "[image.arms", "matrix.toml:1: image: unknown workload 'image': did you mean images?"),
    ],
)
def test_a_matrix_file(method: MethodFolder, old: str, new: str, said: str) -> None:
    assert refused(method, "matrix.toml", old, new).startswith(said)


def test_a_task_of_a_table_that_spans_several(method: MethodFolder) -> None:
    old = 'dataset = "digits"\nmodel = "mlp"\ntrain_examples = 300'
    new = 'dataset = ["digits", "mnist"]\nmodel = "mpl"\ntrain_examples = 300'
    assert refused(method, DIGITS, old, new).startswith(f"{DIGITS}:12: unknown model 'mpl'")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("licence =", "license =", ":4: license: unknown key: did you mean licence?"),
        ("[splits]", "[split]", "did you mean splits?"),
        ("minimum_count", "min_count", "words.min_count: unknown key: did you mean minimum_count?"),
    ],
)
def test_a_card(tmp_path: Path, old: str, new: str, said: str) -> None:
    name = "digits" if old in (CARDS / "digits.toml").read_text("utf-8") else "pydoc_topics"
    path = tmp_path / f"{name}.toml"
    path.write_text((CARDS / f"{name}.toml").read_text("utf-8").replace(old, new), "utf-8")
    with pytest.raises(UserError) as caught:
        read_toml(path, DatasetCard)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")


def test_the_keys_of_a_table_inside_a_model() -> None:
    assert fields_at(Experiment, ()) == list(Experiment.model_fields)
    assert fields_at(Experiment, ("recipe",)) == list(Recipe.model_fields)
    assert "metric" in fields_at(Experiment, ("claims", 3))
    assert "site" in fields_at(Experiment, ("tasks", "model", "host"))  # a task may be called like a key
    assert fields_at(Recipe, ("schedule", "step")) == ["kind", "milestones", "factor", "unit"]
    assert fields_at(Recipe, ("schedule",))[:2] == ["kind", "milestones"]  # of every schedule
    assert fields_at(Experiment, ("arms", "x", "params")) == []  # anything


def test_names_that_are_near() -> None:
    assert nearest("WIDTH", ["width"]) == ["width"]
    assert nearest("zzz", ["width"]) == []
    assert did_you_mean("zzz", []) == "there are none"
    assert did_you_mean("zzz", "abcd", shown=2) == "there are a, b and 2 more"


def test_a_synonym_leads_to_a_key_that_there_is() -> None:
    """In a file, or among the options that several models have; methods have a strength."""
    known = {*Experiment.model_fields, *Recipe.model_fields, *DatasetCard.model_fields, "strength"}
    known |= {name for keys in (("tasks", "x"), ("arms", "x")) for name in fields_at(Experiment, keys)}
    for model in ("mlp", "lstm"):
        known |= set(import_module(f"reproduce.models.{model}").Options.model_fields)
    assert set(SYNONYMS.values()) <= known
