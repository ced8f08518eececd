"""Tables and sentences for a terminal of any width: no interval is split over lines, labels wrap at words."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

WHOLE = re.compile(r"\[[^\[\]]*\]|\S+ [=<] \S+|\S+ %|\S+ ± \S+|p \(\w+\)")  # what stays on one line
BEFORE_HALVES = re.compile(r" (?=\[|±)")  # where a number may stand above its interval
HELD = "\ue000"  # stands for a space that is no place to wrap at
GAP = 2  # columns between columns
WIDE_LABEL = 30  # a first column that is so wide needs no more


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, cut at spaces, but not within an interval or between a number and its unit."""
    held = WHOLE.sub(lambda found: found[0].replace(" ", HELD), text)
    lines = textwrap.wrap(held, max(1, width), break_long_words=False, break_on_hyphens=False)
    return [line.replace(HELD, " ") for line in lines] or [""]


@dataclass(frozen=True)
class Prose:
    """A sentence or several."""

    text: str
    style: str = ""
    indent: int = 0  # of each line

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for line in wrapped(self.text, options.max_width - self.indent):
            yield Text(" " * self.indent + line, self.style)


@dataclass(frozen=True)
class Fitted:
    """A table in the first layout that fits: a line for a row; intervals below their numbers; each row as a list.

    Args:
        columns: headings.
        left: headings of columns that are set to the left, beside the first.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[str] = frozenset()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield Prose(self.title, "bold")
        for rows in (self.rows, [[_in_halves(cell) for cell in row] for row in self.rows]):
            labels = [row[0] for row in rows]
            rest = options.max_width - sum(GAP + self._width_of(rows, at) for at in range(1, len(self.columns)))
            if rest >= _least_width([self.columns[0], *labels]):
                yield self._grid(rows, min(rest, max(map(_width, [self.columns[0], *labels]))))
                break
        else:
            yield from self._lists(options.max_width)
        yield Text()

    def _width_of(self, rows: Sequence[Sequence[str]], at: int) -> int:
        """Of a column: its longest cell, or the longest word of its heading."""
        return max(_longest_word(self.columns[at]), *(_width(row[at]) for row in rows))

    def _grid(self, rows: Sequence[Sequence[str]], label_width: int) -> Table:
        grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
        grid.add_column(self.columns[0], width=label_width, vertical="top")
        for at, heading in enumerate(self.columns[1:], 1):
            width = self._width_of(rows, at)
            lines = "\n".join(wrapped(heading, width))
            grid.add_column(lines, justify="left" if heading in self.left else "right", no_wrap=True, width=width)
        for label, *cells in rows:
            grid.add_row(Text("\n".join(wrapped(label, label_width))), *map(Text, cells))
        return grid

    def _lists(self, width: int) -> Iterator[RenderableType]:
        beside = max(map(_width, self.columns[1:]), default=0) + GAP
        for label, *cells in self.rows:
            yield Text("\n".join(wrapped(label, width)))
            for heading, cell in zip(self.columns[1:], cells, strict=True):
                if 2 + beside + _width(cell) <= width:
                    yield Text(f"  {heading:<{beside}}{cell}")
                else:
                    yield Prose(f"{heading} {cell}", indent=2)


def _in_halves(cell: str) -> str:
    return BEFORE_HALVES.sub("\n", cell)


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _longest_word(text: str) -> int:
    return max(map(_width, wrapped(text, 1)))


def _least_width(labels: Sequence[str]) -> int:
    """At which labels can be read: as wide as they are, or wide, or at least as their longest word."""
    longest = max(map(_width, labels))
    return max(*map(_longest_word, labels), min(longest, WIDE_LABEL // 2))
