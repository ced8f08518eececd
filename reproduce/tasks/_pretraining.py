"""The hidden layer of a classifier, trained as an autoencoder first: the host of an image classification."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reproduce.data import ImageData
from reproduce.errors import UserError
from reproduce.experiment.schema import HostSpec, TaskSpec
from reproduce.method.rng import Generators
from reproduce.tasks import autoencoding, image_classification

SITE = "code"


def build_autoencoding(
    spec: TaskSpec,
    options: image_classification.Options,
    host: HostSpec,
    data: ImageData,
    generators: Generators,
    device: torch.device,
) -> autoencoding.Autoencoding:
    """The autoencoding on which the host is trained, on the classifier's own images."""
    if host.site != SITE:
        raise UserError(f"task.host.site: expected {SITE!r}, whose encoder is taken over, found {host.site!r}")
    own = spec.model_copy(update={"model": host.model, "model_options": host.model_options, "host": None})
    taken = autoencoding.Options(**options.model_dump(include=set(image_classification.ImageOptions.model_fields)))
    return autoencoding.Autoencoding(own, taken, host.recipe, data, generators, device)


def take_over(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give the model's ``autoencoder`` the weights of the trained one.

    Raises:
        UserError: a model without one, or one of other shapes.
    """
    coded = getattr(model, "autoencoder", None)
    if not isinstance(coded, nn.Module):
        raise UserError(
            "task.host trains an autoencoder, and the task's model has none: expected model code_classifier"
        )
    try:
        coded.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"task.host.model_options: another autoencoder than the task's: {reason}") from error
