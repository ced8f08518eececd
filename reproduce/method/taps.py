"""How a model of one's own gets Sites: hooks on its modules, and a Trace that notices what goes wrong."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reproduce.method.layouts import Layouts, shape_of_sample
from reproduce.method.sites import Axes, Role, Site, Trace

# Subclasses count too (ReLU6 is a Hardtanh).
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.GLU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink),
    *(nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
)
RECURRENT: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)
SUBMODULE = "activation_sites"  # where a hooked module keeps its Sites
Side = Literal["input", "output"]


class StepTrace(Trace):
    """A Trace that begins anew at each forward pass, and notices when a recorded tensor is overwritten."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.versions: list[int] = []
        self.consumed = False

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # stays behind where its model is copied or saved: the copy records nothing

    def add(self, site: Site, activation: Tensor) -> None:
        if not activation.is_inference():
            super().add(site, activation)
            self.versions.append(activation._version)

    def clear(self) -> None:
        super().clear()
        self.versions.clear()
        self.consumed = False

    def check(self, device: torch.device) -> None:
        for record, version in zip(self.records, self.versions, strict=True):
            if record.activation.device != device:
                raise ValueError(
                    f"the model was attached on {device} and is on {record.activation.device} now: move it first, "
                    "and then attach()"
                )
            if record.activation._version != version:
                raise ValueError(
                    f"Site {record.site.name!r}: its activations were overwritten in place after it, by += or a "
                    "module with inplace=True: change that, or name another module"
                )


class Tap(nn.ModuleList):
    """The Sites of one hooked module, whose child it is: one for each axes and width of its activations."""

    def __init__(self, name: str, module: nn.Module, role: Role, side: Side, axes: Axes | None) -> None:
        super().__init__()
        self.path = name
        self.name = name or type(module).__name__  # for messages: the model itself has no path
        self.role: Role = role
        self.side = side
        self.axes: Axes | None = axes
        self.trace: StepTrace | None = None
        self.calls: list[int] = []
        self.layouts = Layouts(nn.Module())  # of the whole model, from `watch_layouts`
        # By the number of axes: the layouts met, and the shapes that had them.
        self.layouts_met: dict[int, dict[tuple[Axes, ...], list[tuple[int, ...]]]] = {}
        self._add_site("nc", None)  # what it really is, the first activation says

    def hook(self, module: nn.Module) -> Any:
        name = SUBMODULE
        while hasattr(module, name):  # attached twice
            name += "_"
        module.add_module(name, self)
        # With bound methods a deep copy of the model has hooks that know the copied Sites.
        if self.side == "input":
            return module.register_forward_pre_hook(self.before, with_kwargs=True)
        return module.register_forward_hook(self.after)

    def forward(self, value: Any) -> Any:
        """The identity, for modules that call all their children in turn, as Sequential does."""
        return value

    def sites(self) -> list[Site]:
        return list(self)  # type: ignore[arg-type]

    @torch.compiler.disable
    def start(self, module: nn.Module, arguments: Any) -> None:
        """A new forward pass of the whole model: what an earlier one recorded is let go."""
        if self.trace is not None:
            self.trace.clear()

    def connect(self, trace: StepTrace) -> None:
        """Begin to record, after the method has prepared the Sites."""
        self.trace = trace
        for site, calls in zip(self.sites(), self.calls, strict=True):
            site.trace, site.name = trace, self.name
            if self._is_filled() and calls > 1:
                raise ValueError(
                    f"module {self.name!r} is called {calls} times in a forward pass, and what the method put into "
                    f"Site {site.name!r} is for one activation: give each call a module of its own"
                )

    @torch.compiler.disable
    def before(self, module: nn.Module, arguments: Any, options: Any) -> Any:
        inplace = getattr(module, "inplace", False)  # it would overwrite what the Site records

        def act(activation: Tensor) -> Tensor:
            passed = self._pass(module, activation)
            return passed.clone() if inplace else passed

        return self._changed((arguments, options), act)

    @torch.compiler.disable
    def after(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        return self._changed(output, lambda activation: self._pass(module, activation))

    def _changed(self, value: Any, act: Callable[[Tensor], Tensor]) -> Any:
        found = at_first_tensor(value, act)
        if found is None:
            raise ValueError(f"module {self.name!r} has no floating-point tensor as its {self.side}: name another one")
        return found

    def _pass(self, module: nn.Module, activation: Tensor) -> Tensor:
        index, site = self._site(module, activation)
        self.calls[index] += 1
        if site.training != module.training:
            site.train(module.training)
        return site(activation)

    def _site(self, module: nn.Module, activation: Tensor) -> tuple[int, Site]:
        axes, *could_be = (self.axes,) if self.axes else self._guess(module, activation)
        if len(axes) != activation.dim():
            raise ValueError(f"module {self.name!r}: axes {axes!r} do not fit activations {tuple(activation.shape)}")
        shape = shape_of_sample(axes, tuple(activation.shape))
        first = self.sites()[0]
        if first.shape is None:
            first.axes, first.shape, first.could_be = axes, shape, tuple(could_be)
        for index, site in enumerate(self.sites()):
            is_alike = bool(could_be) or site.shape is None or site.shape[0] == shape[0]  # a guess has no sure width
            if (site.axes, site.could_be) == (axes, tuple(could_be)) and is_alike:
                return index, site
        if self._is_filled():
            raise ValueError(
                f"module {self.name!r}: width {shape[0]} (axes {axes!r}) is new to it, and the method has prepared "
                "Sites for other widths only: give attach() an example that meets all"
            )
        return len(self), self._add_site(axes, shape, could_be)

    def _add_site(self, axes: Axes, shape: tuple[int, ...] | None, could_be: Sequence[Axes] = ()) -> Site:
        site = Site(self.role, axes, shape, could_be)
        site.name = self.name
        site.trace = self.trace
        self.append(site)
        self.calls.append(0)
        return site

    def _is_filled(self) -> bool:
        """Whether the method put something into a Site."""
        return any(site.transform is not None or site.state_dict() for site in self.sites())

    def _guess(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        """The axes, and what else they may be: found in the first forward pass, and remembered from then on."""
        met = self.layouts_met.get(activation.dim())
        if met and self.layouts.is_settled:
            return self._met(met, tuple(activation.shape))
        return self._find(module, activation)

    @torch.compiler.disable
    def _find(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        shape = tuple(activation.shape)
        met = self.layouts_met.setdefault(len(shape), {})
        own = self.layouts.of_output(module, activation) if self.side == "output" else ()
        found = own or self.layouts.beside(activation, self.name)
        if not found:
            raise ValueError(
                f"module {self.name!r}: no layer says which axes activations {shape} have: give axes=, of "
                f"{get_args(Axes)}"
            )
        met.setdefault(found, []).append(shape)
        return found

    def _met(self, met: dict[tuple[Axes, ...], list[tuple[int, ...]]], shape: tuple[int, ...]) -> tuple[Axes, ...]:
        """Of several layouts with as many axes the one whose activations had this size, or as many channels."""
        if len(met) == 1:
            return next(iter(met))
        of_size = [axes for axes, shapes in met.items() if any(shape[1:] == other[1:] for other in shapes)]
        channels = {axes: axes[0].index("c") for axes in met}
        of_width = [
            axes for axes, shapes in met.items() if shape[channels[axes]] in [s[channels[axes]] for s in shapes]
        ]
        for fitting in (of_size, of_width):
            if len(fitting) == 1:
                return fitting[0]
        raise ValueError(
            f"module {self.name!r} meets activations of several layouts, and {shape} may be of any: give each call a "
            "module of its own"
        )


def watch_layouts(model: nn.Module, taps: Sequence[Tap]) -> list[Any]:
    """Let Taps that were given no axes find them, in the first forward pass of the whole model; returns the hooks."""
    if all(tap.axes is not None for tap in taps):
        return []
    layouts = Layouts(model)
    for tap in taps:
        tap.layouts = layouts
    return layouts.watch(model)


def at_first_tensor(value: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``act`` done to the first floating-point tensor in it; None where it holds none."""
    if isinstance(value, Tensor):
        return act(value) if value.is_floating_point() else None
    parts: dict[Any, Any] = {}
    if isinstance(value, Mapping):
        parts = dict(value)
    elif dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple | list):
        parts = dict(enumerate(value))
    for key, part in parts.items():
        new = at_first_tensor(part, act)
        if new is not None:
            return value if new is part else _with(value, key, new)
    return None


def _with(value: Any, key: Any, new: Any) -> Any:
    """A copy of a mapping, dataclass, tuple or list with one part exchanged."""
    if isinstance(value, Mapping):
        copied: Any = copy.copy(value)
        copied[key] = new
        return copied
    if isinstance(value, tuple | list):
        parts = [*value[:key], new, *value[key + 1 :]]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return dataclasses.replace(value, **{key: new})
