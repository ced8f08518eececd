"""How a Result is spelled in its file: its evaluations as columns, so that it is short, and tables are read off it.

A seal covers a Result's content and not the file's spelling. The content has a record for each evaluation. The file has
the same values column by column, with each name once, and a matrix for each statistic of the Sites, with a row for each
step at which they were measured:

    content  [{"step": 9, "test": {"error": 2.5}, "sites": {"post": {"mean": 0.1}, "pre": {"mean": 0.2}}},
              {"step": 18, "test": {"error": 1.5}, "sites": {}}]
    file     {"step": [9, 18], "test": {"error": [2.5, 1.5]},
              "sites": {"step": [9], "site": ["post", "pre"], "mean": [[0.1, 0.2]]}}

A file that has records reads as well: at first, Results were spelled so.
"""

from __future__ import annotations

import json
from typing import Any

from reproduce.experiment.identity import canonical_json

Records = list[dict[str, Any]]


def spelled(content: dict[str, Any]) -> str:
    """The text of a Result's file. What holds further names has a line for each; all else stands on one line."""
    epochs: Records = content["epochs"]
    columns = _columns_of(epochs)
    if columns is not None and _records_of(columns) == epochs:
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
        records = _records_of(columns)
        is_whole = _columns_of(records) == columns  # no value was passed over, which no seal would cover
    except (LookupError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise ValueError("its columns of evaluations do not fit together")
    return content | {"epochs": records}


def _columns_of(epochs: Records) -> dict[str, Any] | None:
    """None where the records, or the Sites in them, differ in their names."""
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
    return columns | {"sites": {"step": [epoch["step"] for epoch in measured], "site": sites} | matrices}


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
