"""Two domains in an image task: what is rotated and by whom, which images are whose, and what a step has of both."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as transforms
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from reproduce import tasks
from reproduce.data import ImageData, Images
from reproduce.data.rotations import rotated
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard, Statistics, read_card
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.training.step import Step

CPU = torch.device("cpu")
MODEL = {"model": "mnist_cnn", "model_options": {"width": 8, "code": 8, "gaussian": True, "evaluation_draws": 3}}


def images(n: int, seed: int, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, 9, 9), generator=generator, dtype=torch.uint8)


def data() -> ImageData:
    card = DatasetCard.model_construct(name="made", statistics=Statistics(mean=(0.0,), std=(1.0,), source="made here"))
    train = Images(images(40, 0), torch.arange(40) % 2)
    test = Images(images(30, 1), torch.arange(30) % 2)
    return ImageData(card=card, train=train, validation=None, test=test, classes=2, origin="here")


def spec(**options: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {"kind": "image_classification", "dataset": "made", "normalise": "unit", **MODEL}
        | {"train_examples": 20, "validation": 8, "target_domain": {"rotation": 30.0}}
        | options
    )


def build(seed: int = 0, recipe: dict[str, Any] | None = None, **options: Any) -> Any:
    chosen = Recipe.model_validate({"epochs": 2, "batch_size": 4, "learning_rate": 0.1, **(recipe or {})})
    return tasks.build(spec(**options), chosen, data(), Generators.seeded(seed, CPU), CPU)


@pytest.mark.parametrize("degrees", [0.0, 15.0, -30.0, 75.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_turned_as_torchvision_turns_pillows(degrees: float, channels: int) -> None:
    """What the paper's data sets were made with: whole images, in the layout of Pillow."""
    given = images(3, 2, channels)
    for image, found in zip(given, rotated(given, degrees), strict=True):
        layout = image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
        bicubic = transforms.InterpolationMode.BICUBIC
        wanted = np.asarray(transforms.rotate(Image.fromarray(layout), degrees, bicubic, fill=0))
        wanted = wanted[None] if channels == 1 else wanted.transpose(2, 0, 1)
        assert np.array_equal(found.numpy(), wanted)


def test_a_quarter_turn_is_counterclockwise() -> None:
    given = images(3, 2)
    assert torch.equal(rotated(given, 90), given.rot90(1, (2, 3)))
    assert torch.equal(rotated(given, 0), given)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are uint8 \(n, channels, height, width\), got torch.float32"):
        rotated(torch.zeros(2, 1, 4, 4), 10)


@pytest.mark.parametrize("examples", [None, 7])
def test_domains_share_no_image(examples: int | None) -> None:
    target = {"rotation": 90.0} | ({} if examples is None else {"examples": examples})
    task, made = build(target_domain=target), data()
    assert torch.equal(task.train.images, made.train.images[:20])
    last = 32 if examples is None else 27
    assert torch.equal(task.target.images, made.train.images[20:last].rot90(1, (2, 3)))
    assert torch.equal(task.splits["validation"].images, made.train.images[32:])
    assert torch.equal(task.splits["test"].images, made.test.images.rot90(1, (2, 3)))
    assert torch.equal(task.splits["test"].labels, made.test.labels)


def test_a_step_has_as_many_of_both_and_a_loss_of_the_source_alone() -> None:
    task = build()
    task.start_epoch()
    task.model.eval()  # no draw
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = task.loss(torch.tensor(2))
    own, others = task.order[8:12], task.target.order[8:12]
    made = data().train
    wanted = torch.cat([made.images[own], rotated(made.images[20:32][others], 30)]).float() / 255
    torch.testing.assert_close(seen[0], wanted)
    assert task.source_examples == 4
    logits = task.model(made.images[own].float() / 255)
    torch.testing.assert_close(loss, F.cross_entropy(logits, made.labels[own]))
    assert sorted(task.target.order.tolist()) == list(range(12))


def test_an_epoch_of_a_small_target_begins_anew() -> None:
    task = build(target_domain={"rotation": 90.0, "examples": 5})
    task.start_epoch()
    rows = torch.arange(16, 20)
    wanted = task.target.images[task.target.order[[1, 2, 3, 4]]]
    assert torch.equal(task.target.batch(rows), wanted)


def test_the_target_moves_no_draw_of_the_source() -> None:
    task, alone = build(), build(target_domain=None)
    assert alone.source_examples is None
    for one in (task, alone):
        one.start_epoch()
    assert torch.equal(task.order, alone.order)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(task.model.state_dict()[name], value)


def test_metrics_are_of_the_target_and_of_the_source() -> None:
    task = build()
    found = task.evaluate()
    options = tasks.check_options(spec())
    assert found["test"].keys() == options.metrics | options.test_metrics == {"loss", "error", "source_error"}
    assert found["validation"].keys() == options.metrics
    assert found["test"].keys() <= METRICS.keys()
    made = data().test
    task.model.eval()
    for name, given in (("error", rotated(made.images, 30)), ("source_error", made.images)):
        missed = task.model(given.float() / 255).argmax(1) != made.labels
        assert found["test"][name] == pytest.approx(100 * missed.double().mean().item())
    assert found == task.evaluate(), "an evaluation draws nothing anew"


def test_a_checkpoint_carries_the_targets_order() -> None:
    task, resumed = build(), build(seed=1)
    task.start_epoch()
    resumed.start_epoch()
    assert not torch.equal(task.target.order, resumed.target.order)
    place = resumed.target.order.data_ptr()
    resumed.load_state_dict(copy.deepcopy(task.state_dict()))
    assert torch.equal(task.target.order, resumed.target.order)
    assert resumed.target.order.data_ptr() == place


def test_the_trace_of_a_step_knows_the_domains() -> None:
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.1)
    for options, wanted in (({}, 4), ({"target_domain": None}, None)):
        generators = Generators.seeded(0, CPU)
        task = tasks.build(spec(**options), recipe, data(), generators, CPU)
        assert Step(task, Unregularized(), recipe, generators, CPU).trace.source_examples == wanted


@pytest.mark.parametrize(
    ("options", "recipe", "reason"),
    [
        ({"train_examples": None}, {}, "0 of the 40 training images are left for the target, and some are needed"),
        ({"target_domain": {"rotation": 1.0, "examples": 13}}, {}, "12 of the 40 training images .* and 13 are wanted"),
        (
            {"target_domain": {"rotation": 1.0, "examples": 3}},
            {},
            "batch_size 4 is larger than the 3 images of the tar",
        ),
        ({"corrupted": {}}, {}, "option 'target_domain' goes with no 'corrupted'"),
        ({}, {"mixup": 0.2}, "are for one domain"),
        ({}, {"augment": "crop_flip_randaugment"}, "are for one domain"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], recipe: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        build(recipe=recipe, **options)


def test_a_plan_refuses_what_a_card_cannot_give() -> None:
    card = read_card("digits")
    tasks.check_options(spec()).check_card(card, 40)
    with pytest.raises(UserError, match="are left for the target"):
        tasks.check_options(spec(train_examples=32)).check_card(card, 40)
