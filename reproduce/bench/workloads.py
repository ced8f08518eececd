"""Models and random batches on which steps are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from reproduce.bench.variants import Variant
from reproduce.data import ImageData, Images, WordData
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.schema import Clip, Recipe, TaskSpec

STEPS = 10**6  # of the whole training: more than are ever timed, so that what is timed is its beginning


@dataclass(frozen=True)
class Workload:
    """A model and a batch size at which steps are timed."""

    name: str
    task: TaskSpec
    recipe: Recipe
    data: Callable[[], ImageData | WordData]
    named_only: bool = False  # for variants whose variants.toml names it, and no others

    def times(self, variant: Variant) -> bool:
        """Whether this variant's steps are timed here."""
        return not self.named_only if variant.workloads is None else self.name in variant.workloads


def workloads(small: bool = False) -> list[Workload]:
    """The 11-layer CNN at batch 128, the 2x650 LSTM at 20x35, and for methods that act on a code an autoencoder
    784-1000-784 at batch 500 (``small``: toys of the same kind, for tests).
    """
    side, batch, hidden, vocabulary = (16, 8, 16, 50) if small else (32, 128, 650, 10_000)
    code_side, code_batch, d_sae = (6, 8, 12) if small else (28, 500, 1000)
    image_recipe = Recipe(steps=STEPS, batch_size=batch, learning_rate=0.05, momentum=0.9, augment="crop_flip")
    word_recipe = Recipe(
        steps=STEPS,
        batch_size=4 if small else 20,
        window=35,
        learning_rate=1.0,
        clip=Clip(norm=0.25),
        eval_batch_size=4,
    )
    cnn = TaskSpec(kind="image_classification", dataset="random", model="cnn11", model_options={"activation": "elu"})
    options: dict[str, Any] = {"hidden": hidden, "dropout": 0.5, "tied": False}
    lstm = TaskSpec(kind="language_modeling", dataset="random", model="lstm", model_options=options)
    code_recipe = Recipe(steps=STEPS, batch_size=code_batch, optimizer="adam", learning_rate=1e-3)
    code = TaskSpec(
        kind="autoencoding", dataset="random", model="autoencoder", model_options={"d_sae": d_sae}, normalise="unit"
    )
    return [
        Workload("cnn11", cnn, image_recipe, lambda: _random_images(batch * 4, 3, side)),
        Workload("lstm", lstm, word_recipe, lambda: _random_words(word_recipe.batch_size * 300, vocabulary)),
        Workload("autoencoder", code, code_recipe, lambda: _random_images(code_batch * 4, 1, code_side), True),
    ]


def _card() -> DatasetCard:
    noise = Statistics(mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29), source="uniform noise")
    return DatasetCard.model_construct(name="random", statistics=noise)


def _random_images(n: int, channels: int, side: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (n,), generator=generator)
    split = Images(pixels, labels)
    return ImageData(card=_card(), train=split, validation=None, test=split, classes=10, origin="random")


def _random_words(n: int, vocabulary: int) -> WordData:
    tokens = torch.randint(0, vocabulary, (n,), generator=torch.Generator().manual_seed(0))
    words = tuple(str(index) for index in range(vocabulary))
    held_out = tokens[: n // 4]
    return WordData(card=_card(), train=tokens, validation=held_out, test=held_out, vocabulary=words, origin="random")
