"""The one loop. It knows the protocols of Task and Method and no name of either."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from reproduce.experiment.metrics import Metric
from reproduce.experiment.recipe import AVERAGED_EPOCHS, Recipe, Selection
from reproduce.method import Method
from reproduce.method.rng import Generators
from reproduce.results.record import EpochRecord, Final
from reproduce.tasks import Task
from reproduce.training.capture import Mode, Recording
from reproduce.training.checkpoints import REMEDY, CheckpointError, read_checkpoint, write_checkpoint
from reproduce.training.group import ALONE, Group
from reproduce.training.kernel_spectra import kernel_spectra
from reproduce.training.objective import objectives
from reproduce.training.site_statistics import are_described, site_statistics
from reproduce.training.step import Step

LOG_SECONDS = 2.0  # of wall time, not steps: reading a loss waits for the device, and a step may take 0.2 ms
CHECKPOINT_SECONDS = 30.0
CHECKPOINT = "checkpoint.pt"


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written, and the same command goes on from it."""


@dataclass(frozen=True)
class Event:
    """What a Run says while it trains."""

    step: int
    total_steps: int
    loss: float
    metric: float | None  # the last evaluation's, validation where there is one
    seconds: float = 0.0  # in this process
    began_at: int = 0  # steps that other processes had taken


@dataclass
class Outcome:
    """What the loop hands over to be sealed."""

    epochs: list[EpochRecord] = field(default_factory=list)
    diverged_step: int | None = None
    seconds: float = 0.0
    resumed: int = 0
    mode: Mode = "eager"  # of its last steps


def train(
    run_id: str,
    recipe: Recipe,
    task: Task,
    method: Method,
    generators: Generators,
    device: torch.device,
    folder: Path,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    make_recording: Callable[[], Recording] | None = None,
    rate_on_device: bool | None = None,
    note: Callable[[str], None] = lambda line: None,
    group: Group = ALONE,
) -> Outcome:
    """Train ``task`` with ``method`` until the recipe's end, from the last checkpoint if there is one.

    ``make_recording``, ``rate_on_device`` and ``group`` are those of `Step`; ``note`` is told what the user should
    know. Every process of a group reads the checkpoint, and the first one writes it, logs, and decides.

    Raises:
        Interrupted: when ``should_stop()`` turned true; a checkpoint was written first.
        CheckpointError: the checkpoint in ``folder`` belongs to another version or cannot be read.
        Abandoned: in another process than the group's first, what is an error there.
    """
    outcome = Outcome()
    with group.together():
        step = Step(task, method, recipe, generators, device, make_recording, rate_on_device, group)
        number = _resume(folder / CHECKPOINT, run_id, step, outcome, note)  # of steps taken
    began_at = number
    total_steps, steps_per_epoch = step.total_steps, task.steps_per_epoch
    period = recipe.evaluate_every * steps_per_epoch
    writer = _writer(folder, number) if group.is_first else None
    clock = _Clock(before=outcome.seconds)
    try:
        while number < total_steps:
            if number % steps_per_epoch == 0:
                task.start_epoch()
            step()
            number += 1
            clock.steps += 1

            at_end = number == total_steps
            evaluating = number % period == 0 or at_end
            (logging,) = group.agreed(evaluating or clock.since_logged() > LOG_SECONDS)
            if logging:
                clock.logged()
                _write_step(writer, step, number)
                metric = _newest(outcome.epochs, task.metric)
                on_event(Event(number, total_steps, float(step.loss), metric, clock.here(), began_at))
                if int(step.sums.diverged_step) >= 0:
                    outcome.diverged_step = int(step.sums.diverged_step)
                    break
            if evaluating:
                with step.evaluated_weights():
                    record = group.of_first(_evaluate(step, number, period, clock.seconds_per_step()))
                outcome.epochs.append(record)
                _write_evaluation(writer, record)
                if not all(map(math.isfinite, (*record.validation.values(), *record.test.values()))):
                    outcome.diverged_step = number  # the loss of the next step would not be finite
                    break
                metric = _newest(outcome.epochs, task.metric)
                if metric is not None:
                    step.after_evaluation(metric, record.epoch)
                step.sums.reset()
                clock.begin_period()
            stopping, saving = group.agreed(should_stop(), clock.since_saved() > CHECKPOINT_SECONDS)
            if stopping or saving:
                if group.is_first:
                    _save(folder, run_id, step, outcome, clock.total())
                clock.saved()
            if stopping and not at_end:
                raise Interrupted(f"stopped at step {number} of {total_steps}")
    except Interrupted:  # at the same step in every process
        raise
    except BaseException:
        group.lose()
        raise
    finally:
        if writer is not None:
            writer.close()
    outcome.seconds = clock.total()
    outcome.mode = step.mode
    return outcome


def _writer(folder: Path, number: int) -> SummaryWriter:
    return SummaryWriter(str(folder), purge_step=number + 1, flush_secs=10)  # that of the checkpoint was logged


class _Clock:
    """Seconds of the whole Run, of a step since the last evaluation, and since the last checkpoint and log."""

    def __init__(self, before: float) -> None:
        self.before = before  # the Run's seconds in processes that were interrupted
        self.started = self.period_began = self.last_saved = self.last_logged = time.monotonic()
        self.steps = 0  # in this period

    def begin_period(self) -> None:
        self.steps, self.period_began = 0, time.monotonic()

    def saved(self) -> None:
        self.last_saved = time.monotonic()

    def since_saved(self) -> float:
        return time.monotonic() - self.last_saved

    def logged(self) -> None:
        self.last_logged = time.monotonic()

    def since_logged(self) -> float:
        return time.monotonic() - self.last_logged

    def seconds_per_step(self) -> float:
        return (time.monotonic() - self.period_began) / max(1, self.steps)

    def here(self) -> float:
        return time.monotonic() - self.started

    def total(self) -> float:
        return self.before + self.here()


def _resume(path: Path, run_id: str, step: Step, outcome: Outcome, note: Callable[[str], None]) -> int:
    """Go on from a checkpoint where there is one; the number of steps that are taken.

    Raises:
        CheckpointError: it cannot be read, or is not one of a Run like this.
    """
    saved = read_checkpoint(path, run_id, note)
    if saved is None:
        return 0
    try:
        number = int(saved["step"])
        if not 0 <= number <= step.total_steps:
            raise ValueError(f"step {number} of {step.total_steps}")
        step.load_state_dict(saved)
        outcome.epochs = [EpochRecord.model_validate(epoch) for epoch in saved["epochs"]]
        outcome.seconds = float(saved["seconds"])
        outcome.resumed = int(saved["resumed"]) + 1
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(f"{path}: does not fit this run ({type(error).__name__}: {reason}); {REMEDY}") from error
    return number


def _save(folder: Path, run_id: str, step: Step, outcome: Outcome, seconds: float) -> None:
    epochs = [epoch.model_dump() for epoch in outcome.epochs]
    progress = {
        "epochs": epochs,
        "seconds": seconds,
        "resumed": outcome.resumed,
        "threads": torch.get_num_threads(),
        "processes": step.group.size,
    }
    write_checkpoint(folder / CHECKPOINT, run_id, step.state_dict() | progress)


def _evaluate(step: Step, number: int, period: int, seconds_per_step: float) -> EpochRecord:
    describes = are_described((number - 1) // period, -(-step.total_steps // period))
    train_loss, penalty = step.sums.means()
    metrics = step.task.evaluate()
    for split, value in objectives(step).items():
        metrics[split]["objective"] = value
    return EpochRecord(
        epoch=-(-number // step.task.steps_per_epoch),
        step=number,
        train_loss=train_loss,
        penalty=penalty,
        learning_rate=step.schedule.rate,
        validation=metrics.get("validation", {}),
        test=metrics.get("test", {}),
        sites=site_statistics(step.task, step.generators, step.trace) if describes else {},
        kernels=kernel_spectra(step.task.model) if describes and step.keeps_spectra else None,
        seconds_per_step=seconds_per_step,
    )


def _newest(epochs: list[EpochRecord], metric: Metric) -> float | None:
    """The newest value of the metric: on validation, or on test where nothing is held out."""
    if not epochs:
        return None
    return (epochs[-1].validation or epochs[-1].test).get(metric.name)


def _write_step(writer: SummaryWriter | None, step: Step, number: int) -> None:
    if writer is None:
        return
    writer.add_scalar("loss/task", float(step.loss), number)
    writer.add_scalar("loss/penalty", float(step.penalty), number)
    writer.add_scalar("learning_rate", step.schedule.rate, number)


def _write_evaluation(writer: SummaryWriter | None, record: EpochRecord) -> None:
    if writer is None:
        return
    for split in ("validation", "test"):
        for name, value in getattr(record, split).items():
            writer.add_scalar(f"{name}/{split}", value, record.step)
    for name, statistics in record.sites.items():
        writer.add_scalar(f"mean_square/{name}", statistics.mean_square, record.step)
    writer.add_scalar("seconds_per_step", record.seconds_per_step, record.step)


def select(epochs: list[EpochRecord], selection: Selection, metric: Metric) -> Final | None:
    """The evaluation that counts, by the rule that the recipe states; none when nothing was evaluated.

    ``best_validation`` without a validation split would silently be something else: it is an error. The average is
    taken over the evaluations of the last AVERAGED_EPOCHS epochs; where training has that many, only whole ones count.
    """
    if not epochs:
        return None
    chosen = epochs[-1]
    if selection != "last":
        split = selection.removeprefix("best_").removesuffix("_average")
        if not getattr(chosen, split):
            raise ValueError(f"selection {selection!r} needs a {split} split, and the task has none")
        values = {record.epoch: getattr(record, split)[metric.name] for record in epochs}
        eligible = epochs
        if selection == "best_validation_average":
            eligible = [record for record in epochs if record.epoch >= AVERAGED_EPOCHS] or epochs[-1:]
            values = {record.epoch: _average(values, record.epoch) for record in eligible}
        best = max if metric.better == "higher" else min
        chosen = best(eligible, key=lambda record: values[record.epoch])
    return Final(selection=selection, epoch=chosen.epoch, validation=chosen.validation, test=chosen.test)


def _average(values: dict[int, float], epoch: int) -> float:
    """Over the evaluations of the AVERAGED_EPOCHS epochs that end with this one."""
    last = [value for number, value in values.items() if epoch - AVERAGED_EPOCHS < number <= epoch]
    return math.fsum(last) / len(last)
