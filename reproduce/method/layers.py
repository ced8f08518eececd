"""What the type of a layer says about the axes of its inputs and outputs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import activation as activations
from torch.nn.modules import batchnorm, conv, dropout, instancenorm, pooling
from torch.nn.parameter import is_lazy

from reproduce.method.made_weights import weight_as_drawn
from reproduce.method.own_parts import defined_in
from reproduce.method.readings import FIRST, LAST
from reproduce.method.sites import Axes

NORMS_OF_CHANNELS = (batchnorm._NormBase, instancenorm._InstanceNorm, nn.GroupNorm)
MAPS_TO_MAPS = (
    *(pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd),
    *(nn.Upsample, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
NEVER_CALLED = nn.modules.linear.NonDynamicallyQuantizableLinear  # nn.MultiheadAttention uses its weights itself
# Packages in which a module with a matrix as its weight multiplies the last axis; elsewhere in torch there are modules
# made from those of others.
LINEAR_ALONE = ("torch.nn.modules.", "torch.ao.nn.", "transformers.")
UNIT_BY_UNIT = (activations.__name__, dropout.__name__, nn.Identity.__module__)  # where such modules are defined


@dataclass(frozen=True)
class Layer:
    """What the type of a module says about its inputs and outputs.

    Args:
        features_last: where channels are; None: whichever axis has that many.
        inputs, outputs: how many channels; empty: any number.
        dim: how many axes there are; 0: any number.
        batch_first: of a sequence; None: it says nothing.
    """

    features_last: bool | None
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    dim: int = 0
    batch_first: bool | None = None


def describe(module: nn.Module) -> Layer | None:
    """What a module's type fixes about layouts, or None; a module of unknown type is known by its own ``weight``.

    A weight with two axes multiplies features that are last, as that of `nn.Linear` does, and one with a single axis
    scales features that are second or last.
    """
    if isinstance(module, nn.RNNBase):
        width = (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
        return Layer(True, (module.input_size,), (width,), 3, module.batch_first)
    if isinstance(module, nn.MultiheadAttention):
        return Layer(True, (module.embed_dim,), (module.embed_dim,), 3, module.batch_first)
    if isinstance(module, conv._ConvNd):
        return Layer(False, (module.in_channels,), (module.out_channels,), 2 + len(module.kernel_size))
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return Layer(False, (module.num_parameters,), (module.num_parameters,))
    if isinstance(module, NORMS_OF_CHANNELS):
        number = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        return Layer(False, (number,), (number,)) if number else None
    if isinstance(module, MAPS_TO_MAPS):
        return Layer(False, dim=_dim_of_maps(module))
    if _forward_of(module) in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        shape: Any = module.normalized_shape
        return Layer(True, tuple(shape), tuple(shape)) if len(shape) == 1 else None
    return _by_weight(module)


def _dim_of_maps(module: nn.Module) -> int:
    """With batch and channels, as the type's name says: of `nn.MaxPool2d` 4; 0: any number."""
    digits = [letter for letter in type(module).__name__ if letter.isdigit()]
    return 2 + int(digits[0]) if len(digits) == 1 else 0


def _forward_of(module: nn.Module) -> Any:
    """As its class defines it: that of a scripted module cannot be asked for it."""
    return inspect.getattr_static(type(module), "forward", None)


def may_say(module: nn.Module) -> bool:
    """Whether it may say something when it runs: lazy layers know their sizes then."""
    return is_unit_by_unit(module) or isinstance(module, nn.modules.lazy.LazyModuleMixin)


def is_unit_by_unit(module: nn.Module) -> bool:
    """Whether its output has the axes of its input."""
    return defined_in(module) in UNIT_BY_UNIT and describe(module) is None


def _by_weight(module: nn.Module) -> Layer | None:
    weight = weight_as_drawn(module, "weight")
    if not isinstance(weight, Tensor) or is_lazy(weight) or isinstance(module, nn.PReLU):
        return None
    if isinstance(module, nn.Linear):
        return Layer(True, (module.in_features,), (module.out_features,))
    if weight.dim() in (1, 2):
        # What somebody's own module does with a matrix is not known: it may be a convolution of single locations.
        is_linear = weight.dim() == 2 and f"{defined_in(module)}.".startswith(LINEAR_ALONE)
        return Layer(True if is_linear else None, tuple(weight.shape), tuple(weight.shape))
    return None


def axes_of_output(layer: Layer, shape: tuple[int, ...]) -> Axes | None:
    """The axes of an output of this shape, if the layer fixes them."""
    axes = axes_with(layer, layer.outputs, shape)
    return "tnc" if axes == "ntc" and layer.batch_first is False else axes


def axes_with(layer: Layer, channels: tuple[int, ...], shape: tuple[int, ...]) -> Axes | None:
    """The axes of an input or output of this shape, with so many channels, whichever of time and batch comes first."""
    if layer.dim not in (0, len(shape)) or len(shape) < 2:
        return None
    kinds = {False: FIRST, True: LAST}
    fitting = [
        kind[len(shape)]
        for is_last, kind in kinds.items()
        if layer.features_last in (is_last, None)
        and len(shape) in kind
        and (not channels or shape[-1 if is_last else 1] in channels)
    ]
    return fitting[0] if len(set(fitting)) == 1 else None
