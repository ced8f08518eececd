"""CutMix by the loop over its pixels, the laws that it draws from, and RandAugment against torchvision's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torchvision.transforms import v2

from reproduce import tasks
from reproduce.data import ImageData, Images
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.folder import ROOT
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.tasks._mixing import Mixing
from reproduce.tasks._randaugment import operations, rand_augment

CPU = torch.device("cpu")
BOTH = {"mixup": 0.8, "cutmix": 1.0}


def image_data(n: int = 30, shape: tuple[int, int, int] = (3, 9, 12)) -> ImageData:
    pixels = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Images(pixels, torch.arange(n) % 5)
    return ImageData(DatasetCard.model_construct(name="tiny"), split, None, split, 5, "here")


def image_task(recipe: dict[str, Any], seed: int = 0, data: ImageData | None = None) -> Any:
    spec = {"kind": "image_classification", "dataset": "tiny", "model": "mlp"}
    spec |= {"model_options": {"width": 5, "depth": 1}, "normalise": "unit"}
    checked = Recipe.model_validate({"epochs": 1, "batch_size": 6, "learning_rate": 0.1, **recipe})
    return tasks.build(TaskSpec.model_validate(spec), checked, data or image_data(), Generators.seeded(seed, CPU), CPU)


def mixing(recipe: dict[str, Any], n_batches: int, size: tuple[int, int] = (32, 32)) -> Mixing:
    checked = Recipe.model_validate({"epochs": 1, "batch_size": 6, "learning_rate": 0.1, **recipe})
    made = Mixing(checked, n_batches, size, CPU)
    made.draw(torch.Generator().manual_seed(3))
    return made


@pytest.mark.parametrize("recipe", [{"cutmix": 1.0}, BOTH])
def test_the_loss_of_mixed_images_is_the_loop_over_their_pixels(recipe: dict[str, Any]) -> None:
    task = image_task(recipe)
    partners = torch.Generator()
    kinds = set()
    for _ in range(3):
        task.start_epoch()
        for index in range(task.steps_per_epoch):
            partners.set_state(task.generators.augmentation.get_state())
            found = task.loss(torch.tensor(index)).item()
            partner = torch.randperm(6, generator=partners).tolist()
            chosen = task.order[6 * index : 6 * index + 6].tolist()
            top, bottom, left, right = task.mixing.boxes[index].tolist()
            share, weight = float(task.mixing.shares[index]), float(task.mixing.weights[index])
            kinds.add("mixup" if share < 1 else "cutmix")
            total = 0.0
            for mine, other in enumerate(partner):
                own, its = (task.train.images[chosen[i]].double().numpy() / 255 for i in (mine, other))
                image = np.empty_like(own)
                for row in range(9):
                    for column in range(12):
                        inside = top <= row < bottom and left <= column < right
                        a, b = own[:, row, column], its[:, row, column]
                        image[:, row, column] = b if inside else share * a + (1 - share) * b
                logits = task.model(torch.from_numpy(image).float()[None])[0].double()
                logs = logits - logits.exp().sum().log()
                labels = [int(task.train.labels[chosen[i]]) for i in (mine, other)]
                total -= float(weight * logs[labels[0]] + (1 - weight) * logs[labels[1]])
            assert found == pytest.approx(total / 6, rel=1e-4)
    assert kinds == ({"mixup", "cutmix"} if "mixup" in recipe else {"cutmix"})


def test_boxes_are_those_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same share and the same centre; their labels' weights too."""
    made = mixing({"cutmix": 1.0}, 400, (20, 32))
    generator = torch.Generator().manual_seed(3)
    uniform = [torch.rand(400, generator=generator, dtype=torch.float64) for _ in range(3)]  # Beta(1, 1) is uniform
    theirs = v2.CutMix(alpha=1.0, num_classes=2)
    image = torch.zeros(2, 3, 20, 32)
    for index in range(400):
        share, row, column = (float(values[index]) for values in uniform)
        centres = {20: torch.tensor([int(20 * row)]), 32: torch.tensor([int(32 * column)])}
        monkeypatch.setattr(theirs, "_dist", type("Fixed", (), {"sample": lambda self, shape, share=share: share})())
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randint", lambda high, size, centres=centres: centres[high])
            expected = theirs.make_params([image])
        x1, y1, x2, y2 = expected["box"]
        assert made.boxes[index].tolist() == [y1, y2, x1, x2]
        assert float(made.weights[index]) == pytest.approx(expected["lam_adjusted"])
    assert (made.shares == 1).all()


def test_a_coin_decides_between_mixup_and_cutmix() -> None:
    made = mixing(BOTH, 4000)
    cut = made.shares == 1
    assert scipy.stats.binomtest(int(cut.sum()), 4000).pvalue > 0.01
    assert not made.boxes[~cut].any()
    assert torch.equal(made.weights[~cut], made.shares[~cut])
    of_mixup = made.weights[~cut].double().numpy()
    assert scipy.stats.kstest(of_mixup, scipy.stats.beta(0.8, 0.8).cdf).pvalue > 0.01
    assert scipy.stats.kstest(of_mixup, scipy.stats.beta(1.2, 1.2).cdf).pvalue < 0.01  # the test can tell


def test_mixup_alone_draws_what_it_always_drew() -> None:
    """Beside it CutMix draws more; alone, the sequence of draws that older Runs had."""
    task = image_task({"mixup": 0.4})
    task.start_epoch()
    generators = Generators.seeded(0, CPU)
    torch.randperm(30, generator=generators.order)
    uniform = torch.rand(5, generator=generators.order, dtype=torch.float64).numpy()
    np.testing.assert_allclose(task.mixing.weights.numpy(), scipy.stats.beta.ppf(uniform, 0.4, 0.4), rtol=1e-5)
    assert torch.equal(task.generators.order.get_state(), generators.order.get_state())
    assert task.state_dict().keys() == {"order", "mix"}


def distinct(images: list[Tensor]) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize("size", [(32, 32), (20, 28)])
def test_operations_are_those_of_torchvisions_randaugment(size: tuple[int, int]) -> None:
    """One image, many seeds of theirs: what comes out is what our 23 operations make of it, and nothing else."""
    image = torch.randint(20, 200, (3, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    ours = distinct([operation(image[None])[0] for signs in operations(*size) for operation in signs])
    assert len(ours) == 23
    theirs = v2.RandAugment(num_ops=1, magnitude=9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = distinct([theirs(image) for _ in range(400)])
    assert found == ours


def test_operations_are_equally_likely_and_apply_to_each_image_alone() -> None:
    image = torch.randint(20, 200, (3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    single = [[operation(image[None])[0] for operation in signs] for signs in operations(8, 8)]
    expected = {}
    for signs in single:
        for first in signs:
            for others in operations(8, 8):
                for operation in others:
                    key = operation(first[None])[0].numpy().tobytes()
                    expected[key] = expected.get(key, 0.0) + 1 / (14 * len(signs) * 14 * len(others))
    assert sum(expected.values()) == pytest.approx(1)
    made = rand_augment(image.repeat(6000, 1, 1, 1), torch.Generator().manual_seed(2))
    keys = [one.numpy().tobytes() for one in made]
    assert set(keys) <= expected.keys()
    often = [key for key, chance in expected.items() if chance * 6000 > 25]
    rest = 1 - sum(expected[key] for key in often)
    counts = [keys.count(key) for key in often]
    outcome = scipy.stats.chisquare(
        [*counts, 6000 - sum(counts)], [6000 * expected[key] for key in often] + [6000 * rest]
    )
    assert outcome.pvalue > 0.01


def test_an_epoch_of_randaugment_is_made_before_it() -> None:
    data = image_data(shape=(3, 32, 32))
    task = image_task({"augment": "crop_flip_randaugment"}, data=data)
    assert torch.equal(task.epoch_inputs, data.train.images)
    task.start_epoch()
    first = task.epoch_inputs.clone()
    assert (first != data.train.images).any(dim=(1, 2, 3)).double().mean() > 0.9
    assert torch.equal(task.train.images, data.train.images)  # what is evaluated and probed stays
    again = image_task({"augment": "crop_flip_randaugment"}, data=data)
    again.start_epoch()
    assert torch.equal(again.epoch_inputs, first)
    task.start_epoch()
    assert not torch.equal(task.epoch_inputs, first)
    restored = image_task({"augment": "crop_flip_randaugment"}, data=data)
    restored.load_state_dict(again.state_dict())
    assert torch.equal(restored.epoch_inputs, first)
    place = task.epoch_inputs.data_ptr()
    task.start_epoch()
    assert task.epoch_inputs.data_ptr() == place  # where a recorded step reads


def test_what_plans_runs_loads_no_torchvision() -> None:
    """It takes as long as torch, in every command and every worker."""
    program = "import sys, reproduce.training.plan, reproduce.tasks.image_classification as _; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "torchvision"} & set(loaded.stdout.split()) == {"torch"}
