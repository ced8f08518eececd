"""From experiments to complete configs, each training once; and from one config to its sealed Result."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

from reproduce.cli import progress
from reproduce.errors import UserError
from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.dataset_card import checksum, read_card
from reproduce.experiment.folder import find_method
from reproduce.experiment.identity import RunConfig
from reproduce.experiment.recipe import PlateauRate, Recipe
from reproduce.experiment.schema import Arm, Claim, Experiment, TaskSpec
from reproduce.results.store import read_result
from reproduce.training import run as module
from reproduce.training.plan import PlannedRun, most_valuable_first, plan, resolve
from reproduce.training.run import RunSettings, execute, result_path, torch_device

DIGITS = TaskSpec(
    kind="image_classification",
    dataset="digits",
    model="mlp",
    model_options={"width": 4, "depth": 1},
    train_examples=40,
)
MNIST = {"mnist": DIGITS.model_copy(update={"dataset": "mnist"})}  # its card has no validation split
PLATEAU = Recipe(steps=2, batch_size=20, learning_rate=0.1, schedule=PlateauRate(kind="plateau"))
RECIPE = Recipe(steps=2, batch_size=20, learning_rate=0.1, probe_examples=10)


def experiment_of(arms: dict[str, Arm], **changes: Any) -> Experiment:
    content = {"title": "t", "scale": "quick", "source": "s", "seeds": (0, 1), "recipe": RECIPE}
    return Experiment(**{**content, "tasks": {"digits": DIGITS}, "arms": arms, **changes})


def cell_of(arm: Arm, **changes: Any) -> Cell:
    return cells(experiment_of({"arm": arm}, **changes))[0]


def resolved(arm: Arm) -> tuple[RunConfig, dict[str, Any]]:
    return resolve(cell_of(arm), find_method(arm.method), None)


def test_defaults_are_filled_in() -> None:
    config, defaults = resolved(Arm(method="per", params={"mode": "sliced"}))
    assert config.method == "per"
    assert config.params == {**defaults, "mode": "sliced"}
    assert {"strength", "mode", "n_slices", "sites", "features", "reduction"} == set(defaults)
    assert config.dataset_checksum == checksum(read_card("digits"), None)
    assert (config.task, config.recipe, config.seed) == (DIGITS, RECIPE, 0)


def test_a_default_spelled_out_is_the_same_run() -> None:
    _, defaults = resolved(Arm(method="per"))
    spelled = plan({"a": experiment_of({"x": Arm(method="per", params=defaults)})}, None)
    silent = plan({"b": experiment_of({"y": Arm(method="per")})}, None)
    assert [run.id for run in spelled] == [run.id for run in silent]


def test_numbers_are_spelled_one_way() -> None:
    ids = {resolved(Arm(method="per", params={"strength": value}))[0].id for value in (1, 1.0)}
    assert len(ids) == 1


def test_hyphens_do_not_make_another_run() -> None:
    (first, _), (second, _) = (resolved(Arm(method=name)) for name in ("activity-norm", "activity_norm"))
    assert first.id == second.id


@pytest.mark.parametrize(
    ("arm", "changes", "expected"),
    [
        (Arm(method="par"), {}, "unknown method 'par': did you mean per?"),
        (
            Arm(method="per", params={"strenght": 1.0}),
            {},
            "arm 'arm': method per takes strength, .* and no 'strenght', found 1.0: did you mean strength",
        ),
        (Arm(method="per", params={"strength": "1"}), {}, "method per: strength: .*found '1'"),
        (Arm(method="per", params={"strength": -1.0}), {}, "method per: strength: .*greater than or equal to 0"),
        (Arm(method="per", params={"strength": math.inf}), {}, "method per: strength: .*finite"),
        (Arm(method="per", params={"strength": date(2020, 1, 1)}), {}, "method per: strength: .*2020-01-01"),
        (Arm(model="mpl"), {}, "unknown model 'mpl': did you mean mlp"),
        (
            Arm(model_options={"widht": 3}),
            {},
            "model 'mlp' takes width, .* and no 'widht', found 3: did you mean width",
        ),
        (
            Arm(),
            {"tasks": MNIST, "recipe": PLATEAU},
            "schedule plateau: 'mnist' has no .*; set task.validation$",
        ),
        (
            Arm(recipe={"selection": "best_validation"}),
            {"tasks": MNIST},
            "selection best_validation: 'mnist' has no validation split",
        ),
        (
            Arm(),
            {"tasks": {"a": DIGITS.model_copy(update={"dataset": "digit"})}},
            "unknown dataset 'digit': did you mean digits",
        ),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(arm: Arm, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"experiment table1: .*{expected}") as caught:
        plan({"table1": experiment_of({"arm": arm}, **changes)}, None)
    assert "\n" not in str(caught.value)


def test_shared_arms_are_trained_once_and_seeds_come_first() -> None:
    first = experiment_of({"vanilla": Arm(), "per": Arm(method="per", grid={"strength": (0.1, 0.2)})})
    second = experiment_of({"none": Arm(label="another name"), "batchnorm": Arm(method="batchnorm")})
    found = plan({"table1": first, "table2": second}, None)
    assert [run.label for run in found] == [
        "table1 / vanilla / seed 0",
        "table1 / per (strength=0.1) / seed 0",
        "table1 / per (strength=0.2) / seed 0",
        "table1 / vanilla / seed 1",
        "table1 / per (strength=0.1) / seed 1",
        "table1 / per (strength=0.2) / seed 1",
        "table2 / batchnorm / seed 0",
        "table2 / batchnorm / seed 1",
    ]
    assert len({run.id for run in found}) == 8
    assert {place.experiment for run in found for place in run.places} == {"table1", "table2"}
    assert [run.config.seed for run in plan({"table1": first}, None, (7,))] == [7, 7, 7]


def test_labels_name_the_task_where_there_are_several() -> None:
    tasks = {"a": DIGITS, "b": DIGITS.model_copy(update={"train_examples": 60})}
    labels = [run.label for run in plan({"t": experiment_of({"x": Arm()}, tasks=tasks)}, None, (0,))]
    assert labels == ["t / a / x / seed 0", "t / b / x / seed 0"]


def test_settings_are_not_identity_but_data_are() -> None:
    run = plan({"a": experiment_of({"x": Arm()})}, None)[0]
    other = run.config.model_copy(update={"dataset_checksum": "other"})
    assert other.id != run.id


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return RunSettings(runs=tmp_path / "runs", root=None, cache=tmp_path / "cache", device="cpu", threads=1)


def planned(arm: Arm | None = None, **changes: Any) -> PlannedRun:
    return plan({"table1": experiment_of({"arm": arm or Arm()}, **changes)}, None, (0,))[0]


def test_execute_seals_what_it_trained(settings: RunSettings) -> None:
    run = planned(Arm(method="batchnorm"))
    result = execute(run, replace(settings, at_once=3))
    path = result_path(settings.runs, run.config)
    assert read_result(path) == result
    assert {file.name for file in path.parent.iterdir()} >= {"result.json"}
    assert not (path.parent / "checkpoint.pt").exists()
    assert (result.id, result.status, result.metric, result.defaults) == (run.id, "completed", "error", run.defaults)
    assert result.site_order == ("layers.0.pre", "layers.0.post")
    assert result.parameters == 64 * 4 + 4 + 4 + 4 + 4 * 10 + 10
    assert result.final is not None
    assert (result.final.selection, result.final.epoch) == ("last", 1)
    assert result.final.test == result.epochs[-1].test
    environment = result.environment
    assert (environment.threads, environment.resumed, environment.precision) == (1, 0, "float32")
    assert environment.packages["torch"] == torch.__version__.partition("+")[0]
    assert environment.wall_seconds > 0
    assert environment.peak_memory_bytes > 10**6
    assert (environment.mode, environment.runs_on_device, environment.cudnn_benchmark) == ("eager", 3, None)
    assert environment.fp32_precision == {"convolution": "ieee", "rnn": "ieee", "matrix product": "ieee"}
    assert environment.peak_memory_of in ("run", "process")


def test_a_package_that_is_missing_is_said_and_not_asked_for(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "a-package-of-nobody"))
    packages = execute(planned(), settings).environment.packages
    assert packages.keys() == {"torch", "a-package-of-nobody"}
    assert packages["a-package-of-nobody"] is None


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_cannot_be_sealed_is_not_trained(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that does not read back, and a device that cannot be named: both are found before the first step."""

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it was trained")

    monkeypatch.setattr(module, "train", never)
    unreadable = replace(planned(), config=planned().config.model_copy(update={"method_version": "one"}))
    with pytest.raises(UserError, match="could not be sealed"):
        execute(unreadable, settings)

    def unnamed(device: torch.device, processes: int) -> str:
        raise RuntimeError("no driver")

    monkeypatch.setattr(module, "device_name", unnamed)
    with pytest.raises(RuntimeError, match="no driver"):
        execute(planned(), settings)
    assert not list(settings.runs.rglob("*.json"))


def test_a_sealed_result_is_never_made_again(settings: RunSettings) -> None:
    """Another process may have finished this run while this one waited for its lock."""
    first = execute(planned(), settings)
    before = result_path(settings.runs, planned().config).read_bytes()
    assert execute(planned(), settings) == first
    assert result_path(settings.runs, planned().config).read_bytes() == before


def test_a_damaged_result_is_made_again(settings: RunSettings) -> None:
    first = execute(planned(), settings)
    result_path(settings.runs, planned().config).write_text("{", "utf-8")
    again = execute(planned(), settings)
    assert again.final == first.final
    assert read_result(result_path(settings.runs, planned().config)) == again


def test_divergence_is_a_sealed_result(settings: RunSettings) -> None:
    run = planned(recipe=RECIPE.model_copy(update={"learning_rate": 1e38}))
    result = execute(run, settings)
    assert (result.status, result.diverged_step, result.final) == ("diverged", 1, None)
    assert read_result(result_path(settings.runs, run.config)) == result
    assert progress.outcome(result) == "diverged at step 1"


def test_a_folder_that_cannot_be_made(settings: RunSettings, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", "utf-8")
    with pytest.raises(UserError, match="choose another folder with --runs") as caught:
        execute(planned(), settings)
    assert str(tmp_path / "runs") in str(caught.value)


def test_no_permission_to_write(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(FileLock, "acquire", lambda lock, *a, **o: refuse(Path(lock.lock_file)))
    with pytest.raises(UserError, match=r"no permission to write .*\.lock: choose another folder with --runs"):
        execute(planned(), settings)


def test_another_process_at_work(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = result_path(settings.runs, planned().config).parent
    folder.mkdir(parents=True)
    monkeypatch.setattr(module, "FileLock", lambda path, timeout: FileLock(path, timeout=0.01))
    with FileLock(folder / ".lock"), pytest.raises(UserError, match="another process is training this run"):
        execute(planned(), settings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("", "unknown device ''"),
        ("meta", "unknown device 'meta'"),
        ("cuda:99", "torch finds"),
    ],
)
def test_devices_that_are_not_there(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        torch_device(name)
    assert torch_device("cpu") == torch.device("cpu")


def test_the_most_valuable_runs_come_first() -> None:
    """One seed of everything, its baselines first, then published cells of which no Result stands beside yet."""
    tasks = {name: DIGITS.model_copy(update={"train_examples": n}) for name, n in (("a", 40), ("b", 60))}
    arms = {
        "per": Arm(method="per"),
        "none": Arm(),
        "batchnorm": Arm(method="batchnorm"),
    }
    claims = tuple(
        Claim(task=task, arm=arm, metric="test.error", value=1.0, tolerance=1.0, source="row 1")
        for task, arm in (("a", "batchnorm"), ("b", "batchnorm"), ("b", "per"))
    )
    table = experiment_of(arms, tasks=tasks, baseline="none", claims=claims)
    runs = plan({"t": table}, None)
    by_label = {run.label: run for run in runs}
    sealed = SimpleNamespace(config=by_label["t / a / batchnorm / seed 1"].config)  # of any seed: the cell stands
    ordered = most_valuable_first(runs, [sealed])  # type: ignore[list-item]
    one_seed = ["a / none", "b / none", "b / per", "b / batchnorm", "a / per", "a / batchnorm"]
    assert [run.label for run in ordered] == [f"t / {cell} / seed {seed}" for seed in (0, 1) for cell in one_seed]
    everything = most_valuable_first(plan({"t": table}, None, (5, 3)), [])
    assert [run.config.seed for run in everything] == [5] * 6 + [3] * 6  # as they were asked for


def test_a_run_of_two_experiments_counts_as_in_the_better_one() -> None:
    first = experiment_of({"plain": Arm(), "none": Arm(method="batchnorm")}, seeds=(1, 0))
    second = experiment_of({"none": Arm()}, seeds=(0,), baseline="none")
    (run,) = (one for one in plan({"a": first, "b": second}, None) if one.label == "a / plain / seed 0")
    assert (run.seed_place, run.baseline, run.published) == (0, True, False)


def test_only_these_arms_and_tasks_are_planned() -> None:
    tasks = {"a": DIGITS, "b": DIGITS.model_copy(update={"train_examples": 60})}
    table = experiment_of({"none": Arm(), "bn": Arm(method="batchnorm")}, tasks=tasks)
    found = plan({"t": table}, None, (0,), arm_names={"bn"}, task_names={"b"})
    assert [run.label for run in found] == ["t / b / bn / seed 0"]


def test_cards_and_methods_are_read_once_for_many_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from reproduce.training import plan as planning

    read: list[str] = []
    monkeypatch.setattr(planning, "read_card", lambda name: (read.append(name), read_card(name))[1])
    monkeypatch.setattr(planning, "find_method", lambda name: (read.append(name), find_method(name))[1])
    table = experiment_of({"per": Arm(method="per", grid={"strength": tuple(range(1, 30))})}, seeds=tuple(range(10)))
    assert len(plan({"t": table}, None)) == 290
    assert sorted(read) == ["digits", "per"]
