"""Attach a method to a user's own model: three lines in an ordinary PyTorch loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reproduce.method import Method
from reproduce.method.rng import Generators
from reproduce.method.sites import Axes, Role, Site
from reproduce.method.taps import ACTIVATIONS, RECURRENT, Side, StepTrace, Tap, watch_layouts

_LISTED = 12  # module names in an error


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
    >>> from reproduce import load_method
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ELU(), torch.nn.Linear(16, 3))
    >>> inputs, labels = torch.randn(32, 8), torch.randint(0, 3, (32,))
    >>> handle = attach(load_method("per", strength=3e-4), model)
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
        axes: meaning of the axes, for all or by module name; else what the layers beside say (`Layouts`): "nc", "ncl"
            "nchw" or "ncdhw" after a convolution, "ntc" or "nhwc" after a linear layer, "tnc" with recurrent layers
            and attention without ``batch_first``. Where none says, a method to which it matters refuses the Site.
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

    def __init__(self, method: Method, model: nn.Module, taps: list[Tap], seed: int) -> None:
        self.method = method
        self.model = model
        self.taps = taps
        self.trace = StepTrace(model)
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
        self.hooks.extend(watch_layouts(self.model, self.taps))
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

    def penalty(self, progress: float | Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The penalty on the last forward pass, already weighted: a 0-dim tensor to add to your loss.

        It consumes what was recorded: one forward pass, one penalty. A second forward pass replaces what the first
        one recorded. ``progress`` in [0, 1] drives schedules; where it is not given it stays as it was, 0 at first.
        ``mask`` (n, positions...) is True at positions that are no padding; the others are then left out.

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
            with self.trace.masked(mask):
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


def _taps(method: Method, model: nn.Module, sites: Any, axes: Any) -> list[Tap]:
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
    return [Tap(name, modules[name], role, side, by_name.get(name)) for name, role in roles.items()]


def _members(model: nn.Module) -> dict[tuple[int, str], tuple[nn.Module, str]]:
    """Every parameter, buffer and child of every module."""
    return {
        (id(module), name): (module, name)
        for module in model.modules()
        for name in [*module._parameters, *module._buffers, *module._modules]
    }


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
