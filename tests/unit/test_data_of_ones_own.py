"""A folder of images, a CSV file and a text of one's own: datasets by a card alone; what is wrong is one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reproduce.data import DataError, ImageData, TableData, WordData, checksum, load_card
from reproduce.errors import UserError
from reproduce.experiment import dataset_card
from reproduce.experiment.dataset_card import DatasetCard, read_card
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Experiment, TaskSpec
from reproduce.experiment.toml import read_toml
from reproduce.training.plan import plan
from reproduce.training.run import RunSettings, execute

HEAD = """\
title = "My own"
source = "mine"
licence = "mine"
get = "look into the cupboard"
exact = true
"""
FLOWERS = """\
format = "image_folder"
shape = [3, 4, 5]
classes = 2
files = { "flowers/train/*/*.png" = { split = "train" }, "flowers/test/*/*.png" = { split = "test" } }
"""
MIXED = "split_seed = 3\n" + FLOWERS
CUT = """\
format = "image_folder"
shape = [1, 4, 5]
classes = 2
split_seed = 3
files = { "flowers/*/*/*.png" = {} }
splits = { train = 8, validation = 2, test = 4 }
"""
IRIS = """\
format = "csv"
classes = 3
columns = ["kind"]
split_seed = 1
files = { "iris.csv" = {} }
table = { folds = 4, validation = "last fifth of each class" }
"""
POEM = """\
format = "text"
files = { "poem.txt" = {} }
words = { minimum_count = 2 }
"""


def card_of(folder: Path, text: str) -> DatasetCard:
    (folder / "own.toml").write_text(HEAD + text, "utf-8")
    return read_toml(folder / "own.toml", DatasetCard).model_copy(update={"name": "own"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data folder with flowers, a table and a poem; of each image, every pixel has its number."""
    folder = tmp_path / "data"
    for split, counts in {"train": (4, 5), "test": (3, 2)}.items():
        for kind, count in zip(("rose", "tulip"), counts, strict=True):
            (folder / "flowers" / split / kind).mkdir(parents=True)
            for number in range(count):
                value = 10 * number + (100 if kind == "tulip" else 0) + (1 if split == "test" else 0)
                pixels = np.full((4, 5, 3), value, np.uint8)
                Image.fromarray(pixels).save(folder / "flowers" / split / kind / f"{number}.png")
    draw = np.random.default_rng(0)
    lines = ["wide,long,kind"]
    for row in range(60):
        lines.append(f"{draw.normal():.3f},{draw.normal() + row % 3:.3f},{(9, 10, 2)[row % 3]}")
    (folder / "iris.csv").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "poem.txt").write_text("\n".join(f"a rose is word{line}" for line in range(20)) + "\n", "utf-8")
    return folder


def test_images_in_folders_of_their_classes(root: Path, tmp_path: Path) -> None:
    card = card_of(tmp_path, FLOWERS)
    data = load_card(card, root, tmp_path / "cache")
    assert isinstance(data, ImageData)
    assert data.train.images.shape == (9, 3, 4, 5)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 100, 110, 120, 130, 140]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 5
    assert data.test.images[:, 2, 3, 4].tolist() == [1, 11, 21, 101, 111]
    assert data.validation is None
    assert not card.has_validation


def test_images_that_a_seed_cuts(root: Path, tmp_path: Path) -> None:
    card = card_of(tmp_path, CUT)
    data = load_card(card, root, tmp_path / "cache")
    assert isinstance(data, ImageData)
    assert data.validation is not None
    parts = [data.train, data.validation, data.test]
    assert [len(part.labels) for part in parts] == [8, 2, 4]
    seen = sorted(value for part in parts for value in part.images[:, 0, 0, 0].tolist())
    assert seen == sorted([0, 10, 20, 30, 100, 110, 120, 130, 140, 1, 11, 21, 101, 111])
    again = load_card(card, root, tmp_path / "cache")
    assert torch.equal(again.test.images, data.test.images)
    assert card.has_validation


def test_training_images_of_a_given_split_are_mixed_by_a_seed(root: Path, tmp_path: Path) -> None:
    plain, mixed = (
        load_card(card_of(tmp_path, seed + FLOWERS), root, tmp_path / "cache") for seed in ("", "split_seed = 3\n")
    )
    assert isinstance(plain, ImageData)
    assert isinstance(mixed, ImageData)
    order = np.argsort(np.random.PCG64(3).random_raw(9), kind="stable")
    assert order.tolist() != sorted(order)
    assert torch.equal(mixed.train.images, plain.train.images[order])
    assert torch.equal(mixed.train.labels, plain.train.labels[order])
    assert torch.equal(mixed.test.images, plain.test.images)


def test_images_of_another_size(root: Path, tmp_path: Path) -> None:
    small = FLOWERS.replace("[3, 4, 5]", "[3, 2, 2]")
    with pytest.raises(DataError, match=r'0.png: 4x5 pixels, expected 2x2, or resize = "bilinear" on the card$'):
        load_card(card_of(tmp_path, small), root, tmp_path / "cache")
    resized = load_card(card_of(tmp_path, 'resize = "bilinear"\n' + small), root, tmp_path / "cache")
    assert resized.train.images.shape == (9, 3, 2, 2)
    assert resized.train.images[3].unique().tolist() == [30]


def test_a_table_from_a_csv_file(root: Path, tmp_path: Path) -> None:
    data = load_card(card_of(tmp_path, IRIS), root, tmp_path / "cache")
    assert isinstance(data, TableData)
    values = np.loadtxt(root / "iris.csv", delimiter=",", skiprows=1)
    expected = (values[:, :2] - values[:, :2].mean(0)) / values[:, :2].std(0)
    assert np.allclose(data.rows.features.numpy(), expected, atol=1e-6)
    assert data.rows.labels.tolist() == [(1, 2, 0)[row % 3] for row in range(60)]  # of 2, 9 and 10, in this order
    assert len(data.folds) == 4
    inside = torch.cat([fold.inside for fold in data.folds])
    assert sorted(inside.tolist()) == list(range(60))  # the test folds part the table
    for fold in data.folds:
        parts = [fold.inside, fold.validation, fold.others]
        assert sorted(torch.cat(parts).tolist()) == list(range(60))
        assert [data.rows.labels[fold.inside].bincount().tolist()] == [[5, 5, 5]]
        assert data.rows.labels[fold.validation].bincount().tolist() == [3, 3, 3]
    chosen = load_card(card_of(tmp_path, IRIS.replace('["kind"]', '["long", "kind"]')), root, tmp_path / "cache")
    assert torch.equal(chosen.rows.features, data.rows.features[:, 1:])


def test_a_text_that_is_cut_with_its_rare_words(root: Path, tmp_path: Path) -> None:
    data = load_card(card_of(tmp_path, POEM), root, tmp_path / "cache")
    assert isinstance(data, WordData)
    assert data.vocabulary == ("a", "rose", "is", "<unk>", "<eos>")  # every word7 is rare
    assert [len(part) for part in (data.train, data.validation, data.test)] == [16 * 5, 2 * 5, 2 * 5]
    assert data.test.tolist() == [0, 1, 2, 3, 4] * 2
    every = load_card(card_of(tmp_path, POEM.replace("minimum_count = 2", "")), root, tmp_path / "cache")
    assert len(every.vocabulary) == 4 + 20


def test_the_minimum_count_of_a_text_with_files_for_its_splits(tmp_path: Path) -> None:
    for name, text in {"a": "x x y\n", "b": "x z\n", "c": "y\n"}.items():
        (tmp_path / name).write_text(text, "utf-8")
    files = 'files = { a = { split = "train" }, b = { split = "validation" }, c = { split = "test" } }\n'
    card = card_of(tmp_path, f'format = "text"\n{files}words = {{ minimum_count = 2 }}\n')
    data = load_card(card, tmp_path, tmp_path / "cache")
    assert isinstance(data, WordData)
    assert [[data.vocabulary[i] for i in part] for part in (data.train, data.validation, data.test)] == [
        ["x", "x", "<unk>", "<eos>"],
        ["x", "<unk>", "<eos>"],
        ["<unk>", "<eos>"],
    ]


@pytest.mark.parametrize(
    ("card", "file", "content", "said"),
    [
        (FLOWERS, "flowers/train/rose/0.png", b"no image", "0.png: not an image that can be decoded"),
        (
            FLOWERS,
            "flowers/train/lily/0.png",
            None,
            "own: 3 folders of classes (lily, rose, tulip), expected 2",
        ),
        (CUT.replace("8", "80"), "", None, "own: 14 images, expected 86; to get it: look into the cupboard"),
        (
            FLOWERS.replace("flowers", "weeds"),
            "",
            None,
            "own: missing weeds/train/*/*.png, weeds/test/*/*.png (",
        ),
        (
            IRIS,
            "iris.csv",
            b"wide,long,kind\n1,2,3\n1,x,3\n",
            "iris.csv:3: long is 'x', expected a number: mend it",
        ),
        (IRIS, "iris.csv", b"wide,long,kind\n1,2,3\n1,,3\n", "iris.csv:3: long is '', expected a number"),
        (IRIS, "iris.csv", b"wide,long,kind\n1,nan,3\n", "iris.csv:2: long is 'nan', expected a number"),
        (IRIS, "iris.csv", b"wide,long,kind\n1,2\n", "iris.csv:2: not as many values as the 3 columns"),
        (IRIS, "iris.csv", b"wide,long,kind\n1,2,3,4\n", "iris.csv:2: not as many values as the 3 columns"),
        (IRIS, "iris.csv", b"wide,long,kind\n1,2,\n", "iris.csv:2: kind is empty, expected a class"),
        (IRIS, "iris.csv", b"wide,long\n1,2\n", "iris.csv:1: no column 'kind': there are wide, long"),
        (IRIS, "iris.csv", b"", "iris.csv:1: no column 'kind': there are none"),
        (IRIS, "iris.csv", b"wide,kind\n", "iris.csv: 0 rows of 1 features, expected some"),
        (IRIS, "iris.csv", b"\xff\xfe", "iris.csv: not a readable CSV file"),
        (IRIS, "iris.csv", b"wide,kind\n" + b"1,a\n2,b\n" * 9, "iris.csv: 2 classes (a, b), expected 3"),
        (IRIS, "iris.csv", b"wide,kind\n" + b"1,a\n2,b\n" * 9 + b"1,c\n", "class 'c' has 1 rows, expected one or more"),
        (
            IRIS,
            "iris.csv",
            b"wide,kind\n" + b"1,a\n1,b\n1,c\n" * 9,
            "iris.csv: column 'wide' is constant: leave",
        ),
        (IRIS.replace("folds = 4", "rows = 61, folds = 4"), "", None, "iris.csv: 60 rows, expected 61"),
        (IRIS.replace("folds = 4", "features = 9, folds = 4"), "", None, "iris.csv: 2 features, expected 9"),
        (POEM, "poem.txt", b"one line\n", "poem.txt: 1 lines are too few to cut 80/10/10: expected 10 or more"),
        (POEM, "poem.txt", b"\xff\n" * 30, "poem.txt: not UTF-8 text (byte 0)"),
    ],
)
def test_bad_files_are_one_line(
    root: Path, tmp_path: Path, card: str, file: str, content: bytes | None, said: str
) -> None:
    if file and content is None:
        (root / file).parent.mkdir()
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(root / file)
    elif content is not None:
        (root / file).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_card(card_of(tmp_path, card), root, tmp_path / "cache")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FLOWERS.replace("classes = 2\n", ""), "a card of format 'image_folder' gives classes"),
        (FLOWERS.replace(', "flowers/test/*/*.png" = { split = "test" }', ""), "have a train and a test split"),
        (CUT.replace("split_seed = 3\n", ""), "split_seed and splits cut them"),
        (IRIS.replace("split_seed = 1\n", ""), "a card of format 'csv' gives split_seed"),
        (IRIS.replace("folds = 4", "folds = 1"), "table.folds: Input should be greater than or equal to 2, found 1"),
        (IRIS.replace("{} }", '{ split = "train" } }'), "a csv card has one file without a split"),
        (POEM.replace("words = { minimum_count = 2 }\n", ""), "a card of format 'text' gives words"),
        (POEM.replace("{} }", '{ split = "train" } }'), "are train, validation and test; or one, which is cut"),
    ],
)
def test_bad_cards_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        card_of(tmp_path, text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "file"), [(FLOWERS, "flowers/test/rose/0.png"), (IRIS, "iris.csv"), (POEM, "poem.txt")]
)
def test_a_changed_file_is_another_dataset(root: Path, tmp_path: Path, text: str, file: str) -> None:
    """Even one of the same length, changed at the same second."""
    card = card_of(tmp_path, text)
    before = checksum(card, root, tmp_path)
    assert checksum(card, None, root) == before  # in the project's own folder as well
    assert checksum(card, None, tmp_path / "none") != before
    content, stat = bytearray((root / file).read_bytes()), (root / file).stat()
    content[-2] ^= 1
    (root / file).write_bytes(content)
    os.utime(root / file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert checksum(card, root, tmp_path) != before


def test_a_changed_file_of_a_downloadable_card_is_another_dataset(tmp_path: Path) -> None:
    card = read_card("tiny_imagenet")
    file = tmp_path / "tiny-imagenet/data/train-0.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    before = checksum(card, tmp_path)
    file.write_bytes(b"two")
    assert checksum(card, tmp_path) != before
    assert checksum(card, None, tmp_path) == checksum(card, None)  # the same before it is downloaded and after


def planned_with(
    card: str,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: dict[str, Any] | None = None,
    **task: Any,
) -> None:
    """Plan one Run on a card of this text, and train nothing."""
    cards = tmp_path / "datasets"
    cards.mkdir()
    card_of(cards, card)
    monkeypatch.setattr(dataset_card, "CARDS", cards)
    options: dict[str, Any] = {"model_options": {"width": 4, "depth": 1}}
    spec = {"kind": "image_classification", "model": "mlp"} | options | task
    words = {"window": 3} if "lstm" in spec.values() else {}
    experiment = Experiment(
        title="own",
        scale="quick",
        source="ours",
        seeds=(0,),
        tasks={"own": TaskSpec(dataset="own", **spec)},
        recipe=Recipe(**{"epochs": 1, "batch_size": 2, "learning_rate": 0.1, **words, **(recipe or {})}),
        arms={"vanilla": Arm()},
    )
    plan({"own": experiment}, root)


TABLE = {"kind": "table_classification", "fold": 1, "fold_convention": "standard"}
WORDS = {"kind": "language_modeling", "model": "lstm", "model_options": {"hidden": 4}}


@pytest.mark.parametrize(
    ("card", "task", "said"),
    [
        (FLOWERS.replace("train/*/*.png", "train/*/*.jpg"), {}, "own: missing flowers/train/*/*.jpg (looked in "),
        (FLOWERS.replace("classes = 2", "classes = 3"), {}, "own: 2 folders of classes (rose, tulip), expected 3; to "),
        (FLOWERS.replace("[3, 4, 5]", "[3, 2, 2]"), {}, 'expected 2x2, or resize = "bilinear" on the card'),
        (FLOWERS + "splits = { train = 10, test = 5 }\n", {}, "own: 9 train images, expected 10; to get it: look into"),
        (CUT.replace("train = 8", "train = 80"), {}, "own: 14 images, expected 86; to get it: look into the cupboard"),
        (
            FLOWERS,
            {"validation": 2},
            "validation = 2 cuts the training images of own, which stand in order of their",
        ),
        (FLOWERS, {"train_examples": 2}, "train_examples = 2 cuts the training images of own"),
        (MIXED, {"validation": 9}, "validation = 9 leaves none of the 9 examples to train on"),
        (MIXED, {"validation": 4, "train_examples": 6}, "train_examples = 6: there are only 5"),
        (CUT, {"validation": 8}, "validation = 8 leaves none of the 8 examples to train on"),
        (IRIS.replace("classes = 3", "classes = 4"), TABLE, "iris.csv: 3 classes (10, 2, 9), expected 4; to get it: "),
        (IRIS.replace("iris.csv", "tulips.csv"), TABLE, "own: missing tulips.csv (looked in "),
        (POEM.replace("poem.txt", "prose.txt"), WORDS, "own: missing prose.txt (looked in "),
        (POEM, TABLE, "task table_classification needs a table; dataset 'own' holds words"),
        (IRIS, WORDS, "task language_modeling needs words; dataset 'own' holds a table"),
        (POEM, WORDS | {"recipe": {"window": None}}, "language modeling needs recipe.window, the length of truncated"),
        (POEM, WORDS | {"recipe": {"batch_size": 25}}, "80 tokens to train on are 25 streams (recipe.batch_size) of 3"),
        (POEM, WORDS | {"train_examples": 81}, "train_examples = 81: there are only 80 tokens"),
        (POEM, WORDS | {"recipe": {"mixup": 0.5}}, "recipe.mixup: mixing is of classes, and this task has none"),
        (MIXED, {"validation": 5, "recipe": {"batch_size": 5}}, "batch_size 5 is larger than the 4 examples"),
        (CUT, {"recipe": {"window": 5}}, "recipe.window: windows are of words, and this task has none"),
    ],
)
def test_what_files_cannot_give_is_said_before_anything_trains(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str, task: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        planned_with(card, root, tmp_path, monkeypatch, **task)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("card", "task"), [(FLOWERS, {}), (MIXED, {"validation": 7}), (CUT, {}), (IRIS, TABLE), (POEM, WORDS)]
)
def test_what_files_can_give_is_planned(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: str, task: dict[str, Any]
) -> None:
    planned_with(card, root, tmp_path, monkeypatch, **task)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        (MIXED, {"kind": "image_classification", "model": "mlp", "validation": 2}),
        (IRIS, {"kind": "table_classification", "model": "mlp", "fold": 1, "fold_convention": "standard"}),
        (POEM, {"kind": "language_modeling", "model": "lstm"}),
    ],
)
def test_a_card_alone_makes_a_dataset_that_trains(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, task: dict[str, Any]
) -> None:
    cards = tmp_path / "datasets"
    cards.mkdir()
    card_of(tmp_path, text)
    (tmp_path / "own.toml").rename(cards / "own.toml")
    monkeypatch.setattr(dataset_card, "CARDS", cards)
    words = task["kind"] == "language_modeling"
    options: dict[str, Any] = {"hidden": 4} if words else {"width": 4, "depth": 1}
    recipe = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1, "eval_batch_size": 2} | (
        {"window": 3} if words else {}
    )
    experiment = Experiment(
        title="own",
        scale="quick",
        source="ours",
        seeds=(0,),
        tasks={"own": TaskSpec(dataset="own", model_options=options, **task)},
        recipe=Recipe(**recipe),
        arms={"vanilla": Arm()},
    )
    (planned,) = plan({"own": experiment}, root)
    settings = RunSettings(runs=tmp_path / "runs", root=root, cache=tmp_path / "cache", device="cpu", threads=1)
    result = execute(planned, settings)
    assert result.status == "completed"
    assert result.id == planned.id
