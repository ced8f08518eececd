"""Image datasets as uint8 tensors (N, C, H, W), exactly the source's pixels."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from reproduce.data.sources import (
    LocalFiles,
    digest,
    find_files,
    impatient,
    is_unwritable,
    link,
    locked,
    missing,
    obtain,
    one_line,
    permutation,
    unwritable,
    verify,
    writable,
)
from reproduce.experiment.dataset_card import DataError, DatasetCard, Split, digits_file


@dataclass(frozen=True)
class Images:
    """Images uint8 (N, C, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    @property
    def inputs(self) -> Tensor:
        return self.images

    def to(self, device: torch.device) -> Images:
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ImageData:
    """An image dataset; ``validation`` is None where the source has no such split.

    ``outside`` are images that are none of its own, where a task asks for them.
    """

    holds: ClassVar[str] = "images"
    card: DatasetCard
    train: Images
    validation: Images | None
    test: Images
    classes: int
    origin: str
    outside: Images | None = None


def load_idx(card: DatasetCard, root: Path | None, cache: Path) -> ImageData:
    """MNIST's format through torchvision, which unpacks in the cache; see `_torchvision` for errors."""
    resources = [(Path(path).name, file.md5) for path, file in card.files.items()]
    checked = _torchvision_class(card, {"resources": resources})
    found = find_files(card, card.files, root, cache)
    with locked(cache):
        for pattern in card.files:
            if found:
                link(found.files[pattern][0], cache / pattern)
            _drop_unless_unpacked_from(cache / pattern)
        parts = _torchvision(card, root, cache, cache, lambda train: checked(str(cache), train=train, download=True))
    arrays = {split: (part.data.unsqueeze(1), part.targets) for split, part in parts.items()}
    return checked_images(card, arrays, found)


def load_cifar(card: DatasetCard, root: Path | None, cache: Path) -> ImageData:
    """CIFAR's pickled batches (or their archive) through torchvision; see `_torchvision` for errors."""
    batches: dict[str | None, list[list[str | None]]] = {}
    for path, file in card.files.items():
        batches.setdefault(file.split, []).append([Path(path).name, file.md5])
    ((meta_name, meta_md5),) = batches[None]
    ((archive_name, archive),) = card.archive.items()
    constants = {
        "train_list": batches["train"],
        "test_list": batches["test"],
        "meta": {**_torchvision_class(card).meta, "filename": meta_name, "md5": meta_md5},
        "tgz_md5": archive.md5,
    }
    checked = _torchvision_class(card, constants)
    found = find_files(card, card.files, root, cache)
    if found:
        folder = found.folder
        parts = _torchvision(card, root, cache, folder, lambda train: checked(str(folder), train=train))
    else:
        with locked(cache):
            found = find_files(card, card.archive, root, cache)
            if found:
                link(found.files[archive_name][0], cache / archive_name)
            parts = _torchvision(
                card, root, cache, cache, lambda train: checked(str(cache), train=train, download=True)
            )
    arrays = {split: (part.data.transpose(0, 3, 1, 2), part.targets) for split, part in parts.items()}
    return checked_images(card, arrays, found)


def load_svhn(card: DatasetCard, root: Path | None, cache: Path) -> ImageData:
    """SVHN's cropped digits (.mat) through torchvision; see `_torchvision` for errors."""
    known = _torchvision_class(card).split_list
    lists = {file.split: [known[file.split][0], path, file.md5] for path, file in card.files.items()}
    checked = _torchvision_class(card, {"split_list": {**known, **lists}})
    found = find_files(card, card.files, root, cache)
    folder = found.folder if found else writable(cache)

    def make(train: bool) -> Any:
        return checked(str(folder), split="train" if train else "test", download=not found)

    parts = _torchvision(card, root, cache, folder, make)
    return checked_images(card, {split: (part.data, part.labels) for split, part in parts.items()}, found)


def load_parquet(card: DatasetCard, root: Path | None, cache: Path) -> ImageData:
    """Tables of encoded images and labels, decoded once; the decoded pixels are kept in the cache.

    Raises:
        DataError: a file is missing, damaged or not such a table, or decodes to other pixels than the card's.
    """
    found = obtain(card, root, cache, lambda table, path: table.to_parquet(str(path)))
    arrays: dict[Split, tuple[Any, Any]] = {}
    with locked(cache):
        for pattern, paths in found.files.items():
            if split := card.files[pattern].split:
                arrays[split] = _decoded(card, split, paths, cache)
    return checked_images(card, arrays, found)


def load_digits(card: DatasetCard, root: Path | None, cache: Path) -> ImageData:
    """scikit-learn's digits: pixel = 15 * value (0..16), split by the permutation on the card."""
    table = np.loadtxt(digits_file(), delimiter=",")  # as `sklearn.datasets.load_digits` reads it
    images = (table[:, :-1].reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
    labels = table[:, -1].astype(int)
    order = permutation(card.split_seed, len(images))
    arrays: dict[Split, tuple[Any, Any]] = {}
    start = 0
    for split in get_args(Split):
        chosen = order[start : start + card.splits[split]]
        start += len(chosen)
        arrays[split] = (images[chosen], labels[chosen])
        if card.pixels.get(split, found := _pixels(images[chosen])) != found:
            raise DataError(f"{card.name}: {split} pixels have sha256 {found}, expected {card.pixels[split]}")
    return checked_images(card, arrays, f"embedded: scikit-learn {importlib.metadata.version('scikit-learn')}")


def _torchvision_class(card: DatasetCard, constants: dict[str, Any] | None = None) -> Any:
    """torchvision's class for this card, with the card's file names and checksums as its constants."""
    import torchvision.datasets

    found = getattr(torchvision.datasets, card.torchvision or "", None)
    if found is None:
        raise DataError(f"{card.name}: torchvision.datasets has no {card.torchvision!r}")
    return type(found.__name__, (found,), constants) if constants else found


def _torchvision(
    card: DatasetCard, root: Path | None, cache: Path, folder: Path, make: Callable[[bool], Any]
) -> dict[Split, Any]:
    """Both splits by torchvision, which downloads into the cache where nothing local was found.

    Raises:
        DataError: the download failed, a file in ``folder`` is damaged, does not unpack or parse, or the cache cannot
            be written.
    """
    try:
        with impatient():
            return {"train": make(True), "test": make(False)}
    except Exception as error:  # whatever the network, gzip, tar, pickle and scipy raise
        if folder == cache and is_unwritable(error):
            raise unwritable(folder, error) from error
        layouts = [files for files in (card.files, card.archive) if files]
        for files in layouts:
            for path in files:
                if (folder / path).is_file():
                    verify(folder / path, files[path], card)
        if not any(all((folder / path).is_file() for path in files) for files in layouts):
            reason = f"download failed: {one_line(error)}"
            raise missing(card, list(card.archive or card.files), root, cache, reason) from error
        fault = "truncated" if isinstance(error, EOFError) else "damaged"
        raise DataError(f"{card.name}: {fault} file in {folder} ({one_line(error)}); {card.remedy}") from error


def _drop_unless_unpacked_from(packed: Path) -> None:
    """Remove a half-written or foreign unpacked file: a .gz ends in the crc32 and size of its content."""
    unpacked = packed.with_suffix("")
    if not (packed.exists() and unpacked.exists()):
        return
    trailer = packed.read_bytes()[-8:]
    content = unpacked.read_bytes()
    if trailer != zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little"):
        unpacked.unlink()


def _decoded(card: DatasetCard, split: Split, paths: list[Path], cache: Path) -> tuple[np.ndarray, np.ndarray]:
    import PIL
    import pyarrow
    import pyarrow.parquet

    image_column, label_column = card.columns
    made_from = [PIL.__version__, *(digest(path, "sha256") for path in paths)]
    key = hashlib.sha256(" ".join(made_from).encode()).hexdigest()[:16]
    kept = writable(cache / "decoded") / f"{key}.npy"
    try:
        labels = pyarrow.parquet.read_table(paths, columns=[label_column])[label_column].to_numpy().copy()
        images = _kept(kept, (len(labels), *(card.shape or ())), card.pixels.get(split))
        if images is not None:
            return images, labels
        column = pyarrow.parquet.read_table(paths, columns=[image_column])[image_column]
    except (pyarrow.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{paths[0]}: not a readable parquet table ({one_line(error)}); {card.remedy}") from error
    images = _decode(card, paths[0], column)
    if card.pixels.get(split, _pixels(images)) != _pixels(images):
        raise DataError(
            f"{paths[0]}: decoded pixels have sha256 {_pixels(images)}, expected {card.pixels[split]}: "
            "this Pillow decodes otherwise; use the version in constraints.txt"
        )
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, images)
        temporary.replace(kept)
    except OSError as error:
        raise unwritable(kept.parent, error) from error
    return images, labels


def _decode(card: DatasetCard, path: Path, column: Any) -> np.ndarray:
    from PIL import Image

    channels, height, width = card.shape or (0, 0, 0)
    rows = np.empty((len(column), height, width, channels), np.uint8)
    for number, cell in enumerate(column):
        try:
            image = Image.open(io.BytesIO(cell.as_py()["bytes"])).convert("RGB" if channels == 3 else "L")
        except (OSError, SyntaxError, TypeError, ValueError) as error:
            raise DataError(f"{path}: image {number} cannot be decoded; {card.remedy}") from error
        if image.size != (width, height):
            raise DataError(f"{path}: image {number} is {image.size}, expected {(width, height)}; {card.remedy}")
        rows[number] = np.asarray(image).reshape(height, width, channels)
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))


def _kept(path: Path, shape: tuple[int, ...], expected: str | None) -> np.ndarray | None:
    """Pixels decoded earlier, unless the file is damaged: then they are decoded anew."""
    try:
        images = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    if images.shape != shape or images.dtype != np.uint8:
        return None
    return images if expected in (None, _pixels(images)) else None


def _pixels(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()


def checked_images(
    card: DatasetCard, arrays: dict[Split, tuple[Any, Any]], origin: LocalFiles | str | None
) -> ImageData:
    """Counts, shape and labels against the card.

    Raises:
        DataError: they differ.
    """
    parts: dict[Split, Images] = {}
    for split, (images, labels) in arrays.items():
        part = Images(torch.as_tensor(images).contiguous(), torch.as_tensor(labels, dtype=torch.int64))
        expected = (card.splits.get(split, len(part.labels)), *(card.shape or ()))
        if tuple(part.images.shape) != expected or len(part.labels) != expected[0]:
            found = f"{tuple(part.images.shape)} with {len(part.labels)} labels"
            raise DataError(f"{card.name}: {split} images are {found}, expected {expected}; {card.remedy}")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= (card.classes or 0):
            raise DataError(f"{card.name}: labels from {low} to {high}, expected 0 to {(card.classes or 0) - 1}")
        parts[split] = part
    where = origin.origin if isinstance(origin, LocalFiles) else origin or "downloaded with torchvision"
    return ImageData(card, parts["train"], parts.get("validation"), parts["test"], card.classes or 0, where)


IMAGE_FORMATS: dict[str, Callable[[DatasetCard, Path | None, Path], ImageData]] = {
    "idx": load_idx,
    "cifar": load_cifar,
    "svhn": load_svhn,
    "parquet": load_parquet,
    "digits": load_digits,
}
