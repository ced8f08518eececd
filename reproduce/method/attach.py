"""Attach a method to a user's own model: three lines in an ordinary PyTorch loop."""

from __future__ import annotations

import contextlib
import logging
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

from reproduce.method import Method
from reproduce.method.additions import Additions, Kinds
from reproduce.method.chosen import kinds_of, named_kernels, taps_for
from reproduce.method.distributed import AlikeAfterSteps, is_of_shards, refuse_unsynchronised
from reproduce.method.given import device_for, dry_run, fraction, refuse_arguments
from reproduce.method.last_pass import LastPass
from reproduce.method.living import living
from reproduce.method.made_weights import any_draw
from reproduce.method.places import Links, forget_compiled, usual_defaults
from reproduce.method.restore import Changes, Structure, Values, tensors_of
from reproduce.method.rng import Generators
from reproduce.method.sites import Axes, Role, Site
from reproduce.method.step_trace import StepTrace
from reproduce.method.taps import Passes, Tap, watch_layouts

logger = logging.getLogger(__name__)


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
    ``model.parameters()``. An attached model records while it trains, and nothing in ``eval()``, under
    `torch.no_grad`, or where a part of it is called alone; of a part in ``eval()`` what has a gradient. A deep copy
    keeps the method's transforms, records nothing, and can be attached itself. Several handles on one model do not see
    each other. What `torch.compile` has compiled is compiled anew.

    Args:
        method: any method of this suite.
        model: your module; its code stays as it is.
        sites: ``"post"``: outputs of all modules in `ACTIVATIONS`, and of recurrent layers (of a tuple the first
            tensor); ``"pre"``: inputs of all modules in `ACTIVATIONS`; or names of modules whose outputs are meant
            (of a tuple, mapping or dataclass the first tensor), with the role that the method's field ``sites``
            says, else "post"; or a mapping from names to roles. In a name, ``*`` stands for any one part:
            ``"encoder.*.mlp.act"``. A method that reads weights alone needs no Sites.
        example: one input (a tuple or list: positional, a dict: keyword arguments) for a dry run without gradient in
            eval mode, so that a method knows shapes before training; needed by those that put transforms into Sites.
        axes: meaning of the axes, for all or by module name; else what the layers beside say (`Layouts`): "nc", "ncl"
            "nchw" or "ncdhw" after a convolution, "ntc" or "nhwc" after a linear layer, "tnc" with recurrent layers
            and attention without ``batch_first``. Where none says, a method to which it matters refuses the Site.
        seed: of the generator that the method draws from.

    Raises:
        ValueError: nothing to attach to, unknown names, or what the method refuses; the model is then unchanged.
    """
    refuse_arguments(method, model)
    if any(tensor.is_meta for tensor in tensors_of(model)):
        raise ValueError(
            "the model lies on the meta device, where nothing is computed: load its weights, then attach()"
        )
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext():
        handle = Handle(method, model, taps_for(method, model, sites, axes), seed, example)
        try:
            handle.connect(example, kinds_of(sites))
        except BaseException:
            handle.remove()
            raise
    return handle


_HANDLES: weakref.WeakSet[Handle] = weakref.WeakSet()  # those that are attached


class Handle:
    """A method attached to a model, from `attach`."""

    def __init__(
        self, method: Method, model: nn.Module, tapped: list[tuple[Tap, nn.Module]], seed: int, example: Any
    ) -> None:
        self.method = method
        self.model = model
        self.tapped = tapped
        self.trace = StepTrace(model, method.recorded_roles, tapped)
        self.passes: Passes | None = None
        self.last_pass = LastPass()
        self.device = device_for(model, example)
        self.generator = Generators.seeded(seed, self.device).method
        self.progress = torch.zeros((), device=self.device, dtype=torch.float32)
        self.changes: list[Changes] = []
        self.is_attached = False
        self.must_be_met = False  # every Tap is of a module that was named, and it was not looked yet which are called
        self.has_penalty = False  # since the last after_step
        self.awaits_after_step = False  # an optimiser has stepped since then
        self.optimizer_hook: Any = None
        self.added: list[str] = []  # parameters of the method's own that train
        self.untrained: str | None = None  # one of them, which an optimiser that stepped does not hold
        self.links = Links()
        self.additions = Additions()
        self.processes = AlikeAfterSteps(model)

    @property
    def sites(self) -> list[Site]:
        """The Sites, in the order of the model's modules; a module that is met with several widths has several."""
        return [site for tap, _ in self.tapped for site in tap.sites()]

    def __reduce__(self) -> tuple[Any, ...]:
        return CopiedHandle, (self.method,)  # what a copied or saved model holds: its Sites record nothing

    def __repr__(self) -> str:
        if not self.is_attached:
            return f"{self.method!r}, removed from {type(self.model).__name__}"
        lines = [f"{self.method!r}, attached to {type(self.model).__name__}"]
        filled = any(site.transform is not None for site in self.sites)
        if not filled and not isinstance(type(self.method).recorded_roles, property):  # the class says that it has none
            return f"{lines[0]}\n  no Sites: it reads weights alone; layers with kernels: {named_kernels(self.model)}"
        for site in self.sites:
            kind = f"{' or '.join((site.axes, *site.could_be))} {site.shape}" if site.shape else "not met yet"
            kind += ", packed" if site.is_packed else ""
            transform = f", {type(site.transform).__name__}" if site.transform is not None else ""
            lines.append(f"  {site.name}: {site.role}, {kind}{transform}")
        return "\n".join(lines)

    def connect(self, example: Any, kinds: Kinds) -> None:
        """Register Sites and hooks, meet the shapes in a dry run, and let the method prepare the model.

        Args:
            example: for the dry run; None: there is none.
            kinds: of all modules that are meant, so that none may be added; none where they are named by the caller, to
                whom it is told which are not called.
        """
        forget_compiled()
        self.is_attached = True
        self.must_be_met = not kinds
        before = Structure(self.model)
        try:
            if self.tapped:
                taps = [tap for tap, _ in self.tapped]
                watch_layouts(self.model, taps)
                self.passes = Passes(self.trace, taps)
                self.passes.hook_begin(self.model)
            for tap, module in self.tapped:
                tap.own(self.trace)
                tap.hook(module)
            if self.passes is not None:
                self.passes.hook_end(self.model)
            self.links.hook(self.model)
            self.last_pass.hook(self.model)
        finally:
            self.changes.append(before.changes())
        if example is not None:
            self._explore(example)
        self._prepare()
        filled = [(tap.name, tap) for tap, _ in self.tapped if tap.is_filled]
        self.links.watch(self.model, [(tap.name, module) for tap, module in self.tapped], filled)
        self.additions.watch(self.model, kinds if self.trace.roles or filled else ())
        if self.method.acts_after_step or self.added:
            self.optimizer_hook = _watch_optimizers(self)
        _HANDLES.add(self)
        logger.info("%r", self)

    def penalty(
        self,
        progress: float | Tensor | None = None,
        mask: Tensor | None = None,
        source_examples: int | None = None,
    ) -> Tensor:
        """The penalty on the last forward pass, already weighted: a 0-dim tensor to add to your loss.

        It consumes what was recorded: one forward pass, one penalty. A second forward pass replaces what the first one
        recorded. A method that reads weights alone needs no forward pass; after one of `torch.func.functional_call`,
        weights are the tensors that it was given, for one penalty. ``progress`` in [0, 1] drives schedules; where it is
        not given it stays as it was, 0 at first; a tensor on a GPU is taken as it is, since a look at it would wait for
        the device. ``mask`` (n, positions...) is True at positions that are no padding; the others are then left out.
        ``source_examples`` is how many of the batch's first examples are of the source domain, for a method that aligns
        them with the others, of a target domain.

        Raises:
            ValueError: no forward pass in training mode since the last penalty, one without gradients, or one that
                raised an error; modules that were named, none of which is called; a module with Sites that is no part
                of the model any more, or one without them that is new in it; an optimiser that does not hold what the
                method added; a ``progress`` outside [0, 1]; a model on another device than when it was attached;
                activations overwritten in place; a step without `after_step`; or what the method refuses.
        """
        if not self.is_attached:
            raise ValueError("this is a removed handle: attach() the method again")
        if self.awaits_after_step:
            raise ValueError("this method acts after each step too: call handle.after_step(optimizer) there")
        if self.trace.roles or self.links.filled:
            self.links.refuse_replaced()
            self.additions.refuse()
        self._refuse_untrained()
        if progress is not None:
            self.progress.fill_(fraction(progress))
        self.trace.source_examples = source_examples
        if self.trace.roles:
            penalty = self._penalty_of_records(mask)
            self._join_compiled()
        else:
            penalty = self._of_method(mask)
        self.has_penalty = True
        return penalty

    def _penalty_of_records(self, mask: Tensor | None) -> Tensor:
        trace = self.trace
        trace.end_abandoned()
        if trace.has_ended and not trace.consumed:
            self._tell_unmet()
        if trace.consumed or trace.is_empty or trace.has_failed:
            raise ValueError(trace.why_empty())
        try:
            trace.check(self.device)
            trace.join_steps()
            penalty = self._of_method(mask)
            trace.refuse_constant(penalty)
            if self.method.acts_after_step:
                trace.keep()
            return penalty
        finally:
            trace.consumed = True
            trace.clear()

    def _join_compiled(self) -> None:
        """Let the next pass be compiled as one, where the first one was cut into pieces to see the layers."""
        layouts = self.passes.layouts if self.passes is not None else None
        if layouts is not None and layouts.was_cut and layouts.is_settled and not torch.compiler.is_compiling():
            layouts.was_cut = False
            forget_compiled()

    def _of_method(self, mask: Tensor | None) -> Tensor:
        try:
            with usual_defaults(self.device), self.trace.own_sites_only(), self.trace.masked(mask):
                return self.last_pass.reading(self.model, self._read, not self.trace.roles)
        except RuntimeError as error:
            if not is_of_shards(error):
                raise
            raise ValueError(
                "this penalty multiplies activations by weights of a layer that FSDP2 has cut into shards: leave that "
                "layer whole between forward and backward, fully_shard(layer, reshard_after_forward=False)"
            ) from error

    def _read(self) -> Tensor:
        return self.method.penalty(self.trace, self.progress, self.generator)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """For the few methods that rewrite weights outside the gradient: call it after each ``optimizer.step()``.

        It sees the records of all penalties since the last one, of accumulated batches too.
        """
        if self.method.acts_after_step and self.has_penalty and self.is_attached:
            rewriting = self.processes.rewriting(optimizer)
            with usual_defaults(self.device), self.trace.own_sites_only(), rewriting:
                self.trace.after_step(
                    lambda: self.method.after_step(self.model, optimizer, self.progress, self.generator)
                )
        self.has_penalty = self.awaits_after_step = False

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed training needs beside the model's own `state_dict`: where ``progress`` is, and what the method
        draws next. To be saved after a step, as the optimiser's is.
        """
        return {"progress": self.progress.detach().clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave; the model's own values are loaded by the model.

        Raises:
            ValueError: it is no state of a handle, or one from another kind of device.
        """
        if set(state) != {"progress", "generator"}:
            raise ValueError(
                f"a handle's state has progress and generator, found {', '.join(map(str, state)) or 'none'}"
            )
        try:
            self.generator.set_state(state["generator"].cpu())
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"the handle's state is not from {self.device.type}, where the model lies: resume on the kind of "
                "device on which it was saved"
            ) from error
        self.progress.fill_(state["progress"].item())

    def remove(self) -> None:
        """Give back the model that was attached, with its trained weights.

        Hooks, Sites, and all that the method added, replaced or parametrized are as before; what others have done to
        the model since stays.
        """
        for changes in reversed(self.changes):
            changes.undo()
        self.changes.clear()
        for tap, _ in self.tapped:
            tap.release()
        self.trace.release()
        if self.passes is not None:
            self.passes.release()
        self.links.release()
        self.additions.release()
        self.last_pass.release()
        if self.optimizer_hook is not None:
            self.optimizer_hook.remove()
        self.is_attached = False
        _HANDLES.discard(self)

    def _explore(self, example: Any) -> None:
        for tap, _ in self.tapped:
            tap.is_explored = True
        if self.passes is not None:
            self.passes.layouts.begin(self.model)
        try:
            dry_run(self.model, example, self.device)
        finally:
            for tap, _ in self.tapped:
                tap.is_explored = False
        if self.passes is not None:
            self.passes.end_watching()

    def _prepare(self) -> None:
        before = Structure(self.model)
        known = set(map(id, tensors_of(self.model)))
        values = Values(tensors_of(self.model) if type(self.method).prepare is not Method.prepare else ())
        try:
            for tap, module in self.tapped:
                tap.join(self.model, module, type(self.method).__name__)
            with usual_defaults(self.device), self.trace.own_sites_only(), any_draw():
                self.method.prepare(self.model, self.generator)
            for tap, _ in self.tapped:
                tap.prepared()
            changes = before.changes()
            _refuse_replacing_others(changes)
            refuse_unsynchronised(self.model, known)
            named = self.model.named_parameters()
            self.added = [name for name, value in named if value.requires_grad and id(value) not in known]
        except BaseException:
            before.changes().undo()
            values.put_back()
            raise
        self.changes.append(changes)

    def _refuse_untrained(self) -> None:
        if self.untrained is None:
            return
        parameter = self.model.get_parameter(self.untrained)
        if any(id(parameter) in _held_by(optimizer) for optimizer in living((torch.optim.Optimizer,))):
            self.added.clear()  # another one, which steps less often
            self.untrained = None
            return
        raise ValueError(
            f"the optimiser that steps was made before the method added {self.untrained!r}, and does not train it: "
            "make it after attach(), or add_param_group() what is new"
        )

    def _tell_unmet(self) -> None:
        """Once, of modules that were named and that no pass has called yet: they may take turns with others.

        Raises:
            ValueError: none of them has been called.
        """
        unmet = [tap.name for tap, _ in self.tapped if not tap.is_met] if self.must_be_met else []
        unmet = [name for name in unmet if not self.trace.has(name)]
        if not unmet:
            self.must_be_met = False
            return
        others = f" (and {len(unmet) - 1} more)" if len(unmet) > 1 else ""
        found = f"module {unmet[0]!r}{others} was named, and is not called in this forward pass or one before it"
        if len(unmet) == len(self.tapped):
            raise ValueError(f"{found}: name modules that are called, and call the model so that it reaches them")
        self.must_be_met = False
        warnings.warn(
            f"{found}: where it takes turns with others it counts once it is called; where nothing calls it, as its "
            "weights are used from outside, it never does: name one that is called",
            stacklevel=4,
        )


class CopiedHandle:
    """What a handle becomes where what holds it is copied or pickled: a copy of a model records nothing."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def __repr__(self) -> str:
        return f"{self.method!r}, a copy of a handle, which records nothing"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(
            f"this is a copy of a handle, made with a copy of what holds it, and has no {name!r}: attach() the method "
            "to the copied model"
        )


def _refuse_replacing_others(changes: Changes) -> None:
    """What one handle put into the model, another must not overwrite."""
    added = {path: handle for handle in _HANDLES for done in handle.changes for path in done.added()}
    for change in changes.replaced():
        if change.path in added:
            other = type(added[change.path].method).__name__
            raise ValueError(
                f"{change.name!r} of {type(change.module).__name__} is in use by {other}, which is attached to this "
                "model too: remove() that handle first"
            )


def _held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    """The ids of its parameters."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _watch_optimizers(handle: Handle) -> Any:
    """Note where an optimiser of the model's parameters has stepped after a penalty, and what it does not hold."""
    watching = weakref.ref(handle)

    def note(optimizer: torch.optim.Optimizer, arguments: Any, options: Any) -> None:
        own = watching()
        if own is None or not own.has_penalty:
            return
        held = _held_by(optimizer)
        parameters = dict(own.model.named_parameters())
        if not any(id(parameter) in held for parameter in parameters.values()):
            return
        own.awaits_after_step = own.method.acts_after_step
        added = {name: parameters[name] for name in own.added if name in parameters}
        if any(id(parameter) in held for parameter in added.values()):
            own.added.clear()  # it is known to some optimiser: others may be for other parts
            own.untrained = None
        else:
            trained = (name for name, value in added.items() if value.requires_grad and value.grad is not None)
            own.untrained = next(trained, own.untrained)

    hook = optimizers.register_optimizer_step_post_hook(note)
    weakref.finalize(handle, hook.remove)
    return hook
