"""Autoencoding of images: squared error, with the sparsity of the code and what a linear classifier makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from reproduce.data import ImageData
from reproduce.errors import UserError
from reproduce.experiment.metrics import METRICS
from reproduce.experiment.recipe import Count, Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method.rng import Generators
from reproduce.tasks import Metrics, image_classification
from reproduce.tasks._classification import Labelled
from reproduce.tasks._sparsity import CODE_METRICS, RECONSTRUCTION_METRICS, CodeStatistics, ReconstructionStatistics
from reproduce.tasks.image_classification import ImageClassification

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)  # of C, from which validation chooses; ours


class Options(image_classification.ImageOptions):
    unused = ("window", "window_lengths", "mixup", "cutmix", "augment")

    reconstruction: Literal["pixel_mean"] | None = None  # None: squared errors are summed over pixels
    objective: Literal["with_penalty"] | None = None  # None: the loss alone is evaluated
    classifier_iterations: Count | None = None  # of a logistic regression on the features; None: none
    classifier_strength: Literal["chosen"] | None = None  # C, on validation among STRENGTHS; None: 1

    @model_validator(mode="after")
    def _strengths_are_of_a_classifier(self) -> Options:
        if self.classifier_strength is not None and self.classifier_iterations is None:
            raise ValueError("option 'classifier_strength' needs option 'classifier_iterations'")
        return self

    @property
    def metrics(self) -> frozenset[str]:
        classified = {"classifier_error"} if self.classifier_iterations else set()
        objective = {"objective"} if self.objective else set()
        return CODE_METRICS | RECONSTRUCTION_METRICS | {"loss"} | objective | classified


class Autoencoding(ImageClassification):
    """Loss: mean over images of the sum over pixels of squared errors ("pixel_mean": mean over both).

    Metrics of a split: ``loss``, ``fvu``, ``relative_reconstruction_bias``, ``l0``, ``dead_fraction``,
    ``decoder_norm`` (mean over latents), with ``objective`` the loss plus the method's penalty, and with
    ``classifier_iterations`` the ``classifier_error`` in percent of a multinomial logistic regression on the features
    of the training images, which is then the metric that counts.
    """

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
        super().__init__(spec, options, recipe, data, generators, device)
        lacking = [name for name in ("encode", "decode", "features", "anneal") if not hasattr(self.model, name)]
        if lacking:
            raise UserError(f"task autoencoding needs an autoencoder; model {spec.model!r} has no {lacking[0]!r}")
        self.autoencoder: Any = self.model
        if options.classifier_strength is not None and "validation" not in self.splits:
            reason = f"{spec.dataset!r} has no validation split; set task.validation"
            raise UserError(f"classifier_strength is chosen on validation: {reason}", ["classifier_strength"])
        self.classifier_iterations = options.classifier_iterations
        self.classifier_strengths = (1.0,) if options.classifier_strength is None else STRENGTHS
        self.metric = METRICS["classifier_error" if options.classifier_iterations else "fvu"]
        self.pixel_mean = options.reconstruction == "pixel_mean"
        self.evaluates_objective = options.objective is not None
        self.epochs_begun = 0
        self.total_epochs = recipe.epochs or -(-(recipe.steps or 1) // self.steps_per_epoch)

    def start_epoch(self) -> None:
        super().start_epoch()
        self.autoencoder.anneal(self.epochs_begun / self.total_epochs)
        self.epochs_begun += 1

    def _batch_loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self._losses(inputs, self._logits(inputs)).mean()

    def _losses(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """The loss of each image: (N,)."""
        squares = (reconstruction - images).square().flatten(1)
        return squares.mean(1) if self.pixel_mean else squares.sum(1)

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        self.model.eval()
        found = {name: self._evaluate_split(split) for name, split in self.splits.items()}
        if self.classifier_iterations:
            for name, error in self._classifier_errors(self.classifier_iterations).items():
                found[name]["classifier_error"] = error
        self.model.train()
        return found

    def losses_of_splits(self) -> Iterator[tuple[str, Tensor, int]]:
        """Split, loss and size of each batch, of the size that training has: a penalty may depend on it."""
        for name, split in self.splits.items():
            for images in split.inputs.split(self.recipe.batch_size):
                images = self.read(images)
                yield name, self._losses(images, self._logits(images)).mean(), len(images)

    def _evaluate_split(self, split: Labelled) -> dict[str, float]:
        loss = torch.zeros((), device=self.device, dtype=torch.float64)
        codes, reconstructions = CodeStatistics(), ReconstructionStatistics()
        for images in split.inputs.split(self.recipe.eval_batch_size):
            images = self.read(images)
            code = self.autoencoder.encode(images)
            reconstruction = self.autoencoder.decode(code)
            loss += self._losses(images, reconstruction.reshape(images.shape)).sum()
            codes.add(code)
            reconstructions.add(images.flatten(1), reconstruction)
        found = {"loss": loss.item() / len(split.labels)} | reconstructions.metrics() | codes.metrics()
        if (rows := getattr(self.autoencoder, "W_dec", None)) is not None:
            found["decoder_norm"] = rows.norm(dim=1).mean().item()
        return found

    def _classifier_errors(self, iterations: int) -> dict[str, float]:
        from sklearn.exceptions import ConvergenceWarning  # a second to load, which planning can do without
        from sklearn.linear_model import LogisticRegression

        train, labels = self._features(self.train), self.train.labels.cpu().numpy()
        features = {name: self._features(split) for name, split in self.splits.items()}
        found = []
        for strength in self.classifier_strengths:
            classifier = LogisticRegression(C=strength, max_iter=iterations)  # L-BFGS from zero: nothing is drawn
            with warnings.catch_warnings():
                # The number of iterations is part of the protocol: reaching it is no accident.
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(train, labels)
            wrong = {
                name: classifier.predict(features[name]) != split.labels.cpu().numpy()
                for name, split in self.splits.items()
            }
            found.append({name: 100.0 * float(errors.mean()) for name, errors in wrong.items()})
        return found[0] if len(found) == 1 else min(found, key=lambda errors: errors["validation"])

    def _features(self, split: Labelled) -> Any:
        batches = split.inputs.split(self.recipe.eval_batch_size)
        return torch.cat([self.autoencoder.features(self.read(images)) for images in batches]).cpu().numpy()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"epochs_begun": self.epochs_begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.epochs_begun = state["epochs_begun"]


def build(
    spec: TaskSpec, options: Options, recipe: Recipe, data: Any, generators: Generators, device: torch.device
) -> Autoencoding:
    if not isinstance(data, ImageData):
        raise UserError(f"task autoencoding needs images; dataset {spec.dataset!r} holds {data.holds}")
    return Autoencoding(spec, options, recipe, data, generators, device)
