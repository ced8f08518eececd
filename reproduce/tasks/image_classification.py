"""Image classification: cross-entropy on labelled images, error in percent."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce import models
from reproduce.data import ImageData, Images
from reproduce.data.rotations import rotated
from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.recipe import Count, Recipe
from reproduce.experiment.schema import HostSpec, Normalisation, TaskSpec
from reproduce.experiment.shifts import OOD_AUROC, OOD_DENSITY_AUROC, SOURCE_ERROR, CorruptedSpec, TargetSpec
from reproduce.method.rng import Generators
from reproduce.models import Sizes
from reproduce.tasks import TaskOptions, check_batches
from reproduce.tasks._classification import BALANCED_ERROR, Classification
from reproduce.tasks._domains import TargetDomain, left_for_target
from reproduce.tasks._outside import outside_aurocs
from reproduce.tasks._shifts import corrupted_errors, long_tailed

PADDING = 4
CHUNK = 2_000  # images that are augmented at a time: what fits caches; another number would draw others


class ImageOptions(TaskOptions):
    """Which images are trained on, which are held out, and how pixels become numbers."""

    needs = "images"
    unused: ClassVar[tuple[str, ...]] = ("window", "window_lengths")

    validation: Count | None = None
    train_examples: Count | None = None
    normalise: Normalisation = "channel"

    def holds_out(self, card: DatasetCard) -> bool:
        return self.validation is not None or card.has_validation

    def check_card(self, card: DatasetCard, n_train: int | None) -> None:
        for name in ("validation", "train_examples"):
            if getattr(self, name) and card.is_in_order_of_classes:
                raise UserError(
                    f"{name} = {getattr(self, name)} cuts the training images of {card.name}, which stand in order of "
                    "their classes: give its card a split_seed, which mixes them, or files with the split validation",
                    [name],
                )
        if n_train is not None:
            self.check_count(n_train)

    def check_count(self, n_train: int) -> None:
        """Refuse to hold out all of so many training examples, or to keep more than are left."""
        if self.validation and self.validation >= n_train:
            raise UserError(
                f"validation = {self.validation} leaves none of the {n_train} examples to train on", ["validation"]
            )
        rest = n_train - (self.validation or 0)
        if self.train_examples and self.train_examples > rest:
            raise UserError(f"train_examples = {self.train_examples}: there are only {rest}", ["train_examples"])

    def check_recipe(self, recipe: Recipe, n_train: int | None) -> None:
        super().check_recipe(recipe, n_train)
        if n_train is not None:
            check_batches(recipe, self.train_examples or n_train - (self.validation or 0))


class Options(ImageOptions):
    """A long tail of classes to train on, corrupted images or another domain to test on, and a model to begin with."""

    host: HostSpec | None = None  # an autoencoder that is trained first, whose encoder the model begins with
    imbalance: float | None = None
    corrupted: CorruptedSpec | None = None
    out_of_distribution: str | None = None  # a card
    target_domain: TargetSpec | None = None

    @model_validator(mode="after")
    def _host_reads_the_same_images(self) -> Options:
        if self.host is not None and self.imbalance is not None:
            raise ValueError("option 'imbalance' goes with no 'host', which would be trained on all images")
        return self

    @model_validator(mode="after")
    def _target_is_the_only_shift(self) -> Options:
        others = [name for name in ("host", "corrupted", "out_of_distribution") if getattr(self, name) is not None]
        if self.target_domain is not None and others:
            raise ValueError(f"option 'target_domain' goes with no {others[0]!r}: its test images are of the target")
        return self

    def check_count(self, n_train: int) -> None:
        super().check_count(n_train)
        if self.target_domain is None:
            return
        left = n_train - (self.validation or 0) - (self.train_examples or n_train)
        if left < (self.target_domain.examples or 1):
            wanted = f"{self.target_domain.examples} are wanted" if self.target_domain.examples else "some are needed"
            raise UserError(
                f"target_domain: {max(0, left)} of the {n_train} training images are left for the target, and "
                f"{wanted}: set train_examples, how many are the source's",
                ["target_domain"],
            )

    @property
    def metrics(self) -> frozenset[str]:
        return frozenset({"loss", "error"} if self.imbalance is None else {"loss", "error", BALANCED_ERROR})

    @property
    def test_metrics(self) -> frozenset[str]:
        of_others = frozenset[str]() if self.out_of_distribution is None else frozenset({OOD_AUROC, OOD_DENSITY_AUROC})
        of_source = frozenset[str]() if self.target_domain is None else frozenset({SOURCE_ERROR})
        return of_others | of_source | (self.corrupted.metrics if self.corrupted else frozenset())


class ImageClassification(Classification[Images]):
    """All images stay on the device as uint8; batches are normalised and augmented there.

    RandAugment is for pixels, and a step that is recorded cannot choose: so an epoch's images are made before it.

    Metrics of a split: ``loss``, ``error``, and ``balanced_error`` where training classes have a long tail. Test has
    those of `CorruptedSpec`, and areas under the ROC curve against other images, where the task asks for them.

    With a target domain test is of the target, and has the ``source_error`` too; a step has examples of the source and
    then as many of the target, in one forward pass, and its loss is of the source's.
    """

    corrupted: CorruptedSpec | None = None
    outside: Images | None = None
    target: TargetDomain | None = None
    source_test: Images | None = None

    def __init__(
        self,
        spec: TaskSpec,
        options: ImageOptions,
        recipe: Recipe,
        data: ImageData,
        generators: Generators,
        device: torch.device,
    ) -> None:
        train, validation = _split(options, data)
        splits = ({"validation": validation} if validation else {}) | {"test": data.test}
        if isinstance(options, Options):
            self.corrupted = options.corrupted
            if options.out_of_distribution is not None:
                if data.outside is None:
                    raise ValueError("the images out of distribution were not loaded: `data.load_all` does")
                self.outside = data.outside.to(device)
            if options.target_domain is not None:
                left = left_for_target(options.target_domain, data, len(train.labels), options.validation or 0)
                self.target = TargetDomain(options.target_domain, left, recipe, device)
                self.source_examples = recipe.batch_size
                self.source_test = data.test.to(device)
                turned = rotated(data.test.images, options.target_domain.rotation)
                splits["test"] = Images(turned, data.test.labels)
            self.n_classes = data.classes
            if options.imbalance is not None:
                train = long_tailed(train, options.imbalance, data.classes)
                self.balanced_classes = data.classes
        super().__init__(spec, recipe, train, splits, generators, device)
        self.normalise = _Normalisation(options.normalise, data, train).to(device)
        sizes = Sizes(tuple(train.images.shape[1:]), data.classes)
        model = models.build(spec.model, dict(spec.model_options), sizes, generators.initialisation, generators.dropout)
        # Convolutions are up to 1.5 times faster on channels_last, on CPU as on GPU.
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.augments_epochs = recipe.augment == "crop_flip_randaugment"
        if self.augments_epochs:
            self.epoch_inputs = self.train.images.clone()
        self.epoch_seed = torch.zeros((), dtype=torch.int64)  # what the epoch's images were drawn by

    def read(self, inputs: Tensor) -> Tensor:
        return self.normalise(inputs)

    def augmented(self, inputs: Tensor) -> Tensor:
        return crop_flip(inputs, self.generators.augmentation) if self.recipe.augment == "crop_flip" else inputs

    def _with_target(self, inputs: Tensor, rows: Tensor | None = None) -> Tensor:
        if self.target is None:
            return inputs
        return torch.cat([inputs, self.target.images[: len(inputs)] if rows is None else self.target.batch(rows)])

    def start_epoch(self) -> None:
        super().start_epoch()
        if self.target is not None:
            self.target.start_epoch(self.generators.order)
        if self.augments_epochs:
            self.epoch_seed.copy_(torch.randint(2**63 - 1, (), generator=self.generators.order))
            self._augment_epoch()

    def _augment_epoch(self) -> None:
        from reproduce.tasks._randaugment import rand_augment  # torchvision takes as long to load as torch

        generator = torch.Generator(self.device).manual_seed(int(self.epoch_seed))
        for source, made in zip(self.train.images.split(CHUNK), self.epoch_inputs.split(CHUNK), strict=True):
            made.copy_(rand_augment(crop_flip(source, generator), generator))

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict() | ({"epoch_seed": self.epoch_seed} if self.augments_epochs else {})
        return state | ({"target_order": self.target.order} if self.target else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.target is not None:
            self.target.order.copy_(state["target_order"])
        if self.augments_epochs:
            self.epoch_seed.copy_(state["epoch_seed"])
            self._augment_epoch()

    def _shifted_errors(self) -> dict[str, float]:
        test = self.splits["test"]
        found: dict[str, float] = {}
        if self.corrupted is not None:
            found |= corrupted_errors(self.corrupted, test, lambda part: self._evaluate_split(part)["error"])
        if self.source_test is not None:
            found[SOURCE_ERROR] = self._evaluate_split(self.source_test)["error"]
        if self.outside is not None:
            found |= outside_aurocs(self.model, self._logits_of, self.train, test, self.outside, self.n_classes)
        return found

    def _logits_of(self, stored: Tensor) -> Tensor:
        """Of stored images, in batches: (n, classes)."""
        batches = stored.split(self.recipe.eval_batch_size)
        return torch.cat([self._logits(self.read(batch)) for batch in batches])

    def _layout(self, inputs: Tensor) -> Tensor:
        return inputs.contiguous(memory_format=torch.channels_last)


class _Normalisation(nn.Module):
    """uint8 pixels to the numbers that the network sees; statistics come from the training images."""

    offset: Tensor
    scale: Tensor

    def __init__(self, kind: Normalisation, data: ImageData, train: Images) -> None:
        super().__init__()
        self.binary = kind == "binary"
        offset, scale = torch.zeros(1), torch.ones(1)
        if kind == "channel":
            offset, scale = _channel_statistics(data, train)
        elif kind == "image_channel":
            pixels = train.images.double() / 255
            offset = pixels.mean((0, 2, 3)).float().view(-1, 1, 1)
            scale = pixels.std((2, 3)).mean(0).float().clamp_min(1 / 255).view(-1, 1, 1)
        elif kind == "raw":
            scale = torch.full((1,), 1 / 255)  # pixels as they are stored, 0 to 255
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


def _split(options: ImageOptions, data: ImageData) -> tuple[Images, Images | None]:
    """Training and validation images: the dataset's own split, or the last training examples held out."""
    images, labels, validation = data.train.images, data.train.labels, data.validation
    options.check_count(len(labels))
    if options.validation:
        validation = Images(images[-options.validation :], labels[-options.validation :])
        images, labels = images[: -options.validation], labels[: -options.validation]
    if options.train_examples:
        images, labels = images[: options.train_examples], labels[: options.train_examples]
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


def build_host(
    spec: TaskSpec, options: Options, data: Any, generators: Generators, device: torch.device
) -> ImageClassification:
    """The autoencoding on which the host is trained, by its own recipe."""
    from reproduce.tasks import _pretraining  # which builds on this module

    _check_images(spec, data)
    if options.host is None:
        raise ValueError("this task has no host")
    return _pretraining.build_autoencoding(spec, options, options.host, data, generators, device)


def read_host(options: Options, task: ImageClassification) -> dict[str, Tensor]:
    """The trained autoencoder's weights and buffers."""
    return {name: value.detach().clone() for name, value in task.model.state_dict().items()}


def _check_images(spec: TaskSpec, data: Any) -> None:
    if not isinstance(data, ImageData):
        raise UserError(f"task image_classification needs images; dataset {spec.dataset!r} holds {data.holds}")


def build(
    spec: TaskSpec,
    options: Options,
    recipe: Recipe,
    data: Any,
    generators: Generators,
    device: torch.device,
    host: dict[str, Tensor] | None = None,
) -> ImageClassification:
    _check_images(spec, data)
    if (host is None) != (options.host is None):
        raise ValueError("the host was not trained: build this Task by `training.host.build_task`")
    task = ImageClassification(spec, options, recipe, data, generators, device)
    if host is not None:
        from reproduce.tasks import _pretraining

        _pretraining.take_over(task.model, host)
    return task
