"""Attach a method to a user's own model: three lines in an ordinary PyTorch loop."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reproduce.method import Method
from reproduce.randomness import Generators
from reproduce.sites import Axes, Role, Site, Trace

# Subclasses count too (ReLU6 is a Hardtanh).
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.GLU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU),
    *(nn.LogSigmoid, nn.Mish, nn.PReLU, nn.ReLU, nn.RReLU, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softshrink),
    *(nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
)
RECURRENT: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.RNNCellBase)
SUBMODULE = "activation_sites"  # where a hooked module keeps its Sites
_LISTED = 12  # module names in an error
Side = Literal["input", "output"]


def attach(
    method: Method,
    model: nn.Module,
    sites: Literal["pre", "post"] | Sequence[str] | Mapping[str, Role] = "post",
    example: Any = None,
    axes: Axes | Mapping[str, Axes] | None = None,
    seed: int = 0,
) -> Handle:
    """Give a model Sites, let the method prepare them, and return what adds its penalty to your loss.

    >>> import torch
    >>> from methods.per.method import Method as PER
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ELU(), torch.nn.Linear(16, 3))
    >>> inputs, labels = torch.randn(32, 8), torch.randint(0, 3, (32,))
    >>> handle = attach(PER(strength=3e-4), model)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for step in range(100):
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    ...     (loss + handle.penalty(progress=step / 100)).backward()
    ...     optimizer.step()
    >>> handle.remove()

    Move the model to its device first, and build the optimiser afterwards: what the method adds is then among
    ``model.parameters()``. An attached model records while it trains, and nothing in ``eval()``. A deep copy keeps
    the method's transforms and records nothing. Attach before ``torch.compile``; recording breaks its graph.

    Args:
        method: any method of this suite.
        model: your module; its code stays as it is.
        sites: ``"post"``: outputs of all modules in `ACTIVATIONS`, and of recurrent layers (of a tuple the first
            tensor); ``"pre"``: inputs of all modules in `ACTIVATIONS`; or names of modules whose outputs are meant
            (of a tuple, mapping or dataclass the first tensor), with the role that the method's field ``sites``
            says, else "post"; or a mapping from names to roles.
        example: one input (a tuple: positional, a dict: keyword arguments) for a dry run without gradient in eval
            mode, so that a method knows shapes before training; needed by those that put transforms into Sites.
        axes: meaning of the axes, for all or by module name; else guessed: 2-D "nc", 4-D "nchw", 3-D "ntc", but
            "tnc" after a recurrent layer without ``batch_first``.
        seed: of the generator that the method draws from.

    Raises:
        ValueError: nothing to attach to, unknown names, or what the method refuses; the model is then unchanged.
    """
    handle = Handle(method, model, _taps(method, model, sites, axes), seed)
    try:
        handle.connect(example)
    except BaseException:
        handle.remove()
        raise
    return handle


class Handle:
    """A method attached to a model, from `attach`."""

    def __init__(self, method: Method, model: nn.Module, taps: list[_Tap], seed: int) -> None:
        self.method = method
        self.model = model
        self.taps = taps
        self.trace = _Trace(model)
        self.device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.generator = Generators.seeded(seed, self.device).method
        self.progress = torch.zeros((), device=self.device)
        self.hooks: list[Any] = []
        self.added: list[tuple[nn.Module, str]] = []
        self.awaits_after_step = False

    @property
    def sites(self) -> list[Site]:
        """The Sites, in the order of the model's modules; a module that is met with several widths has several."""
        return [site for tap in self.taps for site in tap.sites()]

    def connect(self, example: Any) -> None:
        """Register Sites and hooks, meet the shapes in a dry run, and let the method prepare the model."""
        before = _members(self.model)
        self.hooks.append(self.model.register_forward_pre_hook(self.taps[0].start))
        try:
            for tap in self.taps:
                self.hooks.append(tap.hook(self.model.get_submodule(tap.path)))
            if example is not None:
                _dry_run(self.model, example, self.device)
            self.method.prepare(self.model, self.generator)
            for tap in self.taps:
                tap.connect(self.trace)
        finally:
            self.added = [(module, name) for key, (module, name) in _members(self.model).items() if key not in before]

    def penalty(self, progress: float | Tensor | None = None) -> Tensor:
        """The penalty on the last forward pass, already weighted: a 0-dim tensor to add to your loss.

        It consumes what was recorded: one forward pass, one penalty. A second forward pass replaces what the first
        one recorded. ``progress`` in [0, 1] drives schedules; where it is not given it stays as it was, 0 at first.

        Raises:
            ValueError: no forward pass in training mode since the last penalty, a model on another device than when
                it was attached, activations overwritten in place, or what the method refuses.
        """
        if self.trace.consumed or not self.trace.records:
            raise ValueError(
                "nothing was recorded: each penalty() needs a forward pass of the whole model in train() mode before "
                "it, attach() comes before torch.compile, and a removed handle records nothing"
            )
        try:
            self.trace.check(self.device)
            if self.awaits_after_step:
                raise ValueError("this method acts after each step too: call handle.after_step(optimizer) there")
            if progress is not None:
                self.progress.fill_(progress)
            penalty = self.method.penalty(self.trace, self.progress, self.generator)
            self.awaits_after_step = type(self.method).after_step is not Method.after_step
            return penalty
        finally:
            self.trace.consumed = True
            if not self.awaits_after_step:
                self.trace.clear()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """For the few methods that rewrite weights outside the gradient: call it after each ``optimizer.step()``."""
        if self.awaits_after_step:
            self.method.after_step(self.model, optimizer, self.progress, self.generator)
            self.trace.clear()
            self.awaits_after_step = False

    def remove(self) -> None:
        """Take the hooks, the Sites, and the parameters, buffers and modules that the method added away again."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.trace.clear()
        for module, name in self.added:
            if hasattr(module, name):
                delattr(module, name)
        self.added.clear()


class _Trace(Trace):
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


class _Tap(nn.ModuleList):
    """The Sites of one hooked module, whose child it is: one for each axes and width of its activations."""

    def __init__(self, name: str, module: nn.Module, role: Role, side: Side, axes: Axes | None) -> None:
        super().__init__()
        self.path = name
        self.name = name or type(module).__name__  # for messages: the model itself has no path
        self.role: Role = role
        self.side = side
        self.axes: Axes | None = axes
        self.trace: _Trace | None = None
        self.time_first = isinstance(module, RECURRENT) and not getattr(module, "batch_first", False)
        self.calls: list[int] = []
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

    def connect(self, trace: _Trace) -> None:
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
        found = _at_first_tensor(value, act)
        if found is None:
            raise ValueError(f"module {self.name!r} has no floating-point tensor as its {self.side}: name another one")
        return found

    def _pass(self, module: nn.Module, activation: Tensor) -> Tensor:
        index, site = self._site(activation)
        self.calls[index] += 1
        if site.training != module.training:
            site.train(module.training)
        return site(activation)

    def _site(self, activation: Tensor) -> tuple[int, Site]:
        axes = self.axes or self._guess(activation)
        if len(axes) != activation.dim():
            raise ValueError(f"module {self.name!r}: axes {axes!r} do not fit activations {tuple(activation.shape)}")
        width = activation.shape[axes.index("c")]
        shape = tuple(activation.shape[1:]) if axes == "nchw" else (width,)
        first = self.sites()[0]
        if first.shape is None:
            first.axes, first.shape = axes, shape
        for index, site in enumerate(self.sites()):
            if (site.axes, site.features) == (axes, width):
                return index, site
        if self._is_filled():
            raise ValueError(
                f"module {self.name!r}: width {width} (axes {axes!r}) is new to it, and the method has prepared Sites "
                "for other widths only: give attach() an example that meets all"
            )
        return len(self), self._add_site(axes, shape)

    def _add_site(self, axes: Axes, shape: tuple[int, ...] | None) -> Site:
        site = Site(self.role, axes, shape)
        site.name = self.name
        site.trace = self.trace
        self.append(site)
        self.calls.append(0)
        return site

    def _is_filled(self) -> bool:
        """Whether the method put something into a Site."""
        return any(site.transform is not None or site.state_dict() for site in self.sites())

    def _guess(self, activation: Tensor) -> Axes:
        guesses: dict[int, Axes] = {2: "nc", 3: "tnc" if self.time_first else "ntc", 4: "nchw"}
        if activation.dim() not in guesses:
            shape = tuple(activation.shape)
            raise ValueError(f"module {self.name!r}: activations {shape}, and a Site needs 2, 3 or 4 axes")
        return guesses[activation.dim()]


def _taps(method: Method, model: nn.Module, sites: Any, axes: Any) -> list[_Tap]:
    """A Tap for each module that ``sites`` asks for."""
    modules = dict(model.named_modules())
    named = [name for name in modules if name]
    listed = ", ".join([*named[:_LISTED], *(["..."] if len(named) > _LISTED else [])]) or "none"
    side: Side = "output"
    roles: dict[str, Role]
    if isinstance(sites, str):
        if sites not in ("pre", "post"):
            raise ValueError(f"sites is 'pre', 'post' or a list of module names, got {sites!r}")
        kinds = ACTIVATIONS if sites == "pre" else ACTIVATIONS + RECURRENT
        side = "input" if sites == "pre" else "output"
        roles = {name: sites for name, module in modules.items() if isinstance(module, kinds)}  # type: ignore[misc]
        if not roles:
            raise ValueError(
                f"the model has no modules for sites = {sites!r}: activations called as functions (F.relu) cannot be "
                f"seen; name the modules whose outputs are meant, of: {listed}"
            )
    elif isinstance(sites, Mapping):
        roles = dict(sites)
    else:
        own: Any = getattr(method, "sites", "post")
        roles = dict.fromkeys(sites, own if own in get_args(Role) else "post")
    by_name: dict[str, Any] = dict(axes) if isinstance(axes, Mapping) else {name: axes for name in roles}
    unknown = [name for name in roles if name not in modules] + [name for name in by_name if name not in roles]
    if unknown or not roles:
        raise ValueError(f"no module {unknown[0]!r} among: {listed}" if unknown else f"sites names none of: {listed}")
    wrong = [given for given in by_name.values() if given is not None and given not in get_args(Axes)]
    if wrong:
        raise ValueError(f"axes are {get_args(Axes)}, got {wrong[0]!r}")
    return [_Tap(name, modules[name], role, side, by_name.get(name)) for name, role in roles.items()]


def _members(model: nn.Module) -> dict[tuple[int, str], tuple[nn.Module, str]]:
    """Every parameter, buffer and child of every module."""
    return {
        (id(module), name): (module, name)
        for module in model.modules()
        for name in [*module._parameters, *module._buffers, *module._modules]
    }


def _at_first_tensor(value: Any, act: Callable[[Tensor], Tensor]) -> Any:
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
        new = _at_first_tensor(part, act)
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


def _dry_run(model: nn.Module, example: Any, device: torch.device) -> None:
    """One forward pass that leaves no trace: in eval mode, without gradient, torch's global generator put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for module, training in modes:
            module.training = training
