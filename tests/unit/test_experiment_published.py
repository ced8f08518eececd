"""A paper's cells are written once, and claims follow: their numbers, their differences, their addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproduce.errors import UserError
from reproduce.experiment.files import read_experiment
from reproduce.experiment.published import difference
from reproduce.experiment.schema import Claim

TABLE = """\
title = "Table 3"
scale = "paper"
source = "Nobody 2020"
seeds = [0]
claims = [{ task = "text", arm = "ours", over = "plain", metric = "test.loss", direction = "lower", source = "text" }]

[published]
source = "Table 3, {task}, {arm}, {metric}{row}"
names = { text = "PTB", "test.ppl" = "test", plain = "LSTM" }
compare = [["ours", "plain"], ["ours", "theirs"]]
rows = [
    { task = "text", metric = "test.ppl", tolerance = 5.0, gap_tolerance = 3, cells = { plain = 122.0, ours = 114.5 }},
    { task = "text", metric = "validation.ppl", row = ", below", tolerance = 4.0, cells = { theirs = 118.2 } },
    { task = "text", metric = "test.loss", tolerance = 0.2, gap_tolerance = 0.1, cells = { theirs = 0.3, ours = 0.1 }},
]

[tasks.text]
kind = "language_modeling"
dataset = "ptb"
model = "lstm"
[recipe]
epochs = 2
batch_size = 16
learning_rate = 0.1
[arms.plain]
label = "none"
[arms.ours]
label = "PER"
[arms.theirs]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "table3.toml"
    path.write_text(text, "utf-8")
    return path


def claim(arm: str, metric: str, value: float, tolerance: float, source: str, over: str | None = None) -> Claim:
    return Claim(task="text", arm=arm, over=over, metric=metric, value=value, tolerance=tolerance, source=source)


def test_claims_follow_from_cells(tmp_path: Path) -> None:
    *claims, last = read_experiment(written(tmp_path, TABLE)).claims
    test, valid = "test.ppl", "validation.ppl"
    assert claims == [
        claim("plain", test, 122.0, 5.0, "Table 3, PTB, LSTM, test"),
        claim("ours", test, 114.5, 5.0, "Table 3, PTB, PER, test"),
        claim("ours", test, -7.5, 3.0, "Table 3, PTB, PER minus LSTM, test", over="plain"),
        claim("theirs", valid, 118.2, 4.0, "Table 3, PTB, theirs, validation.ppl, below"),
        claim("theirs", "test.loss", 0.3, 0.2, "Table 3, PTB, theirs, test.loss"),
        claim("ours", "test.loss", 0.1, 0.2, "Table 3, PTB, PER, test.loss"),
        claim("ours", "test.loss", -0.2, 0.1, "Table 3, PTB, PER minus theirs, test.loss", over="theirs"),
    ]
    assert last.source == "text"  # those written out come after


def test_differences_may_have_an_address_of_their_own(tmp_path: Path) -> None:
    text = TABLE.replace("names = {", 'gap_source = "{task}: {arm} less {over}"\nnames = {')
    sources = [one.source for one in read_experiment(written(tmp_path, text)).claims if one.over]
    assert sources[:-1] == ["PTB: PER less LSTM", "PTB: PER less theirs"]


@pytest.mark.parametrize(
    ("old", "new", "line", "expected"),
    [
        ("compare =", "compares =", 10, "published.compares: unknown key"),
        ("tolerance = 4.0, ", "", 11, "published.rows.1.tolerance: missing key"),
        (", gap_tolerance = 3", "", 11, "published.rows.0.gap_tolerance: missing key: ours is compared with plain"),
        (
            "theirs = 118.2",
            "there = 118.2",
            11,
            "published.rows.1.cells.there: 'there' is none of the arms plain, ours",
        ),
        ('{ task = "text", metric = "v', '{ task = "w", metric = "v', 11, "published.rows.1.task: 'w' is none of the"),
        ('["ours", "plain"]', '["plain", "theirs"]', 10, "published.compare.0: no row has both 'plain' and 'theirs'"),
        ('plain = "LSTM"', 'plane = "LSTM"', 9, "published.names.plane: no row has a task, metric or arm of this"),
        ("{row}", "{line}", 8, "published.source: {line} is none of task, metric, row, arm, over"),
        ("{row}", "{row:d}", 8, "published.source: {row:d} is none of task, metric, row, arm, over"),
        ("{row}", "{row!r}", 8, "published.source: {row!r} is none of task"),
        ("{row}", "{row:{arm}}", 8, "published.source: {row:{arm}} is none of task"),
        (
            "Table 3, {task}, {arm}, {metric}{row}",
            "{row}",
            8,
            "published.source: '{row}' is no address of plain in row 1",
        ),
        ('["ours", "plain"]', '["ours", "ours"]', 10, "published.compare.0: 'ours' is compared with itself"),
        ("{row}", "{row", 8, "published.source: 'Table 3, {task}, {arm}, {metric}{row': expected '}'"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, old: str, new: str, line: int, expected: str) -> None:
    assert TABLE.count(old) == 1
    path = written(tmp_path, TABLE.replace(old, new))
    with pytest.raises(UserError) as caught:
        read_experiment(path)
    assert str(caught.value).startswith(f"{path}:{line}: {expected}")


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.integers(0, 4))
def test_differences_are_exact_to_the_printed_decimals(first: int, second: int, decimals: int) -> None:
    unit = 10**decimals
    assert difference(first / unit, second / unit) == (first - second) / unit
