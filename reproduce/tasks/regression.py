"""Regression from images: two quantities of the unseen lower half, whose histograms are known, by squared error."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from reproduce.data import ImageData, Images
from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.tasks import image_classification
from reproduce.tasks.image_classification import ImageClassification

# The law of each quantity over the training images: exponential with mean 1, and a histogram with two humps.
HUMP_EDGES, HUMP_COUNTS = (0.0, 0.5, 1.0, 1.5, 2.0), (1.0, 4.0, 1.0, 4.0)
BINS = np.linspace(0, 3, 16)  # in which the outputs are counted; what lies above 3 is in the last

QUANTITIES = 2

Numbers = NDArray[np.float64]


def quantile(quantity: int, level: Numbers) -> Numbers:
    """The quantile function of one of the two laws, at levels in (0, 1)."""
    if quantity == 0:
        return -np.log1p(-level)
    cumulated = np.cumsum((0.0, *HUMP_COUNTS)) / sum(HUMP_COUNTS)
    return np.interp(level, cumulated, HUMP_EDGES)


def wanted(images: Tensor, train: Tensor) -> Tensor:
    """Targets (N, 2) float32: how much ink the lower left and lower right quarter hold, on the laws' scales.

    An image (N, C, H, W) whose quarter holds more ink than a share u of the training images (ties count half) has
    the quantile of u as its target. So the targets of the training images have the laws exactly, but for ties.
    """
    targets = []
    for quantity, (ink, reference) in enumerate(zip(_ink(images), _ink(train), strict=True)):
        ordered = np.sort(reference)
        rank = (np.searchsorted(ordered, ink, "left") + np.searchsorted(ordered, ink, "right")) / 2
        level = np.clip(rank / len(ordered), 0.5 / len(ordered), 1 - 0.5 / len(ordered))
        targets.append(quantile(quantity, level))
    return torch.from_numpy(np.stack(targets, axis=1)).float()


def _ink(images: Tensor) -> tuple[Numbers, Numbers]:
    lower = images[:, :, images.shape[2] // 2 :].double()
    middle = images.shape[3] // 2
    left, right = (side.sum((1, 2, 3)).numpy() for side in (lower[..., :middle], lower[..., middle:]))
    return left, right


class Options(image_classification.ImageOptions):
    unused = ("window", "window_lengths", "mixup", "cutmix", "augment")

    @property
    def metrics(self) -> frozenset[str]:
        bins = (f"output_{quantity}_bin_{place}" for quantity in range(QUANTITIES) for place in range(len(BINS) - 1))
        return frozenset({"mse", "histogram_distance", *bins})


class Regression(ImageClassification):
    """Input: the upper quarter of an image. Loss: mean over images and quantities of squared errors.

    Metrics of a split: ``mse``; ``histogram_distance``, the mean over both quantities of the Wasserstein distance
    W1 between the outputs and the law; and ``output_<quantity>_bin_<i>``, the share of outputs in a bin of BINS.
    """

    metric = METRICS["mse"]
    trains_in_parts = False

    def __init__(
        self,
        spec: TaskSpec,
        options: Options,
        recipe: Recipe,
        data: ImageData,
        generators: Generators,
        device: torch.device,
    ) -> None:
        height, width = data.train.images.shape[2:]
        if height < 4 or width < 2:
            raise UserError(
                f"task regression needs images of at least 4x2 pixels; {spec.dataset!r} has {height}x{width}"
            )
        reference = data.train.images

        def cut(split: Images) -> Images:
            return Images(split.images[:, :, : height // 4].contiguous(), wanted(split.images, reference))

        validation = cut(data.validation) if data.validation is not None else None
        changed = dataclasses.replace(
            data, classes=2, train=cut(data.train), validation=validation, test=cut(data.test)
        )
        super().__init__(spec, options, recipe, changed, generators, device)

    def _batch_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(self._logits(inputs), labels)

    def _evaluate_split(self, split: Any) -> dict[str, float]:
        batches = split.inputs.split(self.recipe.eval_batch_size)
        outputs = torch.cat([self._logits(self.read(inputs)) for inputs in batches])
        found = {"mse": F.mse_loss(outputs, split.labels).item()}
        level = (np.arange(len(outputs)) + 0.5) / len(outputs)
        distances = []
        for quantity, values in enumerate(outputs.double().cpu().numpy().T):
            if not np.isfinite(values).all():
                return {**found, "histogram_distance": float("nan")}
            distances.append(scipy.stats.wasserstein_distance(values, quantile(quantity, level)))
            counts, _ = np.histogram(values.clip(max=BINS[-1]), BINS)
            for place, count in enumerate(counts):
                found[f"output_{quantity}_bin_{place}"] = float(count / len(values))
        return {**found, "histogram_distance": float(np.mean(distances))}


def build(
    spec: TaskSpec, options: Options, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> Regression:
    if not isinstance(data, ImageData):
        raise UserError(f"task regression needs images; dataset {spec.dataset!r} holds {data.holds}")
    return Regression(spec, options, recipe, data, generators, device)
