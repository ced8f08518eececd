"""Results are sealed: what was written reads back exactly, and anything else does not read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reproduce.experiment.identity import RunConfig, canonical_json
from reproduce.experiment.recipe import ConstantRate, CosineRate, DecayRate, PlateauRate, Recipe, Schedule, StepRate
from reproduce.experiment.schema import TaskSpec
from reproduce.results import store
from reproduce.results.record import (
    BINS,
    PROJECTIONS,
    QUANTILES,
    SCHEMA_VERSION,
    Environment,
    EpochRecord,
    Final,
    Result,
    SiteStatistics,
    device_kind,
)
from reproduce.results.spelling import content_of
from reproduce.results.store import ResultError, copy_result, read_result, read_results, write_result
from tests.unit.small_runs import resealed

ENVIRONMENT = Environment(
    commit="0" * 40,
    dirty=False,
    packages={"torch": "2.15.0"},
    python="3.11",
    platform="Linux",
    device="cpu (é)",
    precision="float32",
    threads=1,
    wall_seconds=1.5,
    peak_memory_bytes=2**33,
    finished="2026-01-01T00:00:00+00:00",
)


def epoch_record(**changes: Any) -> EpochRecord:
    content = {"epoch": 1, "step": 9, "train_loss": 0.5, "penalty": 0.0, "learning_rate": 0.1, "seconds_per_step": 0.01}
    return EpochRecord(**{**content, **changes})


def result_of(config: RunConfig, epochs: tuple[EpochRecord, ...] = (), **changes: Any) -> Result:
    content: dict[str, Any] = {
        "id": config.id,
        "config": config,
        "defaults": {},
        "status": "completed",
        "metric": "error",
        "parameters": 10,
        "epochs": epochs,
        "final": Final(selection="last", epoch=1, validation={}, test={"error": 1.5}),
        "environment": ENVIRONMENT,
    }
    return Result(**{**content, **changes})


def config_of(schedule: Schedule | None = None, **changes: Any) -> RunConfig:
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1, schedule=schedule or ConstantRate())
    content: dict[str, Any] = {
        "task": TaskSpec(kind="image_classification", dataset="digits", model="mlp", model_options={"width": 8}),
        "dataset_checksum": "abc",
        "recipe": recipe,
        "method": "per",
        "method_version": 1,
        "params": {"strength": 1e-4, "mode": "exact"},
        "seed": 0,
    }
    return RunConfig(**{**content, **changes})


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "result.json"
    write_result(result_of(config_of(), (epoch_record(),)), path)
    return path


def same(left: Any, right: Any) -> bool:
    """Equality in which NaN equals NaN."""
    if isinstance(left, float) and isinstance(right, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right and type(left) is type(right)


def test_what_is_written_reads(sealed: Path) -> None:
    result = read_result(sealed)
    assert result.model_copy(update={"seal": ""}) == result_of(config_of(), (epoch_record(),))
    assert len(result.seal) == 64
    assert [path.name for path in sealed.parent.iterdir()] == ["result.json"]


ADDED = {
    "mode": "eager",
    "fp32_precision": {"convolution": "tf32", "rnn": "tf32", "matrix product": "ieee"},
    "cudnn_benchmark": False,
    "runs_on_device": 8,
    "processes": 2,
    "peak_memory_of": "process",
}


def test_what_was_added_later_is_left_out_where_it_was_not_kept(tmp_path: Path) -> None:
    """Older Results have none of it: sealed again, they have the same seal."""
    older, newer = tmp_path / "older.json", tmp_path / "newer.json"
    write_result(result_of(config_of()), older)
    content = json.loads(older.read_text("utf-8"))
    assert "site_order" not in content
    assert content["environment"].keys() == set(Environment.model_fields) - set(ADDED)
    order = ("layers.10.pre", "layers.9.pre")
    made = result_of(config_of(), site_order=order, environment=ENVIRONMENT.model_copy(update=ADDED))
    assert write_result(made, newer).environment.model_dump() == ENVIRONMENT.model_dump() | ADDED
    assert read_result(newer).site_order == order
    assert read_result(older).environment.cudnn_benchmark is None


@pytest.mark.parametrize(
    "schedule",
    [
        ConstantRate(),
        StepRate(kind="step", milestones=(3, 5)),
        StepRate(kind="step", milestones=(3, 5), factor=(0.2, 0.1), unit="steps"),
        DecayRate(kind="decay", after=6, factor=0.8),
        PlateauRate(kind="plateau"),
        CosineRate(kind="cosine"),
    ],
)
def test_every_schedule_can_be_sealed(tmp_path: Path, schedule: Schedule) -> None:
    result = result_of(config_of(schedule))
    assert write_result(result, tmp_path / "result.json").config == result.config


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    statistics = SiteStatistics(
        mean=math.nan,
        mean_square=math.inf,
        norm_dispersion=0.0,
        effective_rank=1.0,
        unit_quantiles=(-math.inf, math.nan, 0.0, 1.0, math.inf),
    )
    record = epoch_record(
        train_loss=math.nan, penalty=math.inf, test={"loss": -math.inf, "error": math.nan}, sites={"a": statistics}
    )
    result = result_of(config_of(), (record,), status="diverged", diverged_step=8, final=None)
    path = tmp_path / "result.json"
    write_result(result, path)
    assert same(read_result(path).epochs[0].model_dump(), record.model_dump())

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text("utf-8"), parse_constant=refuse)  # any other reader takes it as well


numbers = st.floats(allow_nan=True, allow_infinity=True)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | names
metrics = st.dictionaries(names, numbers, max_size=3)
sites = st.builds(
    SiteStatistics,
    mean=numbers,
    mean_square=numbers,
    norm_dispersion=numbers,
    effective_rank=numbers,
    unit_quantiles=st.lists(numbers, max_size=5).map(tuple),
)
epochs = st.builds(
    EpochRecord,
    epoch=st.integers(0, 10**6),
    step=st.integers(0, 10**9),
    train_loss=numbers,
    penalty=numbers,
    learning_rate=numbers,
    validation=metrics,
    test=metrics,
    sites=st.dictionaries(names, sites, max_size=2),
    seconds_per_step=numbers,
)
configs = st.builds(
    config_of,
    task=st.builds(
        TaskSpec,
        kind=names,
        dataset=names,
        model=names,
        model_options=st.dictionaries(names, scalars, max_size=3),
        validation=st.none() | st.integers(1, 9),
    ),
    dataset_checksum=names,
    method=names,
    params=st.dictionaries(names, scalars | st.lists(scalars, max_size=2) | st.none(), max_size=3),
    seed=st.integers(0, 2**31),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs, records=st.lists(epochs, max_size=2).map(tuple), final=metrics)
def test_any_result_comes_back(
    tmp_path: Path, config: RunConfig, records: tuple[EpochRecord, ...], final: dict[str, float]
) -> None:
    counted = Final(selection="best_test", epoch=1, validation=final, test={})
    result = result_of(config, records, final=counted, defaults=config.params)
    path = tmp_path / "result.json"
    returned = write_result(result, path)
    read = read_result(path)
    assert same(read.model_dump(exclude={"seal"}), result.model_dump(exclude={"seal"}))
    assert read.config.id == config.id
    assert read.seal == returned.seal
    assert write_result(read, path).seal == read.seal  # sealing again changes nothing


@pytest.mark.fault(
    what="an edited Result",
    injected="a metric is changed by hand",
    promise="its seal does not hold: it is named, skipped and counted, and never judged",
)
def test_an_edited_result_does_not_read(sealed: Path) -> None:
    text = sealed.read_text("utf-8")
    assert '"error":1.5' in text
    sealed.write_text(text.replace('"error":1.5', '"error":1.4'), "utf-8")
    with pytest.raises(ResultError, match=r"result\.json: its seal does not match its content"):
        read_result(sealed)


def test_respelled_json_still_reads(sealed: Path) -> None:
    before = read_result(sealed)
    sealed.write_text(json.dumps(json.loads(sealed.read_text("utf-8"))), "utf-8")
    assert read_result(sealed) == before


@pytest.mark.fault(
    what="a Result that is cut off",
    injected="at every 97th length",
    promise="it does not read, and is named",
)
def test_truncated_anywhere_it_does_not_read(sealed: Path) -> None:
    whole = sealed.read_bytes()
    for length in range(0, len(whole) - 2, 97):
        sealed.write_bytes(whole[:length])
        with pytest.raises(ResultError, match=r"result\.json: not a readable Result") as caught:
            read_result(sealed)
        assert "\n" not in str(caught.value)


@pytest.mark.fault(
    what="a Result of a newer suite",
    injected="its schema version is raised",
    promise="it is refused in one line",
)
def test_another_schema_does_not_read(sealed: Path) -> None:
    resealed(sealed, schema_version=2)
    with pytest.raises(ResultError, match=r"schema version 2, expected 1"):
        read_result(sealed)
    sealed.write_text("[]", "utf-8")
    with pytest.raises(ResultError, match=r"schema version list, expected 1"):
        read_result(sealed)


def test_a_sealed_lie_does_not_read(sealed: Path) -> None:
    content = content_of(sealed.read_text("utf-8"))
    resealed(sealed, config={**content["config"], "seed": 1})
    with pytest.raises(ResultError, match=r"is not the hash of its config"):
        read_result(sealed)
    resealed(sealed, config=content["config"], surprise=1)
    with pytest.raises(ResultError, match=r"result\.json: surprise: "):
        read_result(sealed)


def test_reading_many_names_the_bad_ones(sealed: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{", "utf-8")
    results, problems = read_results([sealed, bad, tmp_path / "nothing.json"])
    assert [result.id for result in results] == [config_of().id]
    assert [problem.split(":")[0] for problem in problems] == [str(bad), str(tmp_path / "nothing.json")]


def test_a_crash_before_the_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            write_result(result_of(config_of()), path)
    assert not path.exists()
    assert write_result(result_of(config_of()), path) == read_result(path)


def test_a_crash_while_rewriting_leaves_the_old(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sealed.read_bytes()

    def crash(path: Path, content: bytes) -> None:
        path.write_bytes(content[:1])
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_flushed", crash)
        with pytest.raises(OSError, match="disk full"):
            write_result(result_of(config_of(seed=5)), sealed)
    assert sealed.read_bytes() == before


@pytest.mark.fault(
    what="a Result in another run's folder",
    injected="a sealed file is copied there",
    promise="it is refused: its id is not the run's",
)
def test_a_result_of_another_run_is_not_copied(sealed: Path, tmp_path: Path) -> None:
    own = read_result(sealed).id
    with pytest.raises(ResultError, match=f"holds the Result of run {own}, expected 0000"):
        copy_result(sealed, tmp_path / "copy.json", of_run="0000")
    assert not (tmp_path / "copy.json").exists()
    assert copy_result(sealed, tmp_path / "copy.json", of_run=own).id == own


def test_a_result_that_would_not_read_is_never_put_in_place(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(ResultError, match="is not the hash of its config"):
        write_result(result_of(config_of(), id="0" * 16), path)
    assert not path.exists()


def test_canonical_json_is_one_spelling() -> None:
    assert canonical_json({"b": 0.1, "a": [1, "é", None, True]}) == '{"a":[1,"é",null,true],"b":0.1}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


def test_folder_ends_in_the_id() -> None:
    config = config_of(seed=3)
    assert config.folder == f"digits-mlp-per-seed3-{config.id}"


@pytest.mark.parametrize(
    ("device", "kind"),
    [
        ("cuda:1 (NVIDIA H100)", "NVIDIA H100"),
        ("cuda:0 (NVIDIA H100, 2 processes)", "NVIDIA H100, 2 processes"),
        ("cpu (Intel(R) Xeon(R))", "Intel(R) Xeon(R)"),
        ("cpu", "cpu"),
        ("", ""),
    ],
)
def test_devices_of_one_kind_have_one_name(device: str, kind: str) -> None:
    assert device_kind(device) == kind


def test_what_sealed_statistics_are_of_has_not_moved() -> None:
    """A Result does not say at which quantiles, in how many bins and over how many directions: these numbers stay."""
    assert QUANTILES == (0.15, 0.25, 0.5, 0.75, 0.85)
    assert (SCHEMA_VERSION, BINS, PROJECTIONS) == (1, 24, 64)
