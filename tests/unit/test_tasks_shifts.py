"""Image tasks under a shift: errors on corrupted test images, and a long tail of training classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reproduce import tasks
from reproduce.data import ImageData, Images
from reproduce.data.corruptions import corrupted
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.experiment.shifts import CORRUPTIONS, SEVERITIES, CorruptedSpec
from reproduce.method.rng import Generators
from reproduce.tasks._classification import balanced_error
from reproduce.tasks._shifts import long_tailed
from reproduce.training.measured import Measured

CPU = torch.device("cpu")


class ByMean(nn.Module):
    """Class 0 for images that are darker than half, class 1 for the others: no parameters, so an oracle is easy."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        mean = images.flatten(1).mean(1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def data(n: int = 40) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = torch.randint(0, 200, (n, 1, 8, 8), generator=generator) + 56 * labels.view(-1, 1, 1, 1)
    split = Images(images.to(torch.uint8), labels)
    card = DatasetCard.model_construct(name="made", statistics=Statistics(mean=(0.0,), std=(1.0,), source="made here"))
    return ImageData(card=card, train=split, validation=split, test=split, classes=2, origin="made here")


def build(**options: Any) -> Any:
    spec = TaskSpec.model_validate(
        {"kind": "image_classification", "dataset": "made", "model": "mlp", "normalise": "unit"}
        | {"model_options": {"width": 2, "depth": 1}}
        | options
    )
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1, eval_batch_size=7)
    return tasks.build(spec, recipe, data(), Generators.seeded(0, CPU), CPU)


def test_errors_are_means_over_kinds_and_severities() -> None:
    kinds = ("contrast", "brightness", "gaussian_noise")
    task = build(corrupted={"kinds": kinds, "severities": "tiny_imagenet_c", "examples": 25})
    task.model = ByMean()
    found = task.evaluate()
    test = data().test
    errors = np.empty((3, 5))
    for i, kind in enumerate(kinds):
        for j, severity in enumerate(SEVERITIES):
            images = corrupted(test.images[:25], kind, severity, "tiny_imagenet_c").numpy() / 255
            predicted = images.reshape(25, -1).mean(1) > 0.5
            errors[i, j] = 100 * np.mean(predicted != test.labels[:25].numpy())
    assert errors.std() > 5, "the oracle tells the corruptions apart"
    wanted = {f"{kind}_error": errors[i].mean() for i, kind in enumerate(kinds)}
    wanted |= {f"corrupted_error_at_{severity}": errors[:, j].mean() for j, severity in enumerate(SEVERITIES)}
    wanted["corrupted_error"] = errors.mean()
    assert {name: found["test"][name] for name in wanted} == pytest.approx(wanted)
    assert found["test"].keys() == wanted.keys() | {"loss", "error"}
    assert found["validation"].keys() == {"loss", "error"}
    assert set(task.model.seen) == {7, 5, 4}, "40 clean images and 25 of one corruption at a time, in sevens"
    assert task.model.training


def test_without_the_option_nothing_is_added() -> None:
    assert build().evaluate()["test"].keys() == {"loss", "error"}


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="examples = 41: there are only 40 test images"):
        build(corrupted={"examples": 41}).evaluate()


def test_what_a_plan_says_is_measured_is_what_is_measured() -> None:
    task = build(corrupted={}, imbalance=2.0)
    spec = TaskSpec(kind="image_classification", dataset="made", model="mlp", corrupted=CorruptedSpec(), imbalance=2.0)
    options = tasks.check_options(spec)
    found = task.evaluate()
    assert found["test"].keys() == options.metrics | options.test_metrics
    assert found["validation"].keys() == options.metrics
    assert found["test"].keys() <= METRICS.keys()
    measured = Measured("image_classification", options.metrics, True, options.test_metrics)
    assert measured.refusal("test.corrupted_error") == ""
    assert "is not measured" in measured.refusal("validation.corrupted_error")


def test_specs_name_each_corruption_once() -> None:
    assert CorruptedSpec().kinds == CORRUPTIONS
    with pytest.raises(ValueError, match="each corruption once"):
        CorruptedSpec(kinds=("contrast", "contrast"))


@pytest.mark.parametrize("imbalance", [1.0, 10.0, 100.0])
def test_a_long_tail_has_the_counts_of_cui_et_al(imbalance: float) -> None:
    labels = torch.arange(5000) % 10
    train = Images(torch.arange(5000).view(-1, 1, 1, 1), labels)
    cut = long_tailed(train, imbalance, 10)
    wanted = [int(500 * (1 / imbalance) ** (k / 9)) for k in range(10)]
    found = torch.bincount(cut.labels).tolist()
    assert all(abs(ours - theirs) <= 1 for ours, theirs in zip(found, wanted, strict=True))  # at most a last bit
    assert found[0] / found[9] == pytest.approx(imbalance, rel=0.1)
    kept = cut.images.flatten()
    assert (kept.diff() > 0).all(), "in their order"
    for k in range(10):  # each class keeps its first ones
        assert torch.equal(kept[cut.labels == k], torch.arange(k, 5000, 10)[: found[k]])


def test_an_uneven_set_is_cut_in_the_same_proportions() -> None:
    labels = torch.tensor([0] * 90 + [1] * 40 + [2] * 60)
    cut = long_tailed(Images(torch.zeros(190, 1, 1, 1), labels), 4.0, 3)
    assert torch.bincount(cut.labels).tolist() == [40, 20, 10]


def test_a_tail_that_loses_a_class_is_refused() -> None:
    with pytest.raises(UserError, match="imbalance = 1000 leaves class 1 none of 20 examples"):
        build(imbalance=1000.0)


def test_the_training_set_is_cut_and_the_others_are_not() -> None:
    task = build(imbalance=4.0)
    assert torch.bincount(task.train.labels).tolist() == [20, 5]
    assert [len(split.labels) for split in task.splits.values()] == [40, 40]
    assert task.steps_per_epoch == 12


def test_the_balanced_error_is_the_mean_of_classes() -> None:
    labels = torch.tensor([0, 0, 0, 0, 2, 2])
    missed = torch.tensor([True, False, False, False, True, False])
    assert balanced_error(missed, labels, 3) == pytest.approx(100 * np.mean([1 / 4, 1 / 2]))
    assert balanced_error(missed, labels, 2 + 1) != pytest.approx(100 * 2 / 6)
