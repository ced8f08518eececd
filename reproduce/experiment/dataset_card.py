"""Cards: what a dataset is, where it comes from, what identifies it. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from reproduce.errors import UserError, did_you_mean
from reproduce.experiment.identity import canonical_json
from reproduce.experiment.toml import Strict, read_toml

Split = Literal["train", "validation", "test"]
PACKAGE = Path(__file__).resolve().parents[1]
# A wheel keeps the cards in the package, since `datasets` beside it is Hugging Face's; a checkout, at its top.
CARDS = PACKAGE / "datasets" if (PACKAGE / "datasets").is_dir() else PACKAGE.parent / "datasets"


class DataError(UserError):
    """Data that cannot be used; the message is one line that names it and says how to get it right."""


class File(Strict):
    """One file of a dataset: its checksums, and which split it is (where one file is one split)."""

    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    split: Split | None = None


class Statistics(Strict):
    """Channel means and standard deviations of pixels in [0, 1], as customarily used."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


class Words(Strict):
    """What a word-level corpus must come out as, and how rare words are treated."""

    tokens: dict[Split, int] = {}  # with one <eos> a line; asserted where given
    vocabulary: int | None = None  # with <eos>; asserted where given
    minimum_count: int = Field(default=1, ge=1)  # rarer words in train become <unk>


class Table(Strict):
    """What a table must come out as."""

    rows: int
    features: int
    folds: int  # splits into a test part and the rest, as the source gives them
    validation: Literal["last fifth of each class"]  # of the rows outside a fold; named, so that it is in the checksum


class HuggingFace(Strict):
    """Where the library `datasets` finds the data."""

    repository: str
    configuration: str | None = None
    revision: str | None = None
    splits: dict[Split, str]


_NEEDED = {
    "files": ("idx", "cifar", "svhn", "parquet", "text", "uci"),
    "torchvision": ("idx", "cifar", "svhn"),
    "archive": ("cifar", "uci"),
    "columns": ("parquet", "text"),
    "split_seed": ("digits",),
    "table": ("uci",),
}


class DatasetCard(Strict):
    """One dataset: one TOML file in ``datasets/``."""

    name: str = ""  # the file's name, filled in by `read_card`
    title: str
    format: Literal["idx", "cifar", "svhn", "parquet", "digits", "text", "pydoc_topics", "uci"]
    source: str
    licence: str
    get: str  # how a user gets the files: one instruction, part of every error
    exact: bool
    note: str = ""
    files: dict[str, File] = {}  # by path inside the data folder; a path may hold one * (shards)
    archive: dict[str, File] = {}  # files that hold all of `files`, accepted instead of them
    splits: dict[Split, int] = {}  # images of each split
    shape: tuple[int, int, int] | None = None  # channels, height, width
    classes: int | None = None
    repeated: float | None = Field(default=None, ge=0, le=100)  # percent of test rows that training holds, over folds
    statistics: Statistics | None = None
    pixels: dict[Split, str] = {}  # sha256 of the decoded uint8 images (N, C, H, W)
    columns: tuple[str, ...] = ()  # of the table: image, label; or the text
    torchvision: str | None = None  # class in torchvision.datasets
    hugging_face: HuggingFace | None = None
    split_seed: int | None = None  # of the fixed permutation, where the source has no split
    words: Words | None = None
    table: Table | None = None

    @property
    def remarks(self) -> str:
        """What a reader must know before the numbers; "" where there is nothing."""
        stand_in = "" if self.exact else self.note
        repeats = f"{self.repeated:g} % of its test rows are in the training rows too." if self.repeated else ""
        return " ".join(filter(None, (stand_in, repeats)))

    @model_validator(mode="after")
    def _images_words_or_table(self) -> DatasetCard:
        image_facts = (self.shape, self.statistics, self.splits or None)
        if self.words is not None and self.table is not None:
            raise ValueError("a card is of words or of a table, not of both")
        if self.words is None and self.table is None and None in (*image_facts, self.classes):
            raise ValueError("a card of images gives shape, classes, statistics and splits")
        if self.words is not None and any(fact is not None for fact in (*image_facts, self.classes)):
            raise ValueError("a card of words has no shape, classes, statistics or splits of images")
        if self.table is not None and (self.classes is None or any(fact is not None for fact in image_facts)):
            raise ValueError("a card of a table gives classes, and no shape, statistics or splits of images")
        for field, formats in _NEEDED.items():
            if self.format in formats and not getattr(self, field):
                raise ValueError(f"a card of format {self.format!r} gives {field}")
        if self.format in ("parquet", "text") and not all(file.split for file in self.files.values()):
            raise ValueError("each file of a parquet or text card gives its split")
        return self


def card_names() -> list[str]:
    """Names of all cards in ``datasets/``, sorted."""
    return sorted(path.stem for path in CARDS.glob("*.toml"))


def read_card(name: str) -> DatasetCard:
    """Read the card of one dataset.

    Raises:
        UserError: an unknown name (the message lists the known ones) or a card that is not valid.
    """
    if name not in card_names():
        raise UserError(f"unknown dataset {name!r}: {did_you_mean(name, card_names())}")
    return read_toml(CARDS / f"{name}.toml", DatasetCard).model_copy(update={"name": name})


def matches(folder: Path, pattern: str) -> list[Path]:
    """The files of one entry of ``DatasetCard.files`` in a data folder, sorted."""
    if "*" in pattern:
        return sorted(folder.glob(pattern))
    return [folder / pattern] if (folder / pattern).is_file() else []


def checksum(card: DatasetCard, root: Path | None) -> str:
    """sha256 (hex) over what identifies the data; never reads large files.

    Declared checksums where the card has them; the source itself for data inside installed packages; for
    files without a declared checksum, repository, revision, and names and sizes of local files.
    """
    identity = card.model_dump(
        mode="json",
        exclude_none=True,
        include={"format", "files", "splits", "shape", "pixels", "split_seed", "words", "table"},
    )
    if card.format == "digits":
        identity["text"] = hashlib.sha256(digits_file().read_bytes()).hexdigest()
    elif card.format == "pydoc_topics":
        identity["text"] = hashlib.sha256(topics_text().encode()).hexdigest()
    unchecked = [pattern for pattern, file in card.files.items() if not (file.md5 or file.sha256)]
    if unchecked:
        identity["hugging_face"] = card.hugging_face and card.hugging_face.model_dump(mode="json")
        found = [path for pattern in unchecked for path in matches(root, pattern)] if root else []
        identity["local"] = [[path.name, path.stat().st_size] for path in found]
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def topics_text() -> str:
    """The English text of Python's own language reference: all topics in alphabetical order."""
    from pydoc_data.topics import topics  # half a megabyte of text, needed by one card only

    return "\n\n".join(topics[name] for name in sorted(topics))


def python_version() -> str:
    """The interpreter, whose version decides what `topics_text` is."""
    return ".".join(map(str, sys.version_info[:3]))


def digits_file() -> Path:
    """scikit-learn's own file, found without loading scikit-learn, which takes longer than all of a planning."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise DataError("digits: scikit-learn is not installed; install it with pip")
    return Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
