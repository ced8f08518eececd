"""The word-level language model with a layer of non-negative codes between its last LSTM layer and the words."""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reproduce.method.sites import Site
from reproduce.models import Sizes, lstm
from reproduce.models.initialisation import draw_uniform


class Options(lstm.Options):
    """As the language model's, without tied embeddings or a projection, and the width of the code."""

    d_sae: int = Field(ge=1)

    @model_validator(mode="after")
    def _decoder_reads_the_code(self) -> Options:
        for name in ("tied", "projection"):
            if getattr(self, name):
                raise ValueError(f"option {name!r} is for a decoder that reads the LSTM; here it reads the code")
        return self


class CodeDecoder(nn.Module):
    """(..., hidden) to logits (..., V) through a ReLU code (..., d_sae), on which there is Site ``code``."""

    def __init__(self, hidden: int, d_sae: int, outputs: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(hidden, d_sae)
        self.code = Site("code", "tnc", (d_sae,))
        self.output = nn.Linear(d_sae, outputs)

    @property
    def W_dec(self) -> Tensor:  # noqa: N802
        """(d_sae, V): what each latent adds to the logits."""
        return self.output.weight.t()

    @property
    def bias(self) -> Tensor:
        """Of the logits."""
        return self.output.bias

    def forward(self, value: Tensor) -> Tensor:
        return self.output(self.code(self.encoder(value).relu()))


class CodeLanguageModel(lstm.LanguageModel):
    """Tokens (T, B) int64 to logits (T, B, V); the language model's Sites, and ``decoder.code``."""

    def __init__(self, options: Options, sizes: Sizes, dropout: torch.Generator | None) -> None:
        super().__init__(options, sizes, dropout)
        self.decoder: CodeDecoder = CodeDecoder(options.hidden, options.d_sae, sizes.outputs)  # type: ignore[assignment]


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> CodeLanguageModel:
    """The model with every parameter drawn from ``initialisation``.

    Embedding and LSTM as the language model's; code and output weights U(+-1 / sqrt(fan_in)), their biases 0. Ours.
    """
    model = CodeLanguageModel(options, sizes, dropout)
    draw_uniform(model.embedding.weight, lstm.EMBEDDING_BOUND, initialisation)
    for layer in model.layers:
        for parameter in layer.parameters():
            draw_uniform(parameter, 1.0 / math.sqrt(options.hidden), initialisation)
    for linear in (model.decoder.encoder, model.decoder.output):
        draw_uniform(linear.weight, 1.0 / math.sqrt(linear.in_features), initialisation)
        nn.init.zeros_(linear.bias)
    return model
