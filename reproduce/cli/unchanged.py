"""Whether pages are already what a command would make of Results, so that it need not make them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from reproduce.experiment.dataset_card import CARDS
from reproduce.experiment.folder import MethodFolder
from reproduce.report.kept import code, keep, key_of, read_kept
from reproduce.results.cache import digest_of, files_digest, kept_folder


@dataclass(frozen=True)
class Report:
    """What a report was made of, what it said, and the files that it wrote, by their places, with their SHA-256."""

    made_of: str
    said: str
    skipped: list[str]
    broken: list[str]
    files: dict[str, str]


def sources(options: Sequence[str], methods: Sequence[MethodFolder], folder: Path, results: Sequence[Path]) -> str:
    """A hash of all that enters a report: code, methods with their experiments, the data's cards, Results."""
    of_methods = [[str(one.path), files_digest(one.path)] for one in methods]
    return key_of([code(), *options, of_methods, files_digest(CARDS), str(folder), digest_of(results, folder)])


def unchanged(output: Path, made_of: str) -> Report | None:
    """The last report there, if it was made of the same, and all its pages are still as they were written."""
    place = _place(output)
    text = read_kept(place) if place is not None else None
    if text is None:
        return None
    try:
        last = Report(**json.loads(text))
        files = digests((output / name for name in last.files), output)
    except (OSError, TypeError):  # a page is gone, or an earlier code kept it
        return None
    return last if last.made_of == made_of and last.files == files else None


def remember(output: Path, report: Report) -> None:
    place = _place(output)
    if place is not None:
        keep(place, json.dumps(asdict(report)))


def digests(paths: Iterable[Path], folder: Path) -> dict[str, str]:
    """The SHA-256 of files in a folder and below it, by their places there."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _place(output: Path) -> Path | None:
    folder = kept_folder("reports")
    return None if folder is None else folder / key_of(str(output.resolve()))
