"""The JSON Schemas that editors read: they hold of every file here, and refuse what reading refuses."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from reproduce.bench.variants import Variants
from reproduce.cli import commands
from reproduce.cli.schema import SCHEMAS
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.files import read_experiment
from reproduce.experiment.folder import ROOT
from reproduce.experiment.toml import read_toml

FILES = {
    "experiment": (
        "methods/*/experiments/*.toml",
        "methods/*/kinds/*/experiments/*.toml",
        "reproduce/experiment/workloads/*.toml",
    ),
    "matrix": ("methods/*/matrix.toml", "methods/*/kinds/*/matrix.toml"),
    "variants": ("methods/*/variants.toml",),
    "card": ("datasets/*.toml",),
}
SETTINGS = {"pyproject.toml", "taplo.toml", "reproduce/experiment/defaults.toml"}  # TOML of no such kind
EXPERIMENT = """
title = "A table"
scale = "quick"
source = "ours"
seeds = [0, 1]

[tasks.digits]
kind = "image_classification"
dataset = "digits"
model = "mlp"

[recipe]
epochs = 1
batch_size = 10
learning_rate = 0.1

[arms.vanilla]

[[claims]]
task = "digits"
arm = "vanilla"
metric = "test.error"
value = 5.0
tolerance = 1.0
source = "Table 1"
"""
CARD = """
title = "Images"
format = "idx"
source = "somewhere"
licence = "free"
get = "ask"
exact = true
torchvision = "MNIST"
shape = [1, 28, 28]
classes = 10
splits = { train = 10, test = 2 }
files = { "a.gz" = { md5 = "f68b3c2dcbeaaa9fbdd348bbdeb94873" } }
statistics = { mean = [0.1], std = [0.3], source = "there" }
"""
VARIANTS = """
[variants.default]
params = { strength = 1.0 }

[[functions]]
name = "loss"
against = "slow_loss"
shapes = [[8, 4]]
"""


def validator(kind: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(SCHEMAS[kind]())


def committed() -> dict[str, str]:
    """Every TOML file of those kinds, with its kind."""
    found = {kind: [path for pattern in patterns for path in ROOT.glob(pattern)] for kind, patterns in FILES.items()}
    return {path.relative_to(ROOT).as_posix(): kind for kind, paths in found.items() for path in sorted(paths)}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_it_is_a_schema(kind: str) -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMAS[kind]())


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_file_of_its_kind_holds(kind: str) -> None:
    paths = [path for path, of_kind in committed().items() if of_kind == kind]
    assert len(paths) >= 15
    checked = validator(kind)
    for path in paths:
        errors = checked.iter_errors(tomllib.loads((ROOT / path).read_text("utf-8")))
        assert [f"{error.json_path}: {error.message}" for error in errors] == [], path


def test_no_file_is_left_out_and_editors_know_each() -> None:
    folders = ("methods", "datasets", "reproduce")
    everywhere = {path.relative_to(ROOT).as_posix() for name in folders for path in (ROOT / name).rglob("*.toml")}
    assert everywhere - SETTINGS == committed().keys()
    rules = tomllib.loads((ROOT / "taplo.toml").read_text("utf-8"))["rule"]
    by_editor = {
        path.relative_to(ROOT).as_posix(): Path(rule["schema"]["path"]).stem
        for rule in rules
        for pattern in rule["include"]
        for path in ROOT.glob(pattern)
    }
    assert by_editor == committed()
    assert all((ROOT / rule["schema"]["path"]).is_file() for rule in rules)


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


WRONG_EXPERIMENTS = {
    "a misspelled key": changed(EXPERIMENT, "epochs =", "epoch ="),
    "a misspelled key of the file": changed(EXPERIMENT, "seeds =", "seed ="),
    "text for a number": changed(EXPERIMENT, "0.1", '"0.1"'),
    "a rate of zero": changed(EXPERIMENT, "0.1", "0.0"),
    "no recipe": changed(changed(EXPERIMENT, "[recipe]", "[other]"), "epochs", "x"),
    "epochs and steps": changed(EXPERIMENT, "epochs = 1", "epochs = 1\nsteps = 5"),
    "neither of them": changed(EXPERIMENT, "epochs = 1\n", ""),
    "a warm-up without a factor": changed(EXPERIMENT, "epochs = 1", "epochs = 1\nwarmup_steps = 5"),
    "a schedule of no kind": changed(EXPERIMENT, "epochs = 1", "epochs = 1\nschedule = { factor = 0.1 }"),
    "another kind's key": changed(EXPERIMENT, "epochs = 1", 'epochs = 1\nschedule = { kind = "cosine", after = 2 }'),
    "a claim without a tolerance": changed(EXPERIMENT, "tolerance = 1.0\n", ""),
    "a direction of one arm": changed(EXPERIMENT, "value = 5.0\ntolerance = 1.0", 'direction = "lower"'),
    "both kinds of claim": changed(EXPERIMENT, "value = 5.0", 'value = 5.0\nover = "vanilla"\ndirection = "lower"'),
    "a metric without a split": changed(EXPERIMENT, "test.error", "error"),
    "no seed": changed(EXPERIMENT, "[0, 1]", "[]"),
    "a scale of its own": changed(EXPERIMENT, '"quick"', '"tiny"'),
    "an arm's recipe misspelled": changed(EXPERIMENT, "[arms.vanilla]", "[arms.vanilla]\nrecipe = { epoch = 2 }"),
    "a grid of one number": changed(EXPERIMENT, "[arms.vanilla]", "[arms.vanilla]\ngrid = { strength = 1.0 }"),
    "a grid of nothing": changed(EXPERIMENT, "[arms.vanilla]", "[arms.vanilla]\ngrid = { strength = [] }"),
    "an axis without a value": changed(EXPERIMENT, 'dataset = "digits"', "dataset = []"),
    "axes given": changed(EXPERIMENT, "seeds =", "axes = {}\nseeds ="),
    "a workload's seeds": 'workload = "topics"\nseeds = [0]\n[arms.x]\n',
    "a workload without arms": 'workload = "topics"\n',
}


@pytest.mark.parametrize("wrong", WRONG_EXPERIMENTS)
def test_a_wrong_experiment_is_refused_by_the_schema_as_by_reading(wrong: str, tmp_path: Path) -> None:
    text = WRONG_EXPERIMENTS[wrong]
    path = tmp_path / "wrong.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError):
        read_experiment(path)
    assert not validator("experiment").is_valid(tomllib.loads(text))


WRONG_CARDS = {
    "a misspelled key": changed(CARD, "licence =", "license ="),
    "another format": changed(CARD, '"idx"', '"jpeg"'),
    "a format's need": changed(CARD, 'torchvision = "MNIST"\n', ""),
    "no facts of images": changed(CARD, "shape = [1, 28, 28]\n", ""),
    "a checksum of another length": changed(CARD, "f68b", "f"),
    "an unknown split": changed(CARD, "test = 2", "tests = 2"),
    "two numbers of a shape": changed(CARD, "[1, 28, 28]", "[28, 28]"),
    "a percentage above all": changed(CARD, "classes = 10", "classes = 10\nrepeated = 200.0"),
}


@pytest.mark.parametrize("wrong", WRONG_CARDS)
def test_a_wrong_card_is_refused_by_the_schema_as_by_reading(wrong: str, tmp_path: Path) -> None:
    text = WRONG_CARDS[wrong]
    path = tmp_path / "wrong.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError):
        read_toml(path, DatasetCard)
    assert not validator("card").is_valid(tomllib.loads(text))


@pytest.mark.parametrize("wrong", [changed(VARIANTS, "params", "param"), changed(VARIANTS, "[[8, 4]]", "[8, 4]")])
def test_wrong_variants_are_refused_by_the_schema_as_by_reading(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(wrong, "utf-8")
    with pytest.raises(UserError):
        read_toml(path, Variants)
    assert not validator("variants").is_valid(tomllib.loads(wrong))


def test_the_examples_are_right_before_they_are_made_wrong(tmp_path: Path) -> None:
    for kind, text in (("experiment", EXPERIMENT), ("card", CARD), ("variants", VARIANTS)):
        validator(kind).validate(tomllib.loads(text))
    path = tmp_path / "right.toml"
    path.write_text(EXPERIMENT, "utf-8")
    read_experiment(path)
    path.write_text(CARD, "utf-8")
    read_toml(path, DatasetCard)


def descriptions(node: Any, place: str = "") -> dict[str, str]:
    """What each key means, by its place."""
    if isinstance(node, list):
        return {key: text for item in node for key, text in descriptions(item, place).items()}
    if not isinstance(node, dict):
        return {}
    keys = node.get("properties", {})
    own = {f"{place}.{name}": value.get("description", "") for name, value in keys.items() if name != "kind"}
    below = [descriptions(value, f"{place}.{key}") for key, value in node.items()]
    return own | {key: text for part in below for key, text in part.items()}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_key_says_what_it_means(kind: str) -> None:
    found = descriptions({key: value for key, value in SCHEMAS[kind]().items() if key not in ("then", "allOf")})
    assert found
    silent = [key for key, text in found.items() if not text and not re.search(r"\.(allOf|anyOf)\.", key)]  # conditions
    assert silent == []


def test_the_command_prints_it_and_says_what_there_is() -> None:
    printed = CliRunner().invoke(commands.app, ["schema", "card"])
    assert json.loads(printed.stdout) == SCHEMAS["card"]()
    refused = CliRunner().invoke(commands.app, ["schema", "cards"])
    assert refused.exit_code == 2
    assert "unknown kind of file 'cards': there are experiment, matrix, variants, card" in refused.output
