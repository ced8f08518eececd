"""The weights of an autoencoder, latent by latent, whether it holds them as parameters or as linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reproduce.method import holder_of, own_parametrizations, weight_in_use

SHAPES = "W_dec (d_sae, d_in) or a linear layer `decoder`, and b_enc or a linear layer `encoder` with a bias"


class Weight(NamedTuple):
    """A weight or bias with an entry for each latent: along the first axis, or where it is turned along the last."""

    module: nn.Module
    name: str
    is_turned: bool

    @property
    def latents_first(self) -> Tensor:
        """As the module uses it."""
        return self._turned(weight_in_use(self.module, self.name))

    @property
    def stored(self) -> Tensor:
        """The tensor that the optimiser moves: behind a parametrization, its original.

        Raises:
            ValueError: a parametrization that keeps several, of which none is the weight.
        """
        module: Any = self.module
        made_by = own_parametrizations(module).get(self.name)
        if made_by is None:
            if self.name not in module._parameters:
                raise ValueError(
                    f"{self.name} of {type(module).__name__} is no parameter, and resampling writes one: a hook such "
                    "as pruning makes it from others"
                )
            return module.get_parameter(self.name)  # type: ignore[no-any-return]
        found = getattr(made_by, "original", None)
        if found is None:
            raise ValueError(
                f"{self.name} of {type(module).__name__} is made from several parameters, and resampling writes one: "
                "use a parametrization with a single original, as reproduce.models.autoencoder.UnitRows"
            )
        return found  # type: ignore[no-any-return]

    @property
    def d_in(self) -> int:
        """How long a latent's row is, of an encoder or decoder."""
        return self.stored.shape[0 if self.is_turned else 1]

    def write(self, new: Tensor, latents: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """New entries for those latents where ``latents`` is true, and empty moments; the same work for any number."""
        weight = self.stored
        mask = self._turned(latents.view(-1, *[1] * (new.dim() - 1)))
        weight.copy_(torch.where(mask, self._turned(new).to(weight.dtype), weight))
        for value in optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(mask, 0)

    def _turned(self, weight: Tensor) -> Tensor:
        return weight.mT if self.is_turned else weight


class Weights(NamedTuple):
    """Of one autoencoder. A tied one has no encoder, and one without biases none of these."""

    decoder: Weight
    encoder: Weight | None
    b_enc: Weight | None
    b_dec: Tensor | None


def weights_of(owner: nn.Module) -> Weights | None:
    """The weights of a module that has a decoder, and None of others.

    ``W_dec`` (d_sae, d_in), ``W_enc`` (d_in, d_sae), ``b_enc`` and ``b_dec`` in the names of the literature; or
    ``decoder`` and ``encoder``, linear layers, or modules of which the first or the last is one.
    """
    owner = holder_of(owner, "W_dec") or holder_of(owner, "decoder") or owner  # and not a wrapper
    own, made = dict(owner.named_parameters(recurse=False)), own_parametrizations(owner)
    decoder, encoder = _linear(owner, "decoder", 0), _linear(owner, "encoder", -1)
    if isinstance(getattr(owner, "W_dec", None), Tensor):
        written = Weight(owner, "W_dec", False)
        if "W_dec" not in own and "W_dec" not in made:
            return Weights(written, None, None, None)  # a view of some other weight, to be read alone
    elif decoder is not None:
        written = Weight(decoder, "weight", True)
    else:
        return None
    if "W_enc" in own or "W_enc" in made:
        read: Weight | None = Weight(owner, "W_enc", True)
    else:
        read = Weight(encoder, "weight", False) if encoder is not None else None
    if "b_enc" in own:
        bias: Weight | None = Weight(owner, "b_enc", False)
    else:
        bias = Weight(encoder, "bias", False) if encoder is not None and encoder.bias is not None else None
    centre = own.get("b_dec", None if decoder is None else decoder.bias)
    return Weights(written, read, bias, centre)


def several_layers(owner: nn.Module) -> str:
    """Whichever of encoder and decoder has more than one linear layer; "" where neither has."""
    return next((name for name in ("encoder", "decoder") if len(_linear_layers(owner, name)) > 1), "")


def _linear(owner: nn.Module, name: str, place: int) -> nn.Linear | None:
    layers = _linear_layers(owner, name)
    return layers[place] if layers else None


def _linear_layers(owner: nn.Module, name: str) -> list[nn.Linear]:
    module = getattr(owner, name, None)
    return [part for part in module.modules() if isinstance(part, nn.Linear)] if isinstance(module, nn.Module) else []


def reconstruction(inputs: Tensor, output: Any) -> Tensor:
    """What of an autoencoder's output is as large as its inputs.

    Raises:
        ValueError: nothing is.
    """
    parts = list(output.values()) if isinstance(output, Mapping) else output
    for part in parts if isinstance(parts, list | tuple) else [parts]:
        if isinstance(part, Tensor) and part.numel() == inputs.numel():
            return part
    raise ValueError(
        f"resampling needs an autoencoder that returns a reconstruction of its inputs {tuple(inputs.shape)}, "
        f"found {type(output).__name__}"
    )
