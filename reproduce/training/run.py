"""One Run from its config to its sealed Result."""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from reproduce import data, tasks
from reproduce.errors import UserError
from reproduce.experiment.identity import RunConfig
from reproduce.method.rng import Generators
from reproduce.results.record import Environment, Result
from reproduce.results.source import git_state
from reproduce.results.store import read_results, write_result
from reproduce.training.host import build_task
from reproduce.training.loop import Event, Outcome, select, train
from reproduce.training.plan import PlannedRun

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "datasets", "pydantic")


@dataclass(frozen=True)
class RunSettings:
    """Where and how Runs are made: nothing here may move a number (device and threads only its last bits)."""

    runs: Path
    root: Path | None  # the user's data folder
    cache: Path  # the project's own data folder
    device: str
    threads: int


def result_path(runs: Path, config: RunConfig) -> Path:
    return runs / config.folder / "result.json"


def execute(
    run: PlannedRun,
    settings: RunSettings,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Result:
    """Train one Run and seal its Result; go on from its checkpoint when there is one. What is sealed stays.

    Raises:
        UserError: bad input, no permission to write, or another process at work on this Run.
        Interrupted: asked to stop; a checkpoint is there.
    """
    config = run.config
    path = result_path(settings.runs, config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: {error.strerror}: choose another folder with --runs") from error
    try:
        with FileLock(path.parent / ".lock", timeout=15):
            return _execute(run, settings, path, on_event, should_stop)
    except PermissionError as error:
        raise UserError(f"no permission to write {error.filename}: choose another folder with --runs") from error
    except Timeout as error:
        raise UserError(f"{path.parent}: another process is training this run; wait for it or stop it") from error


def _execute(
    run: PlannedRun,
    settings: RunSettings,
    path: Path,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
) -> Result:
    config = run.config
    sealed, _ = read_results([path] if path.exists() else [])
    if sealed:  # by another process, while this one waited for the lock
        return sealed[0]
    torch.set_num_threads(settings.threads)
    device = torch_device(settings.device)
    _reset_peak_memory(device)
    generators = Generators.seeded(config.seed, device)
    loaded = _load_data(config.task.dataset, settings.root, settings.cache)
    task = build_task(config.task, config.recipe, loaded, generators, device)
    method = run.folder.load().model_validate_json(json.dumps(config.params))
    outcome = train(config.id, config.recipe, task, method, generators, device, path.parent, on_event, should_stop)
    result = write_result(_result(run, settings, task, device, outcome), path)
    (path.parent / "checkpoint.pt").unlink(missing_ok=True)
    return result


@functools.lru_cache(maxsize=2)
def _load_data(name: str, root: Path | None, cache: Path) -> data.Data:
    return data.load(name, root, cache)


def _result(run: PlannedRun, settings: RunSettings, task: tasks.Task, device: torch.device, outcome: Outcome) -> Result:
    config = run.config
    diverged = outcome.diverged_step is not None
    commit, dirty = git_state()
    environment = Environment(
        commit=commit,
        dirty=dirty,
        packages={name: version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(),
        device=_device_name(device),
        precision=config.recipe.precision,
        threads=settings.threads,
        wall_seconds=outcome.seconds,
        peak_memory_bytes=_peak_memory(device),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        resumed=outcome.resumed,
    )
    return Result(
        id=config.id,
        config=config,
        defaults=run.defaults,
        status="diverged" if diverged else "completed",
        diverged_step=outcome.diverged_step,
        metric=task.metric.name,
        parameters=sum(parameter.numel() for parameter in task.model.parameters()),
        epochs=tuple(outcome.epochs),
        site_order=tuple(outcome.epochs[0].sites) if outcome.epochs else None,
        final=None if diverged else select(outcome.epochs, config.recipe.selection, task.metric),
        environment=environment,
    )


def torch_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UserError: unknown, or a GPU that is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: use cpu, cuda or cuda:N")
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise UserError(f"device {name!r} asked for, but torch finds {n_gpus} CUDA GPUs: use --device cpu")
    return device


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_processor()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _reset_peak_memory(device: torch.device) -> None:
    """Start this Run's peak anew: a worker process trains many Runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return  # not Linux: the peak is then that of the process


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
