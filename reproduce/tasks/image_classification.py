"""Image classification: cross-entropy on labelled images, error in percent."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce import models
from reproduce.data import ImageData, Images
from reproduce.models import Sizes
from reproduce.randomness import Generators
from reproduce.spec import Recipe, SpecError, TaskSpec
from reproduce.tasks import Metrics

PADDING = 4


class ImageClassification:
    """All images stay on the device as uint8; batches are normalised and augmented there."""

    metric = "error"

    def __init__(
        self,
        spec: TaskSpec,
        recipe: Recipe,
        data: ImageData,
        generators: Generators,
        device: torch.device,
    ) -> None:
        train, validation = _split(spec, data)
        if len(train.labels) < recipe.batch_size:
            raise SpecError(f"batch_size {recipe.batch_size} is larger than the {len(train.labels)} examples")
        self.recipe = recipe
        self.generators = generators
        self.device = device
        self.train = Images(train.images.to(device), train.labels.to(device))
        self.splits = {
            name: Images(split.images.to(device), split.labels.to(device))
            for name, split in (("validation", validation), ("test", data.test))
            if split is not None
        }
        if recipe.selection == "best_validation" and validation is None:
            raise SpecError(f"selection best_validation: {spec.dataset!r} has no validation split; set task.validation")
        if recipe.window:
            raise SpecError("recipe.window is for words; image classification has none")
        self.normalise = _Normalisation(spec, data, train).to(device)
        sizes = Sizes(tuple(train.images.shape[1:]), data.classes)
        model = models.build(spec.model, dict(spec.model_options), sizes, generators.initialisation, generators.dropout)
        # Convolutions are up to 1.5 times faster on channels_last, on CPU as on GPU.
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.steps_per_epoch = len(train.labels) // recipe.batch_size
        self.order = torch.empty(0, dtype=torch.int64)
        self.mix = torch.empty(0)

    def start_epoch(self) -> None:
        order = torch.randperm(len(self.train.labels), generator=self.generators.order)
        self.order = order.to(self.device)
        if self.recipe.mixup:
            uniform = torch.rand(self.steps_per_epoch, generator=self.generators.order, dtype=torch.float64)
            alpha = self.recipe.mixup
            weights = scipy.special.betaincinv(alpha, alpha, uniform.numpy())
            self.mix = torch.from_numpy(np.asarray(weights, dtype=np.float32)).to(self.device)

    def loss(self, index: int) -> Tensor:
        size = self.recipe.batch_size
        chosen = self.order[index * size : (index + 1) * size]
        images, labels = self.normalise(self.train.images[chosen]), self.train.labels[chosen]
        if self.recipe.augment == "crop_flip":
            images = crop_flip(images, self.generators.augmentation)
        if not self.recipe.mixup:
            return F.cross_entropy(self._logits(images), labels)
        partner = torch.randperm(size, generator=self.generators.augmentation, device=self.device)
        weight = self.mix[index]
        logits = self._logits(weight * images + (1 - weight) * images[partner])
        return weight * F.cross_entropy(logits, labels) + (1 - weight) * F.cross_entropy(logits, labels[partner])

    def _logits(self, images: Tensor) -> Tensor:
        bfloat16 = self.recipe.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            logits = self.model(images.contiguous(memory_format=torch.channels_last))
        return logits.float()

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        self.model.eval()
        found = {name: self._evaluate_split(split) for name, split in self.splits.items()}
        self.model.train()
        return found

    def _evaluate_split(self, split: Images) -> dict[str, float]:
        loss = torch.zeros((), device=self.device, dtype=torch.float64)
        wrong = torch.zeros((), device=self.device, dtype=torch.int64)
        size = self.recipe.eval_batch_size
        for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
            logits = self._logits(self.normalise(images))
            loss += F.cross_entropy(logits, labels, reduction="sum")
            wrong += (logits.argmax(1) != labels).sum()
        n_examples = len(split.labels)
        return {"loss": loss.item() / n_examples, "error": 100 * wrong.item() / n_examples}

    @torch.no_grad()
    def probe(self) -> None:
        self._logits(self.normalise(self.train.images[: self.recipe.probe_examples]))

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "mix": self.mix}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order = state["order"].to(self.device)
        self.mix = state["mix"].to(self.device)


class _Normalisation(nn.Module):
    """uint8 pixels to the numbers that the network sees; statistics come from the training images."""

    offset: Tensor
    scale: Tensor

    def __init__(self, spec: TaskSpec, data: ImageData, train: Images) -> None:
        super().__init__()
        kind = spec.normalise or "channel"
        self.binary = kind == "binary"
        offset, scale = torch.zeros(1), torch.ones(1)
        if kind == "channel":
            offset, scale = _channel_statistics(data, train)
        elif kind in ("mean_image", "pixel"):
            pixels = train.images.double() / 255
            offset = pixels.mean(0).float()
            if kind == "pixel":
                scale = pixels.std(0, correction=0).float().clamp_min(1 / 255)  # a constant pixel stays finite
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)

    def forward(self, images: Tensor) -> Tensor:
        if self.binary:
            return (images > 127).float()
        return (images.float() / 255 - self.offset) / self.scale


def _channel_statistics(data: ImageData, train: Images) -> tuple[Tensor, Tensor]:
    """The card's customary constants where it states them, else this training set's own."""
    statistics = data.card.statistics
    if statistics is not None:
        return torch.tensor(statistics.mean).view(-1, 1, 1), torch.tensor(statistics.std).view(-1, 1, 1)
    pixels = train.images.double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    return mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1)


def _split(spec: TaskSpec, data: ImageData) -> tuple[Images, Images | None]:
    """Training and validation images: the dataset's own split, or the last training examples held out."""
    images, labels, validation = data.train.images, data.train.labels, data.validation
    if spec.validation:
        if spec.validation >= len(labels):
            raise SpecError(f"validation = {spec.validation} leaves none of the {len(labels)} examples to train on")
        validation = Images(images[-spec.validation :], labels[-spec.validation :])
        images, labels = images[: -spec.validation], labels[: -spec.validation]
    if spec.train_examples:
        if spec.train_examples > len(labels):
            raise SpecError(f"train_examples = {spec.train_examples}: there are only {len(labels)}")
        images, labels = images[: spec.train_examples], labels[: spec.train_examples]
    return Images(images, labels), validation


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zero-pad by 4, crop back at a random place, flip half of the images: (n, c, h, w) to the same."""
    n, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, [PADDING] * 4)
    offset = torch.randint(0, 2 * PADDING + 1, (2, n, 1), generator=generator, device=device)
    flip = torch.rand((n, 1), generator=generator, device=device) < 0.5
    rows = offset[0] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    columns = offset[1] + torch.where(flip, columns.flip(0), columns)
    example = torch.arange(n, device=device).view(-1, 1, 1)
    # Advanced indices around a slice put the channels last, which is the layout that convolutions want.
    return padded[example, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def build(
    spec: TaskSpec, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> ImageClassification:
    if not isinstance(data, ImageData):
        raise SpecError(f"task image_classification needs images; dataset {spec.dataset!r} holds words")
    return ImageClassification(spec, recipe, data, generators, device)
