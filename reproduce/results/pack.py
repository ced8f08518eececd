"""Sealed Results on the way from one machine to another: few files, small, and each Result as trustworthy as before.

A pack is text, a line for each Result after a first line that says what it is, compressed by xz. There are no names of
files in it: where a Result goes follows from its config.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reproduce.errors import UserError, shown
from reproduce.experiment.identity import canonical_json
from reproduce.results.durable import move_flushed, write_flushed
from reproduce.results.record import SCHEMA_VERSION, Result
from reproduce.results.store import ResultError, checked, place_result, read_content, read_result

SUFFIX = ".jsonl.xz"
LARGEST = 15 * 2**20  # bytes of one file
PIECE = 2**20  # bytes that are unpacked at a time
MOST_MEMORY = 2**28  # bytes for unpacking: a dictionary may be of gigabytes
LONGEST_LINE = 2**26  # bytes: no Result is read that is larger
MOST_PROBLEMS = 1000  # after which a pack is given up
KIND = "sealed Results"  # what a pack's first line calls itself


def write_packs(paths: Iterable[Path], folder: Path, largest: int = LARGEST) -> tuple[list[Path], int, list[str]]:
    """Pack the Results at ``paths`` into files in ``folder``, several when one would be too large.

    A file's name tells how many Results are packed and, by a hash, which: no other pack has it.

    Args:
        largest: bytes of one file.

    Returns:
        the files, how many Results are in them, and a line for each path that holds none that can be trusted.

    Raises:
        UserError: one Result alone is larger than ``largest``.
    """
    lines: list[str] = []
    problems: list[str] = []
    for path in sorted(paths):
        try:
            lines.append(canonical_json(read_content(path)))
        except ResultError as error:
            problems.append(str(error))
    parts = _compressed(lines, largest) if lines else []
    which = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for number, part in enumerate(parts, start=1):
        of_several = f"-part{number}of{len(parts)}" if len(parts) > 1 else ""
        files.append(folder / f"results-{len(lines)}-{which}{of_several}{SUFFIX}")
        temporary = folder / f"{files[-1].name}.{os.getpid()}.tmp"
        write_flushed(temporary, part)
        move_flushed(temporary, files[-1])
    return files, len(lines), problems


def _compressed(lines: Sequence[str], largest: int) -> list[bytes]:
    """As one part, or halved until each part is small enough."""
    first = canonical_json({"pack": KIND, "schema_version": SCHEMA_VERSION, "results": len(lines)})
    part = lzma.compress("\n".join([first, *lines, ""]).encode())
    if len(part) <= largest:
        return [part]
    if len(lines) == 1:
        raise UserError(
            f"Result {json.loads(lines[0])['id']}: {len(part)} bytes packed, at most {largest} fit into a file"
        )
    middle = len(lines) // 2
    return _compressed(lines[:middle], largest) + _compressed(lines[middle:], largest)


@dataclass
class Unpacked:
    """What became of the Results of a pack."""

    new: list[Result] = field(default_factory=list)
    already: int = 0
    problems: list[str] = field(default_factory=list)  # one line for each Result, or rest of a file, that was not taken


def unpack(pack: Path, runs: Path) -> Unpacked:
    """Put each Result of a pack to where its Run would have left it; what is sealed there stays.

    A Result whose seal or id does not hold is left out, and so is what follows the place where a file is damaged.

    Raises:
        UserError: no pack, or one of another schema; nothing was taken from it then.
    """
    lines = _lines(pack)
    first = next(lines, b"")
    expected = _announced(pack, first)
    found = Unpacked()
    n_lines = 0
    for n_lines, line in enumerate(lines, start=1):
        if len(found.problems) >= MOST_PROBLEMS:
            break
        try:
            _take(line, f"{pack}: Result {n_lines} of {expected}", runs, found)
        except ResultError as error:
            found.problems.append(str(error))
        except OSError as error:
            found.problems.append(f"{error.filename}: {error.strerror}")
    if n_lines != expected:
        found.problems.append(f"{pack}: damaged or cut off: {n_lines} of its {expected} Results could be read")
    return found


def _lines(pack: Path) -> Iterator[bytes]:
    """Whole lines, up to the place from where the file cannot be read; never much more than one of them in memory."""
    unpacked, rest = lzma.LZMADecompressor(memlimit=MOST_MEMORY), b""
    with pack.open("rb") as file:
        while not unpacked.eof:
            given = file.read(PIECE) if unpacked.needs_input else b""
            if not given and unpacked.needs_input:
                return
            try:
                *whole, rest = (rest + unpacked.decompress(given, PIECE)).split(b"\n")
            except (lzma.LZMAError, EOFError, MemoryError):
                return
            yield from whole
            if len(rest) > LONGEST_LINE:
                return


def _announced(pack: Path, first: bytes) -> int:
    """How many Results the first line says that the pack holds."""
    try:
        says: Any = json.loads(first)
    except (ValueError, RecursionError):
        says = None
    if not isinstance(says, dict) or says.get("pack") != KIND or not isinstance(says.get("results"), int):
        raise UserError(f"{pack}: not a pack of Results, or damaged from its beginning: make it with `reproduce pack`")
    if says.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{pack}: its Results have schema version {shown(says.get('schema_version'))}, expected {SCHEMA_VERSION}: "
            "unpack it with the code that packed it"
        )
    return says["results"]


def _take(line: bytes, where: str, runs: Path, found: Unpacked) -> None:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ResultError(f"{where}: not a readable Result ({error})") from error
    content, result = checked(text, where)
    name = result.config.folder
    # A sealed config can name a dataset "../../home": nothing goes outside of `runs`.
    if Path(name).name != name or "\0" in name:
        raise ResultError(f"{where}: {name!r} is not the name of one folder")
    target = runs / name / "result.json"
    try:
        there = read_result(target) if target.exists() else None
    except ResultError:
        there = None  # damaged: no Result is lost
    if there is not None:
        found.already += 1
        if there.seal != result.seal:
            found.problems.append(f"{where}: {target} holds another Result of the same Run, which stays")
        return
    place_result(content, target)
    found.new.append(result)
