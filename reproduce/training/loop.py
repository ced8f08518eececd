"""The one loop. It knows the protocols of Task and Method and no name of either."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from reproduce.experiment.schema import Recipe, Selection
from reproduce.method import Method
from reproduce.method.rng import Generators
from reproduce.method.sites import watch
from reproduce.results.record import EpochRecord, Final
from reproduce.tasks import Task
from reproduce.training.checkpoints import read_checkpoint, write_checkpoint
from reproduce.training.optim import RateSchedule, build_optimizer, clip_gradients
from reproduce.training.site_statistics import site_statistics

LOG_EVERY_STEPS = 50
CHECKPOINT_SECONDS = 30.0


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written, and the same command goes on from it."""


@dataclass(frozen=True)
class Event:
    """What a Run says while it trains."""

    step: int
    total_steps: int
    loss: float
    metric: float | None  # the last evaluation's, validation where there is one


@dataclass
class Outcome:
    """What the loop hands over to be sealed."""

    epochs: list[EpochRecord] = field(default_factory=list)
    diverged_step: int | None = None
    seconds: float = 0.0
    resumed: int = 0


class _Running:
    """Sums kept on the device since the last evaluation, so that a step never waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.penalty = torch.zeros((), device=device, dtype=torch.float64)
        self.diverged_step = torch.full((), -1, device=device, dtype=torch.int64)
        self.steps = 0

    def add(self, loss: Tensor, penalty: Tensor, step: Tensor) -> None:
        self.loss += loss.detach()
        self.penalty += penalty.detach()
        first_time = self.diverged_step.lt(0) & ~torch.isfinite(loss.detach() + penalty.detach())
        self.diverged_step.copy_(torch.where(first_time, step, self.diverged_step))
        self.steps += 1

    def means(self) -> tuple[float, float]:
        count = max(1, self.steps)
        return float(self.loss) / count, float(self.penalty) / count

    def reset(self) -> None:
        self.loss.zero_()
        self.penalty.zero_()
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            current = getattr(self, name)
            setattr(self, name, value.to(current.device) if isinstance(current, Tensor) else value)


def train(
    run_id: str,
    recipe: Recipe,
    task: Task,
    method: Method,
    generators: Generators,
    device: torch.device,
    folder: Path,
    listen: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train ``task`` with ``method`` until the recipe's end, from the last checkpoint if there is one.

    Raises:
        Interrupted: when ``should_stop()`` turned true; a checkpoint was written first.
        CheckpointError: the checkpoint in ``folder`` belongs to another version or cannot be read.
    """
    model = task.model
    method.prepare(model, generators.method)
    model.to(device).train()
    trace = watch(model)
    parameters = list(model.parameters())
    optimizer = build_optimizer(model, recipe)
    steps_per_epoch = task.steps_per_epoch
    total_steps = recipe.steps or (recipe.epochs or 1) * steps_per_epoch
    schedule = RateSchedule(optimizer, recipe, steps_per_epoch, total_steps)
    running = _Running(device)
    outcome = Outcome()
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": optimizer,
        "schedule": schedule,
        "generators": generators,
        "task": task,
        "running": running,
    }
    checkpoint = folder / "checkpoint.pt"
    step = 0
    if (saved := read_checkpoint(checkpoint, run_id)) is not None:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step = saved["step"]
        outcome.epochs = [EpochRecord.model_validate(epoch) for epoch in saved["epochs"]]
        outcome.seconds = saved["seconds"]
        outcome.resumed = saved["resumed"] + 1

    writer = SummaryWriter(str(folder), purge_step=step, flush_secs=10)
    # Tensors made once: the step itself moves nothing between host and device.
    step_tensor = torch.tensor(step, device=device)
    progress = torch.tensor(step / total_steps, device=device)
    started = last_saved = time.monotonic()
    seconds_before = outcome.seconds
    steps_since, since = 0, started

    def save() -> None:
        write_checkpoint(
            checkpoint,
            run_id,
            {name: part.state_dict() for name, part in parts.items()}
            | {
                "step": step,
                "epochs": [epoch.model_dump() for epoch in outcome.epochs],
                "seconds": seconds_before + time.monotonic() - started,
                "resumed": outcome.resumed,
            },
        )

    try:
        while step < total_steps:
            if step % steps_per_epoch == 0:
                task.start_epoch()
            trace.clear()
            loss = task.loss(step % steps_per_epoch)
            penalty = method.penalty(trace, progress, generators.method)
            optimizer.zero_grad(set_to_none=True)
            (loss + penalty).backward()
            clip_gradients(parameters, recipe.clip)
            optimizer.step()
            method.after_step(model, optimizer, progress, generators.method)
            running.add(loss, penalty, step_tensor)
            schedule.after_step()
            step += 1
            steps_since += 1
            step_tensor += 1
            progress.fill_(step / total_steps)

            epoch_ended = step % steps_per_epoch == 0
            if step % LOG_EVERY_STEPS == 0 or epoch_ended or step == total_steps:
                metric = _metric_of(outcome.epochs, task.metric)
                writer.add_scalar("loss/task", float(loss.detach()), step)
                writer.add_scalar("loss/penalty", float(penalty.detach()), step)
                writer.add_scalar("learning_rate", schedule.rate, step)
                listen(Event(step, total_steps, float(loss.detach()), metric))
                if int(running.diverged_step) >= 0:
                    outcome.diverged_step = int(running.diverged_step)
                    break
            if (epoch_ended and step // steps_per_epoch % recipe.evaluate_every == 0) or step == total_steps:
                per_step = (time.monotonic() - since) / max(1, steps_since)
                trace.clear()
                record = _evaluate(task, generators, trace, running, step, schedule.rate, per_step)
                outcome.epochs.append(record)
                _write_scalars(writer, record)
                if not all(map(math.isfinite, (*record.validation.values(), *record.test.values()))):
                    outcome.diverged_step = step  # the loss of the next step would not be finite
                    break
                metric = _metric_of(outcome.epochs, task.metric)
                if metric is not None:
                    schedule.after_evaluation(metric)
                running.reset()
                steps_since, since = 0, time.monotonic()
            stopping = should_stop()
            if stopping or time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                save()
                last_saved = time.monotonic()
            if stopping and step < total_steps:
                raise Interrupted(f"stopped at step {step} of {total_steps}")
    finally:
        trace.clear()
        writer.close()
    outcome.seconds = seconds_before + time.monotonic() - started
    return outcome


def _evaluate(
    task: Task,
    generators: Generators,
    trace: Any,
    running: _Running,
    step: int,
    rate: float,
    seconds_per_step: float,
) -> EpochRecord:
    train_loss, penalty = running.means()
    metrics = task.evaluate()
    return EpochRecord(
        epoch=-(-step // task.steps_per_epoch),
        step=step,
        train_loss=train_loss,
        penalty=penalty,
        learning_rate=rate,
        validation=metrics.get("validation", {}),
        test=metrics.get("test", {}),
        sites=site_statistics(task, generators, trace),
        seconds_per_step=seconds_per_step,
    )


def _metric_of(epochs: list[EpochRecord], metric: str) -> float | None:
    """The newest value of the metric: on validation, or on test where nothing is held out."""
    if not epochs:
        return None
    return (epochs[-1].validation or epochs[-1].test).get(metric)


def _write_scalars(writer: SummaryWriter, record: EpochRecord) -> None:
    for split in ("validation", "test"):
        for name, value in getattr(record, split).items():
            writer.add_scalar(f"{name}/{split}", value, record.step)
    for name, statistics in record.sites.items():
        writer.add_scalar(f"mean_square/{name}", statistics.mean_square, record.step)
    writer.add_scalar("seconds_per_step", record.seconds_per_step, record.step)


def select(epochs: list[EpochRecord], selection: Selection, metric: str) -> Final | None:
    """The evaluation that counts, by the rule that the recipe states; none when nothing was evaluated.

    ``best_validation`` without a validation split would silently be something else: it is an error.
    """
    if not epochs:
        return None
    chosen = epochs[-1]
    if selection != "last":
        split = selection.removeprefix("best_")
        if not getattr(chosen, split):
            raise ValueError(f"selection {selection!r} needs a {split} split, and the task has none")
        chosen = min(epochs, key=lambda record: getattr(record, split)[metric])
    return Final(selection=selection, epoch=chosen.epoch, validation=chosen.validation, test=chosen.test)
