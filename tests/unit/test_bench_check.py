"""`check`: what is sound passes on the CPU, what is not becomes a line, and one failing part stops no other."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from reproduce.bench import check as check_module
from reproduce.bench.agreement import Quantities, replay_on_tiny_task, step_beside_cpu, two_tasks
from reproduce.bench.check import LARGE, TRAINED_AT_ONCE, Findings, check
from reproduce.bench.counting import copy_bandwidth, operations_of
from reproduce.bench.draws import DrawsOfTheCpu
from reproduce.bench.facts import mps_state
from reproduce.bench.side_by_side import RunsAtOnce, measure, recommended_jobs
from reproduce.bench.tiny_tasks import CPU, PROBLEMS
from reproduce.bench.waits import forbidden_waits
from reproduce.bench.workloads import BASELINE, networks
from reproduce.cli.commands import app
from reproduce.cli.estimates import in_file_names
from reproduce.method import Method, Role, Trace, Unregularized
from reproduce.method.sites import ROLES
from reproduce.results.record import device_kind
from reproduce.training.estimate import read_step_times
from reproduce.training.side_by_side import DeviceFacts

IMAGES = PROBLEMS[0]


def size(trace: Trace) -> Tensor:
    return torch.stack([record.activation.square().mean() for record in trace.records]).sum()


class _ReadsEverything(Method):
    recorded_roles: ClassVar[frozenset[Role]] = ROLES


class Sound(_ReadsEverything):
    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return 0.01 * size(trace) * torch.rand((), generator=generator)


class Waiting(_ReadsEverything):
    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        found = size(trace)
        return 0.01 * found * (1.0 if found.item() > 0 else 2.0)


class FollowingTheHost(_ReadsEverything):
    """Other numbers in replay, where Python is not asked again."""

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        return 0.01 * size(trace) * float(progress.detach().numpy())


class Remembering(_ReadsEverything):
    """Other numbers in the second training, as on a device that computes something else."""

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        CALLS.append(1)
        return 0.01 * size(trace) * len(CALLS)


class Unwilling(Method):
    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        raise ValueError("needs another model")


class Breaking(Method):
    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


CALLS: list[int] = []


def folder(tmp_path: Path, method_class: type[Method]) -> Any:
    return SimpleNamespace(name="made", path=tmp_path, load=lambda: method_class)


@pytest.mark.slow
def test_the_command_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts on toys, of one method; what is written has what `plan` reads."""
    monkeypatch.setattr("reproduce.bench.step_times.SECONDS_PER_ROUND", 0.01)
    answer = CliRunner().invoke(app, ["check", BASELINE, "--device", "cpu", "--small", "--output", str(tmp_path)])
    assert answer.exit_code == 0, (answer.stdout, answer.stderr)
    (path,) = tmp_path.glob("*.json")
    written = json.loads(path.read_text("utf-8"))
    assert written["machine"]["device"].startswith("cpu (")
    assert written["versions"]["torch"] == torch.__version__
    assert written["facts"]["LSTM under bfloat16 autocast gives"] == "bfloat16"
    assert written["counts"] == {
        "beside the CPU": len(PROBLEMS),
        "replays": len(LARGE) + 2,
        "step times": 2 * len(LARGE),
        "side by side": 2 * len(TRAINED_AT_ONCE),
    }
    timed = [(step["workload"], step["precision"]) for step in written["timed"]]
    assert timed == [(name, precision) for name in LARGE for precision in ("float32", "bfloat16")]
    keys = "workload", "method", "variant", "precision", "mode", "seconds", "operations", "bytes"
    for step in written["timed"]:
        assert tuple(step) == keys
        assert (step["method"], step["mode"]) == (BASELINE, "eager")
        assert step["seconds"] > 0
    device, times = read_step_times(path)
    assert f"cpu ({device})" == written["machine"]["device"]
    assert [time.seconds for time in times] == sorted((step["seconds"] for step in written["timed"]), reverse=True)
    assert set(written["recommended_jobs"]) == set(TRAINED_AT_ONCE)
    assert written["problems"] == written["remarks"] == []
    for shown in ("torch", "GB/s", "floor ms", "mlp_8x256", "--jobs", "no problems; written: "):
        assert shown in answer.stdout


@pytest.mark.parametrize("method", [Unregularized(), Sound()])
def test_a_sound_method_is_no_problem(method: Method) -> None:
    assert step_beside_cpu(method, IMAGES, CPU) == []
    assert replay_on_tiny_task(method, IMAGES, CPU, 8) == []


def test_a_method_that_waits_is_found() -> None:
    (line,) = step_beside_cpu(Waiting(), IMAGES, CPU) or []
    assert line.startswith("a step waits: aten._local_scalar_dense.default waits for the device")
    assert replay_on_tiny_task(Waiting(), IMAGES, CPU, 8) == ["its steps cannot be captured"]


def test_other_numbers_in_replay_are_found() -> None:
    found = replay_on_tiny_task(FollowingTheHost(), IMAGES, CPU, 8)
    assert [line.partition(" after replayed steps differs by ")[0] for line in found] == ["loss", "penalty", "norm"]
    assert all(line.endswith("which themselves differ by 0 when repeated") for line in found)


def test_other_numbers_than_the_cpus_are_found() -> None:
    lines = step_beside_cpu(Remembering(), IMAGES, CPU) or []
    assert any(line.startswith("penalty of a step is ") for line in lines)


def test_what_is_refused_is_no_problem() -> None:
    assert step_beside_cpu(Unwilling(), IMAGES, CPU) is None
    assert two_tasks(Unwilling()) == []
    assert [problem.spec.model for problem in two_tasks(Unregularized())] == ["resnet", "lstm"]


def test_numbers_that_are_not_finite_differ() -> None:
    nan = Quantities(float("nan"), 0.0, 1.0)
    assert nan.differences(nan) == {"loss": float("inf"), "penalty": 0.0, "norm": 0.0}


def test_faults_become_lines_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> float:
        raise RuntimeError("no such instruction\nand more lines")

    monkeypatch.setattr(check_module, "copy_bandwidth", broken)
    monkeypatch.setattr(check_module, "step_times", broken)
    monkeypatch.setattr(check_module, "LARGE", ("mlp_8x256",))
    monkeypatch.setattr(check_module, "TRAINED_AT_ONCE", ("mlp_8x256",))
    monkeypatch.setattr(check_module, "PROBLEMS", (IMAGES,))
    folders = {"made": folder(tmp_path, Waiting), "broken": folder(tmp_path, Breaking)}
    parts = list(check(folders, CPU, small=True))
    assert [part for part, _ in parts] == ["facts", "beside the CPU", "replays", "step times", "side by side"]
    found = parts[-1][1]
    assert "copying: RuntimeError: no such instruction" in found.problems
    assert f"{BASELINE} defaults on mlp_8x256, float32: RuntimeError: no such instruction" in found.problems
    illegal = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert {f"broken defaults on {IMAGES.name}: {illegal}", f"broken defaults: {illegal}"} <= {*found.problems}
    assert any(line.startswith(f"made defaults on {IMAGES.name}: a step waits: ") for line in found.problems)
    assert f"made defaults on {IMAGES.name}: its steps cannot be captured" not in found.problems  # on two other tasks
    assert sum("its steps cannot be captured" in line for line in found.problems) == 2
    assert [row.at_once for row in found.side_by_side] == [1, 2]


def test_problems_end_the_command_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Findings("cuda:0 (NVIDIA H100 80GB HBM3)", problems=["x on y: a step waits: item"])
    monkeypatch.setattr(check_module, "check", lambda *given: iter([("facts", found)]))
    answer = CliRunner().invoke(app, ["check", BASELINE, "--device", "cpu", "--output", str(tmp_path), "--json"])
    assert answer.exit_code == 1
    assert answer.stderr == "problem: x on y: a step waits: item\n"
    assert json.loads(answer.stdout) == json.loads((tmp_path / "nvidia-h100-80gb-hbm3.json").read_text("utf-8"))


def test_what_does_not_fit_into_its_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(check_module.SECONDS, "replays", -1.0)
    found = Findings("cpu")
    found.work_through("replays", [("a", lambda: []), ("b", lambda: [])], CPU)
    assert found.remarks == ["replays: 2 of 2 left out after -5 s, from a on"]
    assert found.counts == {}


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu (Intel(R) Xeon(R))", "intel-r-xeon-r"), ("cuda:1 (NVIDIA H200)", "nvidia-h200")]
)
def test_a_file_is_called_after_the_kind_of_device(device: str, expected: str) -> None:
    assert in_file_names(device_kind(device)) == expected


def test_draws_of_the_cpu_are_those_of_each_generator() -> None:
    def drawn(seed: int) -> list[Tensor]:
        one, other = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
        filled = torch.zeros(3)
        return [
            torch.rand(3, generator=one, device="cpu"),
            torch.randn(2, 2, generator=other, dtype=torch.float64),
            filled.uniform_(1, 2, generator=one),
            torch.empty(4).bernoulli_(0.5, generator=other),
            torch.bernoulli(torch.full((4,), 0.5), generator=one),
            torch.randperm(5, generator=other),
            torch.randint(0, 9, (3,), generator=one),
            filled,
        ]

    with DrawsOfTheCpu():
        given = drawn(3)
    assert all(torch.equal(one, other) for one, other in zip(given, drawn(3), strict=True))
    assert not torch.equal(given[0], drawn(4)[0])


def test_draws_of_the_cpu_arrive_where_they_were_asked_for() -> None:
    meta = torch.Generator().manual_seed(0)  # torch has none for a device without values
    with DrawsOfTheCpu():
        assert torch.rand(3, generator=meta, device="meta").device.type == "meta"
        assert torch.randperm(3, generator=meta, device="meta").device.type == "meta"


def test_operations_and_their_bytes() -> None:
    matrix, bias = torch.zeros(4, 8), torch.zeros(8)
    counted = operations_of(lambda: (matrix.t().reshape(4, 8).view(-1), torch.empty(100)))
    assert dict(counted.by_name) == {"clone": 1}  # of the transposed matrix, which has no view of that shape
    assert counted.bytes == 2 * 4 * 32
    counted = operations_of(lambda: matrix + bias.expand(4, 8))
    assert (counted.count, counted.bytes) == (1, 4 * (32 + 8 + 32))
    counted = operations_of(lambda: torch._foreach_mul_([matrix, bias], 2.0))
    assert (counted.count, counted.bytes) == (1, 4 * (32 + 8))  # nothing comes back from an operation in place


def test_a_copy_has_a_speed() -> None:
    assert 1e8 < copy_bandwidth(CPU, 2**20) < 1e13


def test_the_fewest_runs_that_are_nearly_as_fast() -> None:
    rows = [RunsAtOnce("x", n, seconds, None) for n, seconds in ((1, 1.0), (2, 0.6), (4, 0.59), (8, 0.5))]
    assert recommended_jobs(rows) == 8
    assert recommended_jobs(rows[:3]) == 2
    assert recommended_jobs([RunsAtOnce("x", n, float(n), None) for n in (1, 2)]) == 1


def test_a_run_that_fails_beside_others_stops_them() -> None:
    network = networks(small=True)["mlp_8x256"]
    with pytest.raises(ValueError, match="needs another model"):
        measure(network, Unwilling(), CPU, 2, 3)


@pytest.mark.parametrize(
    ("daemon", "installed", "expected"),
    [
        (False, False, "nvidia-cuda-mps-control is not installed"),
        (True, False, "the daemon is there"),  # in a container, of its host
        (True, True, "the daemon is there"),
        (False, True, "no daemon: `nvidia-cuda-mps-control -d` starts one"),
    ],
)
def test_the_daemon_for_processes_side_by_side(daemon: bool, installed: bool, expected: str) -> None:
    assert mps_state(DeviceFacts("cuda:0", 2, mps=daemon, mps_installed=installed)) == expected


def test_waits_are_forbidden_for_a_while() -> None:
    value = torch.ones(())
    with pytest.raises(RuntimeError, match="waits for the device"), forbidden_waits(CPU):
        value.item()
    with pytest.raises(RuntimeError, match=r"Tensor\.tolist waits"), forbidden_waits(CPU):
        value.tolist()
    assert value.item() == 1
