"""How a Result is spelled: in columns and shorter, the same content, and nothing that its seal does not cover."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproduce.experiment.folder import ROOT
from reproduce.experiment.identity import canonical_json
from reproduce.results.spelling import content_of, spelled
from reproduce.results.store import ResultError, copy_result, read_result, respell

EVIDENCE = ROOT / "reports" / "evidence"
SITES = {"post": {"mean": 0.1, "range": [0, 1]}, "pre": {"mean": 0.2, "range": None}}
EPOCHS: list[dict[str, Any]] = [
    {"step": 9, "test": {"error": 2.5}, "sites": SITES},
    {"step": 18, "test": {"error": 1.5}, "sites": {}},
]


def test_the_file_has_the_columns_of_the_records() -> None:
    columns = json.loads(spelled({"id": "x", "epochs": EPOCHS}))["epochs"]
    assert columns == {
        "step": [9, 18],
        "test": {"error": [2.5, 1.5]},
        "sites": {
            "step": [9],
            "site": ["post", "pre"],
            "float32": [],
            "mean": [[0.1, 0.2]],
            "range": [[[0, 1], None]],
        },
    }


FLOAT32 = 7.396037578582764, 0.1, -0.0, 3.4028234663852886e38, 1e-45, 16777217.0, 0.0


def of_float32(values: Iterable[float]) -> list[dict[str, Any]]:
    numbers = [float(np.float32(value)) for value in values]
    return [
        {"step": step, "sites": {"post": {"mean": number, "ends": [[number, -number]]}}}
        for step, number in enumerate(numbers)
    ]


def test_float32_numbers_have_their_own_digits_alone() -> None:
    content = {"id": "x", "epochs": of_float32(FLOAT32)}
    text = spelled(content)
    sites = json.loads(text)["epochs"]["sites"]
    assert sites["float32"] == ["ends", "mean"]
    assert sites["mean"] == [[7.3960376], [0.1], [-0.0], [3.4028235e38], [1e-45], [16777216.0], [0.0]]
    assert canonical_json(content_of(text)) == canonical_json(content)  # of the two zeros as well
    content["epochs"][0]["sites"]["post"]["mean"] = 0.1  # as float64
    sites = json.loads(spelled(content))["epochs"]["sites"]
    assert sites["float32"] == ["ends"]
    assert sites["mean"][1] == [0.10000000149011612]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_any_float32_number_comes_back(values: list[float]) -> None:
    content = {"id": "x", "epochs": of_float32(values)}
    assert canonical_json(content_of(spelled(content))) == canonical_json(content)


def test_a_file_in_which_all_numbers_are_float64_reads() -> None:
    content = {"id": "x", "epochs": of_float32(FLOAT32)}
    numbers = [epoch["sites"]["post"] for epoch in content["epochs"]]
    sites = {"site": ["post"], "mean": [[at["mean"]] for at in numbers], "ends": [[at["ends"]] for at in numbers]}
    steps = list(range(len(FLOAT32)))
    text = json.dumps({"id": "x", "epochs": {"step": steps, "sites": {"step": steps, **sites}}})
    assert content_of(text) == content


@pytest.mark.parametrize(
    "epochs",
    [
        EPOCHS,
        [],
        EPOCHS[1:],
        [*EPOCHS, EPOCHS[0]],  # a step twice
        [*EPOCHS, {"step": 27, "test": {}, "sites": {}}],  # other names
        [*EPOCHS, {"step": 27, "test": {"error": 1}, "sites": {"post": SITES["post"]}}],  # other Sites
        [{"step": 1, "sites": {"a": {}}}],
        [{"step": 1}],
    ],
)
def test_any_records_come_back(epochs: list[Any]) -> None:
    content = {"id": "é", "epochs": epochs, "config": {"task": {"model": "mlp"}}}
    assert content_of(spelled(content)) == content


@pytest.mark.parametrize(
    "damage",
    [
        lambda columns: columns["step"].append(27),
        lambda columns: columns["test"]["error"].append(0.5),
        lambda columns: columns["test"]["error"].pop(),
        lambda columns: columns["sites"]["step"].append(27),
        lambda columns: columns["sites"]["mean"][0].append(0.3),
        lambda columns: columns["sites"]["mean"].append([0.3, 0.4]),
        lambda columns: columns["sites"].update(step=[10]),
        lambda columns: columns["sites"].update(mean=3),
        lambda columns: columns["sites"].update(float32=["median"]),
        lambda columns: columns["sites"].update(float32=["range"]),
        lambda columns: columns["sites"].update(float32=["mean"], mean=[[1e39, 0.2]]),
        lambda columns: columns["sites"].update(float32=3),
        lambda columns: columns.pop("sites"),
        lambda columns: columns.update(sites=[]),
    ],
)
def test_a_column_that_does_not_fit_is_no_result(damage: Any) -> None:
    """A value that no record took up would be under no seal."""
    content = json.loads(spelled({"id": "x", "epochs": EPOCHS}))
    damage(content["epochs"])
    with pytest.raises(ValueError, match="columns of evaluations do not fit together"):
        content_of(json.dumps(content))


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """A committed Result with Sites, as its content was spelled at first: a record for each evaluation."""
    source = min(EVIDENCE.glob("uci_car-mlp-vcl-*.json"))
    path = tmp_path / source.name
    path.write_text(json.dumps(content_of(source.read_text("utf-8")), indent=1), "utf-8")
    return path


def test_respelling_keeps_seal_and_content_and_saves_half(committed: Path) -> None:
    before, size = read_result(committed), committed.stat().st_size
    assert respell(committed) == before == read_result(committed)
    assert committed.stat().st_size < 0.5 * size
    text = committed.read_text("utf-8")
    respell(committed)
    assert committed.read_text("utf-8") == text


def test_a_copy_keeps_the_seal_of_a_result_that_lacks_what_new_ones_have(committed: Path, tmp_path: Path) -> None:
    """Filled up with today's names it would be another content, under another seal."""
    content = content_of(committed.read_text("utf-8"))
    assert "site_order" not in content
    assert copy_result(committed, tmp_path / "copy.json").seal == content["seal"]


def test_what_does_not_read_is_not_respelled(committed: Path) -> None:
    text = committed.read_text("utf-8").replace('"seed": ', '"seed": 1')
    committed.write_text(text, "utf-8")
    with pytest.raises(ResultError, match="its seal does not match"):
        respell(committed)
    assert committed.read_text("utf-8") == text


def test_committed_evidence_has_the_shortest_spelling() -> None:
    for path in EVIDENCE.glob("*.json"):
        text = path.read_text("utf-8")
        assert text == spelled(content_of(text)), f"{path}: `respell` it"


def test_three_lines_of_pandas_read_the_evidence(tmp_path: Path) -> None:
    """The lines in CONTRIBUTING, as they stand there."""
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len([line for line in lines.splitlines() if line and "import" not in line]) == 3
    paths = sorted(EVIDENCE.glob("uci_car-mlp-vcl-*.json"))[:3]
    (tmp_path / "reports" / "evidence").mkdir(parents=True)
    for path in paths:
        shutil.copy(path, tmp_path / "reports" / "evidence")
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        exec(lines, found)
    results = {result.id: result for result in map(read_result, paths)}
    table: pandas.DataFrame = found["table"]
    assert set(table["id"]) == results.keys()
    for _, row in table.iterrows():
        result = results[row["id"]]
        assert result.final is not None
        assert (row["config.method"], row["final.test.error"]) == (result.config.method, result.final.test["error"])
    first = results[table["id"][0]]
    expected = {record.step: record.test["error"] for record in first.epochs}
    assert found["curve"]["error"].to_dict() == expected


@pytest.mark.parametrize("name", [None, 3, "\ud800"])
def test_a_name_that_is_none_is_one_line(committed: Path, name: Any) -> None:
    respell(committed)
    content = json.loads(committed.read_text("utf-8"))
    content["epochs"]["sites"]["site"][0] = name
    committed.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ResultError, match="not a readable Result") as caught:
        read_result(committed)
    assert "\n" not in str(caught.value)
