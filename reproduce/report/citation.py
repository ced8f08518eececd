"""Citations of methods' cards: BibTeX entries that name their paper, and the file of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reproduce.errors import UserError

FENCE = re.compile(r"^```bibtex *\n(.*?)^```", re.M | re.S)
ENTRY = re.compile(r"@(?P<kind>\w+)\s*\{\s*(?P<key>[^\s,{}]+)\s*,")
FIELD = re.compile(r"\s*,?\s*(?P<name>\w+)\s*=\s*\{")
NONE = re.compile(r"None[.:]")
NEEDED = ("author", "title", "year")
FORMS = {
    "doi": re.compile(r"10\.\d{4,9}/\S+"),
    "eprint": re.compile(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}"),  # of arXiv
    "year": re.compile(r"(19|20)\d\d"),
}
WANTED = (
    "expected a ```bibtex block with author, title, year, and doi or eprint (arXiv), or a note that says why neither"
)


@dataclass(frozen=True)
class Citation:
    """One BibTeX entry: its kind, its key, and its fields in their order."""

    kind: str
    key: str
    fields: Mapping[str, str]

    @property
    def bibtex(self) -> str:
        lines = [f"  {name} = {{{value}}}" for name, value in self.fields.items()]
        return f"@{self.kind}{{{self.key},\n" + ",\n".join(lines) + "\n}"


def citations(section: str, where: str) -> tuple[Citation, ...]:
    """The entries of a card's section, the method's own paper first; none where it begins with "None".

    Args:
        where: what an error begins with.

    Raises:
        UserError: no entry, one that cannot be read, or one that does not say where its paper is found.
    """
    found = tuple(entry for block in FENCE.findall(section) for entry in _entries(block, where))
    if not found and not NONE.match(section):
        raise UserError(f"{where}: no BibTeX entry in '## Citation': {WANTED}, or 'None: why'")
    for entry in found:
        _check(entry, f"{where}: citation {entry.key}")
    return found


def _entries(block: str, where: str) -> Iterator[Citation]:
    place = 0
    while block[place:].strip():
        head = ENTRY.match(block, place + len(block[place:]) - len(block[place:].lstrip()))
        if head is None:
            raise UserError(f"{where}: cannot be read as BibTeX from {block[place:].strip()[:40]!r}: {WANTED}")
        fields, place = _fields(block, head.end(), f"{where}: citation {head['key']}")
        yield Citation(head["kind"].lower(), head["key"], fields)


def _fields(block: str, place: int, where: str) -> tuple[dict[str, str], int]:
    """The fields of an entry, each in braces, and where the entry ends."""
    fields: dict[str, str] = {}
    while field := FIELD.match(block, place):
        depth, place = 1, field.end()
        while depth and place < len(block):
            depth += {"{": 1, "}": -1}.get(block[place], 0)
            place += 1
        fields[field["name"].lower()] = " ".join(block[field.end() : place - 1].split())
    end = re.compile(r"\s*,?\s*\}").match(block, place)
    if end is None:
        found = block[place:].strip()[:40]
        raise UserError(f"{where}: expected `name = {{value}}`, or the entry's closing brace; found {found!r}")
    return fields, end.end()


def _check(entry: Citation, where: str) -> None:
    lacking = [name for name in NEEDED if not entry.fields.get(name)]
    if lacking:
        raise UserError(f"{where}: has no {', '.join(lacking)}: {WANTED}")
    if not any(entry.fields.get(name) for name in ("doi", "eprint", "note")):
        raise UserError(f"{where}: has neither doi nor eprint: {WANTED}")
    for name, form in FORMS.items():
        if name in entry.fields and not form.fullmatch(entry.fields[name]):
            raise UserError(f"{where}: {name} = {entry.fields[name]!r}: {WANTED}")
    if "eprint" in entry.fields and entry.fields.get("archiveprefix") != "arXiv":
        raise UserError(f"{where}: eprint needs archiveprefix = {{arXiv}}")


def bibliography(by_method: Mapping[str, Iterable[Citation]]) -> str:
    """All entries as one BibTeX file, each once, sorted by key, under the names of the methods that cite it.

    Raises:
        UserError: two methods cite different things under one key.
    """
    entries: dict[str, Citation] = {}
    citing: dict[str, list[str]] = {}
    for method, cited in by_method.items():
        for entry in cited:
            if entries.setdefault(entry.key, entry) != entry:
                first = citing[entry.key][0]
                raise UserError(f"the cards of {method} and {first}: citation {entry.key} differs: one entry for both")
            citing.setdefault(entry.key, []).append(method)
    return "\n".join(f"% {', '.join(citing[key])}\n{entries[key].bibtex}\n" for key in sorted(entries))
