"""Datasets: a card each, local files first, then a download, else an exact instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from reproduce.data.csv_tables import load_csv
from reproduce.data.image_folders import count_images, load_image_folder
from reproduce.data.images import IMAGE_FORMATS, ImageData, Images
from reproduce.data.sources import missing
from reproduce.data.tables import TABLE_FORMATS, Fold, Rows, TableData
from reproduce.data.words import WORD_FORMATS, WordData
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import (
    DataError,
    DatasetCard,
    Split,
    card_names,
    checksum,
    matches,
    read_card,
)

__all__ = [
    "Data",
    "DataError",
    "DatasetCard",
    "Fold",
    "ImageData",
    "Images",
    "Rows",
    "TableData",
    "WordData",
    "card_names",
    "checksum",
    "counted",
    "load",
    "load_all",
    "load_card",
    "read_card",
]

Data = ImageData | WordData | TableData
SMALL_TEXT = 1_000_000  # bytes

LOADERS: Mapping[str, Callable[[DatasetCard, Path | None, Path], Data]] = {
    **IMAGE_FORMATS,
    "image_folder": load_image_folder,
    **TABLE_FORMATS,
    "csv": load_csv,
    **WORD_FORMATS,
}


def load(name: str, root: Path | None = None, cache: Path = Path("data")) -> Data:
    """Load a dataset by the name of its card.

    Args:
        name: a file in ``datasets/``.
        root: a folder with local data, looked into first and never written to.
        cache: the project's own folder for downloads and unpacked files.

    Raises:
        UserError: an unknown name.
        DataError: missing, damaged or wrong data, or a cache that cannot be written; one line.
    """
    return load_card(read_card(name), root, cache)


def counted(card: DatasetCard, root: Path | None, cache: Path) -> Mapping[Split, int]:
    """How many images or tokens each split has, as far as that is known before data is loaded.

    Files of one's own are looked at: what a card of `image_folder` or `csv` names, and a text without a checksum that
    nothing downloads. Such a text is read if it is small: only then can it be too short for something.

    Raises:
        DataError: there are none, or they are not what the card says.
    """
    if card.format == "image_folder":
        return count_images(card, root, cache)
    if card.format == "csv":
        load_csv(card, root, cache)
    elif card.format in WORD_FORMATS and card.hugging_face is None:
        folders = [folder for folder in (root, cache) if folder is not None]
        lacking = [p for p in card.files if not any(matches(folder, p) for folder in folders)]
        if lacking and not any(file.md5 or file.sha256 for file in card.files.values()):
            raise missing(card, lacking, root, cache)
        if card.files and not lacking and sum(_sizes(card, folders)) <= SMALL_TEXT:
            words = load_card(card, root, cache)
            return {split: len(getattr(words, split)) for split in get_args(Split)}
    return card.words.tokens if card.words and card.words.tokens else card.splits


def _sizes(card: DatasetCard, folders: Sequence[Path]) -> Iterator[int]:
    for pattern in card.files:
        found = next(paths for folder in folders if (paths := matches(folder, pattern)))
        yield from (path.stat().st_size for path in found)


def load_all(names: Sequence[str], root: Path | None = None, cache: Path = Path("data")) -> Data:
    """Load the first dataset, with the test images of a second one, where there is one, as what is ``outside`` it.

    Raises:
        UserError: an unknown name, or two that do not hold images of one shape.
        DataError: as `load`.
    """
    first = load(names[0], root, cache)
    if len(names) == 1:
        return first
    second = load(names[1], root, cache)
    if not (isinstance(first, ImageData) and isinstance(second, ImageData)):
        raise UserError(
            f"out_of_distribution {names[1]!r}: {names[0]} holds {first.holds}, it {second.holds}: images both"
        )
    own, other = (tuple(one.test.images.shape[1:]) for one in (first, second))
    if own != other:
        raise UserError(f"out_of_distribution {names[1]!r}: its images are {other}, those of {names[0]} {own}")
    return replace(first, outside=second.test)


def load_card(card: DatasetCard, root: Path | None = None, cache: Path = Path("data")) -> Data:
    """Load the dataset that a card describes; see `load`."""
    root = root.expanduser() if root is not None else None
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: the data folder does not exist")
    return LOADERS[card.format](card, root, cache)
