"""Tables of numbers with a class for each row, in the layout of the UCI collection of Fernández-Delgado et al."""

from __future__ import annotations

import lzma
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from reproduce.data.sources import LocalFiles, find_files, locked, missing, unwritable, writable
from reproduce.experiment.dataset_card import DataError, DatasetCard, Table

VALIDATION_SHARE = 5  # one row in so many, of each class outside a test fold, is for validation


@dataclass(frozen=True)
class Rows:
    """Features float32 (N, features) and labels int64 (N,)."""

    features: Tensor
    labels: Tensor

    @property
    def inputs(self) -> Tensor:
        return self.features

    def to(self, device: torch.device) -> Rows:
        return Rows(self.features.to(device), self.labels.to(device))

    def at(self, numbers: Tensor) -> Rows:
        """The rows of these numbers."""
        return Rows(self.features[numbers], self.labels[numbers])


@dataclass(frozen=True)
class Fold:
    """A cut of the table in three: rows inside the source's test fold, held out for validation, and the others."""

    inside: Tensor
    validation: Tensor
    others: Tensor


@dataclass(frozen=True)
class TableData:
    """A table with the folds that its source gives."""

    holds: ClassVar[str] = "a table"
    card: DatasetCard
    rows: Rows
    folds: tuple[Fold, ...]
    classes: int
    origin: str


def load_uci(card: DatasetCard, root: Path | None, cache: Path) -> TableData:
    """`*_R.dat` (number, standardised features, class) and `conxuntos_kfold.dat` (folds), or their archive.

    The archive's files are unpacked into the cache, each checked. The source lists a fold's rows class by class, and
    those of a class in random order: the last fifth of each class outside a fold serve for validation.

    Raises:
        DataError: a file is missing, damaged or not of this layout, or has other counts than the card's.
    """
    found = find_files(card, card.files, root, cache) or _unpacked(card, root, cache)
    (table,) = (path for pattern, (path,) in found.files.items() if pattern.endswith("_R.dat"))
    (folds,) = (path for pattern, (path,) in found.files.items() if pattern.endswith("kfold.dat"))
    if card.table is None or card.classes is None:
        raise DataError(f"{card.name}: its card has no table")
    rows = _read_rows(card, card.table, card.classes, table)
    return TableData(card, rows, _read_folds(card, card.table, folds, rows.labels.numpy()), card.classes, found.origin)


def _unpacked(card: DatasetCard, root: Path | None, cache: Path) -> LocalFiles:
    """Take the card's files out of the archive, in the folder that holds it."""
    archive = find_files(card, card.archive, root, cache)
    if archive is None:
        raise missing(card, [*card.files, *card.archive], root, cache)
    ((name, (path,)),) = archive.files.items()
    with locked(cache):
        try:
            with tarfile.open(path) as opened:
                for pattern in card.files:
                    member = Path(pattern).relative_to(Path(name).parent).as_posix()
                    content = opened.extractfile(member)
                    if content is None:
                        raise DataError(f"{path}: {member} is no file; {card.remedy}")
                    _write(cache / pattern, content.read())
        except (tarfile.TarError, lzma.LZMAError, EOFError, KeyError) as error:
            raise DataError(f"{path}: cannot be unpacked ({error}); {card.remedy}") from error
    found = find_files(card, card.files, None, cache)
    if found is None:
        raise missing(card, list(card.files), root, cache)
    return found._replace(origin=f"unpacked from {path}")


def _write(target: Path, content: bytes) -> None:
    temporary = writable(target.parent) / f"{target.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        raise unwritable(target.parent, error) from error


def _read_rows(card: DatasetCard, expected: Table, classes: int, path: Path) -> Rows:
    try:
        table = np.loadtxt(path, skiprows=1, ndmin=2)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a table of numbers ({error}); {card.remedy}") from error
    if (table.shape[0], table.shape[1] - 2) != (expected.rows, expected.features):
        found = f"{table.shape[0]} rows of {table.shape[1] - 2} features"
        raise DataError(f"{path}: {found}, expected {expected.rows} of {expected.features}; {card.remedy}")
    if not np.isfinite(table).all():
        raise DataError(f"{path}: holds a number that is not finite; {card.remedy}")
    labels = table[:, -1].astype(np.int64)
    if not np.array_equal(np.unique(table[:, -1]), np.arange(classes)):
        raise DataError(f"{path}: classes from {labels.min()} to {labels.max()}, expected all of 0 to {classes - 1}")
    return Rows(torch.from_numpy(table[:, 1:-1].astype(np.float32)), torch.from_numpy(labels))


def _read_folds(card: DatasetCard, expected: Table, path: Path, labels: np.ndarray) -> tuple[Fold, ...]:
    """Lines in pairs: the rows outside a fold, and those inside it."""
    try:
        lines = [
            np.array(line.split(), dtype=np.int64) for line in path.read_text("ascii").splitlines() if line.strip()
        ]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not lines of row numbers ({error}); {card.remedy}") from error
    if len(lines) != 2 * expected.folds:
        raise DataError(f"{path}: {len(lines)} lines, expected two for each of {expected.folds} folds; {card.remedy}")
    folds = []
    for number, (outside, inside) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        if not np.array_equal(np.sort(np.concatenate([outside, inside])), np.arange(len(labels))):
            raise DataError(f"{path}: fold {number} does not hold each of {expected.rows} rows once; {card.remedy}")
        held_out = last_of_each_class(labels[outside])
        folds.append(Fold(*(torch.from_numpy(part) for part in (inside, outside[held_out], outside[~held_out]))))
    return tuple(folds)


def last_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Which rows are among the last fifth of their class, in the order given."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        chosen[of_class[len(of_class) - len(of_class) // VALIDATION_SHARE :]] = True
    return chosen


TABLE_FORMATS: dict[str, Callable[[DatasetCard, Path | None, Path], TableData]] = {"uci": load_uci}
