"""One Run from its config to its sealed Result."""

from __future__ import annotations

import functools
import gc
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from reproduce import data
from reproduce.errors import ROOM, UserError, is_full
from reproduce.experiment.identity import RunConfig
from reproduce.method.rng import Generators
from reproduce.results.record import Environment, Final, Result
from reproduce.results.source import git_state
from reproduce.results.store import NewerResult, ResultError, read_result, write_result
from reproduce.tasks import Task
from reproduce.training.capture import WARM_UP_STEPS, Mode, recording_in
from reproduce.training.checkpoints import CheckpointError, read_checkpoint, remove_checkpoint
from reproduce.training.group import ALONE, Group
from reproduce.training.host import build_task
from reproduce.training.loop import CHECKPOINT, Event, Outcome, select, train
from reproduce.training.plan import PlannedRun

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "datasets", "pydantic")


class RunBusy(UserError):
    """Another process is at work on this Run."""


@dataclass(frozen=True)
class RunSettings:
    """Where and how Runs are made: nothing here may move a number (device and threads only its last bits)."""

    runs: Path
    root: Path | None  # the user's data folder
    cache: Path  # the project's own data folder
    device: str
    threads: int
    at_once: int = 1  # Runs that share the device
    shares_process: bool = False  # some of them train in threads of this process
    mode: Mode = "eager"  # how steps are taken
    group: Group = ALONE  # of processes that train each Run together


def result_path(runs: Path, config: RunConfig) -> Path:
    return runs / config.folder / "result.json"


def execute(
    run: PlannedRun,
    settings: RunSettings,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    on_settled: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train one Run and seal its Result; go on from its checkpoint when there is one. What is sealed stays.

    Args:
        should_stop: asked after every step.
        on_settled: called when some steps are taken, and the memory of one with them.
        note: is told what the user should know of this Run, a line at a time.

    Raises:
        RunBusy: another process is at work on this Run.
        UserError: bad input, or no permission to write.
        Interrupted: asked to stop; a checkpoint is there.
    """
    config = run.config
    path = result_path(settings.runs, config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: {error.strerror}: choose another folder with --runs") from error
    try:
        with FileLock(path.parent / ".lock", timeout=0):
            return _execute(run, settings, path, on_event, should_stop, on_settled, note)
    except PermissionError as error:
        raise UserError(f"no permission to write {error.filename}: choose another folder with --runs") from error
    except Timeout as error:  # an OSError too
        raise RunBusy(f"{path.parent}: another process is training this run; wait for it or stop it") from error
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(f"{path.parent}: {error.strerror}: {ROOM}") from error


def _execute(
    run: PlannedRun,
    settings: RunSettings,
    path: Path,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    on_settled: Callable[[], None],
    note: Callable[[str], None],
) -> Result:
    sealed = _sealed_before(run, path, note)
    if sealed is not None:
        return sealed
    device = torch_device(settings.device)
    if device.type == "cuda":
        # A Step and its recording know each other, so that only the collector frees the last Run's tensors and graph.
        gc.collect()
    with own_stream(device):
        return _train_and_seal(run, settings, device, path, on_event, should_stop, on_settled, note)


def _sealed_before(run: PlannedRun, path: Path, note: Callable[[str], None]) -> Result | None:
    """What lies where the Run's Result is to be: by another process, say, that was faster.

    Raises:
        UserError: the Result of another Run, or of a newer suite. Neither is this Run's, nor to be lost.
    """
    if not path.exists():
        return None
    try:
        sealed = read_result(path)
    except NewerResult as error:
        raise UserError(f"{error}: a newer suite has sealed it; update this one, or choose other --runs") from error
    except ResultError as error:
        damaged = path.with_name("result.damaged.json")
        path.replace(damaged)
        note(f"{error}: moved to {damaged.name}, and trained anew")
        return None
    if sealed.id != run.id:
        raise UserError(
            f"{path}: holds the Result of run {sealed.id}, expected {run.id}; move it away to train this one"
        )
    return sealed


def _train_and_seal(
    run: PlannedRun,
    settings: RunSettings,
    device: torch.device,
    path: Path,
    on_event: Callable[[Event], None],
    should_stop: Callable[[], bool],
    on_settled: Callable[[], None],
    note: Callable[[str], None],
) -> Result:
    config = run.config
    settings = _as_begun(path.parent / CHECKPOINT, config.id, settings, note)
    torch.set_num_threads(settings.threads)  # of this thread: others of the process keep theirs
    peak_is_own = not settings.shares_process and _reset_peak_memory(device)
    environment = _environment(config, settings, device, peak_is_own)
    _rehearse_sealing(run, environment, path)
    settings.group.begin((run, replace(settings, group=ALONE)))
    told = _telling_when_settled(should_stop, on_settled)
    task, outcome = train_here(run, settings, device, path.parent, on_event, should_stop, told, note)
    finished = {
        "wall_seconds": outcome.seconds,
        "peak_memory_bytes": _peak_memory(device),
        "finished": _now(),
        "resumed": outcome.resumed,
        "mode": outcome.mode,
    }
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    final = None if outcome.diverged_step is not None else select(outcome.epochs, config.recipe.selection, task.metric)
    made = environment.model_copy(update=finished)
    result = write_result(_result(run, made, outcome, final, task.metric.name, parameters), path)
    remove_checkpoint(path.parent / CHECKPOINT)
    return result


def train_here(
    run: PlannedRun,
    settings: RunSettings,
    device: torch.device,
    folder: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    stops_host: Callable[[], bool] = lambda: False,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[Task, Outcome]:
    """Train a Run in this process, or this process's part of it, and write nothing but what `train` writes."""
    config, group = run.config, settings.group
    generators = Generators.seeded(config.seed, device)
    with group.together():
        loaded = load_data(config.task.datasets, settings.root, settings.cache)
        task = build_task(config.task, config.recipe, loaded, generators, device, stops_host)
        _check_parts(run, task, group)
        method = run.method()
    outcome = train(
        config.id,
        config.recipe,
        task,
        method,
        generators,
        device,
        folder,
        on_event,
        should_stop,
        recording_in(settings.mode, generators),
        note=note,
        group=group,
    )
    return task, outcome


def _check_parts(run: PlannedRun, task: Task, group: Group) -> None:
    """Refuse a Run that several processes cannot train together.

    Raises:
        UserError: a Task whose loss is not known to be the mean of its parts', a batch of two domains, which has one
            behind the other, or one without equal parts.
    """
    if group.part is None:
        return
    if not getattr(task, "trains_in_parts", False):
        kind = run.config.task.kind.replace("_", " ")
        raise UserError(f"{kind} trains in one process, and torchrun has started {group.size}: leave torchrun out")
    if task.source_examples is not None:
        raise UserError(f"a target domain is trained with in one process, not {group.size}: leave torchrun out")
    if run.config.recipe.batch_size % group.size:
        raise UserError(
            f"batch_size {run.config.recipe.batch_size} cannot be cut into {group.size} equal parts: start a number of "
            "processes that divides it"
        )


def _as_begun(checkpoint: Path, run_id: str, settings: RunSettings, note: Callable[[str], None]) -> RunSettings:
    """As many threads as the checkpoint was made with: sums are split by thread, and so rounded differently.

    Before the Task is built, since its host is trained anew.

    Raises:
        CheckpointError: it was made by another number of processes, by which sums are split too.
    """
    saved = read_checkpoint(checkpoint, run_id)
    began_with = saved.get("processes", 1) if saved else settings.group.size
    if began_with != settings.group.size:
        raise CheckpointError(
            f"{checkpoint}: its run began with {began_with} processes, and this is {settings.group.size}, which would "
            f"move numbers: start {began_with} again, or delete that file to begin anew"
        )
    threads = saved.get("threads") if saved else None
    if not isinstance(threads, int) or threads < 1 or threads == settings.threads:
        return settings
    note(f"goes on with {threads} threads, as it began, and not {settings.threads}: another number would move numbers")
    return replace(settings, threads=threads)


def _telling_when_settled(should_stop: Callable[[], bool], on_settled: Callable[[], None]) -> Callable[[], bool]:
    """``should_stop``, which is asked after every step, and counts them: warm-up, the recording, a replay."""
    steps = 0

    def counting() -> bool:
        nonlocal steps
        steps += 1
        if steps == WARM_UP_STEPS + 2:
            on_settled()
        return should_stop()

    return counting


def _rehearse_sealing(run: PlannedRun, environment: Environment, path: Path) -> None:
    """Seal the Run as it is before its first step, and read it back: what cannot be sealed must not be trained first.

    Raises:
        UserError: it does not read back.
    """
    rehearsed = path.with_name("rehearsal.json")
    try:
        write_result(_result(run, environment, Outcome(), None, "unknown", 0), rehearsed)
    except ResultError as error:
        raise UserError(f"{run.label} is not trained, since its Result could not be sealed: {error}") from error
    finally:
        rehearsed.unlink(missing_ok=True)


_loading = threading.Lock()


def load_data(names: tuple[str, ...], root: Path | None, cache: Path) -> data.Data:
    """A task's datasets; the last two are kept, and threads that ask for the same at once wait for it, and share it."""
    with _loading:
        return _loaded(names, root, cache)


@functools.lru_cache(maxsize=2)
def _loaded(names: tuple[str, ...], root: Path | None, cache: Path) -> data.Data:
    return data.load_all(names, root, cache)


def _environment(config: RunConfig, settings: RunSettings, device: torch.device, peak_is_own: bool) -> Environment:
    """Where and with what the Run is made. All of it is asked before training, so that no question can fail after."""
    commit, dirty = git_state()
    return Environment(
        commit=commit,
        dirty=dirty,
        packages={name: _version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(),
        device=device_name(device, settings.group.size),
        precision=config.recipe.precision,
        threads=settings.threads,
        wall_seconds=0.0,
        peak_memory_bytes=_peak_memory(device),
        finished=_now(),
        mode="eager",
        fp32_precision=fp32_precision(device),
        cudnn_benchmark=torch.backends.cudnn.benchmark if device.type == "cuda" else None,
        runs_on_device=settings.at_once,
        processes=settings.group.size if settings.group.size > 1 else None,
        peak_memory_of="run" if peak_is_own else "process",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # torch built from source, or a package that this Run does without
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fp32_precision(device: torch.device) -> dict[str, str]:
    """In which precision float32 is multiplied: "ieee", "tf32" or "bf16", for each kind of operation.

    A GPU's defaults are mixed: convolutions and RNNs in TF32, matrix products in IEEE. What is set nowhere is IEEE.
    """
    where = "cudnn.conv", "cudnn.rnn", "cuda.matmul"
    if device.type != "cuda":
        where = "mkldnn.conv", "mkldnn.rnn", "mkldnn.matmul"
    found = (attrgetter(f"{backend}.fp32_precision")(torch.backends) for backend in where)
    kinds = "convolution", "rnn", "matrix product"
    return {kind: "ieee" if value == "none" else value for kind, value in zip(kinds, found, strict=True)}


def _result(
    run: PlannedRun, environment: Environment, outcome: Outcome, final: Final | None, metric: str, parameters: int
) -> Result:
    return Result(
        id=run.config.id,
        config=run.config,
        defaults=run.defaults,
        status="completed" if outcome.diverged_step is None else "diverged",
        diverged_step=outcome.diverged_step,
        metric=metric,
        parameters=parameters,
        epochs=tuple(outcome.epochs),
        site_order=tuple(outcome.epochs[0].sites) if outcome.epochs else None,
        final=final,
        environment=environment,
    )


def parse_device(name: str) -> torch.device:
    """The device of that name, here or elsewhere.

    Raises:
        UserError: none that Runs are trained on.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}: use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: use cpu, cuda or cuda:N")
    return device


def torch_device(name: str) -> torch.device:
    """The device of that name, on this machine.

    Raises:
        UserError: unknown, or a GPU that is not there.
    """
    device = parse_device(name)
    n_gpus = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise UserError(f"device {name!r} asked for, but torch finds {n_gpus} CUDA GPUs: use --device cpu")
    return device


def step_mode(asked: str, device: torch.device) -> Mode:
    """How steps are taken on this device: as asked, or, asked nothing (""), captured where that can be.

    Raises:
        UserError: neither "eager" nor "captured"; captured steps where there are no CUDA graphs.
    """
    if asked == "captured" and device.type != "cuda":
        raise UserError(f"--mode captured: a {device.type} captures no steps, a CUDA GPU does: use --mode eager")
    match asked or ("captured" if device.type == "cuda" else "eager"):
        case "eager":
            return "eager"
        case "captured":
            return "captured"
    raise UserError(f"--mode {asked}: expected eager or captured")


_of_this_thread = threading.local()


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work on a CUDA stream of one's own: a capture needs one, and Runs side by side do not wait for each other.

    It is the thread's, and each of its Runs has it in turn. torch has 32 streams a device and hands them out in a
    circle: were one taken for each Run, the 33rd of a process could share one with a Run that trains still, and its
    operations would land in that one's capture. Memory that a Run has freed is also kept for the stream it was used on.
    """
    if device.type != "cuda":
        yield
        return
    streams: dict[torch.device, torch.cuda.Stream] = _of_this_thread.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.stream(streams[device]):
        yield


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name(device: torch.device, processes: int = 1) -> str:
    """The device and what it is; several processes, each on one, are another kind of device (`device_kind`)."""
    several = f", {processes} processes" if processes > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}{several})"
    return f"cpu ({_processor()}{several})"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: a processor that has no instructions for it computes by emulation.

    Where the processor's instructions are unknown, it is taken to have them.
    """
    if device.type != "cpu":
        return True
    instructions = _of_processor("flags") or _of_processor("Features")  # as Linux calls them on x86 and on ARM
    return instructions is None or not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(instructions.split())


def _processor() -> str:
    return _of_processor("model name") or platform.processor() or platform.machine()


def _of_processor(fact: str) -> str | None:
    """What Linux says of the first processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(fact)), None)


def _reset_peak_memory(device: torch.device) -> bool:
    """Start this Run's peak anew, since a worker process trains many Runs; whether that was possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    except OSError:
        return False  # not Linux: the peak is then that of the process
    return True


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
