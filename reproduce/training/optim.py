"""From a Recipe to optimiser, rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from reproduce.experiment.schema import Clip, CosineRate, DecayRate, PlateauRate, Recipe, StepRate


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """Weights in one group, biases and scalars in another with its own rate and weight decay.

    A bias is a parameter whose name ends in ``bias``; LSTM biases (``bias_ih_l0``) count as well.
    """
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_bias = name.rsplit(".", 1)[-1].startswith("bias") or parameter.numel() == 1
        (biases if is_bias else weights).append(parameter)
    bias_decay = recipe.weight_decay if recipe.decay_biases else 0.0
    groups = [
        {"params": weights, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        {"params": biases, "lr": recipe.learning_rate * recipe.bias_rate, "weight_decay": bias_decay},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    groups = parameter_groups(model, recipe)
    match recipe.optimizer:
        case "sgd":
            return torch.optim.SGD(
                groups,
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov,
                fused=True,
            )
        case "adam":
            return torch.optim.Adam(groups, lr=recipe.learning_rate, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=recipe.learning_rate, momentum=recipe.momentum)


def rate_factor(recipe: Recipe, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The learning rate at a step as a fraction of the recipe's, plateau schedules apart."""
    schedule = recipe.schedule

    def scheduled(step: int) -> float:
        match schedule:
            case StepRate():
                position = step if schedule.unit == "steps" else step // steps_per_epoch
                factors = schedule.factor
                if isinstance(factors, float):
                    factors = (factors,) * len(schedule.milestones)
                passed = zip(schedule.milestones, factors, strict=True)
                return math.prod(factor for milestone, factor in passed if position >= milestone)
            case DecayRate():
                return schedule.factor ** max(0, step // steps_per_epoch - schedule.after + 1)
            case CosineRate():
                return 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / total_steps))
            case _:
                return 1.0

    def factor(step: int) -> float:
        if recipe.warmup_steps and recipe.warmup_factor and step < recipe.warmup_steps:
            return scheduled(step) * recipe.warmup_factor
        return scheduled(step)

    return factor


class RateSchedule:
    """The learning rate over a Run: a function of the step, or of validation results."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        steps_per_epoch: int,
        total_steps: int,
        higher_is_better: bool = False,  # of the metric that a plateau schedule watches
    ) -> None:
        self.optimizer = optimizer
        self._by_step: LRScheduler | None = None
        self._by_result: ReduceLROnPlateau | None = None
        if isinstance(recipe.schedule, PlateauRate):
            self._by_result = ReduceLROnPlateau(
                optimizer,
                mode="max" if higher_is_better else "min",
                factor=recipe.schedule.factor,
                patience=recipe.schedule.patience,
                threshold=0.0,
            )
        else:
            self._by_step = LambdaLR(optimizer, rate_factor(recipe, steps_per_epoch, total_steps))

    def after_step(self) -> None:
        if self._by_step is not None:
            self._by_step.step()

    def after_evaluation(self, value: float) -> None:
        """Tell the schedule the validation result."""
        if self._by_result is not None:
            self._by_result.step(value)

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict:
        chosen = self._by_step or self._by_result
        return chosen.state_dict() if chosen is not None else {}

    def load_state_dict(self, state: dict) -> None:
        chosen = self._by_step or self._by_result
        if chosen is not None:
            chosen.load_state_dict(state)


def clip_gradients(parameters: Iterable[nn.Parameter], clip: Clip | None) -> None:
    """Scale gradients down to the clip's L2 norm, all together or each tensor apart; never waits for a device.

    Each tensor apart is `nn.utils.clip_grad_norm_` of each, to the bit: the factor is min(1, clip / (norm + 1e-6)).
    A small network has more tensors than operations of its own, so the tensors are taken together in four calls.
    """
    if clip is None:
        return
    if clip.per == "global":
        nn.utils.clip_grad_norm_(parameters, clip.norm)
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        norms = torch.stack(torch._foreach_norm(gradients))
        factors = (clip.norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factors.unbind())
