"""Cards: what a dataset is, where it comes from, what identifies it. No torch here."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from pydantic import ConfigDict, Field, model_validator

from reproduce.errors import Misplaced, UserError, did_you_mean
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

    md5: str | None = Field(default=None, pattern="^[0-9a-f]{32}$", description="Of the file, in hexadecimal digits.")
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="Likewise.")
    split: Split | None = Field(default=None, description="Which split it is, where one file is one split.")


class Statistics(Strict):
    """Channel means and standard deviations of pixels in [0, 1], as customarily used."""

    mean: tuple[float, ...] = Field(description="One number a channel.")
    std: tuple[float, ...] = Field(description="One number a channel.")
    source: str = Field(description="Where these numbers come from.")


class Words(Strict):
    """What a corpus must come out as, and how rare words are treated; of characters, those are its words."""

    tokens: dict[Split, int] = Field(
        default={}, description="How many a split has, with one `<eos>` a line; data that has others is refused."
    )
    vocabulary: int | None = Field(
        default=None, description="How many different words, with `<eos>`; checked likewise."
    )
    minimum_count: int = Field(default=1, ge=1, description="Words that are rarer in training become `<unk>`.")


class Table(Strict):
    """What a table must come out as."""

    rows: int | None = Field(default=None, description="How many it has; data that has others is refused.")
    features: int | None = Field(default=None, description="Columns beside the class; checked likewise.")
    folds: int = Field(
        ge=2, description="Splits into a test part and the rest, as the source gives them, or by `split_seed`."
    )
    # named, so that it is in the checksum
    validation: Literal["last fifth of each class"] = Field(description="What is held out of the rows outside a fold.")


class HuggingFace(Strict):
    """Where the library `datasets` finds the data."""

    repository: str = Field(description="Owner and name.")
    configuration: str | None = Field(default=None, description="Of a repository that has several.")
    revision: str | None = Field(default=None, description="A branch, tag or commit.")
    splits: dict[Split, str] = Field(description="By our name of a split: its name there.")


_NEEDED = {
    "files": ("idx", "cifar", "svhn", "parquet", "text", "characters", "uci", "image_folder", "csv"),
    "torchvision": ("idx", "cifar", "svhn"),
    "archive": ("cifar", "uci"),
    "columns": ("parquet", "csv"),
    "split_seed": ("digits", "csv"),
    "table": ("uci", "csv"),
    "words": ("text", "characters", "pydoc_topics"),
    "shape": ("image_folder",),
    "classes": ("image_folder", "csv"),
}


class DatasetCard(Strict):
    """One dataset: one TOML file in ``datasets/``."""

    # What the validator below holds, for editors.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["words"]},
                {"required": ["table", "classes"]},
                {"required": ["shape", "classes", "statistics", "splits"]},
                {"required": ["shape", "classes"], "properties": {"format": {"const": "image_folder"}}},
            ],
            "allOf": [
                {"if": {"properties": {"format": {"enum": list(formats)}}}, "then": {"required": [field]}}
                for field, formats in _NEEDED.items()
            ],
        }
    )

    name: str = ""  # the file's name, filled in by `read_card`
    title: str = Field(description="What pages call the dataset.")
    format: Literal[
        "idx", "cifar", "svhn", "parquet", "digits", "text", "characters", "pydoc_topics", "uci", "image_folder", "csv"
    ] = Field(description="How its files are read: a loader in reproduce/data.")
    source: str = Field(description="Who made it, and where it comes from.")
    licence: str = Field(description="Under which it is given.")
    get: str = Field(description="How a user gets the files: one instruction, part of every error.")
    exact: bool = Field(description="Whether this is the data of the papers, and no stand-in for it.")
    note: str = Field(default="", description="What a reader must know of it; of a stand-in, how it differs.")
    files: dict[str, File] = Field(
        default={}, description="By path inside the data folder; a path may hold one `*`, for shards."
    )
    archive: dict[str, File] = Field(
        default={}, description="Files that hold all of `files`, accepted in place of them."
    )
    splits: dict[Split, int] = Field(default={}, description="Images: how many each split has.")
    shape: tuple[int, int, int] | None = Field(default=None, description="Images: channels, height, width.")
    classes: int | None = Field(default=None, description="How many classes there are.")
    repeated: float | None = Field(
        default=None, ge=0, le=100, description="Percent of test rows that training holds too, over folds."
    )
    statistics: Statistics | None = Field(default=None, description="Images: mean and deviation of channels.")
    pixels: dict[Split, str] = Field(
        default={}, description="SHA-256 of a split's decoded images, uint8 (n, channels, height, width)."
    )
    columns: tuple[str, ...] = Field(
        default=(),
        description="Of the source's table: image and label, or the text; of a CSV, the features and, last, the label.",
    )
    resize: Literal["bilinear"] | None = Field(
        default=None,
        description="Images of a folder that have another shape are resized so. Left out: they are refused.",
    )
    torchvision: str | None = Field(default=None, description="The class in torchvision.datasets that downloads it.")
    hugging_face: HuggingFace | None = Field(default=None, description="Where Hugging Face's `datasets` finds it.")
    split_seed: int | None = Field(
        default=None,
        description="Of the fixed permutation that splits it, where the source has no split; of images in folders that "
        "are split, of the one in which training images stand.",
    )
    words: Words | None = Field(default=None, description="A corpus: what it must come out as.")
    table: Table | None = Field(default=None, description="A table: what it must come out as.")

    @property
    def remarks(self) -> str:
        """What a reader must know before the numbers; "" where there is nothing."""
        stand_in = "" if self.exact else self.note
        repeats = f"{self.repeated:g} % of its test rows are in the training rows too." if self.repeated else ""
        return " ".join(filter(None, (stand_in, repeats)))

    @property
    def holds(self) -> Literal["images", "a table", "words"]:
        """What comes of it when it is loaded."""
        if self.format in ("text", "characters", "pydoc_topics"):
            return "words"
        return "a table" if self.format in ("uci", "csv") else "images"

    @property
    def is_in_order_of_classes(self) -> bool:
        """Whether the last training examples are all of the last classes, so that they cannot be held out."""
        return self.format == "image_folder" and self.split_seed is None

    @property
    def remedy(self) -> str:
        """How the end of an error about its files reads."""
        return f"to get it: {self.get}"

    @property
    def has_validation(self) -> bool:
        """Whether images come with a validation split of their own."""
        return "validation" in self.splits or any(file.split == "validation" for file in self.files.values())

    @model_validator(mode="after")
    def _has_what_its_format_needs(self) -> DatasetCard:
        for field, formats in _NEEDED.items():
            if self.format in formats and getattr(self, field) in (None, (), {}):
                raise ValueError(f"a card of format {self.format!r} gives {field}")
        return self

    @model_validator(mode="after")
    def _images_words_or_table(self) -> DatasetCard:
        image_facts = (self.shape, self.statistics, self.splits or None)
        if self.words is not None and self.table is not None:
            raise ValueError("a card is of words or of a table, not of both")
        counted_facts = (*image_facts, self.classes) if self.format != "image_folder" else ()
        if self.words is None and self.table is None and None in counted_facts:
            raise ValueError("a card of images gives shape, classes, statistics and splits")
        if self.words is not None and any(fact is not None for fact in (*image_facts, self.classes)):
            raise ValueError("a card of words has no shape, classes, statistics or splits of images")
        if self.table is not None and (self.classes is None or any(fact is not None for fact in image_facts)):
            raise ValueError("a card of a table gives classes, and no shape, statistics or splits of images")
        return self

    @model_validator(mode="after")
    def _files_are_split(self) -> DatasetCard:
        given = [file.split for file in self.files.values()]
        if self.format == "parquet" and None in given:
            raise ValueError("each file of a parquet card gives its split")
        is_text = self.format in ("text", "characters")
        if is_text and None in given and len(given) > 1:
            raise ValueError("each file of a text card gives its split; a single one may leave it out")
        if is_text and self.hugging_face and not self.columns:
            raise ValueError("a text card of Hugging Face gives columns: the one of the text")
        if self.format == "image_folder" and None in given and (set(given) != {None} or not self._is_cut):
            raise ValueError("each pattern of files gives its split; or none does, and split_seed and splits cut them")
        if self.format == "uci" and self.table and None in (self.table.rows, self.table.features):
            raise ValueError("a card of format 'uci' gives table.rows and table.features")
        if self.format == "csv" and (len(given) != 1 or given[0] is not None):
            raise ValueError("a csv card has one file without a split: [table] folds cuts it")
        if is_text and set(given) not in ({None}, set(get_args(Split))):
            raise ValueError("the files of a text card are train, validation and test; or one, which is cut")
        if self.format == "image_folder" and None not in given and not {"train", "test"} <= set(given):
            raise ValueError("files of images have a train and a test split; or none, and are cut by split_seed")
        return self

    @model_validator(mode="after")
    def _files_stay_in_the_folder(self) -> DatasetCard:
        for key in ("files", "archive"):
            for path in getattr(self, key):
                parts = PurePosixPath(path).parts
                if not parts or path.startswith("/") or ".." in parts or "**" in path or "\0" in path or "\\" in path:
                    raise Misplaced(
                        (key, path), "expected a path inside the data folder, with `*` in the place of names"
                    )
        return self

    @property
    def _is_cut(self) -> bool:
        return self.split_seed is not None and {"train", "test"} <= self.splits.keys()


def card_names() -> list[str]:
    """Names of all cards in ``datasets/``, sorted."""
    return sorted(path.stem for path in CARDS.glob("*.toml"))


def read_card(name: str) -> DatasetCard:
    """Read the card of one dataset.

    Raises:
        UserError: an unknown name (the message lists the known ones) or a card that is not valid.
    """
    if name not in (names := card_names()):
        raise UserError(f"unknown dataset {name!r}: {did_you_mean(name, names)}")
    path = CARDS / f"{name}.toml"
    found = path.stat() if path.is_file() else None
    return _read_as_of(path, found and (found.st_mtime_ns, found.st_size)).model_copy(update={"name": name})


@lru_cache(maxsize=1024)  # a report asks a thousand times for a few dozen cards
def _read_as_of(path: Path, version: tuple[int, int] | None) -> DatasetCard:
    return read_toml(path, DatasetCard)


def matches(folder: Path, pattern: str) -> list[Path]:
    """The files of one entry of ``DatasetCard.files`` in a data folder, sorted."""
    if "*" in pattern:
        return sorted(folder.glob(pattern))
    return [folder / pattern] if (folder / pattern).is_file() else []


def checksum(card: DatasetCard, root: Path | None, cache: Path = Path("data")) -> str:
    """sha256 (hex) over what identifies the data.

    Declared checksums where the card has them; the source itself for data inside installed packages; for files without
    a declared checksum, repository, revision, and the content of the local files, so that another content is another
    dataset. Of what can be downloaded, the files in the cache do not count: it is the same before and after.
    """
    identity = card.model_dump(
        mode="json",
        exclude_none=True,
        include={"format", "files", "splits", "shape", "pixels", "split_seed", "words", "table", "resize"}
        | ({"columns", "classes"} if card.format in ("csv", "image_folder") else set()),
    )
    if card.format == "digits":
        identity["text"] = hashlib.sha256(digits_file().read_bytes()).hexdigest()
    elif card.format == "pydoc_topics":
        identity["text"] = hashlib.sha256(topics_text().encode()).hexdigest()
    unchecked = [pattern for pattern, file in card.files.items() if not (file.md5 or file.sha256)]
    if unchecked:
        identity["hugging_face"] = card.hugging_face and card.hugging_face.model_dump(mode="json")
        folders = [folder for folder in (root, None if card.hugging_face else cache) if folder is not None]
        identity["local"] = next(filter(None, (_contents(folder, unchecked) for folder in folders)), [])
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def joint_checksum(checksums: Sequence[str]) -> str:
    """One for several datasets, in their order; of a single one its own."""
    return checksums[0] if len(checksums) == 1 else hashlib.sha256(canonical_json(list(checksums)).encode()).hexdigest()


def _contents(folder: Path, patterns: list[str]) -> list[list[str]]:
    """Path and content of every file of these patterns."""
    found = [path for pattern in patterns for path in matches(folder, pattern) if path.is_file()]
    return [[path.relative_to(folder).as_posix(), _content(path)] for path in found]


def _content(path: Path) -> str:
    """sha256 (hex) of a file; read again only when its size or time has changed."""
    try:
        stat = path.stat()
        return _digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
