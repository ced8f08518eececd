"""Rows as CSV that reads the same everywhere, and that no spreadsheet runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

Value = str | int | float | bool | None
DIGITS = 8  # of what is computed from several runs: the last of a float64 differ from one kind of processor to another
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes a cell that begins so


def computed(value: float | None) -> float | None:
    """A statistic with as many significant digits as come out the same on every machine."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> str:
    """A line for each row under the columns' names: numbers as they are, `true` and `false`, nothing where there
    is none; a text that a spreadsheet would compute begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value.replace("\r\n", "\n").replace("\r", "\n")
        return f"'{text}" if value.startswith(FORMULA) else text
    return repr(float(value)) if isinstance(value, float) else str(int(value))
