"""From a Recipe to optimiser, rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from reproduce.experiment.recipe import Clip, CosineRate, DecayRate, LinearRate, PlateauRate, Recipe, StepRate


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
    """The recipe's optimiser, on the model's device; on CUDA a step of it can be recorded as a graph."""
    groups = parameter_groups(model, recipe)
    on_cuda = groups[0]["params"][0].is_cuda
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
            return torch.optim.Adam(groups, lr=recipe.learning_rate, fused=True, capturable=on_cuda)
        case "nadam":
            return torch.optim.NAdam(groups, lr=recipe.learning_rate, capturable=on_cuda)
        case "rmsprop":
            return torch.optim.RMSprop(
                groups,
                lr=recipe.learning_rate,
                alpha=recipe.smoothing or 0.99,
                momentum=recipe.momentum,
                capturable=on_cuda,
            )


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
            case LinearRate():
                return 1 - (1 - schedule.last) * min(step, total_steps) / total_steps
            case _:
                return 1.0

    def factor(step: int) -> float:
        if recipe.warmup_steps and recipe.warmup_factor and step < recipe.warmup_steps:
            return scheduled(step) * recipe.warmup_factor
        return scheduled(step)

    return factor


@runtime_checkable
class ScalesRate(Protocol):
    """A Task whose batches differ in size, and whose rate follows; its steps run eagerly, since their shapes differ."""

    rate_factor: float  # of the rate, for the batch that `loss` read last


class RateSchedule:
    """The learning rate over a Run: a function of the step, or of validation results.

    Rates are computed on the host, as Python numbers, and put into the optimiser's groups when they change: as numbers
    on the CPU, and into one float32 tensor a group on another ``device``, where a recorded step reads them anew.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        steps_per_epoch: int,
        total_steps: int,
        higher_is_better: bool = False,  # of the metric that a plateau schedule watches
        device: torch.device | None = None,  # where the rates lie; None: on the host
    ) -> None:
        self.optimizer = optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self._base = list(self.rates)
        self._steps = 0
        self._factor = rate_factor(recipe, steps_per_epoch, total_steps)
        self._plateau = (
            _plateau(self.rates, recipe.schedule, higher_is_better)
            if isinstance(recipe.schedule, PlateauRate)
            else None
        )
        self._tensors = None if device is None else [torch.zeros((), device=device) for _ in self.rates]
        self._follow(0)

    @property
    def rate(self) -> float:
        """That of the weights."""
        return self.rates[0]

    def after_step(self) -> None:
        """Set the rate of the next step."""
        self._steps += 1
        if self._plateau is None:
            factor = self._factor(self._steps)
            rates = [base * factor for base in self._base]
            if rates != self.rates:
                self._put(rates)

    @contextmanager
    def scaled(self, factor: float) -> Iterator[None]:
        """All rates times ``factor``, for one step."""
        rates = self.rates
        self._put([rate * factor for rate in rates])
        try:
            yield
        finally:
            self._put(rates)

    def after_evaluation(self, value: float) -> None:
        """Tell the schedule the validation result."""
        if self._plateau is not None:
            self._plateau.step(value)
            self._put([group["lr"] for group in self._plateau.optimizer.param_groups])

    def _follow(self, steps: int) -> None:
        """Go on after so many steps."""
        self._steps = steps
        if self._plateau is not None:
            self._put([float(rate) for rate in self._plateau.get_last_lr()])
        else:
            factor = self._factor(steps)
            self._put([base * factor for base in self._base])

    def _put(self, rates: list[float]) -> None:
        self.rates = rates
        for index, (group, rate) in enumerate(zip(self.optimizer.param_groups, rates, strict=True)):
            if self._tensors is None:
                group["lr"] = rate
            else:
                group["lr"] = self._tensors[index].fill_(rate)  # the optimiser may have loaded another

    def state_dict(self) -> dict:
        """What does not follow from the number of steps."""
        return {} if self._plateau is None else self._plateau.state_dict()

    def load_state_dict(self, state: dict, steps: int) -> None:
        """Go on after so many steps; the optimiser has loaded its own state."""
        if self._plateau is not None:
            self._plateau.load_state_dict(state)
            for group, rate in zip(self._plateau.optimizer.param_groups, self._plateau.get_last_lr(), strict=True):
                group["lr"] = rate
        self._follow(steps)


def _plateau(rates: list[float], schedule: PlateauRate, higher_is_better: bool) -> ReduceLROnPlateau:
    """torch's schedule on an optimiser of nothing, whose rates are Python numbers on every device."""
    holder = torch.optim.SGD([{"params": [torch.zeros(0)], "lr": rate} for rate in rates])
    mode: Literal["min", "max"] = "max" if higher_is_better else "min"
    return ReduceLROnPlateau(holder, mode, factor=schedule.factor, patience=schedule.patience, threshold=0.0)


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
