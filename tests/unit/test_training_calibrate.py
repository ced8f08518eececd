"""The ratio of gradient norms against closed forms, and the strengths that follow from it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce import data, tasks
from reproduce.errors import UserError
from reproduce.experiment.folder import find_method
from reproduce.experiment.recipe import Clip, ConstantRate, Recipe, StepRate
from reproduce.experiment.schema import Experiment
from reproduce.method import Method, Trace
from reproduce.method.rng import Generators
from reproduce.training.calibrate import GradientRatio, calibrate, gradient_ratio, gradient_ratios, suggested_grid

CPU = torch.device("cpu")
START = torch.tensor([3.0, 4.0])


class Valley(nn.Module):
    """Two weights that start at `START`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(START.clone())


class Descent:
    """The task loss ``|w|^2 / 2``, whose gradient is ``w``."""

    steps_per_epoch = 2
    source_examples = None

    def __init__(self) -> None:
        self.model = Valley()
        self.epochs = 0

    def start_epoch(self) -> None:
        self.epochs += 1

    def loss(self, index: Tensor) -> Tensor:
        assert 0 <= index < self.steps_per_epoch
        return self.model.weight.square().sum() / 2


class Slope(Method):
    """``strength`` times the sum of the weights: its gradient has the norm ``strength * sqrt(2)`` everywhere."""

    strength: float
    own_weights: bool = False

    def prepare(self, model: nn.Module, generator: torch.Generator) -> None:
        if self.own_weights:
            model.register_parameter("own", nn.Parameter(torch.ones(5)))

    def penalty(self, trace: Trace, progress: Tensor, generator: torch.Generator) -> Tensor:
        own = 1e6 * trace.model.own.sum() if self.own_weights else 0.0
        return self.strength * (trace.model.weight.sum() + own)


class Silent(Method):
    """Adds nothing to the loss."""


def ratios_on_the_slope(n_steps: int, methods: list[Any], **changes: Any) -> list[float]:
    recipe = Recipe.model_validate({"epochs": 10, "batch_size": 1, "learning_rate": 0.25, **changes})
    return gradient_ratios(Descent(), recipe, methods, Generators.seeded(0, CPU), CPU, n_steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_the_ratio_of_a_linear_penalty_is_the_median_along_the_descent(n_steps: int) -> None:
    """At step t the weights are ``(1 - rate)^t`` of `START`, and so is the task's gradient."""
    found = ratios_on_the_slope(n_steps, [Slope(strength=s) for s in (1e-3, 1e-2, 7.0)])
    per_strength = statistics.median(2**0.5 / (0.75**step * 5) for step in range(n_steps))
    assert found == pytest.approx([1e-3 * per_strength, 1e-2 * per_strength, 7.0 * per_strength], rel=1e-5)


def test_the_weights_follow_the_recipe() -> None:
    """The rate falls to nothing after the first step; a clip halves that step."""
    stop = StepRate(kind="step", milestones=(1,), factor=1e-9, unit="steps")
    still = ratios_on_the_slope(3, [Slope(strength=1.0)], schedule=stop, clip=Clip(norm=2.5))
    assert still == pytest.approx([2**0.5 / (5 - 0.25 * 2.5)], rel=1e-5)
    assert ratios_on_the_slope(3, [Slope(strength=1.0)], schedule=ConstantRate()) != pytest.approx(still, rel=1e-2)


def test_what_the_task_does_not_reach_does_not_count() -> None:
    plain, with_own = (ratios_on_the_slope(2, [Slope(strength=1.0, own_weights=own)]) for own in (False, True))
    assert plain == with_own


def test_a_method_that_adds_nothing_has_the_ratio_zero() -> None:
    assert ratios_on_the_slope(2, [Silent()]) == [0.0]


def test_all_strengths_draw_the_same_directions(digits: Experiment) -> None:
    generators = Generators.seeded(0, CPU)
    task = tasks.build(digits.tasks["digits"], digits.recipe, data.load("digits"), generators, CPU)
    per = find_method("per").load()
    methods = [per(mode="sliced", n_slices=2, strength=strength) for strength in (1e-3, 1e-2)]
    weak, strong = gradient_ratios(task, digits.recipe, methods, generators, CPU, 3)
    assert weak > 0
    assert strong == pytest.approx(10 * weak, rel=1e-4)  # two slices drawn anew differ by far more


@pytest.fixture
def digits() -> Experiment:
    return Experiment.model_validate(
        {
            "title": "Digits in a moment",
            "scale": "quick",
            "source": "made for this test",
            "seeds": (1, 2),
            "tasks": {
                "digits": {
                    "kind": "image_classification",
                    "dataset": "digits",
                    "model": "mlp",
                    "train_examples": 60,
                    "model_options": {"width": 8, "depth": 2},
                }
            },
            "recipe": {"epochs": 2, "batch_size": 20, "learning_rate": 0.1},
            "arms": {
                "vanilla": {},
                "covariance": {
                    "method": "vcreg",
                    "params": {"variance_strength": 0.0},
                    "grid": {"covariance_strength": (1e-5, 1e-4, 1e-3)},
                },
                "both": {"method": "vcreg"},
                "waiting": {"method": "batchnorm", "pending": "not today"},
            },
        }
    )


def measured(method: str, experiment: Experiment, tmp_path: Path, strengths: tuple[float, ...] = (1e-2, 1e-1)) -> Any:
    return calibrate(find_method(method), experiment, strengths, 2, CPU, None, tmp_path)


def test_every_weight_of_every_arm_is_measured_apart(digits: Experiment, tmp_path: Path) -> None:
    rows = measured("vcreg", digits, tmp_path)
    assert [(row.task, row.arm, row.weight, row.strength) for row in rows] == [
        ("digits", "covariance", "covariance_strength", 1e-2),
        ("digits", "covariance", "covariance_strength", 1e-1),
        ("digits", "both", "variance_strength", 1e-2),
        ("digits", "both", "variance_strength", 1e-1),
        ("digits", "both", "covariance_strength", 1e-2),
        ("digits", "both", "covariance_strength", 1e-1),
    ]
    ratios = [row.ratio for row in rows]
    assert ratios[:2] == ratios[4:]  # the other weight is zero in both arms
    assert ratios[1::2] == pytest.approx([10 * ratio for ratio in ratios[::2]], rel=1e-4)
    assert ratios == [row.ratio for row in measured("vcreg", digits, tmp_path)]


@pytest.mark.parametrize(
    ("method", "strengths", "message"),
    [
        ("vanilla", (0.1,), "arm 'vanilla': method vanilla weights no penalty there: nothing to calibrate"),
        ("batchnorm", (0.1,), "experiment 'Digits in a moment' has no arm of batchnorm .*: pending, not today"),
        ("per", (0.1,), "experiment 'Digits in a moment' has no arm of per to calibrate$"),
        ("vcreg", (-1.0,), "arm 'covariance': method vcreg: covariance_strength: .*found -1.0"),
    ],
)
def test_what_cannot_be_calibrated_is_said_in_one_line(
    method: str, strengths: tuple[float, ...], message: str, digits: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        measured(method, digits, tmp_path, strengths)
    assert "\n" not in str(refused.value)


def test_a_model_that_the_method_refuses_is_said_in_one_line(digits: Experiment, tmp_path: Path) -> None:
    on_codes = digits.arms["both"].model_copy(update={"params": {"sites": "code"}})
    with pytest.raises(UserError, match=r"arm 'both': method vcreg refuses the model: .*'code' Site"):
        measured("vcreg", digits.model_copy(update={"arms": {"both": on_codes}}), tmp_path)


@pytest.mark.parametrize(
    ("ratios", "grid"),
    [
        ({0.01: 0.004, 0.1: 0.04, 1.0: 0.4}, (0.01, 0.1, 1.0)),
        ({0.1: 0.012, 0.2: 0.03, 0.5: 0.09}, (0.02, 0.2, 2.0)),
        ({0.1: 0.2, 1.0: 2.0}, None),
        ({0.1: 1e-4, 1.0: float("nan"), 10.0: float("inf")}, None),
    ],
)
def test_a_grid_is_centred_on_some_hundredths(ratios: dict[float, float], grid: tuple[float, ...] | None) -> None:
    found = suggested_grid([GradientRatio("task", "arm", "strength", *pair) for pair in ratios.items()])
    assert found == (None if grid is None else pytest.approx(grid))


def test_the_ratio_of_ones_own_step_is_that_of_the_gradients_by_hand() -> None:
    """The loss reaches one layer of two; what the penalty does to the other does not compete with it."""
    model = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)]).double()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = model[0](inputs).sum()
    penalty = 0.25 * model[0].weight.square().sum() + model[1].weight.square().sum()
    of_penalty = (0.5 * model[0].weight).detach().flatten()
    of_loss = inputs.sum(0).repeat(2)
    expected = of_penalty.norm().item() / of_loss.norm().item()
    assert gradient_ratio(penalty, loss, model) == pytest.approx(expected, rel=1e-12)
    assert gradient_ratio(torch.tensor(3.0), loss, model) == 0.0  # a penalty without a graph
    (loss + penalty).backward()  # both graphs are still there
    torch.testing.assert_close(model[0].weight.grad.flatten(), of_loss + of_penalty)


def test_a_loss_without_a_gradient_is_refused() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="reaches no parameter of this model"):
        gradient_ratio(model.weight.sum(), nn.Linear(3, 2).weight.sum(), model)
    with pytest.raises(ValueError, match=r"norm 0\.0: there is nothing"):
        gradient_ratio(model.weight.sum(), (0 * model.weight).sum(), model)
