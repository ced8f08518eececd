"""Telling test images from others: areas under the ROC curve and class Gaussians against SciPy and scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from reproduce import data, tasks
from reproduce.data import ImageData, Images
from reproduce.errors import UserError
from reproduce.experiment.cells import Cell
from reproduce.experiment.dataset_card import DatasetCard, Statistics, checksum, joint_checksum, read_card
from reproduce.experiment.folder import find_method
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.tasks._outside import SHRINKAGE, ClassGaussians, auroc
from reproduce.training.plan import resolve

CPU = torch.device("cpu")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n: int, offset: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    pixels = torch.randint(0, 120, (n, 1, 8, 8), generator=generator) + offset * (1 + labels.view(-1, 1, 1, 1))
    return Images(pixels.to(torch.uint8), labels)


def loaded() -> ImageData:
    card = DatasetCard.model_construct(name="made", statistics=Statistics(mean=(0.0,), std=(1.0,), source="made here"))
    train, test, outside = images(60, 40, 0), images(40, 40, 1), images(30, 0, 2)
    return ImageData(card=card, train=train, validation=test, test=test, classes=2, origin="here", outside=outside)


def spec(**options: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {"kind": "image_classification", "dataset": "made", "model": "mlp", "normalise": "unit"}
        | {"model_options": {"width": 6, "depth": 2}, "out_of_distribution": "others"}
        | options
    )


def build(given: ImageData, **options: Any) -> Any:
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1, eval_batch_size=7)
    return tasks.build(spec(**options), recipe, given, Generators.seeded(0, CPU), CPU)


def test_the_area_is_that_of_scikit_learn_with_ties() -> None:
    inside, outside = seeded(50).round(decimals=1) + 0.5, seeded(70, seed=1).round(decimals=1)
    assert len(set(inside.tolist()) & set(outside.tolist())) > 5
    wanted = roc_auc_score([1] * 50 + [0] * 70, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside) == pytest.approx(100 * wanted, rel=1e-12)
    assert auroc(inside, inside) == pytest.approx(50)


def test_densities_are_those_of_scipy() -> None:
    features, labels = seeded(60, 4) * torch.tensor([1, 2, 3, 4]), torch.arange(60) % 3 % 2
    features[labels == 1] += 5
    found = ClassGaussians(features, labels, 2).log_density(seeded(9, 4, seed=1) * 3)
    x, y, points = features.numpy(), labels.numpy(), (seeded(9, 4, seed=1) * 3).numpy()
    means = [x[y == c].mean(0) for c in range(2)]
    within = np.mean([(x[i, j] - means[y[i]][j]) ** 2 for i in range(60) for j in range(4)])
    of_classes = []
    for c in range(2):
        covariance = np.cov(x[y == c].T, bias=True)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * within * np.eye(4)
        of_classes.append(np.log(np.mean(y == c)) + scipy.stats.multivariate_normal(means[c], shrunk).logpdf(points))
    wanted = scipy.special.logsumexp(of_classes, axis=0) + 2 * np.log(2 * np.pi)  # the constant of four dimensions
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def test_a_density_needs_examples_that_vary() -> None:
    with pytest.raises(ValueError, match="class 2 has no example"):
        ClassGaussians(seeded(6, 2), torch.arange(6) % 2, 3)
    with pytest.raises(ValueError, match="do not vary"):
        ClassGaussians(torch.ones(6, 2), torch.arange(6) % 2, 2)
    one = ClassGaussians(seeded(5, 3), torch.tensor([0, 0, 0, 0, 1]), 2)  # a single example has no covariance
    assert bool(one.log_density(seeded(4, 3, seed=1)).isfinite().all())


def test_a_task_measures_both_areas_of_its_own_activations() -> None:
    given = loaded()
    task = build(given)
    found = task.evaluate()["test"]
    model = task.model.eval()

    def passed(part: Images) -> tuple[Tensor, Tensor]:
        hidden = (part.images.float() / 255).flatten(1)
        for layer in model.layers:
            hidden = layer(hidden)
        return hidden.detach(), model.classifier(hidden).softmax(1).amax(1).detach()

    gaussians = ClassGaussians(passed(given.train)[0], given.train.labels, 2)
    areas = {}
    assert given.outside is not None
    for name, place in (("ood_auroc", 1), ("ood_density_auroc", 0)):
        scores = [passed(part)[place] for part in (given.test, given.outside)]
        own, others = scores if place else [gaussians.log_density(latent) for latent in scores]
        areas[name] = 100 * roc_auc_score([1] * 40 + [0] * 30, torch.cat([own, others]).numpy())
    assert {name: found[name] for name in areas} == pytest.approx(areas, abs=0.1)
    assert areas["ood_density_auroc"] > 65, "other images are told apart"
    assert not any(module._forward_hooks for module in model.modules()), "nothing is left behind"


def test_what_a_plan_says_is_measured_is_what_is_measured() -> None:
    options = tasks.check_options(spec(corrupted={"kinds": ("contrast",)}))
    found = build(loaded(), corrupted={"kinds": ("contrast",)}).evaluate()
    assert found["test"].keys() == options.metrics | options.test_metrics
    assert found["validation"].keys() == options.metrics
    assert found["test"].keys() <= METRICS.keys()


def test_training_is_the_same_with_and_without() -> None:
    with_others, without = build(loaded()), build(replace(loaded(), outside=None), out_of_distribution=None)
    for task in (with_others, without):
        task.start_epoch()
        task.evaluate()
    index = torch.zeros((), dtype=torch.int64)
    assert torch.equal(with_others.loss(index), without.loss(index))


def test_images_that_were_not_loaded_are_missed_at_once() -> None:
    with pytest.raises(ValueError, match="were not loaded"):
        build(replace(loaded(), outside=None))


def test_a_model_without_last_activations_is_refused() -> None:
    task = build(loaded(), model="row_rnn", model_options={"hidden": 4})
    with pytest.raises(UserError, match="out_of_distribution"):
        task.evaluate()


def test_two_datasets_have_one_checksum_in_their_order() -> None:
    both = [checksum(read_card(name), None) for name in ("mnist", "fashion_mnist")]
    assert joint_checksum(both[:1]) == both[0]
    assert len({joint_checksum(both), joint_checksum(both[::-1]), *both}) == 4
    task = TaskSpec(
        kind="image_classification",
        dataset="mnist",
        model="mlp",
        model_options={"width": 4, "depth": 1},
        out_of_distribution="fashion_mnist",
    )
    cell = Cell(
        task_name="a",
        arm_name="b",
        task=task,
        recipe=Recipe(epochs=1, batch_size=2, learning_rate=0.1),
        method="vanilla",
        params={},
        seed=0,
    )
    assert resolve(cell, find_method("vanilla"), None)[0].dataset_checksum == joint_checksum(both)


def test_others_must_be_images_of_the_same_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"own": loaded(), "larger": replace(loaded(), test=Images(torch.zeros(3, 1, 9, 9), torch.zeros(3)))}
    monkeypatch.setattr(data, "load", lambda name, root, cache: made.get(name, data.WordData))
    assert data.load_all(("own",)) is made["own"]
    found = data.load_all(("own", "own"))
    assert isinstance(found, ImageData)
    assert found.outside is made["own"].test
    with pytest.raises(UserError, match=r"\(1, 9, 9\), those of own \(1, 8, 8\)"):
        data.load_all(("own", "larger"))
    with pytest.raises(UserError, match="images both"):
        data.load_all(("own", "words"))


def test_an_unknown_set_is_refused_when_it_is_planned(tmp_path: Path) -> None:
    cell = Cell(
        task_name="a",
        arm_name="b",
        task=spec(dataset="mnist", out_of_distribution="fashon_mnist"),
        recipe=Recipe(epochs=1, batch_size=2, learning_rate=0.1),
        method="vanilla",
        params={},
        seed=0,
    )
    with pytest.raises(UserError, match="fashion_mnist"):
        resolve(cell, find_method("vanilla"), tmp_path)
