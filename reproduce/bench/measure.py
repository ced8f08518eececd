"""What methods cost: ratios of interleaved timings within one run, never seconds to compare across machines."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reproduce import tasks
from reproduce.bench.beside_plain import rows_beside_plain
from reproduce.bench.counting import operations_of
from reproduce.bench.startup import startup_seconds
from reproduce.bench.stepper import Stepper
from reproduce.bench.timing import Row, interleaved, ratio_row, timed
from reproduce.bench.variants import read_variants
from reproduce.bench.workloads import BASELINE, Workload, networks, workloads
from reproduce.errors import UserError
from reproduce.experiment.folder import MethodFolder
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.results.record import device_kind
from reproduce.training.checkpoints import write_checkpoint
from reproduce.training.estimate import StepTime, problem_of, way_of
from reproduce.training.loop import CHECKPOINT_SECONDS, train
from reproduce.training.malloc import keep_freed_memory
from reproduce.training.optim import clip_gradients
from reproduce.training.run import device_name
from reproduce.training.step import Step

CPU = torch.device("cpu")
SECONDS_PER_PAIR = 3.0  # for a function and its naive relative, which may be a hundred times slower


def bench_steps(folder: MethodFolder, workload: Workload, device: torch.device, rounds: int) -> list[Row]:
    """Every variant of a method against vanilla, and vanilla against itself for the noise.

    What the method refuses is said on the standard error, and left out.

    Raises:
        UserError: the method refuses a workload that its variants.toml names.
    """
    plain = Unregularized()
    steppers: dict[str, Callable[[], None]] = {BASELINE: Stepper(workload, plain, device)}
    steppers[f"{BASELINE} again"] = Stepper(workload, plain, device)
    limits: dict[str, float | None] = {}
    ways: dict[str, str] = {}
    for variant_name, variant in read_variants(folder).variants.items():
        if not workload.times(variant):
            continue
        method = folder.load().model_validate_json(json.dumps(variant.params))
        label = f"{folder.name} {variant_name}"
        try:
            steppers[label] = Stepper(workload, method, device)
        except ValueError as error:
            if variant.workloads is not None:
                raise UserError(f"variants.toml times {label!r} on {workload.name!r}: {error}") from error
            print(f"not timed: {label} refuses {workload.name}: {error}", file=sys.stderr)
            continue
        ways[label] = way_of(folder.name, method.model_dump(mode="json"))
        applies = device.type == "cpu" and (not variant.limit_on or workload.name in variant.limit_on)
        limits[label] = variant.limit if applies else None
    seconds = interleaved(steppers, device, rounds)
    problem = problem_of(workload.task, workload.recipe)
    rows = []
    for label, measured in seconds.items():
        if label != BASELINE:
            row = ratio_row(
                f"step: {label} / {BASELINE}", workload.name, measured, seconds[BASELINE], limits.get(label)
            )
            time = StepTime(
                problem=problem,
                way=ways.get(label, way_of(BASELINE, {})),
                seconds=statistics.median(measured),
                threads=torch.get_num_threads(),
            )
            rows.append(replace(row, step=time))
    return rows


def bench_functions(folder: MethodFolder, device: torch.device, rounds: int) -> list[Row]:
    """The pure functions of a method against their plainer relatives, on random activations."""
    rows = []
    module = folder.module()
    for pair in read_variants(folder).functions:
        fast, plain = getattr(module, pair.name), getattr(module, pair.against)
        for shape in pair.shapes:
            activations = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
            calls = {"fast": _forward_backward(fast, activations), "plain": _forward_backward(plain, activations)}
            once = {name: timed(call, device) for name, call in calls.items()}
            once = {name: min(once[name], timed(call, device)) for name, call in calls.items()}  # warm
            repeats = round(min(10, max(1, 0.05 / max(once.values()))))
            affordable = round(SECONDS_PER_PAIR / (repeats * sum(once.values())))
            seconds = interleaved(calls, device, min(rounds, max(3, affordable)), repeats)
            title = f"loss: {folder.name} {pair.against} / {pair.name}"
            rows.append(
                ratio_row(title, str(tuple(shape)), seconds["plain"], seconds["fast"], pair.at_least, at_least=True)
            )
    return rows


def _forward_backward(function: Callable[..., Tensor], activations: Tensor) -> Callable[[], None]:
    leaf = activations.clone().requires_grad_()

    def call() -> None:
        torch.autograd.grad(function(leaf), leaf)

    call()
    return call


def bench_operations(folders: dict[str, MethodFolder], small: bool = False) -> list[Row]:
    """How many operations a step has on ResNet-56 with each variant that promises a number, over vanilla's.

    Counted, not timed: a GPU starts each of them on its own where steps are not captured, and that is what takes time.
    """
    workload = networks(small)["resnet56"]
    base = operations_of(Stepper(workload, Unregularized(), CPU)).count
    rows = [_row_of_count(f"operations: {BASELINE}", workload.name, base, base, None)]
    for folder in folders.values():
        for variant_name, variant in read_variants(folder).variants.items():
            if variant.operations is not None:
                method = folder.load().model_validate_json(json.dumps(variant.params))
                count = operations_of(Stepper(workload, method, CPU)).count
                what = f"operations: {folder.name} {variant_name} / {BASELINE}"
                rows.append(_row_of_count(what, workload.name, count, base, variant.operations))
    return rows


def _row_of_count(what: str, where: str, count: int, base: int, limit: int | None) -> Row:
    ratio = count / base
    promised, kept = ("", None) if limit is None else (f"<= {limit}", count <= limit)
    return Row(what, where, ratio, ratio, ratio, None, promised, kept, count)


def bench_loop(workload: Workload, device: torch.device, rounds: int, steps: int = 4) -> Row:
    """The loop with data, augmentation and logging over bare forward, backward and step on a ready batch.

    The checkpoint that the loop writes every CHECKPOINT_SECONDS is added as its share of that time.
    """
    stepper = Stepper(workload, Unregularized(), device)
    bare = _bare_step(stepper.step)
    recipe = workload.recipe.model_copy(update={"steps": steps, "evaluate_every": 10**6})
    loop_seconds, bare_seconds = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = {"model": stepper.task.model.state_dict(), "optimizer": stepper.step.optimizer.state_dict()}
        save = timed(lambda: write_checkpoint(folder / "timed.pt", "bench", state), device)
        bare()
        for index in range(rounds + 1):
            bare_seconds.append(timed(bare, device, steps))
            generators = Generators.seeded(0, device)
            task = tasks.build(workload.task, recipe, workload.data(), generators, device)
            run_folder = folder / str(index)
            run_folder.mkdir()
            outcome = train("bench", recipe, task, Unregularized(), generators, device, run_folder)
            loop_seconds.append(outcome.epochs[-1].seconds_per_step * (1 + save / CHECKPOINT_SECONDS))
    return ratio_row("loop / bare step", workload.name, loop_seconds[1:], bare_seconds[1:], 1.05)


def _bare_step(step: Step) -> Callable[[], None]:
    """Forward, backward, clipping and optimiser on a ready batch: the least that training can cost."""
    loss = step.task.prepared_loss()

    def bare() -> None:
        step.optimizer.zero_grad(set_to_none=True)
        loss().backward()
        clip_gradients(step.parameters, step.clip)
        step.optimizer.step()
        step.trace.clear()

    return bare


def bench(
    folders: dict[str, MethodFolder], device: torch.device, rounds: int, small: bool = False
) -> Iterator[list[Row]]:
    """The rows of one method after another, each timed beside vanilla steps of its own; then the loop, counted
    operations, plain loops of the same models, and the start.

    Raises:
        UserError: a variants.toml that names what its method does not have, or an unknown or refused workload.
    """
    keep_freed_memory()  # as in the worker processes that train
    chosen = workloads(small)
    variants = {
        f"{name} {variant_name}": variant
        for name, folder in folders.items()
        for variant_name, variant in read_variants(folder).variants.items()
    }
    known = [workload.name for workload in chosen]
    for label, variant in variants.items():
        unknown = sorted({*(variant.workloads or ()), *variant.limit_on} - set(known))
        if unknown:
            raise UserError(f"variants.toml, {label!r}: unknown workload {unknown[0]!r}, there are {', '.join(known)}")
    for folder in folders.values():
        try:
            rows = bench_functions(folder, device, 5 * rounds)
        except AttributeError as error:
            raise UserError(f"variants.toml names a function that its method.py lacks: {error}") from error
        for workload in chosen:
            if any(workload.times(variant) for variant in read_variants(folder).variants.values()):
                rows += bench_steps(folder, workload, device, rounds)
        yield rows
    yield [bench_loop(workload, device, max(2, rounds // 2)) for workload in chosen if not workload.named_only]
    yield bench_operations(folders, small)
    if device.type == "cpu":
        yield list(rows_beside_plain(max(3, rounds), small))
    yield [ratio_row("start / typer, pydantic", "import", *startup_seconds(rounds), limit=2.0)]


def as_json(rows: Iterable[Row]) -> dict[str, Any]:
    """The rows, and apart from them the step times, from which `plan` knows what methods cost on this device."""
    rows = list(rows)
    ratios = [{name: value for name, value in asdict(row).items() if name != "step"} for row in rows]
    return {"rows": ratios, "steps": [row.step.model_dump() for row in rows if row.step is not None]}


def machine(device: torch.device) -> dict[str, Any]:
    """What the ratios were measured on."""
    return {
        "device": str(device),
        "kind": device_kind(device_name(device)),
        "name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
