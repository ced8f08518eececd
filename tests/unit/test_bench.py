"""The bench: its steps are the loop's steps, and who is timed on which workload."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from reproduce import models, tasks
from reproduce.bench.beside_plain import clip_apart, plain_process
from reproduce.bench.measure import as_json, bench, bench_operations, bench_steps, machine
from reproduce.bench.plain import image_steps, word_steps
from reproduce.bench.startup import startup_seconds
from reproduce.bench.stepper import Stepper
from reproduce.bench.timing import interleaved, ratio_row
from reproduce.bench.workloads import networks, workloads
from reproduce.cli.terminal import bench_table
from reproduce.errors import UserError
from reproduce.experiment.folder import find_method
from reproduce.method import Method, Role, Trace, Unregularized
from reproduce.method.rng import Generators
from reproduce.method.sites import ROLES
from reproduce.models import Sizes
from reproduce.training.estimate import Estimates, Work, read_step_times, way_of
from reproduce.training.loop import train

CPU = torch.device("cpu")
SMALL = {workload.name: workload for workload in workloads(small=True)}


class Decaying(Method):
    """Adds to the loss, draws, and rewrites weights after the step."""

    recorded_roles: ClassVar[frozenset[Role]] = ROLES

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return 0.01 * trace.records[0].activation.square().mean() * torch.rand((), generator=generator)

    def after_step(self, model: Any, optimizer: Any, progress: Tensor, generator: torch.Generator) -> None:
        with torch.no_grad():
            next(model.parameters()).mul_(0.5)


class Unwilling(Method):
    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        raise ValueError("the model has a Site 'x' that this method cannot read")


def folder(tmp_path: Path, method_class: type[Method], variants_toml: str) -> Any:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "variants.toml").write_text(variants_toml, "utf-8")
    return SimpleNamespace(name="made", path=tmp_path, load=lambda: method_class)


@pytest.mark.parametrize("name", ["lstm", "autoencoder"])
def test_a_timed_step_is_a_step_of_the_loop(name: str, tmp_path: Path) -> None:
    workload, steps = SMALL[name], 2
    stepper = Stepper(workload, Decaying(), CPU)  # takes the first step
    for _ in range(steps - 1):
        stepper()
    generators = Generators.seeded(0, CPU)
    recipe = workload.recipe.model_copy(update={"steps": steps})
    task = tasks.build(workload.task, recipe, workload.data(), generators, CPU)
    train("loop", recipe, task, Decaying(), generators, CPU, tmp_path)
    timed, looped = stepper.task.model.state_dict(), task.model.state_dict()
    assert timed.keys() == looped.keys()
    for key, value in timed.items():
        assert torch.equal(value, looped[key]), key


def test_the_workload_with_a_code_is_for_those_who_name_it(tmp_path: Path) -> None:
    named = "[variants.a]\n[variants.b]\nworkloads = ['autoencoder']\n[variants.c]\nworkloads = []\n"
    made = folder(tmp_path, Unregularized, named)
    timed = {name: bench_steps(made, workload, CPU, 1) for name, workload in SMALL.items() if name != "cnn11"}
    again = "step: vanilla again / vanilla"
    assert [row.what for row in timed["lstm"]] == [again, "step: made a / vanilla"]
    assert [row.what for row in timed["autoencoder"]] == [again, "step: made b / vanilla"]
    assert {row.where for row in timed["autoencoder"]} == {"autoencoder"}


def test_a_bench_says_what_methods_cost_where_plan_reads_it(tmp_path: Path) -> None:
    """PER's step beside vanilla's here is taken for PER's elsewhere, where vanilla alone is known."""
    rows = bench_steps(find_method("per"), SMALL["lstm"], CPU, 1)
    content = as_json(rows)
    assert "step" not in content["rows"][0]
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"machine": machine(CPU), **content}), "utf-8")
    kind, times = read_step_times(path)
    assert kind == machine(CPU)["kind"] != ""
    vanilla, *variants = times
    assert vanilla.way == way_of("vanilla", {})
    known = Estimates(files=[path])
    elsewhere = vanilla.model_copy(update={"problem": "p", "steps_per_epoch": 10.0, "evaluation_seconds": 0.0})
    known.add(kind, elsewhere.model_copy(update={"seconds": 1.0}))
    found = known.seconds(Work("p", variants[0].way, None, 10, 1), kind)
    assert found == pytest.approx(10 * variants[0].seconds / vanilla.seconds)


def test_dead_latents_are_resampled_while_timed() -> None:
    """The sparse autoencoder's variant that acts after each step is timed with that work in it."""
    variant = {"l1_coefficient": 0.1, "norm_weighted": True, "resample_every": 8}
    stepper = Stepper(SMALL["autoencoder"], find_method("sparse_autoencoder").load()(**variant), CPU)
    stepper()
    assert stepper.task.model.resampling.steps == 2


def test_what_a_method_refuses_is_said_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = bench_steps(folder(tmp_path, Unwilling, "[variants.a]\n"), SMALL["lstm"], CPU, 1)
    assert [row.what for row in rows] == ["step: vanilla again / vanilla"]
    assert capsys.readouterr().err == (
        "not timed: made a refuses lstm: the model has a Site 'x' that this method cannot read\n"
    )
    named = folder(tmp_path, Unwilling, "[variants.a]\nworkloads = ['lstm']\n")
    with pytest.raises(UserError, match=r"^variants\.toml times 'made a' on 'lstm': the model has a Site 'x'"):
        bench_steps(named, SMALL["lstm"], CPU, 1)


@pytest.mark.parametrize("key", ["workloads", "limit_on"])
def test_an_unknown_workload_is_named(key: str, tmp_path: Path) -> None:
    made = folder(tmp_path, Method, f"[variants.a]\n{key} = ['lstm', 'cnn']\n")
    with pytest.raises(UserError, match=r"'made a': unknown workload 'cnn', there are cnn11, lstm, autoencoder$"):
        next(bench({"made": made}, CPU, 1, small=True))


def test_methods_are_timed_one_by_one_and_the_loop_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each ratio has vanilla steps of its own minute, and what is timed is shown before the next begins."""
    monkeypatch.setattr("reproduce.bench.measure.bench_functions", lambda one, *_: [f"losses of {one.path.name}"])
    monkeypatch.setattr("reproduce.bench.measure.bench_steps", lambda one, workload, *_: [one.path.name, workload.name])
    monkeypatch.setattr("reproduce.bench.measure.bench_loop", lambda workload, *_: f"loop {workload.name}")
    monkeypatch.setattr(
        "reproduce.bench.measure.bench_operations", lambda folders, small: [f"operations {len(folders)}"]
    )
    monkeypatch.setattr("reproduce.bench.measure.rows_beside_plain", lambda rounds, small: iter([f"plain {rounds}"]))
    monkeypatch.setattr("reproduce.bench.measure.startup_seconds", lambda rounds: ([0.3], [0.2]))
    named = "[variants.a]\nworkloads = ['lstm']\n"
    folders = {"x": folder(tmp_path / "x", Method, named), "y": folder(tmp_path / "y", Method, "[variants.a]\n")}
    *groups, (start,) = bench(folders, CPU, 1, small=True)
    assert groups == [
        ["losses of x", "x", "lstm"],
        ["losses of y", "y", "cnn11", "y", "lstm"],
        ["loop cnn11", "loop lstm"],
        ["operations 2"],
        ["plain 3"],
    ]
    assert (start.what, start.ratio, start.kept) == ("start / typer, pydantic", pytest.approx(1.5), True)


def test_operations_are_counted_where_a_number_is_promised(tmp_path: Path) -> None:
    toml = "[variants.a]\noperations = 1\n[variants.b]\n[variants.c]\noperations = 9999\n"
    vanilla, a, c = bench_operations({"made": folder(tmp_path, Decaying, toml)}, small=True)
    assert (vanilla.what, vanilla.ratio, vanilla.kept) == ("operations: vanilla", 1.0, None)
    assert (a.what, a.limit, a.kept) == ("operations: made a / vanilla", "<= 1", False)
    assert (c.limit, c.kept) == ("<= 9999", True)
    # Square, mean, draw, two products, as many backwards, and the halved weight: a few more than without.
    assert vanilla.operations is not None
    assert a.operations == c.operations
    assert vanilla.operations < a.operations < vanilla.operations + 25
    shown = Console(width=100, file=StringIO())
    shown.print(bench_table([a], show_header=True))
    assert f" {a.operations} " in shown.file.getvalue()


def test_the_plain_loop_trains_the_same_model() -> None:
    """On words, where nothing is drawn but the masks: the same weights after some steps, up to rounding."""
    workload = networks(small=True)["lstm_2x200"]
    ours = Stepper(workload, Unregularized(), CPU)
    model = models.build("lstm", dict(workload.task.model_options), Sizes((), 50), *_streams())
    data = workload.data()
    tokens = data.train.view(workload.recipe.batch_size, -1).t()
    step = word_steps(model, tokens, model.initial_state(workload.recipe.batch_size), 35, 1.0, 0.25)
    step()
    for _ in range(3):
        ours()
        step()
    for name, value in ours.task.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def _streams() -> tuple[torch.Generator, torch.Generator]:
    generators = Generators.seeded(0, CPU)
    return generators.initialisation, generators.dropout


def test_the_plain_loop_learns_images() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(32) % 4
    images = torch.randn(32, 1, 2, 2, generator=generator) + 4 * nn.functional.one_hot(labels, 4).view(32, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4))
    step = image_steps(model, images, labels, 8, rate=0.1, momentum=0.9, decay=0.0)
    for _ in range(40):
        step()
    assert (model(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.slow
def test_the_plain_loop_runs_in_a_process_of_its_own() -> None:
    with plain_process("resnet20", small=True) as seconds:
        assert 0 < seconds(2) < 60
        with pytest.raises(RuntimeError, match="the plain loop on resnet20 has ended"):
            seconds("two")  # type: ignore[arg-type]  # with which that process ends


def test_clipped_one_by_one_or_together_gives_the_same_bits() -> None:
    workload = networks(small=True)["mlp_8x256"]
    together, apart = (Stepper(workload, Unregularized(), CPU) for _ in range(2))
    clip_apart(apart)
    for _ in range(5):
        together()
        apart()
    state = apart.task.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in together.task.model.state_dict().items())
    with pytest.raises(ValueError, match="expected, found clip"):
        clip_apart(apart)


def test_the_start_is_measured_beside_its_libraries() -> None:
    ours, theirs = startup_seconds(2)
    assert len(ours) == len(theirs) == 2
    assert min(ours) > min(theirs) > 0  # the command line imports them too


def test_timings_are_interleaved_and_compared_round_by_round() -> None:
    calls: list[str] = []
    found = interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, CPU, rounds=3)
    assert "".join(calls) == "abbaab"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    # The machine halves its speed in the second round: the ratio does not see it.
    row = ratio_row("x", "y", [1.1, 2.2, 1.1, 1.1], [1.0, 2.0, 1.0, 1.0], limit=1.1)
    assert row.ratio == pytest.approx(1.1)
    assert row.high == pytest.approx(row.low)
    assert ratio_row("x", "y", [1.2, 1.2], [1.0, 1.0], limit=1.1).kept is False
    assert ratio_row("x", "y", [9.0, 9.0], [1.0, 1.0], limit=8.0, at_least=True).kept is True
