"""The weights that the last forward pass had: given by `torch.func.functional_call`, or made by a parametrization."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from reproduce.method.functions import is_in_backward
from reproduce.method.made_weights import is_function, made_in_pass
from reproduce.method.step_trace import frame_outside, has_raised

Held = tuple[dict[str, Any], str, Tensor]  # a module's parameters or buffers, a name, and what lies there


class LastPass:
    """Remembers what the last forward pass of the whole model had, so that a penalty is of that.

    `functional_call` takes its tensors out of the modules when it returns, and a penalty that comes then would read,
    and send its gradient to, the model's own. A parametrization that draws makes another weight when it is read again.

    Noted are passes with gradients: of a model in training mode, and those in eval mode that are given tensors with a
    gradient. What a part of the model is given, when it is called alone, is not, nor what a checkpoint computes again.
    """

    def __init__(self, is_watching: bool = True) -> None:
        self.is_watching = is_watching
        self.is_open = False  # a pass that is noted is under way
        self.error_before: BaseException | None = None  # that was being handled when it began
        self.frame: FrameType | None = None  # that calls the model in it
        self.thread = 0  # in which that is
        self.n_inside = 0  # passes of the whole model in this one, as a model has that calls itself
        self.was_given = False  # a penalty was taken of the last one, and it had other weights than the model has
        self.n_passes = 0  # that were noted since the last penalty
        self.had: list[Held] = []
        self.had_gradients = False
        self.made: dict[int, list[Tensor]] = {}  # what parametrizations have returned, by their ids
        self.versions: list[tuple[Tensor, int]] = []  # of what they have made it from

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (False,)  # a copy of the model has hooks that do nothing

    def hook(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self.begin, prepend=True)
        for module in model.modules():
            if isinstance(module, ParametrizationList) and not is_function(module):
                module.register_forward_hook(self.note_made)
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, model: nn.Module, arguments: Any) -> None:
        if torch.compiler.is_compiling():
            self._begin_compiled(model)
        elif is_in_backward():
            return
        elif self._is_inside():
            self.n_inside += 1
        elif self._notes(model):
            self.forget()
            self.is_open, self.error_before = True, sys.exc_info()[1]
            self.frame, self.thread, self.n_inside = frame_outside(), threading.get_ident(), 0

    def _is_inside(self) -> bool:
        """Whether this is called in the pass that is noted: not in another thread, nor after one that was left."""
        frame = sys._getframe() if self.is_open and self.frame is not None else None
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None

    def _begin_compiled(self, model: nn.Module) -> None:
        if not self.is_watching or not torch.is_grad_enabled():
            return
        if any(not isinstance(parameter, nn.Parameter) for parameter in model.parameters()):
            self._note_given(model)
        elif model.training:
            self.forget()
            self.was_given = False

    @torch.compiler.disable
    def _note_given(self, model: nn.Module) -> None:
        """Where it is called, the compiled model is cut in two."""
        if self._notes(model):
            self.forget()
            self._note(model)

    def note_made(self, made_by: nn.Module, arguments: Any, weight: Tensor) -> None:
        """Forward hook of a parametrization."""
        if torch.compiler.is_compiling() or is_in_backward():
            return
        if self.is_open and torch.is_grad_enabled():
            self.made.setdefault(id(made_by), []).append(weight)
            self.versions += [(own, own._version) for own in made_by.parameters(recurse=False)]

    def end(self, model: nn.Module, arguments: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or is_in_backward():
            return
        if not self.is_open or self.thread != threading.get_ident():
            return
        if self.n_inside:
            self.n_inside -= 1
            return
        self.is_open = False
        has_failed = has_raised(output, self.error_before)
        self.error_before = self.frame = None
        if has_failed:
            self.forget()
            return
        self.n_passes += 1
        self._note(model)

    def _note(self, model: nn.Module) -> None:
        self.was_given = False
        self.had = list(_held(model))
        self.had_gradients = any(tensor.requires_grad for *_, tensor in self.had)

    def forget(self) -> None:
        """Let go of all tensors."""
        self.had, self.had_gradients, self.made, self.versions = [], False, {}, []

    def release(self) -> None:
        """Note no more."""
        self.is_watching = self.is_open = False
        self.frame = None
        self.forget()

    def reading(self, model: nn.Module, read: Callable[[], Tensor], reads_weights_alone: bool) -> Tensor:
        """What ``read`` returns where the model has the parameters and buffers of its last forward pass.

        Raises:
            ValueError: of a method that reads weights alone: what computes their gradient is over, or it cannot be told
                whether they were given or have been replaced since; or a second penalty of weights that were given.
        """
        given = [(holder, name, had) for holder, name, had in self.had if _is_other(had, holder.get(name))]
        is_stale = any(own._version != version for own, version in self.versions)
        made = {} if is_stale else {key: found[0] for key, found in self.made.items() if len(found) == 1}
        had_gradients = self.had_gradients
        self.forget()
        self.n_passes = 0
        if self.was_given and reads_weights_alone:
            raise ValueError(
                "the last forward pass was given other weights than the model's own, and one penalty has been taken of "
                "it: call the model before the next"
            )
        self.was_given = bool(given)
        with made_in_pass(made), _put_in(given):
            penalty = read()
        if not given or not reads_weights_alone:
            return penalty
        is_over = had_gradients and not penalty.requires_grad and torch.is_grad_enabled()
        is_unclear = any(isinstance(had, nn.Parameter) for *_, had in given)
        if (is_over or is_unclear) and read().requires_grad:
            raise ValueError(
                f"the last forward pass had another {_full_name(model, given[0])!r} than the model has now: after "
                "torch.func.functional_call, give it tensors that are no nn.Parameter and call penalty() inside the "
                "function that is differentiated; after replacing a parameter, call the model once before this"
            )
        return penalty

    def _notes(self, model: nn.Module) -> bool:
        """Whether a pass that begins is one to be noted."""
        if not self.is_watching or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        return any(module.training for module in model.modules()) or _is_given(model)


def _held(model: nn.Module) -> Iterator[Held]:
    """Each parameter and buffer, in each module that holds it: tied ones may be given apart."""
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):  # which can be given nothing
            continue
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is not None:
                    yield holder, name, tensor


def _full_name(model: nn.Module, held: Held) -> str:
    parts = model.named_modules()
    path = next((path for path, part in parts if held[0] is part._parameters or held[0] is part._buffers), "")
    return f"{path}.{held[1]}".lstrip(".")


def _is_given(model: nn.Module) -> bool:
    """Whether `functional_call` has put in what is to be trained: an average that is evaluated has no gradient."""
    is_transformed = torch._C._are_functorch_transforms_active()
    return any(
        not isinstance(parameter, nn.Parameter) and (parameter.requires_grad or is_transformed)
        for parameter in model.parameters()
    )


def _is_other(had: Tensor, now: Tensor | None) -> bool:
    """FSDP2 too puts other parameters in for a forward pass, of one in shards the whole, and may leave it there."""
    return now is not None and had is not now and not any(hasattr(each, "full_tensor") for each in (had, now))


@contextmanager
def _put_in(given: Sequence[Held]) -> Iterator[None]:
    """Not by `functional_call`, which loses the own tensors of a module that the model has under two names."""
    own = [(holder, name, holder[name]) for holder, name, _ in given]
    try:
        for holder, name, tensor in given:
            holder[name] = tensor
        yield
    finally:
        for holder, name, tensor in own:
            holder[name] = tensor
