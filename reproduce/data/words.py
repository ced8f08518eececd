"""Corpora as indices of tokens, words or characters: one ``<eos>`` a line, blank lines included."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from reproduce.data.sources import obtain
from reproduce.experiment.dataset_card import DataError, DatasetCard, Split, python_version, topics_text

END = "<eos>"
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class WordData:
    """A corpus as int64 token indices (tokens,), with the words they stand for."""

    holds: ClassVar[str] = "words"
    card: DatasetCard
    train: Tensor
    validation: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]
    origin: str


def load_text(card: DatasetCard, root: Path | None, cache: Path) -> WordData:
    """Plain text files, one for each split, or one whose lines are cut 80/10/10 in order; of words, or of characters.

    The vocabulary is that of all splits, in order of appearance; with a minimum_count above 1, that of train, and words
    that are rarer there are <unk>.

    Raises:
        DataError: a file is missing, damaged, or gives other token or vocabulary counts than the card's.
    """
    found = obtain(card, root, cache, _write_lines(card.columns[0] if card.columns else ""))
    split_tokens = _split_characters if card.format == "characters" else _split_words
    words: dict[Split, list[str]] = {}
    for pattern, (path,) in found.files.items():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text (byte {error.start}); {card.remedy}") from error
        split = card.files[pattern].split
        words |= {split: split_tokens(text)} if split else _cut(path, text, split_tokens)
    if card.words and card.words.minimum_count > 1:
        words, vocabulary = _without_rare(words, card.words.minimum_count)
        return _indexed(card, words, vocabulary, found.origin)
    every = [word for split in get_args(Split) for word in words.get(split, ())]
    return _indexed(card, words, tuple(dict.fromkeys(every)), found.origin)


def load_topics(card: DatasetCard, root: Path | None, cache: Path) -> WordData:
    """Python's language reference, tokenised by the rule on its card; the vocabulary is that of train."""
    lines = [line for line in topics_text().lower().split("\n") if not _RULER.fullmatch(line)]
    paragraphs = [paragraph.strip("\n") for paragraph in re.split(r"\n\s*\n", "\n".join(lines))]
    cuts = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    seen: set[str] = set()
    words: dict[Split, list[str]] = {}
    for split in get_args(Split):
        start, end = (round(len(paragraphs) * cut) for cut in cuts[split])
        part = [text for text in paragraphs[start:end] if text not in seen]  # topics quote each other
        seen.update(part)
        text = "".join(f"{paragraph}\n\n" for paragraph in part)
        words[split] = _split_words("\n".join(" ".join(_TOKEN.findall(line)) for line in text.split("\n")))
    kept, vocabulary = _without_rare(words, card.words.minimum_count if card.words else 1)
    return _indexed(card, kept, vocabulary, f"embedded: pydoc_data.topics of Python {python_version()}")


def _cut(path: Path, text: str, split_tokens: Callable[[str], list[str]]) -> dict[Split, list[str]]:
    """The lines of one file: eight tenths to train on, a tenth each for validation and test."""
    lines = text.splitlines(keepends=True)
    ends = [round(len(lines) * end) for end in (0.0, 0.8, 0.9, 1.0)]
    parts = {split: "".join(lines[ends[i] : ends[i + 1]]) for i, split in enumerate(get_args(Split))}
    if not all(parts.values()):
        raise DataError(f"{path}: {len(lines)} lines are too few to cut 80/10/10: expected 10 or more")
    return {split: split_tokens(part) for split, part in parts.items()}


def _without_rare(words: dict[Split, list[str]], minimum: int) -> tuple[dict[Split, list[str]], tuple[str, ...]]:
    """Words that train has fewer than ``minimum`` times become <unk>; and the vocabulary, that of train."""
    counts = Counter(words["train"])
    known = {word for word, count in counts.items() if count >= minimum} | {END, UNKNOWN}
    kept = {split: [w if w in known else UNKNOWN for w in part] for split, part in words.items()}
    return kept, tuple(dict.fromkeys([*kept["train"], UNKNOWN]))


_RULER = re.compile(r"\s*([^\w\s])\1{2,}\s*")  # an underlined heading's second line
_TOKEN = re.compile(r"\w+|[^\w\s]")


def _lines(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line's end
    return lines


def _split_characters(text: str) -> list[str]:
    """Each character of a line, and what separates words as one blank; "<unk>" is five characters."""
    return [token for line in _lines(text) for token in (*" ".join(line.split()), END)]


def _split_words(text: str) -> list[str]:
    words: list[str] = []
    for line in _lines(text):
        # One object for a word that comes often: a million of them would keep 70 MB, even when they are gone.
        words += map(sys.intern, line.split())
        words.append(END)
    return words


def _indexed(card: DatasetCard, words: dict[Split, list[str]], vocabulary: tuple[str, ...], origin: str) -> WordData:
    expected = card.words
    for split, count in (expected.tokens if expected else {}).items():
        if len(words.get(split, ())) != count:
            found = len(words.get(split, ()))
            raise DataError(f"{card.name}: {found} tokens in {split}, expected {count}; {card.remedy}")
    if expected and expected.vocabulary is not None and len(vocabulary) != expected.vocabulary:
        raise DataError(f"{card.name}: vocabulary of {len(vocabulary)}, expected {expected.vocabulary}; {card.remedy}")
    index = {word: number for number, word in enumerate(vocabulary)}
    tensors = {
        split: torch.from_numpy(np.fromiter(map(index.__getitem__, part), np.int64, len(part)))
        for split, part in words.items()
    }
    return WordData(card, tensors["train"], tensors["validation"], tensors["test"], vocabulary, origin)


def _write_lines(column: str) -> Callable[[Any, Path], None]:
    """Write a table of lines as the original files have them: one blank first, and one after each word."""

    def write(table: Any, path: Path) -> None:
        lines = (line.split() for line in table[column])
        path.write_text("".join(f" {''.join(f'{word} ' for word in line)}\n" for line in lines), "utf-8")

    return write


WORD_FORMATS: dict[str, Callable[[DatasetCard, Path | None, Path], WordData]] = {
    "text": load_text,
    "characters": load_text,
    "pydoc_topics": load_topics,
}
