"""Reference pages and schemas in docs/ are those of the code and say every key; links in Markdown lead to files."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from reproduce.bench.variants import FunctionPair, Variant, Variants
from reproduce.experiment.dataset_card import DatasetCard, File, HuggingFace, Statistics, Table, Words
from reproduce.experiment.files import Share
from reproduce.experiment.folder import ROOT
from reproduce.experiment.published import Published, Row
from reproduce.experiment.recipe import AugmentedLoss, Averaging, Clip, DecayRate, PlateauRate, Recipe, StepRate
from reproduce.experiment.schema import Arm, Claim, Experiment, HostSpec, TaskSpec
from reproduce.experiment.word_cache import WordCacheSpec

DOCS = ROOT / "docs"
FOUND = {(Experiment, "axes"), (DatasetCard, "name")}  # while reading: no file gives them
SCHEDULES = (StepRate, DecayRate, PlateauRate)
TABLES = {
    "experiment_file.md": (
        Experiment,
        TaskSpec,
        HostSpec,
        WordCacheSpec,
        Recipe,
        AugmentedLoss,
        Averaging,
        Clip,
        Arm,
        Claim,
        Published,
        Row,
        Share,
        *SCHEDULES,
    ),
    "dataset_card.md": (DatasetCard, File, Statistics, Words, Table, HuggingFace),
}
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.glob("*.md"))


def script(name: str) -> ModuleType:
    """One of docs/*.py, which belong to no package."""
    found = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where dataclasses look up their annotations
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def references() -> ModuleType:
    return script("references")


def test_what_is_made_is_current(references: ModuleType) -> None:
    made = list(references.contents())
    assert len(made) == 7
    for path, text in made:
        assert path.read_text("utf-8") == text, f"{path}: type `make references`"


def test_the_table_of_faults_is_current() -> None:
    reliability = script("reliability")
    page = reliability.PAGE.read_text("utf-8")
    assert reliability.made(page) == page, "type `make references`"
    found = list(reliability.faults())
    assert len(found) > 30
    assert all(f"| {one.what} | {one.injected} | {one.promise} |" in page for one in found)
    seen = json.loads(reliability.SEEN.read_text("utf-8")) if reliability.SEEN.exists() else {}
    marked = {f"{one.file.relative_to(ROOT).as_posix()}::{one.test}" for one in found}
    assert seen.keys() <= marked  # no number of a test that is gone


@pytest.mark.slow  # it plans every run of the suite
def test_the_tables_of_scale_are_current() -> None:
    scale = script("scale")
    page = scale.PAGE.read_text("utf-8")
    assert scale.made(page) == page, "type `make scale`"


def test_scale_says_hours_idle_shares_and_where_more_devices_end_no_sooner() -> None:
    """Sixteen runs of two hours and one of unknown length: eight devices take two rounds, 64 one with 16 at work."""
    scale = script("scale")
    found = [
        scale.Campaign("quick", {"Xeon": [None] * 3, "H100": [None] * 3}),
        scale.Campaign("paper", {"Xeon": [*[7200.0] * 16, None], "H100": [None] * 17}),
    ]
    said = scale.tables(found, ["Xeon"])
    assert "| quick | 3 | 0 |  |  |  |  |" in said.splitlines()
    row = "| paper | 17 | 16 | 32 h, 0 % idle | 4 h, 0 % idle | 2 h, 75 % idle | 2 h, 16 |"
    assert row in said.splitlines()
    assert "No step was timed on a GPU yet" in said
    assert "H100\n" not in said.replace("64xH100", "")
    found[1] = scale.Campaign("paper", {"Xeon": [None] * 17, "H100": [*[7200.0] * 16, None]})
    said = scale.tables(found, ["Xeon"])
    assert said.startswith("## H100\n\nA device is a GPU with one run at a time.\n")
    assert row in said.splitlines()
    assert "No step was timed on a GPU yet" not in said
    assert "Xeon" not in said


def rows(page: str) -> list[list[str]]:
    """The cells of every row of the tables of keys."""
    lines = (DOCS / page).read_text("utf-8").splitlines()
    return [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines if line.startswith("| `")]


@pytest.mark.parametrize(("page", "model"), [(page, model) for page, models in TABLES.items() for model in models])
def test_every_key_stands_on_its_page_with_its_default(page: str, model: type[BaseModel]) -> None:
    found = rows(page)
    for name, info in model.model_fields.items():
        if (model, name) in FOUND:
            continue
        mine = [row for row in found if row[0] == f"`{name}`"]
        assert mine, name
        if info.is_required():
            assert any("needed" in row for row in mine), name
        elif isinstance(info.default, int | float) and not isinstance(info.default, bool):
            assert any(f"`{info.default}`" in row for row in mine), name
        elif isinstance(info.default, str) and info.default:
            assert any(f'`"{info.default}"`' in row for row in mine), name


def test_the_keys_of_variants_stand_there_too() -> None:
    names = {row[0].strip("`") for row in rows("experiment_file.md")}
    for model in (Variants, Variant, FunctionPair):
        assert model.model_fields.keys() <= names


def test_types_are_said_in_words(references: ModuleType) -> None:
    said = references.type_in_words
    assert said({"type": "integer", "minimum": 1}) == "integer, at least 1"
    assert said({"type": "number", "exclusiveMinimum": 0}) == "number, above 0"
    assert said({"enum": ["a", "b", "c"]}) == "`a`, `b` or `c`"
    assert said({"type": "array", "items": {"$ref": "#/$defs/Claim"}}) == "list of [tables](#claims)"
    assert said({"type": "array", "items": [{"type": "integer"}] * 3}) == "list of 3 integers"
    assert said({"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]}) == (
        "number or list of numbers"
    )
    single = {"type": "string"}
    assert said({"anyOf": [single, {"type": "array", "items": single, "minItems": 1}]}) == "text; or an axis"
    assert said({"type": "object", "additionalProperties": {"type": "string"}}) == "by name: text"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_in_markdown_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match("https?:", link):
            path, _, anchor = link.partition("#")
            target = Path(os.path.normpath(page.parent / path)) if path else page
            assert target.exists(), link
            if anchor:
                assert anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors that a repository host gives to headings, of a link by its text alone."""
    headings = [re.sub(r"\]\([^)]*\)", "]", found) for found in re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
