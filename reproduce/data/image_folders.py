"""Images of one's own: files in folders that bear the names of their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np

from reproduce.data.images import ImageData, checked_images
from reproduce.data.sources import LocalFiles, find_files, missing, one_line, permutation
from reproduce.experiment.dataset_card import DataError, DatasetCard, Split


def load_image_folder(card: DatasetCard, root: Path | None, cache: Path) -> ImageData:
    """Image files, each in a folder that bears its class's name; classes are numbered in the order of their names.

    Patterns of files give a split each, and with a `split_seed` the training images stand in the order of a fixed
    permutation; or a permutation of all files is cut as `split_seed` and `splits` say.

    Raises:
        DataError: no such file, a damaged one or one of another shape, or other counts than the card's.
    """
    found, names, splits = _listed(card, root, cache)
    arrays: dict[Split, tuple[Any, Any]] = {}
    for split, files in splits.items():
        images = np.stack([_image(card, path) for path in files])
        arrays[split] = (images, [names.index(path.parent.name) for path in files])
    return checked_images(card, arrays, found)


def count_images(card: DatasetCard, root: Path | None, cache: Path) -> dict[Split, int]:
    """How many images each split has, without decoding more than one of them.

    Raises:
        DataError: what `load_image_folder` would say of the files' names, and of the first one's content.
    """
    _, _, splits = _listed(card, root, cache)
    _image(card, next(iter(splits.values()))[0])
    counts = {split: len(files) for split, files in splits.items()}
    for split, expected in card.splits.items():
        if counts.get(split, 0) != expected:
            raise DataError(f"{card.name}: {counts.get(split, 0)} {split} images, expected {expected}; {card.remedy}")
    return counts


def _listed(card: DatasetCard, root: Path | None, cache: Path) -> tuple[LocalFiles, list[str], dict[Split, list[Path]]]:
    """The files that were found, the names of the classes, and the files of each split."""
    found = find_files(card, card.files, root, cache)
    if found is None:
        raise missing(card, list(card.files), root, cache)
    paths = {pattern: [path for path in of_pattern if path.is_file()] for pattern, of_pattern in found.files.items()}
    names = sorted({path.parent.name for of_pattern in paths.values() for path in of_pattern})
    if len(names) != card.classes:
        shown = f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        raise DataError(
            f"{card.name}: {len(names)} folders of classes ({shown}), expected {card.classes}; {card.remedy}"
        )
    return found, names, _files_of_splits(card, paths)


def _files_of_splits(card: DatasetCard, paths: dict[str, list[Path]]) -> dict[Split, list[Path]]:
    given: dict[Split, list[Path]] = {}
    for pattern, of_pattern in paths.items():
        if split := card.files[pattern].split:
            given[split] = [*given.get(split, ()), *of_pattern]
    if given:
        if card.split_seed is not None:
            given["train"] = [given["train"][number] for number in permutation(card.split_seed, len(given["train"]))]
        return given
    every = [path for of_pattern in paths.values() for path in of_pattern]
    if sum(card.splits.values()) > len(every):
        raise DataError(f"{card.name}: {len(every)} images, expected {sum(card.splits.values())}; {card.remedy}")
    order = permutation(card.split_seed, len(every))
    for split in get_args(Split):
        if count := card.splits.get(split):
            given[split], order = [every[number] for number in order[:count]], order[count:]
    return given


def _image(card: DatasetCard, path: Path) -> np.ndarray:
    """uint8 (C, H, W)."""
    from PIL import Image

    channels, height, width = card.shape or (0, 0, 0)
    try:
        image = Image.open(path).convert("RGB" if channels == 3 else "L")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not an image that can be decoded ({one_line(error)}); {card.remedy}") from error
    if image.size != (width, height):
        if card.resize is None:
            found = f"{image.size[1]}x{image.size[0]}"
            raise DataError(f'{path}: {found} pixels, expected {height}x{width}, or resize = "bilinear" on the card')
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)
