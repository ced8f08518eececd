"""Is this machine fit to train on? Facts, agreement with the CPU, replays, step times, runs side by side.

Each part tries all that it can: what fails becomes one line, and the next goes on. What a part cannot do within its
time is counted and said: a rented GPU should soon train.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from reproduce.bench.agreement import replay_on_network, replay_on_tiny_task, step_beside_cpu, two_tasks
from reproduce.bench.counting import COPIED_BYTES, copy_bandwidth
from reproduce.bench.facts import machine_facts, versions
from reproduce.bench.side_by_side import RunsAtOnce, measure, recommended_jobs, steps_to_take
from reproduce.bench.step_times import Candidate, TimedStep, step_times
from reproduce.bench.tiny_tasks import PROBLEMS, configurations
from reproduce.bench.workloads import BASELINE, networks
from reproduce.experiment.folder import MethodFolder
from reproduce.method import Method, Unregularized
from reproduce.training.capture import Mode
from reproduce.training.run import device_name

# Of a part on a GPU: after so many, nothing new begins; 140 in all. A CPU, which costs less, has five times as long.
SECONDS = {"beside the CPU": 40.0, "replays": 30.0, "step times": 50.0, "side by side": 20.0}
TIMES_AS_LONG = {"cuda": 1.0, "cpu": 5.0}
REPLAYED_STEPS = 100
PRECISIONS = ("float32", "bfloat16")
LARGE = ("resnet56", "lstm_2x650", "cnn11", "mlp_8x256")
TRAINED_AT_ONCE = ("resnet56", "lstm_2x650", "mlp_8x256")
AT_ONCE = {"cuda": (1, 2, 4, 8), "cpu": (1, 2)}

Configured = tuple[str, str, Method]  # with the names of method and configuration
Planned = tuple[str, Callable[[], list[str] | None]]  # returns lines of problems; None: the method refuses


@dataclass
class Findings:
    """All that was found; problems and remarks are lines for people."""

    device: str
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    bandwidth: float | None = None  # bytes a second that a copy reads and writes
    counts: Counter[str] = field(default_factory=Counter)
    steps: list[TimedStep] = field(default_factory=list)
    side_by_side: list[RunsAtOnce] = field(default_factory=list)
    recommended: dict[str, int] = field(default_factory=dict)  # runs at once, by network
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """What fails in here is a problem, and no more than that."""
        try:
            yield
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            self.problems.append(f"{what}: {type(error).__name__}: {first_line}")

    def work_through(self, part: str, planned: Sequence[Planned], device: torch.device) -> None:
        """Do what is planned in turn until the part's time is up; what is left out is said."""
        seconds, began = TIMES_AS_LONG[device.type] * SECONDS[part], time.monotonic()
        for position, (what, act) in enumerate(planned):
            if time.monotonic() - began > seconds:
                left_out = f"{len(planned) - position} of {len(planned)} left out after {seconds:.0f} s"
                self.remarks.append(f"{part}: {left_out}, from {what} on")
                return
            with self.trying(what):
                lines = act()
                self.counts[part if lines is not None else f"{part}, refused"] += 1
                self.problems += [f"{what}: {line}" for line in lines or ()]
            gc.collect()  # Sites and Traces hold each other, and with them a graph and its memory
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


def check(
    folders: dict[str, MethodFolder], device: torch.device, small: bool = False
) -> Iterator[tuple[str, Findings]]:
    """The parts one after another: each one's name, and all that has been found so far.

    Args:
        folders: the methods that are checked; networks are timed without a method in any case.
        small: toys in the place of networks, and fewer steps: for tests.
    """
    gc.freeze()  # what has been imported is no garbage: to look through it costs more than a tiny step
    try:
        yield from _parts(Findings(device_name(device)), folders, device, small)
    finally:
        gc.unfreeze()


def _parts(
    findings: Findings, folders: dict[str, MethodFolder], device: torch.device, small: bool
) -> Iterator[tuple[str, Findings]]:
    _facts(findings, device, small)
    yield "facts", findings
    methods: list[Configured] = []
    for name, folder in folders.items():
        with findings.trying(f"method {name}"):
            methods += [(name, variant, method) for variant, method in configurations(folder).items()]
    with _one_thread():
        _beside_cpu(findings, methods, device)
    yield "beside the CPU", findings
    with _one_thread():
        _replays(findings, methods, device, small)
    yield "replays", findings
    _step_times(findings, methods, device, small)
    yield "step times", findings
    _side_by_side(findings, device, small)
    yield "side by side", findings


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tiny tensors are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _facts(findings: Findings, device: torch.device, small: bool) -> None:
    with findings.trying("versions"):
        findings.versions = versions(device)
    for name, ask in machine_facts(device).items():
        with findings.trying(f"fact {name!r}"):
            findings.facts[name] = ask()
    with findings.trying("copying"):
        findings.bandwidth = copy_bandwidth(device, COPIED_BYTES // 64 if small else COPIED_BYTES)


def _beside_cpu(findings: Findings, methods: Sequence[Configured], device: torch.device) -> None:
    findings.work_through(
        "beside the CPU",
        [
            (f"{name} {variant} on {problem.name}", partial(step_beside_cpu, method, problem, device))
            for (name, variant, method), problem in itertools.product(methods, PROBLEMS)
        ],
        device,
    )


def _replays(findings: Findings, methods: Sequence[Configured], device: torch.device, small: bool) -> None:
    """The networks without a method first, then every configuration on two tiny tasks."""
    steps = REPLAYED_STEPS // 10 if small else REPLAYED_STEPS
    known = networks(small=small or device.type == "cpu")  # a tape of a large network takes minutes
    planned: list[Planned] = [
        (f"{BASELINE} on {name}", partial(replay_on_network, known[name], Unregularized(), device, steps))
        for name in LARGE
    ]
    for name, variant, method in methods:
        with findings.trying(f"{name} {variant}"):
            for problem in two_tasks(method):
                act = partial(replay_on_tiny_task, method, problem, device, steps)
                planned.append((f"{name} {variant} on {problem.name}", act))
    findings.work_through("replays", planned, device)


def _step_times(findings: Findings, methods: Sequence[Configured], device: torch.device, small: bool) -> None:
    """Without a method on every network, in both precisions; then each method's first configuration on the first."""
    modes: tuple[Mode, ...] = ("eager", "captured") if device.type == "cuda" else ("eager",)
    known = networks(small)
    candidates = [
        Candidate(known[name], BASELINE, "defaults", Unregularized(), precision)
        for name in LARGE
        for precision in PRECISIONS
    ]
    first_of = {name: (name, variant, method) for name, variant, method in reversed(methods) if name != BASELINE}
    candidates += [
        Candidate(known[LARGE[0]], *configured, precision)
        for precision in PRECISIONS
        for configured in reversed(first_of.values())
    ]

    def act(candidate: Candidate) -> list[str] | None:
        try:
            measured, problems = step_times(candidate, device, modes)
        except ValueError:  # a method that needs another model
            return None
        findings.steps += measured
        return problems

    findings.work_through("step times", [(str(candidate), partial(act, candidate)) for candidate in candidates], device)


def _side_by_side(findings: Findings, device: torch.device, small: bool) -> None:
    known = networks(small)

    def act(name: str, at_once: int) -> list[str]:
        alone = [row for row in findings.side_by_side if (row.workload, row.at_once) == (name, 1)]
        try:
            first = alone[0] if alone else measure(known[name], Unregularized(), device, 1, steps=3)
            steps = steps_to_take(first.seconds)
            findings.side_by_side.append(measure(known[name], Unregularized(), device, at_once, steps))
        except torch.OutOfMemoryError:
            findings.remarks.append(f"{at_once} runs of {name} at once do not fit into the memory of {findings.device}")
        return []

    planned = [
        (f"{n} of {name} at once", partial(act, name, n)) for name in TRAINED_AT_ONCE for n in AT_ONCE[device.type]
    ]
    findings.work_through("side by side", planned, device)
    for name in TRAINED_AT_ONCE:
        rows = [row for row in findings.side_by_side if row.workload == name]
        if rows:
            findings.recommended[name] = recommended_jobs(rows)
