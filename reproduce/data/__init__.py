"""Datasets: a card each, local files first, then a download, else an exact instruction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from reproduce.data.csv_tables import load_csv
from reproduce.data.image_folders import load_image_folder
from reproduce.data.images import IMAGE_FORMATS, ImageData, Images
from reproduce.data.tables import TABLE_FORMATS, Fold, Rows, TableData
from reproduce.data.words import WORD_FORMATS, WordData
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


def load_card(card: DatasetCard, root: Path | None = None, cache: Path = Path("data")) -> Data:
    """Load the dataset that a card describes; see `load`."""
    root = root.expanduser() if root is not None else None
    if root is not None and not root.is_dir():
        raise DataError(f"{root}: the data folder does not exist")
    return LOADERS[card.format](card, root, cache)
