"""When the loop evaluates, what it says, and which evaluation counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce import tasks
from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import PlateauRate, Recipe
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.results.record import EpochRecord
from reproduce.training.loop import Event, Outcome, select, train
from reproduce.training.optim import RateSchedule
from reproduce.training.run import step_mode

CPU = torch.device("cpu")


class Rehearsed:
    """A Task whose evaluations are given."""

    metric = METRICS["error"]
    steps_per_epoch = 2
    source_examples = None

    def __init__(self, validation: list[float]) -> None:
        self.model: Any = nn.Linear(1, 1)
        nn.init.ones_(self.model.weight)
        nn.init.ones_(self.model.bias)
        self.evaluations = iter(validation)
        self.epochs_started = 0
        self.losses: list[float] = []

    def start_epoch(self) -> None:
        self.epochs_started += 1

    def loss(self, index: Tensor) -> Tensor:
        loss = self.model(torch.ones(1, 1)).square().sum() * 1e-3 + 0.0625 * len(self.losses)
        self.losses.append(float(loss.detach()))
        return loss

    def evaluate(self) -> tasks.Metrics:
        return {"validation": {"error": next(self.evaluations)}, "test": {"error": 50.0}}

    def forward_site_batch(self) -> None:
        return

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


def rehearse(folder: Path, validation: list[float], **recipe: Any) -> tuple[Outcome, Rehearsed, list[Event]]:
    folder.mkdir(exist_ok=True)
    content = {"epochs": len(validation), "batch_size": 1, "learning_rate": 0.8, **recipe}
    task, events = Rehearsed(validation), list[Event]()
    generators = Generators.seeded(0, CPU)
    made = Recipe.model_validate(content)
    return train("id", made, task, Unregularized(), generators, CPU, folder, events.append), task, events


def test_plateau_hears_of_a_perfect_score(tmp_path: Path) -> None:
    """An error of zero is the best there is, not a missing one."""
    outcome, _, _ = rehearse(tmp_path, [3.0, 0.0, 0.0, 5.0, 1.0], schedule=PlateauRate(kind="plateau", factor=0.5))
    assert [record.learning_rate for record in outcome.epochs] == [0.8, 0.8, 0.8, 0.4, 0.2]


def test_when_it_evaluates(tmp_path: Path) -> None:
    outcome, task, _ = rehearse(tmp_path / "a", [1.0, 2.0, 3.0], epochs=5, evaluate_every=2)
    assert [(record.epoch, record.step) for record in outcome.epochs] == [(2, 4), (4, 8), (5, 10)]
    assert task.epochs_started == 5
    outcome, task, _ = rehearse(tmp_path / "b", [1.0, 2.0], epochs=None, steps=3)
    assert [(record.epoch, record.step) for record in outcome.epochs] == [(1, 2), (2, 3)]
    assert task.epochs_started == 2


def test_losses_are_means_since_the_last_evaluation(tmp_path: Path) -> None:
    outcome, task, _ = rehearse(tmp_path, [1.0, 1.0, 1.0], epochs=5, evaluate_every=2)
    means = [sum(part) / len(part) for part in (task.losses[0:4], task.losses[4:8], task.losses[8:10])]
    assert [record.train_loss for record in outcome.epochs] == pytest.approx(means, rel=1e-12)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """With plain SGD, a step moves the parameters by the rate times the clip's norm at most."""
    _, free, _ = rehearse(tmp_path / "free", [1.0])
    moved = []
    for norm in (1e-3, 2e-3):
        _, task, _ = rehearse(tmp_path / str(norm), [1.0], clip={"norm": norm})
        difference = [a - b for a, b in zip(task.model.parameters(), Rehearsed([]).model.parameters(), strict=True)]
        moved.append(float(torch.cat([part.detach().flatten() for part in difference]).norm()))
    assert moved == pytest.approx([2 * 0.8 * 1e-3, 2 * 0.8 * 2e-3], rel=0.01)
    assert float(free.model.weight.detach()) < float(task.model.weight.detach())


def test_what_it_says_while_training(tmp_path: Path) -> None:
    _, _, events = rehearse(tmp_path, [7.0, 6.0, 5.0])
    assert [(event.step, event.total_steps, event.metric) for event in events] == [
        (2, 6, None),
        (4, 6, 7.0),
        (6, 6, 6.0),
    ]


def record_of(epoch: int, validation: float | None, test: float) -> EpochRecord:
    held_out = {} if validation is None else {"error": validation}
    content: Any = {"train_loss": 0.0, "penalty": 0.0, "learning_rate": 0.1, "seconds_per_step": 0.0}
    return EpochRecord(epoch=epoch, step=epoch, validation=held_out, test={"error": test}, **content)


def test_selection_rules() -> None:
    epochs = [record_of(1, 5.0, 9.0), record_of(2, 3.0, 8.0), record_of(3, 3.0, 6.0), record_of(4, 4.0, 7.0)]
    chosen = {rule: select(epochs, rule, METRICS["error"]) for rule in ("last", "best_validation", "best_test")}  # type: ignore[arg-type]
    assert {rule: final.epoch for rule, final in chosen.items() if final} == {
        "last": 4,
        "best_validation": 2,  # the first of equals
        "best_test": 3,
    }
    final = chosen["best_validation"]
    assert final is not None
    assert (final.selection, final.validation, final.test) == ("best_validation", {"error": 3.0}, {"error": 8.0})


@pytest.mark.parametrize("every", [1, 2, 5])
def test_the_best_average_over_ten_epochs(every: int) -> None:
    """Against windows cut from the list: a lucky epoch does not win, and no window is shorter than ten epochs."""
    values = [5.0, 0.0, 5.0, 6.0, 0.5, 6.0, 5.0, 4.0, 5.0, 9.0, 4.0, 1.0, 4.0, 4.0, 3.0, 4.0, 3.0, 9.0, 9.0, 9.0]
    evaluated = {epoch: value for epoch, value in enumerate(values, 1) if epoch % every == 0}
    windows = {
        epoch: [evaluated[one] for one in range(epoch - 9, epoch + 1) if one in evaluated]
        for epoch in evaluated
        if epoch >= 10
    }
    expected = min(windows, key=lambda epoch: sum(windows[epoch]) / len(windows[epoch]))
    final = select(
        [record_of(epoch, value, 50.0 - epoch) for epoch, value in evaluated.items()],
        "best_validation_average",
        METRICS["error"],
    )
    assert final is not None
    assert final.epoch == expected != min(evaluated, key=lambda epoch: evaluated[epoch])
    assert final.test == {"error": 50.0 - expected}


def test_an_average_over_less_than_ten_epochs_is_of_the_last() -> None:
    final = select([record_of(n, float(n), 1.0) for n in (1, 2, 3)], "best_validation_average", METRICS["error"])
    assert final is not None
    assert final.epoch == 3


def test_the_best_accuracy_is_the_highest() -> None:
    """The direction is the metric's, for selection and for a plateau schedule."""
    epochs = [
        record_of(epoch, None, 0.0).model_copy(update={"validation": {"accuracy": value}})
        for epoch, value in enumerate([70.0, 80.0, 75.0])
    ]
    final = select(epochs, "best_validation", METRICS["accuracy"])
    assert final is not None
    assert final.epoch == 1
    recipe = Recipe(steps=9, batch_size=1, learning_rate=0.8, schedule=PlateauRate(kind="plateau", factor=0.5))
    for higher_is_better, rates in ((True, [0.8, 0.8, 0.4]), (False, [0.8, 0.4, 0.2])):
        optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=recipe.learning_rate)
        schedule = RateSchedule(optimizer, recipe, 3, 9, higher_is_better)
        found = []
        for value in (70.0, 80.0, 75.0):
            schedule.after_evaluation(value)
            found.append(schedule.rate)
        assert found == rates


def test_selection_without_what_it_needs() -> None:
    assert select([], "last", METRICS["error"]) is None
    with pytest.raises(ValueError, match="needs a validation split"):
        select([record_of(1, None, 5.0)], "best_validation", METRICS["error"])


def test_steps_are_captured_where_that_can_be() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda:0")
    assert [step_mode("", device) for device in (cpu, cuda)] == ["eager", "captured"]
    assert [step_mode("eager", device) for device in (cpu, cuda)] == ["eager", "eager"]
    with pytest.raises(UserError, match=r"^--mode captured: a cpu captures no steps, .* use --mode eager$"):
        step_mode("captured", cpu)
    with pytest.raises(UserError, match=r"^--mode fast: expected eager or captured$"):
        step_mode("fast", cuda)
