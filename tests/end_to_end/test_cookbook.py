"""The programs of docs/cookbook.md run, show what the page says, and are what it and the README quote."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cookbook.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
NAMES = sorted(set(re.findall(r"\(\.\./examples/(\w+)\.py\)", PAGE)))


@pytest.fixture(scope="module", autouse=True)
def examples_are_importable() -> Iterator[None]:
    """As for `python examples/x.py`, whose folder comes first."""
    sys.path.insert(0, str(ROOT / "examples"))
    yield
    sys.path.remove(str(ROOT / "examples"))


def program(name: str) -> ModuleType:
    return import_module(name)


@cache
def results_of(name: str, function: str, *arguments: Any) -> Any:
    """What a function of a program returns, trained once for all tests."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(program(name), function)(*arguments)


def compared(name: str) -> Any:
    """What the program's `compare` returns, given what its `main` gives to it."""
    match name:
        case "ten_of_a_hundred":
            return results_of(name, "compare", results_of(name, "search").coefficient)
        case "how_strong":
            strength = results_of(name, "strengths")[0]["strength at ratio 0.03"]
            return results_of(name, "compare", strength)
    return results_of(name, "compare")


def column(rows: list[dict[str, Any]], key: str, value: str) -> dict[str, float]:
    return {row[key]: row[value] for row in rows}


@pytest.fixture(autouse=True)
def torch_draws_as_before() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def test_the_penalty_makes_kernels_of_every_kind_nearly_orthonormal() -> None:
    rows, _, _ = compared("orthogonal_kernels")
    layers = rows[:-1]
    assert [row["layer"].partition(": ")[2] for row in layers] == ["Conv2d"] * 3 + ["Linear"] * 2
    assert all(row["with"] < 0.5 * row["without"] for row in layers)


def test_the_three_mistakes_are_mistakes() -> None:
    torch.manual_seed(0)
    module = program("orthogonal_kernels")
    shape, number, loop, right = module.show_mistakes()
    assert "must match" in shape["outcome"]
    assert "no gradient" in number["outcome"]
    assert loop["outcome"] == right["outcome"] == "has a gradient"
    assert loop["value"] == pytest.approx(right["value"], rel=1e-4)
    assert loop["ms"] > 10 * right["ms"]
    wide, tall = module.rows_or_columns()
    assert (wide["least of rows"], wide["least of columns"]) == pytest.approx((0, 16), abs=1e-4)
    assert (tall["least of rows"], tall["least of columns"]) == pytest.approx((16, 0), abs=1e-4)


def test_a_price_before_the_sigmoid_desaturates_it_and_one_after_it_does_not() -> None:
    rows, _ = compared("saturated_sigmoid")
    saturated = column(rows, "penalty", "saturated (%)")
    assert saturated["none"] > 90
    assert saturated["kernel L2, 0.01"] > 85
    assert saturated["activity L2 before the sigmoid"] < 70
    assert saturated["activity L2 after the sigmoid"] > saturated["none"] - 3
    assert saturated["none, pixels from 0 to 1"] < 10
    assert saturated["none, 3 times as long"] > 90
    errors = column(rows, "penalty", "test error (%)")
    assert errors["none, pixels from 0 to 1"] > errors["none"]  # it has not trained long enough, as the page says
    assert errors["none, pixels from 0 to 1, 3 times as long"] < errors["none, 3 times as long"] + 1
    weights = column(rows, "penalty", "mean |weight|")
    assert weights["kernel L2, 0.1"] < 0.6 * weights["activity L2 before the sigmoid"]


def test_the_evidence_on_kernel_and_activity_penalties_is_as_the_page_says() -> None:
    """Opposite to what was claimed: the activity penalty had the higher error."""
    evidence = (ROOT / "reports" / "weight_norm_penalty.md").read_text("utf-8")
    for arm in ("activity L2, raw", "activity L2 before the sigmoid, raw"):
        ((gap, low),) = re.findall(rf"^- {arm} − none: (\S+) \[(\S+), .*; claimed: lower$", evidence, re.M)
        assert float(gap) > float(low) > 0
    said = "with ReLU and with a sigmoid (`reduced_sigmoid`), and it came out higher both times."
    assert said in " ".join(PAGE.split())


def test_bisection_finds_about_ten_units_and_they_beat_a_code_of_ten() -> None:
    module = program("ten_of_a_hundred")
    found = results_of("ten_of_a_hundred", "search")
    assert abs(found.active - module.WANTED) <= 1
    assert len(found.runs) <= 9
    rows, _ = compared("ten_of_a_hundred")
    unexplained = [row["variance unexplained (%)"] for row in rows]
    free, soft, _, ten, largest = unexplained
    assert free < soft < ten - 3
    assert largest < ten - 3
    assert rows[1]["active units"] == pytest.approx(found.active, abs=0.01)


def test_outputs_follow_their_laws_and_the_usual_advice_does_not() -> None:
    rows, outputs = compared("given_histograms")
    first = outputs["Wasserstein, batch 256"][:, 0]
    _, hump, dip, other = torch.histc(first, 4, 0, 2).tolist()  # in the bins of the law
    assert dip < 0.95 * min(hump, other)
    total = {row["penalty"]: row["to histogram"] + row["to density"] for row in rows}
    alone = total["squared error alone, batch 256"]
    assert total["Wasserstein, batch 256"] < 0.5 * alone
    assert total["KL to both, batch 256"] < 0.5 * alone
    assert total["Wasserstein, batch 8, memory 64"] < 0.9 * total["Wasserstein, batch 8"]
    assert total["L2 after batchnorm, batch 256"] > alone
    errors = column(rows, "penalty", "squared error")
    assert min(errors, key=errors.__getitem__) == "squared error alone, batch 256"


def test_a_map_has_a_histogram_for_each_channel_or_for_each_unit() -> None:
    channel, unit = program("given_histograms").units_and_channels()
    assert (channel["histograms"], channel["samples of each"]) == (3, 64 * 16)
    assert (unit["histograms"], unit["samples of each"]) == (48, 64)


def test_one_lambda_holds_its_effect_only_where_it_is_divided() -> None:
    rows = compared("activity_and_batch_size")
    for row in rows:
        assert row["l2_activity"] == pytest.approx(row["Keras, divided"], rel=0.02)
    first, last = rows[0], rows[-1]
    assert last["Keras, undivided"] < 0.2 * first["Keras, undivided"]
    assert 0.6 < last["l2_activity"] / first["l2_activity"] < 1.7


def test_readings_differ_by_the_batch_and_the_time_and_the_old_keras_trains_nothing() -> None:
    module = program("activity_and_batch_size")
    for row in module.values():
        assert row["Keras, undivided"] == pytest.approx(row["batch"] * row["Keras, divided"], rel=1e-5)
        # What l2_activity divides by beyond the batch: time, or all of a map but its last axis.
        others = 8 if "time" in row["shape"] else 50 * 4 if "not flattened" in row["shape"] else 1
        assert row["Keras, divided"] == pytest.approx(others * row["l2_activity"], rel=1e-5)
    before, meant = module.input_instead_of_output()
    assert (before["trains the layer"], meant["trains the layer"]) == (False, True)


def test_the_strength_found_is_felt_and_does_not_rule() -> None:
    rows = {row["times"]: row for row in compared("how_strong")}
    free, found = rows[0.0], rows[1.0]
    assert found["ratio"] == pytest.approx(
        program("how_strong").WANTED, rel=0.3
    )  # the points are now those with the penalty
    assert found["squared norm"] < 0.8 * free["squared norm"]
    assert found["validation error (%)"] < free["validation error (%)"] + 3


def test_the_grid_goes_on_while_its_end_is_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    module = program("how_strong")
    tried = [row["times"] for row in compared("how_strong")][1:]
    chosen = min(compared("how_strong")[1:], key=lambda row: row["validation error (%)"])["times"]
    assert tried[0] < chosen < tried[-1]
    assert chosen > 1  # as the page says: above where the grid began
    for wanted, ends in ((1.0, (0.1, 10.0)), (1000.0, (0.1, 10_000.0)), (0.01, (0.001, 10.0))):
        error = lambda strength, wanted=wanted: {"validation error (%)": abs(math.log10(max(strength, 1e-9) / wanted))}  # noqa: E731
        monkeypatch.setattr(module, "train", error)
        times = [row["times"] for row in module.compare(1.0)]
        assert times[0] == 0
        assert (times[1], times[-1]) == pytest.approx(ends)


def rows_of(name: str) -> tuple[Any, ...]:
    """What a figure is drawn of, without training."""
    torch.manual_seed(0)
    match name:
        case "orthogonal_kernels":
            return (program(name).network(), program(name).network())
        case "saturated_sigmoid":
            return ({arm.name: 9 * torch.randn(20, 64) for arm in program(name).ARMS_OF_TABLE},)
        case "ten_of_a_hundred":
            runs = ((0.01, 55.0), (1.0, 3.0), (0.1, 29.0))
            found = program(name).FoundCoefficient(0.1, 29.0, runs)
            return (found, {"none": torch.rand(100), "hard": torch.rand(10)})
        case "given_histograms":
            return ({arm.name: torch.rand(50, 2) for arm in program(name).arms()},)
        case "activity_and_batch_size":
            names = ("none", "l2_activity", "Keras, undivided")
            return ([dict.fromkeys(names, float(size)) for size in program(name).SIZES],)
    return ([{"ratio": 10.0**k, "squared norm": 2.0, "validation error (%)": 9.0} for k in range(-4, 2)],)


@pytest.mark.parametrize("name", NAMES)
def test_every_program_writes_its_figure(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figure.png"
    program("showing").save(lambda: program(name).draw(*rows_of(name)), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"figure: {path}\n"
    assert (ROOT / "docs" / "cookbook" / f"{name}.png").is_file()
    assert f"(cookbook/{name}.png)" in PAGE


@pytest.mark.parametrize("name", NAMES)
def test_every_program_prints_its_table_and_says_where_its_figure_is(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, found = program(name), compared(name)
    monkeypatch.setattr(module, "compare", lambda *_: found)
    for trained in ("search", "strengths"):
        if hasattr(module, trained):
            monkeypatch.setattr(module, trained, lambda result=results_of(name, trained): result)
    module.main(tmp_path / "figure.png")
    printed = capsys.readouterr().out
    rows = found[0] if isinstance(found, tuple) else found
    for row in rows:
        label = next(iter(row.values()))
        assert (label if isinstance(label, str) else f"{label:.3g}") in printed
    *_, figure, concluded, end = printed.split("\n")
    assert (figure, end) == (f"figure: {tmp_path / 'figure.png'}", "")
    given = (results_of(name, "search"), rows) if name == "ten_of_a_hundred" else (rows,)
    assert concluded == module.conclusion(*given)
    assert (tmp_path / "figure.png").stat().st_size > 5000


def test_the_command_line_says_where_the_figure_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    showing = program("showing")
    monkeypatch.setattr(sys, "argv", ["x.py", "--figure", str(tmp_path / "x.svg")])
    assert showing.figure_path("examples/x.py") == tmp_path / "x.svg"
    monkeypatch.setattr(sys, "argv", ["x.py"])
    assert showing.FIGURES == ROOT / "runs" / "examples"
    monkeypatch.setattr(showing, "FIGURES", tmp_path / "runs" / "examples")
    assert showing.figure_path("examples/x.py") == tmp_path / "runs" / "examples" / "x.png"
    assert showing.figure_path("examples/x.py").parent.is_dir()


@pytest.mark.parametrize(
    ("given", "said"),
    [("nowhere/x.png", "is no folder that can be written to"), ("x.xyz", "found .xyz"), ("x", "found no ending")],
)
def test_a_figure_that_cannot_be_written_is_refused_before_training(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--figure", str(tmp_path / given)])
    with pytest.raises(SystemExit):
        program("showing").figure_path("examples/x.py")
    assert said in capsys.readouterr().err


def given_to_readers_code() -> dict[str, Any]:
    """What a reader has who copies some lines."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2), nn.ReLU())
    inputs, labels = torch.randn(16, 6), torch.arange(16) % 2
    count: Callable[[float], float] = lambda coefficient: 20 / (1 + 10 * coefficient)  # noqa: E731
    outputs = model(inputs)
    return {
        "model": model,
        "layer": model[0],
        "inputs": inputs,
        "labels": labels,
        "outputs": outputs,
        "hidden": model[:2](inputs),
        "padding": torch.zeros(16, 3, dtype=torch.bool),
        "code": model[:2](inputs),
        "criterion": F.cross_entropy,
        "train_and_count": count,
        "torch": torch,
        "loss": F.cross_entropy(outputs, labels),
    }


BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_each_section_of_the_page_has_a_program_or_a_table() -> None:
    assert len(NAMES) == 6
    assert len(BLOCKS) == 7


def test_the_pages_lines_run_as_typed() -> None:
    """In the order of the page: a block may use what one before it has imported."""
    imported: dict[str, Any] = {}
    for block in BLOCKS:
        given = imported | given_to_readers_code()
        before = dict(given)
        exec(block, given)
        new = {name: value for name, value in given.items() if value is not before.get(name)}
        imported |= {name: value for name, value in new.items() if callable(value)}
        tensors = [value for value in new.values() if isinstance(value, torch.Tensor) and value.dim() == 0]
        assert all(bool(value.isfinite()) for value in tensors)
        assert tensors or "strength" in new


def table_of_questions() -> list[list[str]]:
    section = README.partition("## Which function answers my question?")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def headings(page: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found = [re.sub(r"\]\([^)]*\)", "]", heading) for heading in re.findall(r"^#+ (.+)$", page, re.M)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("row", table_of_questions(), ids=lambda row: row[0][1:30])
def test_the_readmes_lines_run_as_typed(row: list[str]) -> None:
    question, imported, code, _, evidence = row
    page, anchor = re.search(r"\]\((.+?)#(.+?)\)", question).groups()  # type: ignore[union-attr]
    assert anchor in headings((ROOT / page).read_text("utf-8"))
    target = re.search(r"\]\((.+?)\)", evidence)[1]  # type: ignore[index]
    assert (ROOT / target).is_file()
    if "`" not in imported:
        return  # commands: test_documented_commands.py parses them
    given = given_to_readers_code()
    if "PenaltyTrainer" in code:
        pytest.importorskip("transformers")
        given |= {"model": program("trainer_subclass").classifier(), "arguments": None}
    model = given["model"]
    before = set(given)
    program_text = "\n".join(re.findall(r"`([^`]+)`", f"{imported}<br>{code}"))
    exec(program_text, given)
    assert set(given) - before
    if "trainer" in given:
        return  # test_examples.py trains with both
    loss = given["loss"]
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model[0].parameters())


def test_the_readme_has_a_row_for_every_section_of_the_page() -> None:
    sections = re.findall(r"^## (.+)$", PAGE, re.M)
    answered = [row for row in table_of_questions() if "](docs/cookbook.md#" in row[0]]
    assert len(answered) == len(sections) == 7
    assert len(table_of_questions()) > len(answered)
