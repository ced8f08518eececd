"""The cards themselves, the embedded data, and the real files beside the repository where they are."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn.datasets
import torch
import torchvision.datasets

from reproduce.data import ImageData, WordData, card_names, checksum, load, load_card, read_card
from reproduce.errors import UserError
from reproduce.experiment import dataset_card as cards_module
from reproduce.experiment.dataset_card import DatasetCard, Words, topics_text
from reproduce.experiment.toml import read_toml

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = card_names()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def real():
    """Real data: REPRODUCE_DATA, else the folder beside the repository; an empty set where there is none."""
    folder = Path(os.environ.get("REPRODUCE_DATA", REPOSITORY.parent / "shared" / "data"))
    wanted = ["mnist", "ptb", "ptb_characters", "wikitext2", "cifar10_exact_subset"]
    present = [name for name in wanted if all((folder / path).exists() for path in read_card(name).files)]
    return folder, present


def test_all_cards_are_read():
    assert {"cifar10", "digits", "mnist", "ptb", "uci_car", "wikitext2"} <= set(NAMES)
    assert sorted(path.stem for path in cards_module.CARDS.iterdir() if path.suffix == ".toml") == NAMES
    for name in NAMES:
        assert read_card(name).name == name


def test_an_unknown_card_names_the_known_ones():
    with pytest.raises(UserError, match=r"^unknown dataset 'mnits': did you mean mnist\?$"):
        load("mnits")


def test_a_card_is_strict(tmp_path):
    text = (cards_module.CARDS / "mnist.toml").read_text("utf-8")
    for change, message in {
        "colour = 1\n" + text: "colour: unknown key",
        text.replace("shape = [1, 28, 28]", ""): "a card of images gives shape",
        text.replace('torchvision = "MNIST"', ""): "a card of format 'idx' gives torchvision",
        text.replace("f68b3c2dcbeaaa9fbdd348bbdeb94873", "f68b"): "md5",
    }.items():
        (tmp_path / "card.toml").write_text(change, "utf-8")
        with pytest.raises(UserError, match=message) as caught:
            read_toml(tmp_path / "card.toml", DatasetCard)
        assert "\n" not in str(caught.value)


def test_cards_agree_with_the_constants_of_torchvision():
    for name in ("mnist", "fashion_mnist"):
        resources = getattr(torchvision.datasets, read_card(name).torchvision).resources
        assert {Path(path).name: file.md5 for path, file in read_card(name).files.items()} == dict(resources)
    for name in ("cifar10", "cifar100"):
        base, card = getattr(torchvision.datasets, read_card(name).torchvision), read_card(name)
        known = {f"{base.base_folder}/{file}": md5 for file, md5 in base.train_list + base.test_list}
        known[f"{base.base_folder}/{base.meta['filename']}"] = base.meta["md5"]
        assert {path: file.md5 for path, file in card.files.items()} == known
        assert {path: file.md5 for path, file in card.archive.items()} == {base.filename: base.tgz_md5}
    known = {split: tuple(entry[1:]) for split, entry in torchvision.datasets.SVHN.split_list.items()}
    for path, file in read_card("svhn").files.items():
        assert known[file.split] == (path, file.md5)


def test_lossy_images_say_so():
    card = read_card("cifar10_jpeg75")
    assert not card.exact
    assert "JPEG quality 75" in card.title
    assert "not CIFAR-10" in card.title
    for stand_in in (read_card(name) for name in NAMES if not read_card(name).exact):
        assert stand_in.note  # which every page that shows its numbers repeats


def test_checksums_tell_datasets_apart_and_follow_what_identifies_them(monkeypatch):
    sums = {name: checksum(read_card(name), None) for name in NAMES}
    assert len(set(sums.values())) == len(NAMES)
    card = read_card("pydoc_topics")
    renamed = card.model_copy(update={"title": "other words", "note": "other"})
    assert checksum(renamed, None) == sums["pydoc_topics"]
    rarer = card.model_copy(update={"words": Words(minimum_count=3)})
    assert checksum(rarer, None) != sums["pydoc_topics"]
    monkeypatch.setattr(cards_module, "topics_text", lambda: "the text of another Python")
    assert checksum(card, None) != sums["pydoc_topics"]


def test_cards_need_no_torch():
    script = "import sys, importlib.util as u; from pathlib import Path\n" + (
        f"spec = u.spec_from_file_location('cards', {cards_module.__file__!r})\n"
        "module = u.module_from_spec(spec); sys.modules['cards'] = module; spec.loader.exec_module(module)\n"
        "print(module.checksum(module.read_card('digits'), None), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.split() == [checksum(read_card("digits"), None), "False"], done.stderr


def test_datasets_folder_does_not_shadow_hugging_face():
    assert not list((REPOSITORY / "datasets").glob("*.py"))


def test_digits_are_those_of_scikit_learn(tmp_path):
    data = load("digits", None, tmp_path)
    assert isinstance(data, ImageData)
    parts = (data.train, data.validation, data.test)
    assert [tuple(part.images.shape) for part in parts] == [(1197, 1, 8, 8), (200, 1, 8, 8), (400, 1, 8, 8)]
    images, labels = (torch.cat([getattr(part, field) for part in parts]) for field in ("images", "labels"))
    source = sklearn.datasets.load_digits()
    rows = np.column_stack([images.flatten(1).numpy() / 15, labels.numpy()])
    expected = np.column_stack([source.data, source.target])
    assert np.array_equal(np.unique(rows, axis=0), np.unique(expected, axis=0))
    assert images.max() == 240
    assert "scikit-learn" in data.origin
    assert not list(tmp_path.iterdir())


def test_digits_are_the_same_every_time_and_another_permutation_is_refused():
    first, second = load("digits"), load("digits")
    assert torch.equal(first.test.images, second.test.images)
    with pytest.raises(UserError, match="train pixels have sha256"):
        load_card(read_card("digits").model_copy(update={"split_seed": 1}))


def test_topics_are_python_s_text(tmp_path):
    data = load("pydoc_topics", None, tmp_path)
    assert isinstance(data, WordData)
    sizes = [len(part) for part in (data.train, data.validation, data.test)]
    assert 90_000 < sum(sizes) < 150_000
    assert sizes[0] > 6 * max(sizes[1:])
    assert 1_500 < len(data.vocabulary) < 5_000
    assert len(set(data.vocabulary)) == len(data.vocabulary)
    assert set(torch.cat([data.train, data.validation, data.test]).unique().tolist()) == set(
        range(len(data.vocabulary))
    )
    assert ".".join(map(str, sys.version_info[:3])) in data.origin
    counts = torch.bincount(data.train, minlength=len(data.vocabulary))
    rare = {word for word, count in zip(data.vocabulary, counts, strict=True) if count < 2}
    assert rare <= {"<unk>", "<eos>"}
    assert not any(word != word.lower() for word in data.vocabulary)
    unknown = data.vocabulary.index("<unk>")
    assert max((part == unknown).float().mean() for part in (data.train, data.validation, data.test)) < 0.08


def test_topics_lines_read_back_as_the_text():
    data = load("pydoc_topics")
    lines = " ".join(data.vocabulary[index] for index in data.train[:2000]).split("<eos>")
    squeezed = "".join(topics_text().lower().split())
    known = ["".join(line.split()) for line in lines if "<unk>" not in line]
    assert len(known) > 50
    assert all(line in squeezed for line in known)


def test_held_out_paragraphs_of_topics_are_new():
    data = load("pydoc_topics")
    end = data.vocabulary.index("<eos>")

    def paragraphs(part):
        words = " ".join(map(str, part.tolist()))
        return {text.strip() for text in words.split(f" {end} {end}") if len(text.split()) > 20}

    train, validation, test = (paragraphs(part) for part in (data.train, data.validation, data.test))
    assert len(test) > 20
    assert not test & (train | validation)
    assert not validation & train


@pytest.mark.slow
def test_real_files_are_what_their_cards_say(real, cache):
    folder, present = real
    for name in [*present, "digits"]:
        card = read_card(name)
        data = load(name, folder if present else None, cache)
        if isinstance(data, ImageData):
            pixels = data.train.images.double() / 255
            assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(card.statistics.mean, abs=6e-5)
            assert pixels.std((0, 2, 3)).tolist() == pytest.approx(card.statistics.std, abs=6e-5)
        else:
            vocabulary = len(data.vocabulary)
            assert vocabulary == card.words.vocabulary
            assert len(data.train) == card.words.tokens["train"]
            assert int(data.train.max()) < vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uci_molec_biol_splice", "uci_wine_quality_red", "uci_semeion"])
def test_rows_that_test_and_training_share_are_on_the_card(real, cache, name):
    """Counted on pairs of equal rows, as pandas joins them; where the tables are beside the repository."""
    folder, _ = real
    card = read_card(name)
    if not any((folder / path).exists() for path in [*card.files, *card.archive]):
        assert card.repeated is not None
        return
    data = load(name, folder, cache)
    rows = pd.DataFrame(data.rows.features.numpy())
    shares = []
    for fold in data.folds:
        trained = rows.iloc[fold.others.numpy()].drop_duplicates()
        shares.append(len(rows.iloc[fold.inside.numpy()].merge(trained)) / len(fold.inside))
    assert card.repeated == pytest.approx(100 * np.mean(shares), abs=0.05)
    assert f"{card.repeated:g} % of its test rows" in card.remarks or card.repeated == 0
