"""Which axis of an activation holds its channels: what the layers beside it say, seen in one forward pass."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reproduce.method.layers import NEVER_CALLED, Layer, axes_of_output, axes_with, describe, is_unit_by_unit, may_say
from reproduce.method.readings import FIRST, LAST, UNKNOWN, Lying, Output, by_sizes, by_strides, in_time
from reproduce.method.sites import Axes


@dataclass(frozen=True)
class Seen:
    """An output of a layer in this pass."""

    output: Output
    stride: tuple[int, ...]
    tensor: Callable[[], Tensor | None]  # a weak reference

    @classmethod
    def of(cls, tensor: Tensor, axes: tuple[Axes, ...], batch_first: bool | None) -> Seen:
        return cls(Output(axes, tuple(tensor.shape), batch_first), tensor.stride(), weakref.ref(tensor))

    @classmethod
    def of_packed(cls, packed: PackedSequence, layer: Layer | None) -> Seen | None:
        """The sizes that it has when it is padded, with time or the batch first: its layer does not say which."""
        if layer is None or layer.batch_first is None:
            return None
        shape = len(packed.batch_sizes), int(packed.batch_sizes[0]), packed.data.shape[-1]
        return cls(Output(("tnc",), shape, layer.batch_first), (), lambda: None)

    def is_memory_of(self, activation: Tensor) -> bool:
        """Whether it is this output, or a view of it."""
        own = self.tensor()
        if own is None or own is activation:
            return own is not None
        try:
            return own.untyped_storage()._cdata == activation.untyped_storage()._cdata
        except RuntimeError:  # a tensor without memory, as under torch.func
            return False

    def axes_of(self, view: Tensor) -> tuple[Axes, ...]:
        """The axes of a view of it; nothing where they have no name."""
        lying, own = Lying(tuple(view.shape), view.stride()), Lying(self.output.shape, self.stride)
        found = [by_strides(axes, own, lying) for axes in self.output.axes]
        return tuple(dict.fromkeys(axes for axes in found if axes is not None)) if all(found) else ()


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
        self.watched = [name for name, module in modules.items() if name in self.layers or may_say(module)]
        self.watched = [name for name in self.watched if not isinstance(modules[name], NEVER_CALLED)]
        self.places = {name: place for place, name in enumerate(modules)}
        self.batch_first = {layer.batch_first for layer in self.layers.values()} - {None}
        self.seen: dict[int, Seen] = {}
        self.outputs: dict[str, Output] = {}  # of each layer the last one that was seen, in this pass or before
        self.hooks: dict[str, Any] = {}  # by the name of the module that is hooked
        self.ran: set[str] = set()
        self.model: weakref.ref[nn.Module] | None = None  # while a pass is under way
        self.thread = 0  # in which it is
        self.was_asked = False  # by a Tap, in this pass or before
        self.is_settled = False  # a pass has ended in which a Tap asked
        self.is_watching = False  # every layer is hooked
        self.is_partial = False  # in this pass only from some layer on
        self.is_blind = False  # in this pass compiled layers were not noted
        self.was_cut = False  # compiled code is in pieces, which it stays in, since layers were noted between them
        self.assumed: list[tuple[int, ...]] = []  # sequences in this pass before any layer told batch from time
        self.doubts_order = False  # the first such layer in this pass does not bear out what was assumed

    def watch(self, model: nn.Module) -> None:
        """Hook the layers that are not hooked."""
        modules = dict(model.named_modules())
        for name in self.watched:
            if name not in self.hooks and name in modules and not isinstance(modules[name], torch.jit.ScriptModule):
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
        self.is_blind = self.is_partial = self.doubts_order = False
        self.assumed.clear()

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
            if torch.compiler.is_compiling():
                self.was_cut = True
            self._note(name, module, arguments, output)

    @torch.compiler.disable
    def _note(self, name: str, module: nn.Module, arguments: Any, output: Any) -> None:
        model = self.model() if self.model is not None and self.thread == threading.get_ident() else None
        if model is None:
            return
        self.ran.add(name)
        if not self.is_watching:  # a layer that has not run before: others may go elsewhere now
            self.watch(model)
            self.is_partial = True
        value = output[0] if isinstance(output, tuple) and not isinstance(output, PackedSequence) and output else output
        given = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
        found: Seen | None = None
        if isinstance(value, PackedSequence):
            found = Seen.of_packed(value, describe(module))
        elif isinstance(value, Tensor) and not value.is_nested:
            found = self._of_layer(module, given, value) or self._kept(module, given, value)
        if found is not None:
            if self.assumed and found.output.batch_first is not None:
                self._compare(found.output, self.certain(given) if given is not None else ())
            self.seen.pop(id(module), None)  # the newest comes last
            self.seen[id(module)] = found
            self.outputs.pop(name, None)
            self.outputs[name] = found.output

    def _of_layer(self, module: nn.Module, given: Tensor | None, value: Tensor) -> Seen | None:
        layer, shape = describe(module), tuple(value.shape)
        if layer is None:
            return None
        axes = axes_of_output(layer, shape)
        if axes is None:
            is_single = layer.features_last is False and value.dim() == layer.dim - 1
            return Seen.of(value, (), None) if is_single else None
        if layer.batch_first is not None:
            return Seen.of(value, (axes,), layer.batch_first)
        before = self.certain(given) if given is not None and given.shape[:-1] == shape[:-1] else ()
        is_in_time = axes == "ntc" and bool(before) and all(each in ("ntc", "tnc") for each in before)
        return Seen.of(value, before if is_in_time else self._timed(axes, shape), None)

    def _compare(self, output: Output, given: tuple[Axes, ...]) -> None:
        """Doubt the order of batch and time that was assumed, unless this layer's input or sizes have it too."""
        is_borne_out = all(in_time(shape, [output]) == self._usual_order for shape in self.assumed)
        self.doubts_order = given != self._usual_order if given else not is_borne_out
        self.assumed.clear()

    def _kept(self, module: nn.Module, given: Tensor | None, value: Tensor) -> Seen | None:
        """The output of a module that works unit by unit, on the output of a layer."""
        if given is None or given.shape != value.shape or not is_unit_by_unit(module):
            return None
        axes = self.certain(given)
        return Seen.of(value, axes, None) if axes else None

    def certain(self, activation: Tensor) -> tuple[Axes, ...]:
        """The axes of what a layer gave, or of a view of it; nothing for what functions made."""
        for seen in reversed(self.seen.values()):
            axes = seen.axes_of(activation) if seen.is_memory_of(activation) else ()
            if axes:
                return axes
        return ()

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
        """What all axes may be of an activation that functions made: by the sizes of what layers before gave, else by
        what the next layer after module ``name`` takes.

        Raises:
            ValueError: it comes from a convolution without a batch axis.
        """
        shape, place = tuple(activation.shape), self.places.get(name, -1)
        if any(not output.axes and output.shape == shape for output in self._newest()):
            raise ValueError(
                f"module {name!r}: activations {shape} follow a convolution whose input has no batch axis: give it one"
            )
        if len(shape) == 2:
            return ("nc",)
        found = by_sizes(shape, self._newest())
        for other, layer in self.layers.items():
            if not found and self.places[other] > place and layer.inputs:
                axes = axes_with(layer, layer.inputs, shape)
                found = (axes,) if axes is not None else ()
        timed = [each for axes in found for each in self._timed(axes, shape)]
        return tuple(timed) or UNKNOWN.get(len(shape), ())

    def rivals(self, axes: tuple[Axes, ...], shape: tuple[int, ...]) -> bool:
        """Whether an activation of this shape may also be the output of a layer whose channels are elsewhere."""
        is_last = {each.endswith("c") for each in axes}
        return any(
            output.axes[0].endswith("c") not in is_last and shape[output.axes[0].index("c")] == output.size("c")
            for output in self.outputs.values()
            if output.axes and len(output.shape) == len(shape)
        )

    def _newest(self) -> Iterator[Output]:
        """What layers gave in this pass, the newest first; those that were not watched in it may have given the same
        as before."""
        for seen in reversed(self.seen.values()):
            yield seen.output
        if self.is_partial:
            yield from reversed(self.outputs.values())

    def _timed(self, axes: Axes, shape: tuple[int, ...]) -> tuple[Axes, ...]:
        """For sequences whether time or the batch comes first."""
        if axes not in ("ntc", "tnc"):
            return (axes,)
        found = in_time(shape, self._newest())
        if found or len(self.batch_first) == 2:
            return found or ("ntc", "tnc")
        if self.batch_first:
            self.assumed.append(shape)
        return self._usual_order

    @property
    def _usual_order(self) -> tuple[Axes]:
        return ("tnc",) if self.batch_first == {False} else ("ntc",)
