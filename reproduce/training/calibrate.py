"""How strong a penalty pulls: the norm of its gradient over that of the task's loss, early in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from reproduce import data
from reproduce.errors import UserError
from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Experiment
from reproduce.method import Method
from reproduce.method.rng import Generators
from reproduce.method.sites import watch
from reproduce.tasks import Task
from reproduce.training.host import build_task
from reproduce.training.optim import RateSchedule, build_optimizer, clip_gradients
from reproduce.training.plan import method_of, resolve

HUNDREDTHS = (0.01, 0.1)  # where a grid is centred: felt from the first step, and far from ruling it


@dataclass(frozen=True)
class GradientRatio:
    """One arm at one strength: ``ratio`` is that of the penalty's gradient norm to the task's."""

    task: str
    arm: str
    weight: str  # the method's field that weights the penalty
    strength: float
    ratio: float


def gradient_ratios(
    task: Task, recipe: Recipe, methods: Sequence[Method], generators: Generators, device: torch.device, n_steps: int
) -> list[float]:
    """``median over steps t of |grad penalty(w_t)| / |grad task loss(w_t)|``, one for each method.

    The weights ``w_t`` follow the task's gradient alone, by the recipe, so that all methods are measured at the same
    points; at each of them all methods draw the same numbers. Norms are L2, before clipping, over the parameters that
    the task's loss reaches: those that a method keeps for itself do not compete with the task. A penalty that rises or
    falls with the progress of training is read as it stands at these steps.

    Args:
        methods: one method at several strengths; the first of them prepares the model for all.
        n_steps: how many first steps the median is over.

    Raises:
        ValueError: the method refuses the model.
    """
    model = task.model
    methods[0].prepare(model, generators.method)
    model.to(device).train()
    trace = watch(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = build_optimizer(model, recipe)
    total_steps = recipe.steps or (recipe.epochs or 1) * task.steps_per_epoch
    schedule = RateSchedule(optimizer, recipe, task.steps_per_epoch, total_steps)
    measured: list[list[float]] = [[] for _ in methods]
    for step in range(n_steps):
        if step % task.steps_per_epoch == 0:
            task.start_epoch()
        trace.clear()
        loss = task.loss(torch.tensor(step % task.steps_per_epoch, device=device))
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        reached = [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
        task_norm = norm(gradients)
        progress = torch.tensor(step / total_steps, device=device)
        state = generators.method.get_state()
        for method, ratios in zip(methods, measured, strict=True):
            generators.method.set_state(state)
            penalty = method.penalty(trace, progress, generators.method)
            ratios.append(float(norm(gradients_of(penalty, reached)) / task_norm))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        clip_gradients(parameters, recipe.clip)
        optimizer.step()
        schedule.after_step()
    trace.clear()
    return [float(np.median(ratios)) for ratios in measured]


def gradient_ratio(penalty: Tensor, loss: Tensor, model: nn.Module) -> float:
    """``|grad penalty| / |grad loss|`` at one step of your own loop: how strong a penalty pulls beside the task.

    >>> from reproduce import attach
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.ReLU())
    >>> _ = torch.nn.init.ones_(model[0].weight)
    >>> handle = attach("activity_norm", model, kind="l2", strength=1.0)
    >>> outputs = model(torch.tensor([[1.0, 1.0]]))  # 2: the penalty is 4, and its slope 4 in each weight
    >>> gradient_ratio(handle.penalty(), outputs.sum(), model)
    4.0

    Norms are L2, over the parameters that the loss reaches. Both graphs are kept, so ``(loss + penalty).backward()``
    may follow. A penalty is proportional to its strength: at ``strength=1`` the median r over some first steps gives
    ``wanted / r`` as the strength with a ratio of ``wanted``. Some hundredths (`HUNDREDTHS`) are felt from the first
    step, and do not rule it.

    Raises:
        ValueError: a loss that reaches no parameter of the model, or whose gradient is zero or not finite.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    reached = [parameter for parameter, of in zip(parameters, gradients, strict=True) if of is not None]
    if not reached:
        raise ValueError("the loss reaches no parameter of this model: give the model that the loss was computed with")
    task_norm = float(norm(gradients))
    if not 0 < task_norm < math.inf:
        raise ValueError(f"the gradient of the loss has norm {task_norm}: there is nothing to compare a penalty with")
    return float(norm(gradients_of(penalty, reached))) / task_norm


def gradients_of(penalty: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Gradients of a penalty; none where it has no graph, as that of a method that adds nothing."""
    if not penalty.requires_grad:
        return (None,) * len(parameters)
    return torch.autograd.grad(penalty, parameters, retain_graph=True, allow_unused=True)


def norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """L2 norm of all gradients together, 0-dim; zero where there is none."""
    return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


def calibrate(
    folder: MethodFolder,
    experiment: Experiment,
    strengths: Sequence[float],
    n_steps: int,
    device: torch.device,
    root: Path | None,
    cache: Path,
) -> list[GradientRatio]:
    """The ratios of every arm of this method in an experiment, at seed 0: one weight at a time, the others at zero.

    An arm's weights are those of its grid; without one, those that are not zero.

    Raises:
        UserError: no arm of this method can run there, an arm that weights nothing, a strength that the method does
            not take, or a model that it refuses.
    """
    found: list[GradientRatio] = []
    for cell in own_cells(folder, experiment):
        every = folder.load().strengths()
        given, _ = resolve(cell, folder, root)
        grid = experiment.arms[cell.arm_name].grid
        varied = [name for name in every if (name in grid if grid else given.params[name] != 0)]
        if not varied:
            raise UserError(
                f"arm {cell.arm_name!r}: method {folder.name} weights no penalty there: nothing to calibrate"
            )
        for weight in varied:
            methods = []
            for strength in strengths:
                params = {**cell.params, **dict.fromkeys(every, 0.0), weight: strength}
                config, _ = resolve(cell.model_copy(update={"params": params}), folder, root)
                methods.append(method_of(config, folder))
            generators = Generators.seeded(cell.seed, device)
            loaded = data.load_all(cell.task.datasets, root, cache)
            task = build_task(cell.task, cell.recipe, loaded, generators, device)
            try:
                ratios = gradient_ratios(task, cell.recipe, methods, generators, device, n_steps)
            except ValueError as error:
                raise UserError(f"arm {cell.arm_name!r}: method {folder.name} refuses the model: {error}") from error
            for strength, ratio in zip(strengths, ratios, strict=True):
                found.append(GradientRatio(cell.task_name, cell.arm_name, weight, strength, ratio))
    return found


def own_cells(folder: MethodFolder, experiment: Experiment) -> list[Cell]:
    """One training of each arm of this method that can run, at seed 0.

    Raises:
        UserError: there is none; with the reason where the experiment gives one.
    """
    first: dict[tuple[str, str], Cell] = {}
    for cell in cells(experiment, (0,)):
        if cell.method == folder.name:
            first.setdefault((cell.task_name, cell.arm_name), cell)  # the points of a grid differ in what we vary
    if not first:
        pending = [arm.pending for arm in experiment.arms.values() if arm.method == folder.name and arm.pending]
        reason = f": pending, {pending[0]}" if pending else ""
        raise UserError(f"experiment {experiment.title!r} has no arm of {folder.name} to calibrate{reason}")
    return list(first.values())


def suggested_grid(rows: Sequence[GradientRatio]) -> tuple[float, float, float] | None:
    """Three strengths, each ten times the one before, around that with a ratio of some hundredths; None: none has."""
    low, high = HUNDREDTHS
    middle = math.log(low * high) / 2
    fitting = [row for row in rows if low <= row.ratio <= high]
    if not fitting:
        return None
    chosen = min(fitting, key=lambda row: abs(math.log(row.ratio) - middle)).strength
    return chosen / 10, chosen, chosen * 10
