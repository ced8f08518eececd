"""The small convolutional network of DomainBed for Rotated MNIST, with a code that is a vector or a Gaussian law."""

from __future__ import annotations

import itertools
import math

import torch
from pydantic import Field
from torch import Tensor, nn

from reproduce.method.gaussian import gaussian_code
from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.activation import Activated
from reproduce.models.dropout import Drawing
from reproduce.models.initialisation import draw_uniform, draw_weight, fan_in

GROUPS = 8  # of each normalization, as in DomainBed
LEAST = 8  # channels of a group, as the first layer there has: of a group of one no mean over places is left


class Options(ModelOptions):
    """Nguyen et al. (2022), appendix D.2: ``code = 256``, with and without ``gaussian``."""

    width: int = Field(default=64, ge=LEAST, multiple_of=LEAST)  # of the first layer; the next two have twice as many
    code: int = Field(default=256, ge=LEAST, multiple_of=LEAST)
    gaussian: bool = False  # the last layer gives means and as many deviations
    evaluation_draws: int = Field(default=20, ge=1)  # of a Gaussian code; the authors' `num_samples`


class GaussianDraw(Drawing):
    """Parameters (N, 2 d) of Gaussian codes to one draw of each, (N, d); at evaluation to (draws, N, d).

    Draws of an evaluation are the same for all examples and all evaluations: a buffer that is made with the weights.
    """

    noise: Tensor

    def __init__(self, units: int, evaluation_draws: int, generator: torch.Generator | None) -> None:
        super().__init__(generator)
        self.register_buffer("noise", torch.zeros(evaluation_draws, 1, units))

    def forward(self, parameters: Tensor) -> Tensor:
        mean, deviation = gaussian_code(parameters)
        if not self.training:
            return mean + deviation * self.noise
        if self.generator is None:  # normal_ would silently take torch's global generator
            raise ValueError("a Gaussian code needs a generator while training, got None")
        return mean + deviation * self._drawn(mean, mean.shape, lambda noise: noise.normal_(generator=self.generator))


class MnistCNN(nn.Module):
    """Images (N, C, H, W) to logits (N, classes), through means over places: of any size.

    Sites ``features.<i>.0.pre`` and ``.post`` of four layers, i = 0 to 3, and ``code`` (N, code): what the classifier
    reads, or, where it is Gaussian, (N, 2 code), means and then what gives deviations (`gaussian_code`). The classifier
    reads one draw while training; at evaluation logits are log-probabilities, averaged over draws (eq. 2).
    """

    def __init__(self, options: Options, sizes: Sizes, generator: torch.Generator | None) -> None:
        super().__init__()
        if len(sizes.input_shape) != 3:
            raise ValueError(f"takes images of shape (channels, height, width), got {sizes.input_shape}")
        channels, height, width = sizes.input_shape
        last = options.code * (2 if options.gaussian else 1)
        widths = (channels, options.width, 2 * options.width, 2 * options.width, last)
        layers = []
        for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            stride = 2 if index == 1 else 1
            height, width = math.ceil(height / stride), math.ceil(width / stride)
            convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
            activated = Activated(convolution, "relu", "nchw", (outputs, height, width))
            layers.append(nn.Sequential(activated, nn.GroupNorm(min(GROUPS, outputs // LEAST), outputs)))
        self.features = nn.Sequential(*layers)
        self.code = Site("gaussian" if options.gaussian else "code", "nc", (last,))
        self.draw = GaussianDraw(options.code, options.evaluation_draws, generator) if options.gaussian else None
        self.classifier = nn.Linear(options.code, sizes.outputs)

    def forward(self, images: Tensor) -> Tensor:
        code = self.code(self.features(images).mean((2, 3)))
        if self.draw is None:
            return self.classifier(code)
        logits = self.classifier(self.draw(code))
        if self.training:
            return logits
        return logits.float().log_softmax(-1).logsumexp(0) - math.log(len(logits))


def build(options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None) -> MnistCNN:
    """The network with weights and biases drawn from ``initialisation`` as torch's layers do, codes from ``dropout``.

    Source: Gulrajani & Lopez-Paz (2021), DomainBed's ``MNIST_CNN``; Nguyen et al. (2022), appendix D.2.
    """
    model = MnistCNN(options, sizes, dropout)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw_weight(layer.weight, "torch", initialisation)
            if layer.bias is not None:
                draw_uniform(layer.bias, 1.0 / math.sqrt(fan_in(layer.weight)), initialisation)
    if model.draw is not None:
        model.draw.noise.normal_(generator=initialisation)
    return model
