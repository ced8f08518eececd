"""How a model of one's own gets Sites: hooks on its modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reproduce.method.first_tensor import at_first_tensor
from reproduce.method.functions import is_in_backward
from reproduce.method.known_layouts import KnownLayouts
from reproduce.method.layouts import Layouts
from reproduce.method.places import host_of
from reproduce.method.readings import shape_of_sample, with_other_order
from reproduce.method.sites import Axes, Role, Site
from reproduce.method.step_trace import StepTrace

# Subclasses count too (ReLU6 is a Hardtanh).
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.GLU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink),
    *(nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
)
RECURRENT: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)
SUBMODULE = "activation_sites"  # where a model keeps Sites that hold something
Side = Literal["input", "output"]


class Passes:
    """Hooks of the whole model: they tell the Trace, and what finds axes, where a forward pass begins and ends."""

    def __init__(self, trace: StepTrace, taps: Sequence[Tap]) -> None:
        self.trace: StepTrace | None = trace  # None in a copy of the model
        self.taps = [tap for tap in taps if tap.axes is None]
        self.layouts = self.taps[0].layouts if self.taps else Layouts(nn.Module())

    def hook_begin(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.begin, prepend=True)  # so that it knows of a pass that others' hooks end

    def hook_end(self, model: nn.Module) -> None:
        """After all other hooks: the model itself may have a Site at its output."""
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, module: nn.Module, arguments: Any) -> None:
        if self.trace is None:
            if not torch.compiler.is_compiling():
                self.layouts.release()
            return
        if not torch.compiler.is_compiling():
            self.trace.n_under_way += 1
        is_new = self.trace.begin()
        if is_new and self.layouts.notes():
            self.layouts.begin(module)

    def end(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.trace is None:
            return
        if not torch.compiler.is_compiling():
            self.trace.n_under_way = max(0, self.trace.n_under_way - 1)
        if self.trace.end(output) and self.layouts.notes():
            self.end_watching()

    def end_watching(self) -> None:
        for tap in self.taps:
            tap.doubt_order()
        self.layouts.end(all(tap.known.met for tap in self.taps))

    def release(self) -> None:
        self.trace = None
        self.layouts.release()


class Tap(nn.ModuleList):
    """The Sites of one hooked module: one for each axes and width of its activations.

    It becomes a part of the model only where a method has put something into a Site.

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
        self.is_filled = False  # the method put something into a Site
        self.is_transformed = False  # by that
        self.calls: list[int] = []
        self.place: tuple[nn.Module, str] | None = None  # in the model, while the method prepares it
        self.layouts = Layouts(nn.Module())  # of the whole model, from `watch_layouts`
        self.known = KnownLayouts(self.name)
        self.assumes_order = False  # of batch and time, in this pass
        self._add_site("nc", None)  # what it really is, the first activation says

    def hook(self, module: nn.Module) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"module {self.name!r} is scripted or traced, and takes no hooks: name one that is not")
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

    def join(self, model: nn.Module, module: nn.Module, method: str) -> None:
        """Become a part of the model, under a name that no other method changes."""
        host, name = host_of(model, module, Tap), f"{SUBMODULE}_{method.lower()}_{self.role}"
        while hasattr(host, name):  # the same method twice, or for a module around this one
            name += "_"
        host.add_module(name, self)
        self.place = host, name

    def prepared(self) -> None:
        """Look at what the method has put into the Sites, and leave the model if that is nothing."""
        self.is_filled = any(site.transform is not None or site.state_dict() for site in self.sites())
        self.is_transformed = any(site.transform is not None for site in self.sites())
        if self.place is not None and not self.is_filled:
            delattr(*self.place)
        self.place = None
        for site, calls in zip(self.sites(), self.calls, strict=True):
            if self.is_filled and calls > 1:
                self._refuse_calls(site, calls)
            if self.is_filled and site.is_packed:
                raise ValueError(
                    f"module {self.name!r} has a packed sequence, and what the method put into Site {site.name!r} is "
                    "for padded ones: pad it before, by pad_packed_sequence, and name a module after that"
                )

    def doubt_order(self) -> None:
        """A pass has ended in which layers were watched: take what it assumed of batch and time as a guess."""
        if self.assumes_order and self.layouts.doubts_order and not self.is_filled:
            self.known.doubt_order()
            for site in self.sites():
                site.could_be = with_other_order((site.axes, *site.could_be))[1:]
        self.assumes_order = False

    def release(self) -> None:
        """Record no more: a removed handle, also where a compiled model still calls the hooks."""
        self.is_transformed = False
        self.trace = None
        for site in self.sites():
            self._give_to(None, site)

    def before(self, module: nn.Module, arguments: Any, options: Any) -> Any:
        inplace = getattr(module, "inplace", False)  # it would overwrite what the Site records

        def act(activation: Tensor, is_packed: bool) -> Tensor:
            passed = self._pass(module, activation, is_packed)
            return passed.clone() if inplace else passed

        return self._changed(module, (arguments, options), act) if self._acts(module) else None

    def after(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if not self._acts(module):
            return None
        return self._changed(module, output, lambda activation, is_packed: self._pass(module, activation, is_packed))

    def _acts(self, module: nn.Module) -> bool:
        """Whether anything is done to this activation. If not, nothing is looked at: it may be of any kind."""
        # Not in a compiled model, which would be compiled a second time.
        if not torch.compiler.is_compiling() and not self.is_met and self.trace is not None:
            self.is_met = self.is_explored or self.trace.is_open
        return self._is_recorded(module) or self.is_transformed or self.is_explored

    def _is_recorded(self, module: nn.Module) -> bool:
        """In eval mode, as where statistics of a batch are frozen, only what has a gradient is: see `_pass`."""
        if self.trace is None:
            return False
        return self.trace.records_now(self.name) if module.training else self.trace.is_open and torch.is_grad_enabled()

    def _changed(self, module: nn.Module, value: Any, act: Callable[[Tensor, bool], Tensor]) -> Any:
        found = at_first_tensor(value, act)
        if found is None and (module.training or self.is_transformed or self.is_explored):
            raise ValueError(f"module {self.name!r} has no floating-point tensor as its {self.side}: name another one")
        return found

    def _pass(self, module: nn.Module, activation: Tensor, is_packed: bool) -> Tensor:
        is_frozen = not module.training and not activation.requires_grad
        if is_frozen and not self.is_transformed and not self.is_explored:
            return activation
        if activation.is_nested or activation.layout != torch.strided:
            kind, instead = ("nested", "padded") if activation.is_nested else ("sparse", "dense")
            raise ValueError(
                f"module {self.name!r}: {kind} tensors cannot be recorded: pass {instead} ones, or name another"
            )
        is_step = self.is_stepped and activation.dim() == 2 and not is_packed
        whole = activation.unsqueeze(0) if is_step else activation
        index, site = self._site(module, whole, is_packed)
        if self.is_explored and not is_in_backward():
            self.calls[index] += 1
            site.dtype = activation.dtype
        if is_step and self.trace is not None and site not in self.trace.stepped:
            self.trace.stepped.add(site)
        if not self.is_filled:
            if self._is_recorded(module) and self.trace is not None:
                self.trace.add(site, whole)
            return activation
        passed = self._filled(module, site, whole)
        return passed.squeeze(0) if is_step else passed

    def _filled(self, module: nn.Module, site: Site, whole: Tensor) -> Tensor:
        """What a Site gives that holds something."""
        if self.trace is not None and not self.trace.is_open:
            if not self.trace.n_under_way:
                self.trace.callers.refuse_other(module, self.name)
        elif self.trace is not None:
            if site in self.trace.filled:  # the dry run, in eval mode, may have gone another way
                self._refuse_calls(site, 2)
            self.trace.filled.append(site)
        if site.training != module.training:
            site.train(module.training)
        passed = site(whole)
        if not module.training and passed.requires_grad and self.trace is not None and self._is_recorded(module):
            self.trace.add(site, passed)
        return passed

    def _site(self, module: nn.Module, activation: Tensor, is_packed: bool) -> tuple[int, Site]:
        axes, could_be, shape = self._layout(module, activation, is_packed)
        first = self.sites()[0]
        if first.shape is None:
            first.axes, first.shape, first.could_be, first.is_packed = axes, shape, could_be, is_packed
        for index, site in enumerate(self.sites()):
            is_alike = bool(could_be) or site.shape is None or site.shape[0] == shape[0]  # a guess has no sure width
            if (site.axes, site.could_be, site.is_packed) == (axes, could_be, is_packed) and is_alike:
                return index, site
        if self.is_filled:
            raise ValueError(
                f"module {self.name!r}: width {shape[0]} (axes {axes!r}) is new to it, and the method has prepared "
                "Sites for other widths only: give attach() an example that meets all"
            )
        site = self._add_site(axes, shape, could_be)
        site.is_packed = is_packed
        return len(self) - 1, site

    def _layout(
        self, module: nn.Module, activation: Tensor, is_packed: bool
    ) -> tuple[Axes, tuple[Axes, ...], tuple[int, ...]]:
        """The axes, what else they may be, and the shape of a sample."""
        if is_packed:  # rows in order of time, without padding
            return "tnc", (), (activation.shape[-1],)
        if activation.dim() < 2:
            raise ValueError(
                f"module {self.name!r}: activations {tuple(activation.shape)} have one axis, and examples and features "
                "are two: call the model with a batch, x.unsqueeze(0) for one example, or name a module before a "
                "squeeze"
            )
        axes, *could_be = (self.axes,) if self.axes else self._guess(module, activation)
        if len(axes) != activation.dim():
            raise ValueError(f"module {self.name!r}: axes {axes!r} do not fit activations {tuple(activation.shape)}")
        return axes, tuple(could_be), shape_of_sample(axes, tuple(activation.shape))

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

    def _refuse_calls(self, site: Site, calls: int) -> None:
        raise ValueError(
            f"module {self.name!r} is called {calls} times in a forward pass, and what the method put into "
            f"Site {site.name!r} is for one activation: give each call a module of its own"
        )

    def _guess(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        """The axes, and what else they may be: found while layers are watched, and remembered from then on."""
        is_met, is_blind = activation.dim() in self.known.met, self.layouts.misses_layers
        if self.layouts.is_watching and not (is_blind and is_met):
            if is_blind and activation.dim() > 2:
                self._refuse_unwatched(activation, "is met for the first time in a compiled model")
            return self._find(module, activation)
        if not is_met:
            return self._find_unwatched(module, activation)
        found = self.known.fitting(activation, self.layouts)
        if not found:
            self.known.refuse_others(tuple(activation.shape))
        return found

    @torch.compiler.disable
    def _find(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        shape, layouts = tuple(activation.shape), self.layouts
        layouts.was_asked = True
        found = layouts.certain(activation) or self._of_output(module, activation)
        if not found and layouts.is_partial and len(shape) in self.known.met:
            found = self.known.fitting(activation, layouts)
        found = found or layouts.beside(activation, self.name)
        if not found:
            raise ValueError(
                f"module {self.name!r}: no layer says which axes activations {shape} have: give axes=, of "
                f"{get_args(Axes)}"
            )
        found = self.known.narrowed(found)
        self.assumes_order = self.assumes_order or bool(layouts.assumed)
        if len(found) == 1 or not layouts.is_partial:  # else the next pass is looked at from its beginning
            self.known.add(found, activation)
        return found

    @torch.compiler.disable
    def _find_unwatched(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        """Axes for another number of axes than it had: where the module itself has no doubt about them."""
        own = self._of_output(module, activation)
        if activation.dim() > 2 and (not own or (own[0] in ("ntc", "tnc") and self.layouts.batch_first)):
            self._refuse_unwatched(activation, "had another number of axes before")
        return self._find(module, activation)

    def _of_output(self, module: nn.Module, activation: Tensor) -> tuple[Axes, ...]:
        return self.layouts.of_output(module, activation) if self.side == "output" else ()

    def _refuse_unwatched(self, activation: Tensor, why: str) -> None:
        raise ValueError(
            f"module {self.name!r}, activations {tuple(activation.shape)}: it {why}, and no layer beside it is watched "
            "any more: give axes=, or an example that meets it"
        )


def watch_layouts(model: nn.Module, taps: Sequence[Tap]) -> None:
    """Let Taps that were given no axes find them, in forward passes of the whole model."""
    if any(tap.axes is None for tap in taps):
        layouts = Layouts(model)
        for tap in taps:
            tap.layouts = layouts
        layouts.watch(model)
