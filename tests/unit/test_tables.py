"""Tables of the UCI collection's layout, and classification on their folds, on a small collection made here."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reproduce import tasks
from reproduce.data import Rows, TableData, load_card
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DataError, DatasetCard, File, Table, card_names, checksum, read_card
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators

CPU = torch.device("cpu")
ROWS, FEATURES, CLASSES = 40, 3, 2
HELD_OUT = "last fifth of each class"
TABLE, FOLDS, ARCHIVE = "uci121/data/made/made_R.dat", "uci121/data/made/conxuntos_kfold.dat", "uci121/all.tar.xz"


def contents() -> dict[str, bytes]:
    """40 rows whose class is the sign of their first feature, and two folds of ten."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(ROWS, FEATURES)).round(4)
    rows = ["\tf1\tf2\tf3\tclase"]
    rows += [f"{n + 1}\t" + "\t".join(map(str, row)) + f"\t{int(row[0] > 0)}" for n, row in enumerate(features)]
    lines = []
    for _ in range(2):
        order = generator.permutation(ROWS)
        outside = sorted(order[10:], key=lambda row: features[row, 0] > 0)  # class by class, as the source lists them
        lines += [" ".join(map(str, outside)), " ".join(map(str, order[:10]))]
    return {TABLE: "\n".join(rows).encode() + b"\n", FOLDS: " \n".join(lines).encode() + b"\n"}


def packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path.removeprefix("uci121/"))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def card_of(files: dict[str, bytes], pack: bytes = b"", **changes: Any) -> DatasetCard:
    def known(content: bytes) -> File:
        return File(sha256=hashlib.sha256(content).hexdigest())

    facts: dict[str, Any] = {
        "title": "made here",
        "format": "uci",
        "source": "made here",
        "licence": "none",
        "get": "make it again",
        "exact": True,
        "classes": CLASSES,
        "table": Table(rows=ROWS, features=FEATURES, folds=2, validation=HELD_OUT),
        "files": {path: known(content) for path, content in files.items()},
        "archive": {ARCHIVE: known(pack)},
    }
    return DatasetCard.model_validate(facts | changes).model_copy(update={"name": "made"})


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def loaded(tmp_path: Path) -> TableData:
    files = contents()
    data = load_card(card_of(files), put(tmp_path / "root", files), tmp_path / "cache")
    assert isinstance(data, TableData)
    return data


def task(data: Any, changes: dict[str, Any] | None = None, **recipe: Any) -> Any:
    spec = {
        "kind": "table_classification",
        "dataset": "made",
        "model": "mlp",
        "model_options": {"width": 8, "depth": 1, "activation": "elu"},
        "fold": 0,
        "fold_convention": "standard",
    }
    return tasks.build(
        TaskSpec.model_validate(spec | (changes or {})),
        Recipe.model_validate({"epochs": 1, "batch_size": 5, "learning_rate": 0.1, **recipe}),
        data,
        Generators.seeded(0, CPU),
        CPU,
    )


def test_files_are_read_as_they_stand(tmp_path: Path) -> None:
    data = loaded(tmp_path)
    lines = contents()[TABLE].decode().splitlines()[1:]
    for number, line in enumerate(lines):
        _, *features, label = line.split()
        assert data.rows.features[number].tolist() == pytest.approx([float(value) for value in features], rel=1e-6)
        assert data.rows.labels[number].item() == int(label)
    order = [[int(number) for number in line.split()] for line in contents()[FOLDS].decode().splitlines()]
    for index, fold in enumerate(data.folds):
        outside, inside = order[2 * index], order[2 * index + 1]
        assert fold.inside.tolist() == inside
        assert sorted(fold.others.tolist() + fold.validation.tolist()) == sorted(outside)
        for label in range(CLASSES):  # the last fifth of each class
            of_class = [row for row in outside if data.rows.labels[row] == label]
            held_out = [row for row in fold.validation.tolist() if data.rows.labels[row] == label]
            assert held_out == of_class[len(of_class) - len(of_class) // 5 :]
            assert held_out
    assert data.classes == CLASSES


def test_the_archive_is_unpacked_into_the_cache_and_not_needed_again(tmp_path: Path) -> None:
    files = contents()
    archive = packed({**files, "uci121/data/other/other_R.dat": b"not asked for"})
    card = card_of(files, archive)
    root = put(tmp_path / "root", {ARCHIVE: archive})
    found = load_card(card, root, tmp_path / "cache")
    assert "unpacked from" in found.origin
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"all.tar.xz"}
    assert not (tmp_path / "cache" / "uci121" / "data" / "other").exists()
    again = load_card(card, None, tmp_path / "cache")
    assert torch.equal(found.rows.features, again.rows.features)
    assert checksum(card, root) == checksum(card, None)


def test_missing_and_damaged_files_are_said(tmp_path: Path) -> None:
    files = contents()
    archive = packed(files)
    card = card_of(files, archive)
    with pytest.raises(DataError, match=r"made: missing .*made_R.dat.*all.tar.xz.*; to get it: make it again"):
        load_card(card, None, tmp_path / "nothing")
    with pytest.raises(DataError, match="sha256 is"):
        load_card(card, put(tmp_path / "damaged", {**files, TABLE: files[TABLE] + b"1"}), tmp_path / "nothing")
    with pytest.raises(DataError, match=r"missing .*kfold"):
        load_card(card, put(tmp_path / "half", {TABLE: files[TABLE]}), tmp_path / "nothing")
    cut = archive[: len(archive) // 2]
    with pytest.raises(DataError, match="cannot be unpacked"):
        load_card(card_of(files, cut), put(tmp_path / "cut", {ARCHIVE: cut}), tmp_path / "nothing")
    other = packed({TABLE: files[TABLE]})
    with pytest.raises(DataError, match=r"cannot be unpacked.*conxuntos"):
        load_card(card_of(files, other), put(tmp_path / "other", {ARCHIVE: other}), tmp_path / "nothing")


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (TABLE, b"\n1\t", b"\n1\tx", "not a table of numbers"),
        (TABLE, b"\n1\t", b"\nnan\t", "holds a number that is not finite"),
        (TABLE, b"\t0\n", b"\t2\n", r"classes from 1 to 2, expected all of 0 to 1"),
        (FOLDS, b" \n", b" 3 \n", "fold 0 does not hold each of 40 rows once"),
        (FOLDS, b" \n", b" x \n", "not lines of row numbers"),
        (FOLDS, b"\n", b" ", "1 lines, expected two for each of 2 folds"),
    ],
)
def test_other_content_than_the_card_says_is_refused(
    tmp_path: Path, path: str, old: bytes, new: bytes, message: str
) -> None:
    files = contents()
    files[path] = files[path].replace(old, new)
    with pytest.raises(DataError, match=message):
        load_card(card_of(files), put(tmp_path, files), tmp_path)


def test_counts_are_those_of_the_card(tmp_path: Path) -> None:
    files = contents()
    with pytest.raises(DataError, match="40 rows of 3 features, expected 41 of 3"):
        load_card(
            card_of(files, table=Table(rows=41, features=3, folds=2, validation=HELD_OUT)),
            put(tmp_path, files),
            tmp_path,
        )


def test_cards_of_tables_are_strict() -> None:
    for changes, message in (
        ({"table": None}, "gives table"),
        ({"classes": None}, "gives classes"),
        ({"shape": (1, 2, 3)}, "no shape"),
        ({"archive": {}}, "gives archive"),
    ):
        with pytest.raises(ValueError, match=message):
            card_of(contents(), **changes)


def test_cards_of_the_collection_agree_with_each_other() -> None:
    cards = [read_card(name) for name in card_names() if read_card(name).format == "uci"]
    assert len(cards) >= 10
    assert len({tuple(card.archive) for card in cards}) == 1
    assert len({checksum(card, None) for card in cards}) == len(cards)
    assert all(card.table is not None and card.table.rows >= 1000 for card in cards)


def test_both_conventions_cut_the_same_rows_and_exchange_their_parts(tmp_path: Path) -> None:
    data = loaded(tmp_path)
    standard, swapped = task(data), task(data, {"fold_convention": "swapped"})

    def same(one: Rows, other: Rows) -> bool:
        return torch.equal(one.features, other.features) and torch.equal(one.labels, other.labels)

    assert len(standard.train.labels) == 25
    assert len(swapped.train.labels) == 10
    assert same(standard.train, swapped.splits["test"])
    assert same(swapped.train, standard.splits["test"])
    assert same(standard.splits["validation"], swapped.splits["validation"])
    assert torch.equal(standard.splits["test"].features, data.rows.features[data.folds[0].inside])
    assert not same(standard.train, task(data, {"fold": 1}).train)


def test_loss_and_error_are_those_of_a_loop_over_rows(tmp_path: Path) -> None:
    made = task(loaded(tmp_path), eval_batch_size=7)
    made.start_epoch()
    chosen = made.order[5:10].tolist()
    total = 0.0
    for row in chosen:
        logits = made.model(made.train.features[row][None])[0]
        total -= torch.log_softmax(logits.double(), 0)[made.train.labels[row]].item()
    assert made.loss(torch.tensor(1)).item() == pytest.approx(total / 5, rel=1e-5)
    found = made.evaluate()
    for name, split in made.splits.items():
        wrong = sum(
            made.model(features[None]).argmax().item() != label.item()
            for features, label in zip(split.features, split.labels, strict=True)
        )
        assert found[name]["error"] == pytest.approx(100 * wrong / len(split.labels))


def test_a_network_learns_the_table(tmp_path: Path) -> None:
    made = task(loaded(tmp_path))
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        made.start_epoch()
        for index in range(made.steps_per_epoch):
            optimizer.zero_grad()
            made.loss(torch.tensor(index)).backward()
            optimizer.step()
    assert made.evaluate()["test"]["error"] <= 10


@pytest.mark.parametrize(
    ("changes", "recipe", "message"),
    [
        ({"fold": 2}, {}, "task.fold 2: dataset 'made' has folds 0 to 1"),
        ({"fold": None}, {}, "^a task of kind 'table_classification': fold: missing key$"),
        ({"fold_convention": None}, {}, "fold_convention: missing key$"),
        ({}, {"augment": "crop_flip"}, "of images"),
        ({}, {"cutmix": 1.0}, "of images"),
        ({}, {"window": 3}, "recipe.window: windows are of words, and this task has none"),
        ({}, {"batch_size": 26}, "larger than the 25 examples"),
        ({"kind": "image_classification", "fold": None, "fold_convention": None}, {}, "holds a table"),
        ({"kind": "language_modeling", "fold": None, "fold_convention": None}, {"window": 3}, "holds a table"),
    ],
)
def test_tables_refuse(tmp_path: Path, changes: dict[str, Any], recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(loaded(tmp_path), changes, **recipe)


def test_folds_leave_the_ids_of_other_runs_alone() -> None:
    plain = TaskSpec(kind="image_classification", dataset="digits", model="mlp")
    assert "fold" not in plain.model_dump_json(exclude_none=True)
