"""The Trace of an attached method: it belongs to one forward pass of the whole model, and notices what goes wrong."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from reproduce.method.callers import Callers
from reproduce.method.functions import is_in_backward, version_of
from reproduce.method.records import PackedRecord
from reproduce.method.sites import Record, Role, Site, Trace

if TYPE_CHECKING:
    from reproduce.method.taps import Tap


class StepTrace(Trace):
    """A Trace that begins anew with each forward pass of the whole model in which gradients are computed.

    Other passes neither add to it nor replace it: evaluation, passes under `torch.no_grad`, parts of the model that are
    called alone, and what checkpointing computes again in a backward pass, also one inside the forward pass.

    Args:
        model: whose Sites record.
        roles: of the Sites that are recorded.
        tapped: what holds the Sites, and the modules whose activations pass them.
    """

    def __init__(self, model: nn.Module, roles: frozenset[Role], tapped: Sequence[tuple[Tap, nn.Module]]) -> None:
        super().__init__(model, roles)
        self.tapped = tapped
        self.hooked = [module for _, module in tapped]
        self.versions: list[int] = []
        self.callers = Callers(model)
        self.n_under_way = 0  # passes of the whole model, recorded or not
        self.thread: int | None = None  # whose pass is recorded
        self.frame: FrameType | None = None  # that calls the model in it
        self.error_before: BaseException | None = None  # that was being handled when it began
        self._is_open = False
        self.around: list[bool] = []  # `_is_open` around this pass of the whole model, from the one that is recorded on
        self.consumed = False
        self.has_failed = False  # the pass that was recorded raised an error
        self.has_ended = False  # without an error
        self.filled: list[Site] = []  # that were passed in this pass and hold something
        self.stepped: set[Site] = set()  # whose calls are the time steps of one activation
        self.without_gradient: set[str] = set()  # Sites that were passed under no_grad in the recorded pass
        self.earlier: list[Record] = []  # of the batches since the last step, without gradients

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # stays behind where its model is copied or saved: the copy records nothing

    def own_sites(self) -> list[Site]:
        return [site for tap, _ in self.tapped for site in tap.sites()]

    def module_of(self, site: Site) -> nn.Module:
        return next(module for tap, module in self.tapped if any(own is site for own in tap.sites()))

    @property
    def is_open(self) -> bool:
        """Whether a pass that is recorded is under way in this thread, and this is computed for the first time.

        A model that takes a gradient of its own in its forward pass, as force fields do, has what lies in a checkpoint
        computed again while the pass is open.
        """
        return self._is_open and not self._is_elsewhere() and not is_in_backward()

    def begin(self) -> bool:
        """A forward pass of the whole model begins; returns whether it is a new one that is recorded.

        Raises:
            ValueError: it is to be recorded, as that of another thread is.
        """
        is_recorded = (
            torch.is_grad_enabled()
            and (self.model.training or any(module.training for module in self.hooked))
            and not _is_exported()
            and not torch.jit.is_tracing()
            and not is_in_backward()
        )
        self.end_abandoned()
        if self._is_elsewhere():
            if is_recorded:
                raise ValueError(
                    "two threads train one attached model at a time: give each a copy of the model and attach to it, "
                    "or call the model under no_grad where it only acts"
                )
            return False
        is_new = is_recorded and not self.around
        if is_new:
            self.clear()
            self.filled = []
            self.without_gradient.clear()
            self.consumed = self.has_failed = self.has_ended = False
            if torch.compiler.is_compiling():
                self.thread = None
            else:
                self.thread, self.frame, self.error_before = threading.get_ident(), frame_outside(), sys.exc_info()[1]
        if is_recorded or self.around:
            self.around.append(self._is_open)
            self._is_open = is_recorded
        return is_new

    def end(self, output: Any) -> bool:
        """It ends, also where it raised an error; returns whether it was the one that is recorded."""
        if not self.around or self._is_elsewhere():
            return False
        self._is_open = self.around.pop()
        if self.around:
            return False
        self.has_failed = not torch.compiler.is_compiling() and has_raised(output, self.error_before)
        self.has_ended = not self.has_failed
        self.thread = self.frame = self.error_before = None
        return True

    def end_abandoned(self) -> None:
        """A pass that Ctrl-C or a cancelled task has left runs no hooks at its end: it shows in the stack."""
        if torch.compiler.is_compiling() or not self.around or self.frame is None or self.thread is None:
            return
        frame = sys._current_frames().get(self.thread)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        if frame is None:
            self.release_pass()
            self.clear()
            self.has_failed = True

    def _is_elsewhere(self) -> bool:
        """Whether the pass that is recorded is another thread's; a compiled model cannot tell."""
        return not torch.compiler.is_compiling() and self.thread not in (None, threading.get_ident())

    def records_now(self, name: str) -> bool:
        """Whether an activation of the module of this name, in training mode, is to be recorded.

        Raises:
            ValueError: it is computed again in the backward pass, and had no gradient in the forward pass; or it is
                computed in another thread than the pass of the whole model.
        """
        if self._is_open and self._is_elsewhere() and torch.is_grad_enabled() and not is_in_backward():
            raise ValueError(
                f"module {name!r} is called in another thread than the model whose forward pass is under way, and "
                "would be left out of the penalty: call it in the model's own thread, or under no_grad"
            )
        if not self.is_open:
            if name in self.without_gradient and torch.is_grad_enabled() and is_in_backward():
                raise ValueError(
                    f"module {name!r} lies in a reentrant checkpoint, where its activations have no gradient: use "
                    "checkpoint(..., use_reentrant=False), or name a module outside"
                )
            return False
        if not torch.is_grad_enabled():
            self.without_gradient.add(name)
            return False
        return True

    def takes(self, site: Site, activation: Tensor) -> bool:
        return self.is_open and torch.is_grad_enabled() and (site.training or activation.requires_grad)

    def add(self, site: Site, activation: Tensor) -> None:
        if self.is_open and torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # whose outputs have no version that tells what overwrote them inside
                activation = activation.clone()
            n_before = len(self._records)
            super().add(site, activation)
            if len(self._records) > n_before:
                self.versions.append(version_of(activation))

    def clear(self) -> None:
        super().clear()
        self.versions.clear()

    def release(self) -> None:
        """Let go of everything."""
        self.clear()
        self.earlier.clear()
        self.release_pass()

    def release_pass(self) -> None:
        self._is_open = False
        self.around.clear()
        self.thread = self.frame = self.error_before = None

    def _given(self) -> list[Record]:
        return [PackedRecord(*record) if record.site.is_packed else record for record in super()._given()]

    @property
    def is_empty(self) -> bool:
        return not self._records and not self._passed_over

    def has(self, name: str) -> bool:
        """Whether an activation of this Site was recorded."""
        return any(record.site.name == name for record in self._records)

    def why_empty(self) -> str:
        """What is missing, where there is nothing to make a penalty of."""
        if self.has_failed:
            return (
                "the forward pass raised an error or was interrupted, and a penalty of its first half would be none of "
                "the model"
            )
        if self.without_gradient and not self.consumed:
            names = ", ".join(sorted(self.without_gradient))
            return (
                f"nothing was recorded: {names} was passed without gradients, under no_grad or in a reentrant "
                "checkpoint: use checkpoint(..., use_reentrant=False), or name a module outside"
            )
        if self.has_ended and not self.consumed:
            return "nothing was recorded: the last forward pass went past all Sites: add no penalty after such a pass"
        return (
            "nothing was recorded: each penalty() needs a forward pass of the whole model before it, in train() mode "
            "and with gradients, so not under no_grad and not in a reentrant checkpoint (use_reentrant=False)"
        )

    def refuse_constant(self, penalty: Tensor) -> None:
        """A penalty on activations without gradient trains nothing, of a model that has weights to train."""
        if penalty.requires_grad or any(record.activation.requires_grad for record in self._records):
            return
        if torch._C._are_functorch_transforms_active():  # func.jvp has no gradients
            return
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            raise ValueError(
                "no activation that was recorded has a gradient: the layers before are frozen, or their outputs are "
                "detached; name a module after a layer that trains"
            )

    def check(self, device: torch.device) -> None:
        """Refuse what was recorded on another device, or overwritten since."""
        for record, version in zip(self._records, self.versions, strict=True):
            if _has_escaped(record.activation):
                raise ValueError(
                    f"Site {record.site.name!r}: it was recorded inside a function that torch.func transforms, which "
                    "is over: call penalty() in that function"
                )
            if record.activation.device != device:
                raise ValueError(
                    f"the model was attached on {device} and is on {record.activation.device} now: move it first, "
                    "and then attach()"
                )
            # Of one graph with the pass nothing was overwritten: it records copies.
            if not torch.compiler.is_compiling() and version_of(record.activation) != version:
                raise ValueError(
                    f"Site {record.site.name!r}: its activations were overwritten in place after it, by += or a "
                    "module with inplace=True: change that, or name another module"
                )

    def join_steps(self) -> None:
        """Make one activation (time, batch, features) of the calls of a Site that are time steps."""
        if not self.stepped:
            return
        joined: dict[Site, list[Tensor]] = {}
        kept: list[Record] = []
        for record in self._records:
            if record.site not in self.stepped:
                kept.append(record)
            elif record.site in joined:
                joined[record.site].append(record.activation)
            else:
                joined[record.site] = [record.activation]
                kept.append(record)
        for site, steps in joined.items():
            if len({step.shape for step in steps}) > 1:
                shapes = ", ".join(sorted({str(tuple(step.shape[1:])) for step in steps}))
                raise ValueError(f"Site {site.name!r}: its calls are time steps of one shape, found {shapes}")
        self._records = [
            Record(record.site, torch.cat(joined[record.site])) if record.site in joined else record for record in kept
        ]
        self.versions = [version_of(record.activation) for record in self._records]

    def keep(self) -> None:
        """Keep what was recorded for what comes after the step, beside that of the batches before it."""
        self.earlier += [Record(record.site, record.activation.detach()) for record in self._records]
        self.clear()

    def after_step(self, act: Callable[[], None]) -> None:
        """Do what comes after a step, with the records of all its batches."""
        self.clear()
        self._records += self.earlier
        self.earlier.clear()
        try:
            act()
        finally:
            self.clear()


def has_raised(output: Any, before: BaseException | None) -> bool:
    """Whether a forward pass ends with an error, by what a hook that is always called finds.

    Args:
        before: the error that was being handled when it began, in an ``except`` block.
    """
    error = sys.exc_info()[1]
    return output is None and error is not None and error is not before


def frame_outside() -> FrameType | None:
    """Of what calls the hooks of this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("reproduce.method."):
        frame = frame.f_back
    return frame


def _has_escaped(activation: Tensor) -> bool:
    """Whether it belongs to a transform of `torch.func` that is over; a compiled model cannot tell."""
    if torch.compiler.is_compiling():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or []
    return torch._C._functorch.maybe_get_level(activation) > len(stack)


def _is_exported() -> bool:
    """Whether `torch.export` calls the model, with tensors that have no values."""
    return not torch.compiler.is_dynamo_compiling() and bool(torch.compiler.is_exporting())
