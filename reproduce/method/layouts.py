"""Which axis of an activation holds its channels: what the layers beside it say, seen in one forward pass."""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as activations
from torch.nn.modules import batchnorm, conv, dropout, instancenorm, pooling
from torch.nn.parameter import is_lazy

from reproduce.method.made_weights import weight_as_drawn
from reproduce.method.sites import Axes

FIRST: dict[int, Axes] = {2: "nc", 3: "ncl", 4: "nchw", 5: "ncdhw"}  # channels are the second axis
LAST: dict[int, Axes] = {2: "nc", 3: "ntc", 4: "nhwc", 5: "ndhwc"}
UNKNOWN: dict[int, tuple[Axes, ...]] = {3: ("ntc", "tnc", "ncl"), 4: ("nchw", "nhwc"), 5: ("ncdhw", "ndhwc")}
NORMS_OF_CHANNELS = (batchnorm._NormBase, instancenorm._InstanceNorm, nn.GroupNorm)
MAPS_TO_MAPS = (
    *(pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd),
    *(nn.Upsample, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
NEVER_CALLED = nn.modules.linear.NonDynamicallyQuantizableLinear  # nn.MultiheadAttention uses its weights itself
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


@dataclass(frozen=True)
class Seen:
    """One output of a layer."""

    axes: Axes | None  # None: of a convolution whose input had no batch axis
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    batch_first: bool | None
    tensor: weakref.ref[Tensor]

    @classmethod
    def of(cls, tensor: Tensor, axes: Axes | None, batch_first: bool | None) -> Seen:
        return cls(axes, tuple(tensor.shape), tensor.stride(), batch_first, weakref.ref(tensor))

    def is_memory_of(self, activation: Tensor) -> bool:
        """Whether it is this output, or a view of it: its axes are then known by their strides."""
        own = self.tensor()
        if own is None or own is activation:
            return own is not None
        try:
            return own.untyped_storage()._cdata == activation.untyped_storage()._cdata
        except RuntimeError:  # a tensor without memory, as under torch.func
            return False


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
        return Layer(False)
    if type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        shape: Any = module.normalized_shape
        return Layer(True, tuple(shape), tuple(shape)) if len(shape) == 1 else None
    return _by_weight(module)


def _may_say(module: nn.Module) -> bool:
    """Whether it may say something when it runs: lazy layers know their sizes then."""
    return _is_unit_by_unit(module) or isinstance(module, nn.modules.lazy.LazyModuleMixin)


def _is_unit_by_unit(module: nn.Module) -> bool:
    return type(module).__module__ in UNIT_BY_UNIT and describe(module) is None


def _by_weight(module: nn.Module) -> Layer | None:
    weight = weight_as_drawn(module, "weight")
    if not isinstance(weight, Tensor) or is_lazy(weight) or isinstance(module, nn.PReLU):
        return None
    if isinstance(module, nn.Linear):
        return Layer(True, (module.in_features,), (module.out_features,))
    if weight.dim() in (1, 2):
        return Layer(True if weight.dim() == 2 else None, tuple(weight.shape), tuple(weight.shape))
    return None


class Layouts:
    """What is seen of a model's layers in a forward pass of the whole model.

    Layers are hooked until a Tap has asked, every Tap has met an activation, and they have run themselves: a branch
    that the first passes did not take is seen when it is taken. Evaluation before the first step settles nothing.

    Holds numbers only between passes, so that a deep copy or a pickle of a hooked model carries no other model along.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        described = ((name, describe(module)) for name, module in modules.items())
        self.layers = {name: layer for name, layer in described if layer is not None}
        self.watched = [name for name, module in modules.items() if name in self.layers or _may_say(module)]
        self.watched = [name for name in self.watched if not isinstance(modules[name], NEVER_CALLED)]
        self.places = {name: place for place, name in enumerate(modules)}
        self.batch_first = {layer.batch_first for layer in self.layers.values()} - {None}
        self.seen: dict[int, Seen] = {}
        self.hooks: dict[str, Any] = {}  # by the name of the module that is hooked
        self.ran: set[str] = set()
        self.model: weakref.ref[nn.Module] | None = None  # while a pass is under way
        self.thread = 0  # in which it is
        self.was_asked = False  # by a Tap, in this pass or before
        self.is_settled = False  # a pass has ended in which a Tap asked
        self.is_watching = False  # every layer is hooked
        self.is_blind = False  # in this pass compiled layers were not noted

    def watch(self, model: nn.Module) -> None:
        """Hook the layers that are not hooked."""
        modules = dict(model.named_modules())
        for name in self.watched:
            if name not in self.hooks and name in modules:
                self.hooks[name] = modules[name].register_forward_hook(partial(self._see, name))
        self.is_watching = True

    def notes(self) -> bool:
        """Whether layers are noted: once settled not in a compiled model, which that would cut into pieces."""
        if self.is_settled and torch.compiler.is_compiling():
            self.is_blind = True
            return False
        return bool(self.hooks)

    @property
    def misses_layers(self) -> bool:
        """Whether a Tap that is new in this pass cannot know what came before it."""
        return self.is_settled and (torch.compiler.is_compiling() or self.is_blind)

    @torch.compiler.disable
    def begin(self, model: nn.Module) -> None:
        """A pass of the whole model begins in which Taps ask."""
        self.seen.clear()
        self.model = weakref.ref(model)
        self.thread = threading.get_ident()
        self.is_blind = False

    @torch.compiler.disable
    def end(self, is_complete: bool) -> None:
        """It has ended; ``is_complete``: every Tap has met an activation by now."""
        self.seen.clear()
        self.model = None
        self.is_settled = self.was_asked
        if self.is_settled and is_complete:
            for name in [name for name in self.hooks if name in self.ran]:
                self.hooks.pop(name).remove()
            self.is_watching = False

    def release(self) -> None:
        """Watch no more."""
        for hook in self.hooks.values():
            hook.remove()
        self.hooks.clear()
        self.seen.clear()
        self.model = None
        self.is_watching = False

    def _see(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.notes():
            self._note(name, module, arguments, output)

    @torch.compiler.disable
    def _note(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        model = self.model() if self.model is not None and self.thread == threading.get_ident() else None
        if model is None:
            return
        self.ran.add(name)
        if not self.is_watching:  # a layer that has not run before: others may go elsewhere now
            self.watch(model)
        value = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(value, Tensor) or value.is_nested:
            return
        found = self._of_layer(module, value) or self._kept(module, arguments, value)
        if found is not None:
            self.seen.pop(id(module), None)  # the newest comes last
            self.seen[id(module)] = found

    def _of_layer(self, module: nn.Module, value: Tensor) -> Seen | None:
        layer = describe(module)
        if layer is None:
            return None
        axes = axes_of_output(layer, tuple(value.shape))
        is_single = layer.features_last is False and value.dim() == layer.dim - 1
        return Seen.of(value, axes, layer.batch_first) if axes is not None or is_single else None

    def _kept(self, module: nn.Module, arguments: Any, value: Tensor) -> Seen | None:
        """The output of a module that works unit by unit, on the output of a layer."""
        given = arguments[0] if arguments else None
        if not isinstance(given, Tensor) or given.shape != value.shape or not _is_unit_by_unit(module):
            return None
        for seen in reversed(self.seen.values()):
            if seen.is_memory_of(given) and seen.shape == given.shape and seen.stride == given.stride():
                return Seen.of(value, seen.axes, None)
        return None

    def of_output(self, module: nn.Module, output: Tensor) -> tuple[Axes, ...]:
        """What a module says of its own output: the axes, and what else they may be; nothing where it says nothing."""
        shape = tuple(output.shape)
        if isinstance(module, nn.RNNCellBase):
            return ("tnc",) if len(shape) == 3 else ("nc",)
        if isinstance(module, nn.GLU):
            halved = {1: FIRST, len(shape) - 1: LAST}.get(module.dim % len(shape), {}).get(len(shape))
            return self._timed(halved, shape) if halved else ()
        layer = describe(module)
        axes = None if layer is None else axes_of_output(layer, shape)
        if layer is None or axes is None:
            return ()
        return (axes,) if layer.batch_first is not None else self._timed(axes, shape)

    def beside(self, activation: Tensor, name: str) -> tuple[Axes, ...]:
        """What the newest layer that fits says of an activation, else the next one after module ``name``.

        Raises:
            ValueError: it comes from a convolution without a batch axis.
        """
        shape, place = tuple(activation.shape), self.places.get(name, -1)
        newest = list(reversed(self.seen.values()))
        for seen in sorted(newest, key=lambda seen: not seen.is_memory_of(activation)):
            if seen.axes is None and seen.shape == shape:
                raise ValueError(
                    f"module {name!r}: activations {shape} follow a convolution whose input has no batch axis: give it "
                    "one"
                )
            found = _carried(seen, activation)
            if found and len(shape) > 2:
                return found if len(found) > 1 else self._timed(found[0], tuple(activation.shape))
        if len(shape) == 2:
            return ("nc",)
        for other, layer in self.layers.items():
            axes = _place_of(layer, layer.inputs, shape) if self.places[other] > place and layer.inputs else None
            if axes is not None:
                return self._timed(axes, shape)
        return UNKNOWN.get(activation.dim(), ())

    def _timed(self, axes: Axes, shape: tuple[int, ...]) -> tuple[Axes, ...]:
        """For sequences whether time or the batch comes first, as in the newest layer that says so."""
        if axes not in ("ntc", "tnc"):
            return (axes,)
        for seen in reversed(self.seen.values()):
            if seen.batch_first is not None:
                own: Axes = "ntc" if seen.batch_first else "tnc"
                swapped: Axes = "tnc" if seen.batch_first else "ntc"
                if shape[:2] != seen.shape[1::-1]:
                    return (own,)
                return (own, swapped) if shape[0] == shape[1] else (swapped,)
        if len(self.batch_first) == 2:
            return "ntc", "tnc"
        return ("tnc",) if self.batch_first == {False} else ("ntc",)


def axes_of_output(layer: Layer, shape: tuple[int, ...]) -> Axes | None:
    """The axes of an output of this shape, if the layer fixes them."""
    axes = _place_of(layer, layer.outputs, shape)
    return "tnc" if axes == "ntc" and layer.batch_first is False else axes


def _place_of(layer: Layer, channels: tuple[int, ...], shape: tuple[int, ...]) -> Axes | None:
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


def _carried(seen: Seen, activation: Tensor) -> tuple[Axes, ...]:
    """The axes of an activation that came, by functions that nobody saw, from an output: its own or channels moved.

    They fit where the number of channels is that of the output, or all other sizes are (channels were joined or cut).
    """
    shape, stride = tuple(activation.shape), activation.stride()
    if seen.axes is None or len(shape) != len(seen.shape):
        return ()
    is_last = seen.axes.endswith("c")
    here, there = (-1, 1) if is_last else (1, -1)
    moved: Axes | None = (FIRST if is_last else LAST).get(len(shape))
    fits_own = _fits(shape, seen.shape, here)
    fits_moved = moved is not None and _fits(shape, _moved(seen.shape, here, there), there)
    if not (fits_own and fits_moved) or moved is None:
        return (seen.axes,) if fits_own else (moved,) if fits_moved and moved is not None else ()
    # A copy has the strides of any tensor of its shape: they then say nothing.
    if seen.is_memory_of(activation) or not activation.is_contiguous():
        if (shape, stride) == (seen.shape, seen.stride):
            return (seen.axes,)
        if (shape, stride) == (_moved(seen.shape, here, there), _moved(seen.stride, here, there)):
            return (moved,)
    return seen.axes, moved


def _fits(shape: tuple[int, ...], other: tuple[int, ...], channel: int) -> bool:
    rest, other_rest = (_without(each, channel) for each in (shape, other))
    return shape[channel] == other[channel] or rest == other_rest


def _without(sizes: tuple[int, ...], axis: int) -> list[int]:
    return [size for place, size in enumerate(sizes) if place != axis % len(sizes)]


def _moved(sizes: tuple[int, ...], here: int, there: int) -> tuple[int, ...]:
    rest = _without(sizes, here)
    rest.insert(there % len(sizes), sizes[here])
    return tuple(rest)


def shape_of_sample(axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The `Site.shape` of activations of this shape: features first, then space."""
    sizes = dict(zip(axes, shape, strict=True))
    return sizes["c"], *(size for axis, size in sizes.items() if axis not in "nct")
