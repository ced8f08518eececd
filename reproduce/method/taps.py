"""How a model of one's own gets Sites: hooks on its modules."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reproduce.method.layouts import UNKNOWN, Layouts, shape_of_sample
from reproduce.method.sites import Axes, Role, Site
from reproduce.method.step_trace import StepTrace

# Subclasses count too (ReLU6 is a Hardtanh).
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.GLU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink),
    *(nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
)
RECURRENT: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)
SUBMODULE = "activation_sites"  # where a hooked module keeps its Sites
Side = Literal["input", "output"]


class Passes:
    """Hooks of the whole model: they tell the Trace, and what finds axes, where a forward pass begins and ends."""

    def __init__(self, trace: StepTrace, taps: Sequence[Tap]) -> None:
        self.trace: StepTrace | None = trace  # None in a copy of the model
        self.taps = [tap for tap in taps if tap.axes is None]
        self.layouts = self.taps[0].layouts if self.taps else Layouts(nn.Module())

    def hook_begin(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.begin)

    def hook_end(self, model: nn.Module) -> None:
        """After all other hooks: the model itself may have a Site at its output."""
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, module: nn.Module, arguments: Any) -> None:
        if self.trace is None:
            return
        if not self.trace.is_inner and self.layouts.notes():
            self.layouts.begin(module)
        self.trace.begin()

    def end(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.trace is None:
            return
        self.trace.end()
        if not self.trace.is_inner and self.layouts.notes():
            self.layouts.end(all(tap.layouts_met for tap in self.taps))

    def release(self) -> None:
        self.trace = None
        self.layouts.release()


class Tap(nn.ModuleList):
    """The Sites of one hooked module, whose child it is: one for each axes and width of its activations.

    Calls of a recurrent cell in one forward pass are the time steps of one activation, and so are those of a module
    with axes "tnc" whose activations are (batch, features). Each call of any other module is an activation of its own.
    """

    def __init__(self, name: str, module: nn.Module, role: Role, side: Side, axes: Axes | None) -> None:
        super().__init__()
        self.name = name or type(module).__name__  # for messages: the model itself has no path
        self.role: Role = role
        self.side = side
        self.axes: Axes | None = axes
        self.trace: StepTrace | None = None
        self.is_stepped = axes == "tnc" or (axes is None and isinstance(module, nn.RNNCellBase))
        self.is_met = False  # in a pass of the whole model, since it was attached
        self.is_explored = False  # a dry run is under way: shapes are met
        self.is_transformed = False  # by what the method put into its Sites
        self.calls: list[int] = []
        self.layouts = Layouts(nn.Module())  # of the whole model, from `watch_layouts`
        # By the number of axes: the layouts met, and the shapes that had them.
        self.layouts_met: dict[int, dict[tuple[Axes, ...], list[tuple[int, ...]]]] = {}
        self._add_site("nc", None)  # what it really is, the first activation says

    def hook(self, module: nn.Module) -> None:
        name = SUBMODULE
        while hasattr(module, name):  # attached twice
            name += "_"
        module.add_module(name, self)
        # With bound methods a deep copy of the model has hooks that know the copied Sites.
        if self.side == "input":
            module.register_forward_pre_hook(self.before, with_kwargs=True)
        else:
            module.register_forward_hook(self.after)

    def forward(self, value: Any) -> Any:
        """The identity, for modules that call all their children in turn, as Sequential does."""
        return value

    def sites(self) -> list[Site]:
        return list(self)  # type: ignore[arg-type]

    def own(self, trace: StepTrace) -> None:
        """Make the Sites those of a handle, before the method sees them."""
        self.trace = trace
        for site in self.sites():
            self._give_to(trace, site)

    def prepared(self) -> None:
        """Look at what the method has put into the Sites."""
        self.is_transformed = any(site.transform is not None for site in self.sites())
        for site, calls in zip(self.sites(), self.calls, strict=True):
            if self._is_filled() and calls > 1:
                raise ValueError(
                    f"module {self.name!r} is called {calls} times in a forward pass, and what the method put into "
                    f"Site {site.name!r} is for one activation: give each call a module of its own"
                )

    def release(self) -> None:
        """Record no more: a removed handle, also where a compiled model still calls the hooks."""
        self.is_transformed = False
        self.trace = None
        for site in self.sites():
            self._give_to(None, site)

    def before(self, module: nn.Module, arguments: Any, options: Any) -> Any:
        inplace = getattr(module, "inplace", False)  # it would overwrite what the Site records

        def act(activation: Tensor) -> Tensor:
            passed = self._pass(module, activation)
            return passed.clone() if inplace else passed

        return self._changed((arguments, options), act) if self._acts(module) else None

    def after(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if not self._acts(module):
            return None
        return self._changed(output, lambda activation: self._pass(module, activation))

    def _acts(self, module: nn.Module) -> bool:
        """Whether anything is done to this activation. If not, nothing is looked at: it may be of any kind."""
        if not torch.compiler.is_compiling() and not self.is_met:  # a compiled model would be compiled a second time
            self.is_met = True
        is_recorded = module.training and self.trace is not None and self.trace.records_now(self.name)
        return is_recorded or self.is_transformed or self.is_explored

    def _changed(self, value: Any, act: Callable[[Tensor], Tensor]) -> Any:
        found = at_first_tensor(value, act)
        if found is None:
            raise ValueError(f"module {self.name!r} has no floating-point tensor as its {self.side}: name another one")
        return found

    def _pass(self, module: nn.Module, activation: Tensor) -> Tensor:
        if activation.is_nested:
            raise ValueError(
                f"module {self.name!r}: nested tensors cannot be recorded: pass padded ones, or name another"
            )
        is_step = self.is_stepped and activation.dim() == 2
        whole = activation.unsqueeze(0) if is_step else activation
        index, site = self._site(module, whole)
        if self.is_explored:
            self.calls[index] += 1
        if is_step and self.trace is not None and site not in self.trace.stepped:
            self.trace.stepped.add(site)
        if site.training != module.training:
            site.train(module.training)
        passed = site(whole)
        return passed.squeeze(0) if is_step else passed

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
        self._give_to(self.trace, site)
        self.append(site)
        self.calls.append(0)
        return site

    @staticmethod
    def _give_to(trace: StepTrace | None, site: Site) -> None:
        site.trace = site.owner = trace

    def _is_filled(self) -> bool:
        """Whether the method put something into a Site."""
        return any(site.transform is not None or site.state_dict() for site in self.sites())

    def _guess(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        """The axes, and what else they may be: found while layers are watched, and remembered from then on."""
        met = self.layouts_met.get(activation.dim())
        is_known = self.layouts.misses_layers
        if self.layouts.is_watching and not (is_known and met):
            if is_known and activation.dim() > 2:
                self._refuse_unwatched(activation, "is met for the first time in a compiled model")
            return self._find(module, activation)
        if met:
            return self._met(met, tuple(activation.shape))
        return self._find_unwatched(module, activation)

    @torch.compiler.disable
    def _find(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        shape = tuple(activation.shape)
        own = self.layouts.of_output(module, activation) if self.side == "output" else ()
        found = own or self.layouts.beside(activation, self.name)
        if not found:
            raise ValueError(
                f"module {self.name!r}: no layer says which axes activations {shape} have: give axes=, of "
                f"{get_args(Axes)}"
            )
        self.layouts.was_asked = True
        self.layouts_met.setdefault(len(shape), {}).setdefault(found, []).append(shape)
        return found

    @torch.compiler.disable
    def _find_unwatched(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        """Axes for another number of axes than it had: where the module itself has no doubt about them."""
        own = self.layouts.of_output(module, activation) if self.side == "output" else ()
        if activation.dim() > 2 and (not own or (own[0] in ("ntc", "tnc") and self.layouts.batch_first)):
            self._refuse_unwatched(activation, "had another number of axes before")
        return self._find(module, activation)

    def _refuse_unwatched(self, activation: Tensor, why: str) -> None:
        raise ValueError(
            f"module {self.name!r}, activations {tuple(activation.shape)}: it {why}, and no layer beside it is watched "
            "any more: give axes=, or an example that meets it"
        )

    def _met(self, met: dict[tuple[Axes, ...], list[tuple[int, ...]]], shape: tuple[int, ...]) -> tuple[Axes, ...]:
        """The layout whose activations had this size, or as many channels, or all other sizes, if it is one."""
        if len(met) == 1 and (len(shape) == 2 or next(iter(met)) == UNKNOWN.get(len(shape))):
            return next(iter(met))
        of_size = [axes for axes, shapes in met.items() if any(shape[1:] == other[1:] for other in shapes)]
        channels = {axes: axes[0].index("c") for axes in met}
        of_width = [
            axes for axes, shapes in met.items() if shape[channels[axes]] in [s[channels[axes]] for s in shapes]
        ]
        for fitting in (of_size, of_width):
            if len(fitting) == 1:
                return fitting[0]
        if len(met) > 1:
            raise ValueError(
                f"module {self.name!r} meets activations of several layouts, and {shape} may be of any: give each call "
                "a module of its own"
            )
        axes, shapes = next(iter(met.items()))
        raise ValueError(
            f"module {self.name!r} had activations {shapes[0]} with axes {axes[0]!r}, and those of {shape} may be "
            "others: give axes=, an example that meets both, or each call a module of its own"
        )


def watch_layouts(model: nn.Module, taps: Sequence[Tap]) -> None:
    """Let Taps that were given no axes find them, in forward passes of the whole model."""
    if any(tap.axes is None for tap in taps):
        layouts = Layouts(model)
        for tap in taps:
            tap.layouts = layouts
        layouts.watch(model)


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
