"""A classifier on an autoencoder's features: one hidden layer that may be trained as an autoencoder first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reproduce.models import Sizes, autoencoder
from reproduce.models.initialisation import InitialisationName, draw_weight


class Options(autoencoder.Options):
    """Those of the autoencoder: fine-tuning keeps its alpha * k units, or its dropout (Makhzani & Frey 2013)."""


class CodeClassifier(nn.Module):
    """Inputs (N, ...) to logits (N, classes); Site ``autoencoder.code`` on the features (N, d_sae)."""

    def __init__(self, coded: autoencoder.Autoencoder, classes: int) -> None:
        super().__init__()
        self.autoencoder = coded
        self.classifier = nn.Linear(coded.options.d_sae, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        coded = self.autoencoder
        features = coded.code(coded.features(coded.input_dropout(inputs.flatten(1))))
        return self.classifier(coded.code_dropout(features))


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> CodeClassifier:
    """The autoencoder as it builds itself, then the classifier: N(0, initial_std^2), or N(0, 1 / d_sae) without one."""
    model = CodeClassifier(autoencoder.build(options, sizes, initialisation, dropout), sizes.outputs)
    kind: InitialisationName = "lecun" if options.initial_std is None else "gaussian"
    draw_weight(model.classifier.weight, kind, initialisation, options.initial_std)
    nn.init.zeros_(model.classifier.bias)
    return model
