"""Datasets: a card each, local files first, then a download, else an exact instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reproduce.data.csv_tables import load_csv
from reproduce.data.image_folders import load_image_folder
from reproduce.data.images import IMAGE_FORMATS, ImageData, Images
from reproduce.data.tables import TABLE_FORMATS, Fold, Rows, TableData
from reproduce.data.words import WORD_FORMATS, WordData
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DataError, DatasetCard, card_names, checksum, read_card

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
    "load",
    "load_all",
    "load_card",
    "read_card",
]

Data = ImageData | WordData | TableData

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
