"""An autoencoder with one code layer, in the names of the sparse-autoencoder literature."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from reproduce.method.sites import Site
from reproduce.models import ModelOptions, Sizes
from reproduce.models.dropout import Dropout
from reproduce.models.precision import like


class Options(ModelOptions):
    """Bricken et al. (2023) with ``decoder = "unit_norm"``; Makhzani & Frey (2013) with ``activation = "topk"``,
    ``tied``, not ``centred`` and ``initial_std = 0.01``; Cunningham et al. (2023) with ``tied``, ``unit_norm`` and
    no ``decoder_bias``.
    """

    d_sae: int = Field(ge=1)  # width of the code
    activation: Literal["relu", "sigmoid", "topk"] = "relu"
    k: int | None = Field(default=None, ge=1)  # of "topk": how many stay
    alpha: float = Field(default=1.0, ge=1)  # of "topk": features for a classifier keep alpha * k
    initial_k: int | None = Field(default=None, ge=1)  # falls linearly to k over the first half of training
    decoder: Literal["free", "unit_norm"] = "free"
    tied: bool = False  # the encoder is the decoder's transpose
    decoder_bias: bool = True
    centred: bool = True  # the encoder reads x - b_dec
    initial_norm: float = Field(default=1.0, gt=0)  # of the decoder's rows, whose directions are uniform
    initial_std: float | None = Field(default=None, gt=0)  # instead: every weight N(0, initial_std^2)
    input_dropout: float = Field(default=0.0, ge=0, lt=1)  # makes a denoising autoencoder
    code_dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _topk_goes_with_k(self) -> Options:
        if (self.activation == "topk") != (self.k is not None):
            raise ValueError(f"activation 'topk', and no other, takes option 'k'; got {self.activation!r}, {self.k}")
        if self.k is None and (self.alpha != 1 or self.initial_k is not None):
            raise ValueError("options 'alpha' and 'initial_k' are for activation 'topk'")
        if self.k is not None and not self.k <= (self.initial_k or self.k) <= self.d_sae:
            raise ValueError(f"needs k <= initial_k <= d_sae, got {self.k}, {self.initial_k}, {self.d_sae}")
        return self

    @model_validator(mode="after")
    def _centred_by_a_bias(self) -> Options:
        if self.centred and not self.decoder_bias:
            raise ValueError("centred inputs need option 'decoder_bias': set centred = false")
        return self


class UnitRows(nn.Module):
    """Rows divided by their norm. The gradient through it has no part along the row: it is already projected.

    Of a decoder that is a linear layer a latent is a column: ``dim=0``.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=self.dim)

    def right_inverse(self, rows: Tensor) -> Tensor:
        """What is stored for given rows: themselves."""
        return rows


class Autoencoder(nn.Module):
    """Inputs (N, ...) to reconstructions of the same shape; Site ``code`` on the code (N, d_sae).

    ``W_enc`` (d_in, d_sae) and ``b_enc`` encode, ``W_dec`` (d_sae, d_in) and ``b_dec`` decode; a row of ``W_dec``
    is the direction of one latent. With ``decoder = "unit_norm"``, ``W_dec`` reads as unit rows wherever it is used.
    """

    k_now: Tensor

    def __init__(self, options: Options, sizes: Sizes, dropout: torch.Generator | None) -> None:
        super().__init__()
        if not sizes.input_shape:
            raise ValueError(f"takes inputs of a fixed shape, got {sizes.input_shape}")
        self.options = options
        self.d_in = math.prod(sizes.input_shape)
        self.W_dec = nn.Parameter(torch.empty(options.d_sae, self.d_in))
        self.b_enc = nn.Parameter(torch.zeros(options.d_sae))
        if not options.tied:
            self.W_enc = nn.Parameter(torch.empty(self.d_in, options.d_sae))
        if options.decoder_bias:
            self.b_dec = nn.Parameter(torch.zeros(self.d_in))
        self.code = Site("code", "nc", (options.d_sae,))
        self.input_dropout = Dropout(options.input_dropout, dropout)
        self.code_dropout = Dropout(options.code_dropout, dropout)
        self.widest = options.initial_k or options.k or 0
        if options.k is not None:
            self.register_buffer("k_now", torch.tensor(self.widest))

    def encode(self, inputs: Tensor) -> Tensor:
        """Inputs (N, ...) to codes (N, d_sae)."""
        before = self._before_activation(inputs)
        match self.options.activation:
            case "relu":
                return before.relu()
            case "sigmoid":
                return before.sigmoid()
        values, units = before.topk(self.widest, dim=-1, sorted=True)
        kept = torch.arange(self.widest, device=values.device) < self.k_now  # one shape while k falls
        return torch.zeros_like(before).scatter(-1, units, values * kept)

    def decode(self, code: Tensor) -> Tensor:
        """Codes (N, d_sae) to reconstructions (N, d_in)."""
        output = code @ self.W_dec
        return output + like(self.b_dec, output) if self.options.decoder_bias else output

    def features(self, inputs: Tensor) -> Tensor:
        """What a classifier reads, (N, d_sae): the code, with the alpha * k largest kept where k are in training."""
        if self.options.k is None:
            return self.encode(inputs)
        before = self._before_activation(inputs)
        n_kept = min(self.options.d_sae, round(self.options.alpha * self.options.k))
        values, units = before.topk(n_kept, dim=-1)
        return torch.zeros_like(before).scatter(-1, units, values)

    def anneal(self, progress: float) -> None:
        """Set k for an epoch that begins at this fraction of training (Makhzani & Frey 2013)."""
        if self.options.k is not None:
            fallen = min(1.0, 2 * progress) * (self.widest - self.options.k)
            self.k_now.fill_(self.widest - round(fallen))

    def forward(self, inputs: Tensor) -> Tensor:
        code = self.code(self.encode(self.input_dropout(inputs.flatten(1))))
        return self.decode(self.code_dropout(code)).reshape(inputs.shape)

    def _before_activation(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(1)
        if self.options.centred:
            inputs = inputs - self.b_dec
        product = inputs @ (self.W_dec.t() if self.options.tied else self.W_enc)
        return product + like(self.b_enc, product)


def build(
    options: Options, sizes: Sizes, initialisation: torch.Generator, dropout: torch.Generator | None
) -> Autoencoder:
    """The autoencoder with decoder rows drawn from ``initialisation``; the encoder starts as their transpose.

    Biases start at 0. (Transposed start: Gao et al. 2024; Anthropic's update of April 2024.)
    """
    model: Any = Autoencoder(options, sizes, dropout)
    with torch.no_grad():
        model.W_dec.normal_(0.0, options.initial_std or 1.0, generator=initialisation)
        if options.initial_std is None:
            model.W_dec.copy_(options.initial_norm * F.normalize(model.W_dec, dim=-1))
        if not options.tied:
            model.W_enc.copy_(model.W_dec.t())
    if options.decoder == "unit_norm":
        parametrize.register_parametrization(model, "W_dec", UnitRows())
    return model
