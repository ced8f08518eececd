"""A table of one's own: a CSV file with a line of names, columns of numbers and one of classes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from reproduce.data.sources import find_files, missing, permutation
from reproduce.data.tables import Fold, Rows, TableData, last_of_each_class
from reproduce.experiment.dataset_card import DataError, DatasetCard, Table


def load_csv(card: DatasetCard, root: Path | None, cache: Path) -> TableData:
    """Features standardised over all rows, as the UCI collection has them; classes numbered as their names are ordered.

    ``columns`` names the features and, last, the label; the label alone leaves all other columns as features. Each
    class's rows, in the order of a fixed permutation, are dealt to the folds in turn; of the rows outside a fold, the
    last fifth of each class are for validation.

    Raises:
        DataError: a file or column that is missing, a value that is no number, or other counts than the card's.
    """
    found = find_files(card, card.files, root, cache)
    if found is None:
        raise missing(card, list(card.files), root, cache)
    if card.table is None:
        raise DataError(f"{card.name}: its card has no table")
    ((path, *more),) = found.files.values()
    if more:
        raise DataError(f"{path}: one of {len(more) + 1} files, expected one; {card.remedy}")
    names, features, labels = _read(card, path)
    _check(card, card.table, path, names, features, labels)
    spread = features.std(0)
    if not spread.all():
        raise DataError(f"{path}: column {names[int(spread.argmin())]!r} is constant: leave it out of columns")
    classes = sorted(set(labels), key=_numbers_by_value)
    numbered = np.array([classes.index(label) for label in labels], dtype=np.int64)
    standardised = ((features - features.mean(0)) / spread).astype(np.float32)
    rows = Rows(torch.from_numpy(standardised), torch.from_numpy(numbered))
    order = permutation(card.split_seed, len(numbered))
    return TableData(card, rows, _folds(order, numbered, card.table.folds), len(classes), found.origin)


def _read(card: DatasetCard, path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """The features' names, their values (rows, features), and the label of each row."""
    *wanted, label = card.columns
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            known = list(reader.fieldnames or ())
            for name in (*wanted, label):
                if name not in known:
                    raise DataError(f"{path}:1: no column {name!r}: there are {', '.join(known) or 'none'}")
            names = wanted or [name for name in known if name != label]
            rows, labels = [], []
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}:{reader.line_num}: not as many values as the {len(known)} columns")
                rows.append([_number(path, reader.line_num, name, row[name]) for name in names])
                labels.append(row[label].strip())
                if not labels[-1]:
                    raise DataError(f"{path}:{reader.line_num}: {label} is empty, expected a class")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file ({error}); {card.remedy}") from error
    return names, np.array(rows, dtype=np.float64).reshape(len(rows), len(names)), labels


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise DataError(f"{path}:{line}: {name} is {text!r}, expected a number: mend it, or leave it out of columns")
    return value


def _check(
    card: DatasetCard, table: Table, path: Path, names: list[str], features: np.ndarray, labels: list[str]
) -> None:
    if not names or not labels:
        raise DataError(f"{path}: {len(labels)} rows of {len(names)} features, expected some; {card.remedy}")
    for what, found, expected in (("rows", len(labels), table.rows), ("features", len(names), table.features)):
        if expected is not None and found != expected:
            raise DataError(f"{path}: {found} {what}, expected {expected}; {card.remedy}")
    counts = {label: labels.count(label) for label in set(labels)}
    if len(counts) != card.classes:
        shown = ", ".join(sorted(counts)[:5])
        raise DataError(f"{path}: {len(counts)} classes ({shown}), expected {card.classes}; {card.remedy}")
    rarest = min(counts, key=counts.__getitem__)
    if counts[rarest] < table.folds:
        raise DataError(
            f"{path}: class {rarest!r} has {counts[rarest]} rows, expected one or more for each of {table.folds} folds"
        )


def _numbers_by_value(label: str) -> tuple[float, str]:
    """So that class 10 comes after class 9."""
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label


def _folds(order: np.ndarray, labels: np.ndarray, n_folds: int) -> tuple[Fold, ...]:
    fold_of = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        fold_of[of_class] = (np.arange(len(of_class)) + label) % n_folds  # not every class's first in the first fold
    folds = []
    for number in range(n_folds):
        inside, outside = order[fold_of[order] == number], order[fold_of[order] != number]
        held_out = last_of_each_class(labels[outside])
        folds.append(Fold(*(torch.from_numpy(part) for part in (inside, outside[held_out], outside[~held_out]))))
    return tuple(folds)
