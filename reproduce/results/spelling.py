"""How a Result is spelled in its file: its evaluations as columns, so that it is short, and tables are read off it.

A seal covers a Result's content and not the file's spelling. The content has a record for each evaluation. The file has
the same values column by column, with each name once, and a matrix for each statistic of the Sites, with a row for each
step at which they were measured:

    content  [{"step": 9, "test": {"error": 2.5}, "sites": {"post": {"mean": 0.1}, "pre": {"mean": 0.2}}},
              {"step": 18, "test": {"error": 1.5}, "sites": {}}]
    file     {"step": [9, 18], "test": {"error": [2.5, 1.5]},
              "sites": {"step": [9], "site": ["post", "pre"], "float32": [], "mean": [[0.1, 0.2]]}}

Statistics of the Sites are computed in float32 and are most of a file. Those named in `float32` hold such numbers
alone, and each is spelled with the digits that tell it from other float32 numbers: 7.3960376 for 7.396037578582764.

A file that has records reads as well: at first, Results were spelled so.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from reproduce.experiment.identity import canonical_json

Records = list[dict[str, Any]]
NAMES = "float32"  # of the statistics whose numbers are


def spelled(content: dict[str, Any]) -> str:
    """The text of a Result's file. What holds further names has a line for each; all else stands on one line."""
    epochs: Records = content["epochs"]
    columns = _columns_of(epochs)
    if columns is not None and _records_of(_all_float64(columns)) == epochs:
        content = content | {"epochs": columns}
    return _lines(content) + "\n"


def content_of(text: str) -> Any:
    """What the text of a Result's file says, however it is spelled: evaluations are records again.

    Raises:
        ValueError: not JSON, or its columns are not those of any records: one is longer than another, say.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(columns := content.get("epochs"), dict):
        return content
    try:
        columns = _all_float64(columns)
        records = _records_of(columns)
        is_whole = _columns_of(records, short=False) == columns  # no value was passed over, which no seal would cover
    except (LookupError, TypeError, AttributeError, OverflowError, struct.error):  # the last two: no float32 number
        is_whole = False
    if not is_whole:
        raise ValueError("its columns of evaluations do not fit together")
    return content | {"epochs": records}


def _columns_of(epochs: Records, short: bool = True) -> dict[str, Any] | None:
    """None where the records, or the Sites in them, differ in their names.

    Args:
        short: spell float32 numbers as such.
    """
    columns = _transposed([{name: value for name, value in epoch.items() if name != "sites"} for epoch in epochs])
    measured = [epoch for epoch in epochs if epoch.get("sites")]
    sites = list(measured[0]["sites"]) if measured else []
    statistics = list(measured[0]["sites"][sites[0]]) if sites else []
    is_alike = all(
        epoch["sites"].keys() == set(sites)
        and all(of_site.keys() == set(statistics) for of_site in epoch["sites"].values())
        for epoch in measured
    )
    if not isinstance(columns, dict) or not is_alike:
        return None
    matrices = {name: [[epoch["sites"][site][name] for site in sites] for epoch in measured] for name in statistics}
    of_sites: dict[str, Any] = {"step": [epoch["step"] for epoch in measured], "site": sites}
    if short:
        of_sites[NAMES] = sorted(name for name, matrix in matrices.items() if _is_float32(matrix))
        matrices |= {name: _shortest(matrices[name]) for name in of_sites[NAMES]}
    return columns | {"sites": of_sites | matrices}


def _records_of(columns: dict[str, Any]) -> Records:
    sites = columns["sites"]
    matrices = {name: matrix for name, matrix in sites.items() if name not in ("step", "site")}
    measured = {
        step: {
            site: {name: matrix[row][at] for name, matrix in matrices.items()} for at, site in enumerate(sites["site"])
        }
        for row, step in enumerate(sites["step"])
    }
    own = {name: column for name, column in columns.items() if name != "sites"}
    return [_row(own, row) | {"sites": measured.get(step, {})} for row, step in enumerate(columns["step"])]


def _all_float64(columns: dict[str, Any]) -> dict[str, Any]:
    """Without `NAMES`, whose numbers are spelled like all others: files had none at first."""
    sites = {name: matrix for name, matrix in columns["sites"].items() if name != NAMES}
    sites |= {name: _as_float32(sites[name]) for name in columns["sites"].get(NAMES, [])}
    return columns | {"sites": sites}


def _as_float32(value: Any) -> Any:
    """Each number in lists in lists as the float32 number that is nearest."""
    if value and isinstance(value[0], list):
        return [_as_float32(item) for item in value]
    format = f"<{len(value)}f"  # native packing would pass what is too large
    return list(struct.unpack(format, struct.pack(format, *value)))


def _shortest(value: Any) -> Any:
    """Each float32 number as the one with the fewest digits to which no other float32 is nearer."""
    import numpy as np  # not to read a Result: commands that only read start without it

    return [_shortest(item) for item in value] if isinstance(value, list) else float(str(np.float32(value)))


def _is_float32(value: Any) -> bool:
    """Whether there are numbers in lists in lists, and all are."""
    if isinstance(value, list):
        return bool(value) and all(_is_float32(item) for item in value)
    if not isinstance(value, float) or not math.isfinite(value):
        return False
    try:
        return bool(_as_float32([value]) == [value])
    except OverflowError:
        return False


def _transposed(values: list[Any]) -> Any:
    """Records with the same names as a column for each name, all the way down; any other list as it is."""
    if not values or not all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return values
    return {name: _transposed([value[name] for value in values]) for name in values[0]}


def _row(columns: Any, row: int) -> Any:
    """The record of that row of what `_transposed` made."""
    if isinstance(columns, dict):
        return {name: _row(column, row) for name, column in columns.items()}
    return columns[row]


def _lines(value: Any, indent: str = "") -> str:
    if not isinstance(value, dict) or not any(isinstance(item, dict) for item in value.values()):
        return canonical_json(value)
    inner = indent + " "
    items = (f"{inner}{json.dumps(name, ensure_ascii=False)}: {_lines(value[name], inner)}" for name in sorted(value))
    return "{\n" + ",\n".join(items) + f"\n{indent}}}"
