"""Summaries on a terminal: at any width no interval is split, and no line is too long."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from reproduce.cli import chosen
from reproduce.report.fitted import Fitted, Prose, wrapped
from reproduce.report.terminal import terminal_summary
from reproduce.results.columns import find_all
from reproduce.results.evaluate import MethodFindings
from reproduce.results.match import ResultIndex

INTERVAL = re.compile(r"\[[+−]?[\d.]+, [+−]?[\d.]+\]")
LONG = "the same sum for each example, free decoder, resampled"
ROWS = [("none", "15.67 [15.46, 15.89]", "3", "–"), (LONG, "15.26 [15.03, 15.48]", "3", "−0.42 [−0.73, −0.11]")]


def printed(shown: Any, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def evaluated() -> Sequence[MethodFindings]:
    results = chosen.committed_results()
    found, _ = find_all(chosen.chosen_experiments("all", None), chosen.experiments_known(), ResultIndex(results))
    return found


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_is_committed_fits(evaluated: Sequence[MethodFindings], width: int) -> None:
    n_intervals = set()
    for method in evaluated:
        lines = printed(terminal_summary(method.findings), width)
        assert max(map(cell_len, lines)) <= width, method.folder.name
        split = [line for line in lines if line.count("[") != line.count("]")]
        assert split == [], method.folder.name
        n_intervals.add(sum(len(INTERVAL.findall(line)) for line in lines))
    assert len(evaluated) > 10
    assert max(n_intervals) > 100


def test_each_width_shows_the_same_intervals(evaluated: Sequence[MethodFindings]) -> None:
    (per,) = (method for method in evaluated if method.folder.name == "per")
    for finding in per.findings:
        narrow, usual, wide = (
            sorted(INTERVAL.findall("\n".join(printed(terminal_summary([finding]), width)))) for width in (40, 80, 200)
        )
        assert narrow == usual == wide


def test_a_verdict_has_its_adjusted_p_beside_it(evaluated: Sequence[MethodFindings]) -> None:
    n_adjusted = 0
    for finding in (finding for method in evaluated for finding in method.findings):
        text = " ".join(" ".join(printed(terminal_summary([finding]), 1000)).split())
        for verdict in finding.verdicts:
            if verdict.p_adjusted is not None:
                n_adjusted += 1
                shown = "< 0.001" if verdict.p_adjusted < 0.001 else f"{verdict.p_adjusted:.3f}"
                assert f", adjusted {shown} " in f"{text} ", finding.name
    assert n_adjusted > 10


def test_a_table_takes_the_first_layout_that_fits() -> None:
    table = Fitted("images", ("Arm", "Ours", "n", "minus vanilla"), ROWS)
    wide, usual, tight, narrow = (printed(table, width) for width in (120, 80, 56, 40))
    assert any(line.startswith(LONG) and line.rstrip().endswith("−0.42 [−0.73, −0.11]") for line in wide)
    assert any("15.26 [15.03, 15.48]  3  −0.42 [−0.73, −0.11]" in line for line in usual)
    assert len(usual) > len(wide)  # the label is in two lines
    assert any("[15.03, 15.48]" in line and "15.26" not in line for line in tight)
    at = narrow.index("none")
    assert narrow[at + 1 : at + 4] == [
        "  Ours           15.67 [15.46, 15.89]",
        "  n              3",
        "  minus vanilla  –",
    ]


def test_labels_wrap_at_words() -> None:
    words = set(LONG.replace(",", " ,").split())
    for width in range(34, 121):
        lines = printed(Fitted("", ("Arm", "Ours", "n", "minus vanilla"), ROWS), width)
        assert max(map(cell_len, lines)) <= width
        shown = " ".join(lines).replace(",", " ,").split()
        assert words <= set(shown), width


@pytest.mark.parametrize("label", ["批归一化", "💥 L1", "تنظيم التفعيل", "a" * 90])
def test_labels_of_any_script_fit(label: str) -> None:
    for width in (30, 80):
        lines = printed(Fitted("t", ("Arm", "Ours"), [(label, "1.0 [0.9, 1.1]"), ("b", "–")]), width)
        assert max(map(cell_len, lines)) <= width
        assert any("[0.9, 1.1]" in line for line in lines)


def test_sentences_keep_numbers_with_their_units() -> None:
    sentence = "“a” is lowest, 4.26 %, −0.08 [−0.30, +0.13] below “b” (p = 0.490 after Holm's adjustment), 2.8 ± 0.1."
    for width in range(30, 60):
        lines = wrapped(sentence, width)
        assert " ".join(lines) == sentence
        assert max(map(len, lines)) <= width
        for whole in ("4.26 %", "[−0.30, +0.13]", "(p = 0.490", "2.8 ± 0.1"):
            assert any(whole in line for line in lines), (width, whole)


def test_prose_keeps_what_looks_like_markup() -> None:
    assert printed(Prose("[bold] is a label", indent=2), 80) == ["  [bold] is a label"]
