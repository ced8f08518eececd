"""Models and random batches on which steps are timed and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from reproduce.bench.variants import Variant
from reproduce.data import Data, Fold, ImageData, Images, Rows, TableData, WordData
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.recipe import Clip, Recipe
from reproduce.experiment.schema import Arm, TaskSpec

BASELINE = Arm().method  # the name of no method, against which all are timed
STEPS = 10**6  # of the whole training: more than are ever timed, so that what is timed is its beginning


@dataclass(frozen=True)
class Workload:
    """A model and a batch size at which steps are timed."""

    name: str
    task: TaskSpec
    recipe: Recipe
    data: Callable[[], Data]
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


def networks(small: bool = False) -> dict[str, Workload]:
    """Networks of the papers by name, at their papers' batch sizes: for step times, and beside plain loops.

    Fixup's ResNet-56 and 20 (He et al. 2016: batch 128), the 11-layer CNN, the 2x650 LSTM of PTB and the 2x200 LSTM of
    pytorch/examples, and the network of depth 8 for UCI tables (``small``: toys of the same kind, for tests).
    """
    cnn, lstm, _ = workloads(small)
    batch, side = (8, 8) if small else (128, 32)
    recipe = Recipe(
        steps=STEPS, batch_size=batch, learning_rate=0.1, momentum=0.9, weight_decay=1e-4, augment="crop_flip"
    )

    def resnet(name: str, depth: int) -> Workload:
        options: dict[str, Any] = {"depth": 8, "width": 2} if small else {"depth": depth}
        task = TaskSpec(kind="image_classification", dataset="random", model="resnet", model_options=options)
        return Workload(name, task, recipe, lambda: _random_images(4 * batch, 3, side))

    shallow: dict[str, Any] = {"hidden": 8 if small else 200, "dropout": 0.2}
    example = TaskSpec(kind="language_modeling", dataset="random", model="lstm", model_options=shallow)
    deep: dict[str, Any] = {"width": 8 if small else 256, "depth": 8, "initialisation": "lecun", "activation": "elu"}
    table = TaskSpec(
        kind="table_classification",
        dataset="random",
        model="mlp",
        model_options=deep | {"dropout": 0.5},
        fold=0,
        fold_convention="standard",
    )
    # That of the experiments on UCI tables.
    table_recipe = Recipe(
        steps=STEPS, batch_size=20, learning_rate=0.01, momentum=0.9, clip=Clip(norm=1.0, per="tensor")
    )
    found = (
        resnet("resnet56", 56),
        resnet("resnet20", 20),
        replace(cnn, name="cnn11"),
        replace(lstm, name="lstm_2x650"),
        Workload("lstm_2x200", example, lstm.recipe, lstm.data),
        Workload("mlp_8x256", table, table_recipe, lambda: _random_rows(600, 20)),
    )
    return {workload.name: workload for workload in found}


def _card() -> DatasetCard:
    noise = Statistics(mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29), source="uniform noise")
    return DatasetCard.model_construct(name="random", statistics=noise)


def _random_images(n: int, channels: int, side: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (n,), generator=generator)
    split = Images(pixels, labels)
    return ImageData(card=_card(), train=split, validation=None, test=split, classes=10, origin="random")


def _random_rows(n: int, features: int) -> TableData:
    generator = torch.Generator().manual_seed(0)
    rows = Rows(torch.randn(n, features, generator=generator), torch.randint(0, 4, (n,), generator=generator))
    quarters = torch.arange(n).chunk(4)
    fold = Fold(inside=quarters[0], others=torch.cat(quarters[1:3]), validation=quarters[3])
    return TableData(card=_card(), rows=rows, folds=(fold,), classes=4, origin="random")


def _random_words(n: int, vocabulary: int) -> WordData:
    tokens = torch.randint(0, vocabulary, (n,), generator=torch.Generator().manual_seed(0))
    words = tuple(str(index) for index in range(vocabulary))
    held_out = tokens[: n // 4]
    return WordData(card=_card(), train=tokens, validation=held_out, test=held_out, vocabulary=words, origin="random")
