"""Every loader on small files in the original formats, made here: pixels and words exact, every error one line."""

import gzip
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from reproduce.data import DataError, DatasetCard, ImageData, WordData, checksum, load_card, read_card
from reproduce.data.words import _split_characters, _split_words
from reproduce.experiment.dataset_card import File, Words

COUNTS = {"train": 13, "test": 7}
TEXT = {
    "train": [" the cat sat ", "", " the dog "],
    "validation": [" a cat <unk> "],
    "test": [" a bird ", ""],
}
IMAGES = ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "cifar10_exact_subset", "tiny_imagenet"]
CORPORA = ["ptb", "wikitext2"]
DOWNLOADABLE_BY_TORCHVISION = ["mnist", "cifar10", "cifar100", "svhn"]


def pixels_of(card: DatasetCard) -> dict:
    """Random images and labels (N, C, H, W) for each split."""
    draw = np.random.default_rng(5)
    made = {}
    for split, count in COUNTS.items():
        images = draw.integers(0, 256, (count, *card.shape), dtype=np.uint8)
        made[split] = (images, np.arange(count) % card.classes)
    return made


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def png(image: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def file_contents(card: DatasetCard, made: dict) -> dict[str, bytes]:
    """The files of this format that hold ``made``."""
    contents = {}
    if card.format == "idx":
        for path, split, part in zip(card.files, ["train", "train", "test", "test"], [0, 1, 0, 1], strict=True):
            contents[path] = idx_bytes(made[split][part].squeeze())
    for split, (images, labels) in made.items():
        mine = [path for path, file in card.files.items() if file.split == split]
        if card.format == "cifar":
            for path, index in zip(mine, np.array_split(np.arange(len(labels)), len(mine)), strict=True):
                key = "labels" if card.classes == 10 else "fine_labels"
                batch = {"data": images[index].reshape(len(index), -1), key: labels[index].tolist()}
                contents[path] = pickle.dumps(batch)
        if card.format == "svhn":
            buffer = io.BytesIO()
            stored = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
            scipy.io.savemat(buffer, {"X": images.transpose(2, 3, 1, 0), "y": stored})
            contents[mine[0]] = buffer.getvalue()
        if card.format == "parquet":
            image_column, label_column = card.columns
            buffer = io.BytesIO()
            table = {image_column: [png(image) for image in images], label_column: labels}
            pyarrow.parquet.write_table(pyarrow.table(table), buffer)
            contents[mine[0].replace("*", "00000-of-00001")] = buffer.getvalue()
    if card.format == "cifar":
        key = "label_names" if card.classes == 10 else "fine_label_names"
        (meta,) = (path for path, file in card.files.items() if file.split is None)
        contents[meta] = pickle.dumps({key: [str(number) for number in range(card.classes)]})
    return contents


def with_checksums(card: DatasetCard, contents: dict[str, bytes]) -> DatasetCard:
    """The card of these files."""
    files = {}
    for path, file in card.files.items():
        if file.md5:
            file = file.model_copy(update={"md5": hashlib.md5(contents[path]).hexdigest()})
        if file.sha256:
            file = file.model_copy(update={"sha256": hashlib.sha256(contents[path]).hexdigest()})
        files[path] = file
    return card.model_copy(update={"files": files})


def put(folder: Path, contents: dict[str, bytes]) -> None:
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def packed(card: DatasetCard, contents: dict[str, bytes]) -> tuple[DatasetCard, dict[str, bytes]]:
    """The archive that holds ``contents``, and the card of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, content in contents.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (name,) = card.archive
    md5 = hashlib.md5(buffer.getvalue()).hexdigest()
    return card.model_copy(update={"archive": {name: File(md5=md5)}}), {name: buffer.getvalue()}


def small(name: str) -> tuple[DatasetCard, dict[str, bytes], dict]:
    """A small dataset in the format of a card: the card of it, its files, what they hold."""
    card = read_card(name)
    if card.words:
        contents = {
            path: "".join(f"{line or ' '}\n" for line in TEXT[file.split]).encode() for path, file in card.files.items()
        }
        tokens = {split: sum(len(line.split()) + 1 for line in lines) for split, lines in TEXT.items()}
        words = Words(tokens=tokens, vocabulary=8)
        return with_checksums(card.model_copy(update={"words": words}), contents), contents, TEXT
    made = pixels_of(card)
    contents = file_contents(card, made)
    pixels = {split: hashlib.sha256(images.tobytes()).hexdigest() for split, (images, _) in made.items()}
    card = card.model_copy(update={"splits": COUNTS, "pixels": pixels if card.pixels else {}})
    return with_checksums(card, contents), contents, made


def same_images(data: ImageData, made: dict) -> None:
    for split, (images, labels) in made.items():
        part = getattr(data, split)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert part.images.is_contiguous()
        assert np.array_equal(part.images.numpy(), images)
        assert part.labels.tolist() == labels.tolist()


def failure(card: DatasetCard, root: Path | None, cache: Path) -> str:
    """The one line that loading ends in."""
    with pytest.raises(DataError) as caught:
        load_card(card, root, cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def reachable(monkeypatch):
    """No test asks whether there is a network: what is downloaded here is made here."""
    monkeypatch.setattr("reproduce.data.sources.is_reachable", lambda address: True)


@pytest.fixture
def no_network(monkeypatch):
    """Every download fails at once."""

    def refuse(*arguments, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("datasets.load_dataset", refuse)


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_the_pixels_of_local_files(name, tmp_path, no_network):
    card, contents, made = small(name)
    root = tmp_path / "root"
    put(root, contents)
    before = sorted(root.rglob("*"))
    for _ in range(2):  # the second time from the cache
        data = load_card(card, root, tmp_path / "cache")
        same_images(data, made)
    assert data.validation is None
    assert data.classes == card.classes
    assert data.origin == f"local files in {root}"
    assert sorted(root.rglob("*")) == before  # a read-only folder would do


@pytest.mark.parametrize("name", CORPORA)
def test_corpora_have_one_end_a_line_and_words_in_order_of_appearance(name, tmp_path, no_network):
    card, contents, _ = small(name)
    put(tmp_path, contents)
    data = load_card(card, tmp_path, tmp_path / "cache")
    assert isinstance(data, WordData)
    assert data.vocabulary == ("the", "cat", "sat", "<eos>", "dog", "a", "<unk>", "bird")
    assert data.train.tolist() == [0, 1, 2, 3, 3, 0, 4, 3]
    assert data.validation.tolist() == [5, 1, 6, 3]
    assert data.test.tolist() == [5, 7, 3, 3]
    assert data.train.dtype == torch.int64
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_an_archive_stands_for_its_files(name, tmp_path, no_network):
    card, contents, made = small(name)
    card, archive = packed(card, contents)
    put(tmp_path / "root", archive)
    same_images(load_card(card, tmp_path / "root", tmp_path / "cache"), made)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A web server on this machine for files put into its folder: (folder, address)."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Quiet(*arguments, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.parametrize("name", DOWNLOADABLE_BY_TORCHVISION)
def test_torchvision_downloads_what_is_not_local(name, cut_off, tmp_path, monkeypatch, serve):
    card, contents, made = small(name)
    folder, address = serve
    base = getattr(torchvision.datasets, card.torchvision)
    left = contents
    if card.format == "idx":
        put(folder, {Path(path).name: content for path, content in contents.items()})
        monkeypatch.setattr(base, "mirrors", [f"{address}/"])
    elif card.format == "cifar":
        card, left = packed(card, contents)
        put(folder, left)
        monkeypatch.setattr(base, "url", f"{address}/{next(iter(left))}")
    else:
        put(folder, contents)
        urls = {file.split: [f"{address}/{path}", path, ""] for path, file in card.files.items()}
        monkeypatch.setattr(base, "split_list", {**base.split_list, **urls})
    if cut_off:
        put(tmp_path / "cache", {path: content[:40] for path, content in left.items()})
    data = load_card(card, None, tmp_path / "cache")
    same_images(data, made)
    assert "torchvision" in data.origin


@pytest.mark.parametrize("name", DOWNLOADABLE_BY_TORCHVISION)
def test_a_cut_off_download_without_network_is_named(name, tmp_path, no_network):
    card, contents, _ = small(name)
    if card.archive:
        card, contents = packed(card, contents)
    path = next(iter(contents))
    put(tmp_path / "cache", {**contents, path: contents[path][:40]})
    line = failure(card, None, tmp_path / "cache")
    assert line.startswith(f"{tmp_path / 'cache' / path}: md5 is ")


@pytest.mark.parametrize("name", CORPORA)
def test_hugging_face_text_becomes_the_original_files(name, tmp_path, monkeypatch):
    card, contents, _ = small(name)
    column = card.columns[0]
    tables = {split: datasets.Dataset.from_dict({column: lines}) for split, lines in TEXT.items()}
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments, **options: tables)
    data = load_card(card, None, tmp_path)
    assert "Hugging Face" in data.origin
    assert {path: (tmp_path / path).read_bytes() for path in contents} == contents


def test_hugging_face_tables_become_parquet_files(tmp_path, monkeypatch):
    card, contents, made = small("tiny_imagenet")
    put(tmp_path / "hub", contents)
    splits = {"train": "train", "valid": "test"}
    tables = {}
    for theirs, split in splits.items():
        (path,) = (p for p, file in card.files.items() if file.split == split)
        (file,) = (tmp_path / "hub").glob(path)
        tables[theirs] = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "arrow"))
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments, **options: tables)
    same_images(load_card(card, None, tmp_path / "cache"), made)


@pytest.mark.fault(
    what="no network",
    injected="what downloads is cut off",
    promise="files in the data folder are used; else one line says which are missing, where they were looked "
    "for and how to get them",
)
@pytest.mark.parametrize("name", IMAGES + CORPORA)
def test_missing_files_say_where_and_how(name, tmp_path, no_network):
    card, _, _ = small(name)
    line = failure(card, tmp_path, tmp_path / "cache")
    assert line.startswith(f"{name}: missing ")
    assert f"looked in {tmp_path}, {tmp_path / 'cache'}" in line
    assert line.endswith(f"to get it: {card.get}")
    downloadable = card.torchvision or card.hugging_face
    assert ("download failed" in line) == bool(downloadable)


def test_a_folder_with_some_of_the_files_is_refused(tmp_path, no_network):
    card, contents, _ = small("ptb")
    del contents["ptb/ptb.valid.txt"]
    put(tmp_path, contents)
    assert failure(card, tmp_path, tmp_path / "cache").startswith("ptb: missing ptb/ptb.valid.txt (looked")


@pytest.mark.fault(
    what="a damaged file of data",
    injected="one byte is changed",
    promise="it is refused with both checksums",
)
@pytest.mark.parametrize("name", [name for name in IMAGES + CORPORA if name != "tiny_imagenet"])
def test_a_changed_byte_is_named_with_both_checksums(name, tmp_path, no_network):
    card, contents, _ = small(name)
    path = next(iter(contents))
    wanted = card.files[path].md5 or card.files[path].sha256
    contents[path] = contents[path][:-1] + bytes([contents[path][-1] ^ 1])
    found = hashlib.new("md5" if len(wanted) == 32 else "sha256", contents[path]).hexdigest()
    put(tmp_path, contents)
    line = failure(card, tmp_path, tmp_path / "cache")
    assert line.startswith(f"{tmp_path / path}: ")
    assert f"is {found}, expected {wanted}" in line
    assert line.endswith(f"to get it: {card.get}")


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "cifar10_exact_subset"])
def test_a_truncated_file_that_passes_as_declared_is_still_refused(name, tmp_path, no_network):
    card, contents, _ = small(name)
    path = next(iter(contents))
    contents[path] = contents[path][: len(contents[path]) // 2]
    put(tmp_path / "root", contents)
    line = failure(with_checksums(card, contents), tmp_path / "root", tmp_path / "cache")
    assert card.get in line
    assert "truncated" in line or "damaged" in line or "not a readable parquet table" in line


@pytest.mark.fault(
    what="damage in the project's own cache",
    injected="a cached file is cut off",
    promise="it is fetched again",
)
def test_damage_in_the_cache_is_repaired_from_the_source(tmp_path, no_network):
    for name, damaged in {"mnist": "MNIST/raw/train-images-idx3-ubyte", "cifar10_exact_subset": "decoded/*"}.items():
        card, contents, made = small(name)
        put(tmp_path / "root", contents)
        load_card(card, tmp_path / "root", tmp_path / "cache")
        for path in (tmp_path / "cache").glob(damaged):
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        same_images(load_card(card, tmp_path / "root", tmp_path / "cache"), made)


@pytest.mark.parametrize("name", IMAGES)
def test_another_number_of_images_is_refused(name, tmp_path, no_network):
    card, contents, _ = small(name)
    put(tmp_path / "root", contents)
    card = card.model_copy(update={"splits": {"train": 14, "test": 7}})
    line = failure(card, tmp_path / "root", tmp_path / "cache")
    assert f"{(13, *card.shape)} with 13 labels, expected {(14, *card.shape)}" in line


def test_labels_outside_the_classes_and_other_pixels_are_refused(tmp_path, no_network):
    card, contents, _ = small("cifar10_exact_subset")
    put(tmp_path / "root", contents)
    for change, message in [
        ({"classes": 9}, "labels from 0 to 9, expected 0 to 8"),
        ({"pixels": {"train": "0" * 64}}, f"expected {'0' * 64}"),
    ]:
        assert message in failure(card.model_copy(update=change), tmp_path / "root", tmp_path / "cache")


def test_wrong_counts_of_words_are_refused(tmp_path, no_network):
    card, contents, _ = small("ptb")
    put(tmp_path, contents)
    tokens = {**card.words.tokens, "test": 5}
    wrong = card.model_copy(update={"words": card.words.model_copy(update={"tokens": tokens})})
    assert failure(wrong, tmp_path, tmp_path).startswith("ptb: 4 tokens in test, expected 5; ")
    wrong = card.model_copy(update={"words": card.words.model_copy(update={"vocabulary": 9})})
    assert failure(wrong, tmp_path, tmp_path).startswith("ptb: vocabulary of 8, expected 9; ")


def test_text_that_is_not_utf8_is_refused(tmp_path, no_network):
    card, contents, _ = small("ptb")
    contents["ptb/ptb.train.txt"] = b"caf\xe9\n"
    put(tmp_path, contents)
    assert "not UTF-8 text (byte 3)" in failure(with_checksums(card, contents), tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar10_exact_subset", "tiny_imagenet"])
def test_a_cache_that_cannot_be_written_is_named(name, tmp_path, no_network):
    card, contents, _ = small(name)
    root = None if name == "svhn" else tmp_path / "root"  # svhn is read where it lies
    if root:
        put(root, contents)
    (tmp_path / "file").touch()
    line = failure(card, root, tmp_path / "file" / "cache")
    assert line.startswith(f"{tmp_path / 'file' / 'cache'}: the data cache cannot be written (")


def test_a_data_folder_that_is_not_there_is_named(tmp_path):
    card, _, _ = small("ptb")
    assert failure(card, tmp_path / "no", tmp_path) == f"{tmp_path / 'no'}: the data folder does not exist"


def test_files_without_checksum_are_identified_by_name_and_size(tmp_path):
    card, contents, _ = small("tiny_imagenet")
    assert checksum(card, None) == checksum(card, tmp_path)
    put(tmp_path, contents)
    first = checksum(card, tmp_path)
    assert first != checksum(card, None)
    path = next(iter(contents))
    (tmp_path / path).write_bytes(contents[path] + b" ")
    assert checksum(card, tmp_path) != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("\n", ["<eos>"]),
        ("a b", ["a", "b", "<eos>"]),
        (" a  b \n\n c\td\n", ["a", "b", "<eos>", "<eos>", "c", "d", "<eos>"]),
    ],
)
def test_each_line_ends_in_a_word_of_its_own(text: str, words: list[str]) -> None:
    assert _split_words(text) == words


@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("", []),
        ("\n", ["<eos>"]),
        (" a bc \n\n <unk> \n", ["a", " ", "b", "c", "<eos>", "<eos>", "<", "u", "n", "k", ">", "<eos>"]),
        ("a  b\tc", ["a", " ", "b", " ", "c", "<eos>"]),
    ],
)
def test_one_blank_between_words_and_each_line_ends_in_a_character_of_its_own(text: str, characters: list[str]) -> None:
    assert _split_characters(text) == characters


def test_a_corpus_of_characters_is_read_from_the_files_of_its_words(tmp_path, no_network):
    card, contents, _ = small("ptb")
    put(tmp_path, contents)
    of_characters = card.model_copy(update={"format": "characters", "words": Words(vocabulary=19)})
    data = load_card(of_characters, tmp_path, tmp_path / "cache")
    read = "".join(data.vocabulary[index].replace("<eos>", "\n") for index in data.train.tolist())
    assert read == "the cat sat\n\nthe dog\n"
    assert set(data.vocabulary) == {*"the cat sat the dog a cat <unk> a bird", "<eos>"}


def test_a_word_is_kept_once() -> None:
    """A corpus has a million words and a vocabulary of ten thousand."""
    assert len({id(word) for word in _split_words("the cat and the dog\nand the cat\n")}) == 5
