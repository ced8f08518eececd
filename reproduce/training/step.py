"""One optimiser step of a Task with a method. The loop, the bench and the battery take this step and no other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from reproduce.experiment.recipe import Recipe
from reproduce.method import Method
from reproduce.method.parts import read_whole_batches
from reproduce.method.rng import Generators
from reproduce.method.sites import watch
from reproduce.tasks import Task
from reproduce.training.averaging import Averager
from reproduce.training.capture import Mode, Recording, Repeated
from reproduce.training.group import ALONE, Group
from reproduce.training.optim import RateSchedule, ScalesRate, build_optimizer, clip_gradients


class RunningSums:
    """Sums since the last evaluation, kept on the device and written in place, so that no step waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device, dtype=torch.float64)
        self.penalty = torch.zeros((), device=device, dtype=torch.float64)
        self.steps = torch.zeros((), device=device, dtype=torch.int64)
        self.diverged_step = torch.full((), -1, device=device, dtype=torch.int64)  # since the Run's start; -1: none

    def add(self, loss: Tensor, penalty: Tensor, number: Tensor) -> None:
        """Take in what step ``number`` found; the first one that is not finite is remembered."""
        self.loss += loss
        self.penalty += penalty
        first_time = self.diverged_step.lt(0) & ~torch.isfinite(loss + penalty)
        self.diverged_step.copy_(torch.where(first_time, number, self.diverged_step))
        self.steps += 1

    def means(self) -> tuple[float, float]:
        """Mean loss and mean penalty of a step."""
        count = max(1, int(self.steps))
        return float(self.loss) / count, float(self.penalty) / count

    def reset(self) -> None:
        for total in (self.loss, self.penalty, self.steps):
            total.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            getattr(self, name).copy_(torch.as_tensor(value))  # older checkpoints hold ``steps`` as a Python number


class Step:
    """Forward pass, penalty, backward pass, clipping, optimiser, the method's `after_step`, sums, rate, progress.

    Nothing in a step waits for a value on the device, and what it reads and writes stays where it is: parameters, the
    optimiser's state, what a Task carries from batch to batch, ``loss``, ``penalty``, ``sums``, ``number``, ``index``,
    ``progress``. So a step can be recorded once and replayed. The host does one thing between two steps: where the
    learning rate changes, it writes the new one.

    Args:
        task: its model is prepared by ``method``, moved to ``device`` and put into training mode.
        method: the method.
        recipe: optimiser, schedule, clipping, and the number of steps that `progress` is a fraction of.
        generators: those that the Task was built with.
        device: where everything lies.
        make_recording: records a step after the first WARM_UP_STEPS, see `Repeated`; None: every step is eager.
        rate_on_device: the learning rate is a float32 tensor there, which a recorded step needs. It moves last bits;
            so by default it is one on CUDA alone, for eager and captured steps alike.
        group: of processes that take the step together. What is said of a step here, its loss and its penalty too, is
            then of the whole batch.

    Raises:
        ValueError: the method refuses the Task's model, or the group what the method has made of it.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        recipe: Recipe,
        generators: Generators,
        device: torch.device,
        make_recording: Callable[[], Recording] | None = None,
        rate_on_device: bool | None = None,
        group: Group = ALONE,
    ) -> None:
        self.task, self.method, self.generators, self.group = task, method, generators, group
        self.model = task.model
        known = set(self.model.modules())
        method.prepare(self.model, generators.method)
        self.model.to(device).train()
        if group.part is not None:
            read_whole_batches(self.model, group.part, known)
        self.trace = watch(self.model, method.recorded_roles)
        self.trace.source_examples = task.source_examples
        self.parameters = list(self.model.parameters())
        self.clip = recipe.clip
        self.keeps_spectra = recipe.kernel_spectra is not None
        self.total_steps = recipe.steps or (recipe.epochs or 1) * task.steps_per_epoch
        self.optimizer = build_optimizer(self.model, recipe)
        better = task.metric.better == "higher"
        self.schedule = RateSchedule(
            self.optimizer,
            recipe,
            task.steps_per_epoch,
            self.total_steps,
            higher_is_better=better,
            device=device if rate_on_device or (rate_on_device is None and device.type == "cuda") else None,
        )
        self.averager = Averager(self.parameters, recipe.averaging, better) if recipe.averaging else None
        self.loss = torch.zeros((), device=device, dtype=torch.float64)  # of the last step
        self.penalty = torch.zeros((), device=device, dtype=torch.float64)
        self.sums = RunningSums(device)
        self.number = torch.zeros((), device=device, dtype=torch.int64)  # of steps taken
        self.index = torch.zeros((), device=device, dtype=torch.int64)  # of the next batch in its epoch
        self.progress = torch.zeros((), device=device)  # number / total steps, as methods see it
        # A tensor, since CUDA divides by a Python number in a way that may differ in the last bit.
        self._total = torch.full((), self.total_steps, device=device, dtype=torch.float64)
        self._on_device = Repeated(self._act, make_recording)

    @property
    def mode(self) -> Mode:
        """Whether its steps are recorded and replayed, or all taken for real."""
        return self._on_device.mode

    def __call__(self) -> None:
        """Take one step, on the next batch of the Task's epoch."""
        self._on_device()
        self.schedule.after_step()

    def _act(self) -> None:
        """What happens on the device."""
        with self.group.passing():
            loss = self.task.loss(self.index)
        if not self.method.is_mean_over_samples:
            self.group.complete(self.trace)
        penalty = self.method.penalty(self.trace, self.progress, self.generators.method)
        self.optimizer.zero_grad(set_to_none=True)
        (loss + penalty).backward()
        loss, penalty = self.group.average(self.parameters, loss.detach(), penalty.detach())
        clip_gradients(self.parameters, self.clip)
        with self.schedule.scaled(self.task.rate_factor) if isinstance(self.task, ScalesRate) else nullcontext():
            self.optimizer.step()
        self.method.after_step(self.model, self.optimizer, self.progress, self.generators.method)
        if self.averager is not None:
            self.averager.mean.add()
        self.trace.clear()  # no activation outlives its step
        self.loss.copy_(loss)
        self.penalty.copy_(penalty)
        self.sums.add(loss, penalty, self.number)
        self.number += 1
        self._place()

    def after_evaluation(self, result: float, epoch: int) -> None:
        """Tell the schedule, and what averages weights, what was found after so many epochs."""
        self.schedule.after_evaluation(result)
        if self.averager is not None and self.averager.after_evaluation(result, epoch):
            self._on_device.forget()

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """A context in which the weights are those that are evaluated: their average, where there is one."""
        return nullcontext() if self.averager is None else self.averager.mean.in_place()

    def _place(self) -> None:
        self.index.copy_(self.number % self.task.steps_per_epoch)
        self.progress.copy_(self.number / self._total)

    def _parts(self) -> dict[str, Any]:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "generators": self.generators,
            "task": self.task,
            "running": self.sums,
        }
        return parts if self.averager is None else parts | {"averager": self.averager}

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on: tensors and plain values."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | {"schedule": self.schedule.state_dict(), "step": int(self.number)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.schedule.load_state_dict(state["schedule"], state["step"])
        self.number.fill_(state["step"])
        self._place()
        self._on_device.forget()  # the optimiser's state has other tensors now
