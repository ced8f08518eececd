"""A step that is recorded once and replayed: on CUDA as a graph, which repeats its operations on the same memory."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reproduce.method.rng import Generators

Mode = Literal["eager", "captured"]

# Real steps before the recording: constants, momentum buffers and what the first batch sets are made in them.
WARM_UP_STEPS = 3

# On CUDA these look at their own result on the host, inside the operation.
_CHECKED_ON_THE_HOST = {"_linalg_eigh", "_linalg_svd", "linalg_eig", "linalg_lstsq"}

# One capture at a time in a process: `torch.cuda.graph` first waits for the whole device and empties its allocator's
# cache, and CUDA forbids to wait for a device while one of its streams captures: the wait fails, in whatever thread it
# is, and the capture may fail with it. Everything else may go on in other threads ("thread_local"), each on its own
# stream: launches and replays, copies, waits for its own stream, and allocations, since the allocator takes from the
# graph's memory for the capturing stream alone, whichever of autograd's threads asks. Therefore no part of a Run calls
# `torch.cuda.synchronize`: who must wait, waits for its stream.
_one_at_a_time = threading.Lock()

logger = logging.getLogger(__name__)


class Recording(Protocol):
    """One call of a function, kept as operations on the tensors that it met."""

    def record(self, function: Callable[[], None]) -> None:
        """Call ``function`` once, with all that it does, and keep its operations."""

    def replay(self) -> None:
        """The same operations on the same memory, without the function: numbers that the host knew stay as they were.

        Generators go on from where they are.
        """


class CudaGraph:
    """A CUDA graph on the current stream, which is the Run's own.

    Args:
        generators: all that are drawn from on the device.
    """

    def __init__(self, generators: Generators) -> None:
        self.graph = torch.cuda.CUDAGraph()
        for generator in vars(generators).values():
            if generator.device.type == "cuda":
                self.graph.register_generator_state(generator)

    def record(self, function: Callable[[], None]) -> None:
        stream = torch.cuda.current_stream()
        with _one_at_a_time, torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            function()
        self.graph.replay()  # a capture computes nothing

    def replay(self) -> None:
        self.graph.replay()


def recording_in(mode: Mode, generators: Generators) -> Callable[[], Recording] | None:
    """What a Run's steps are recorded with in this mode: a CUDA graph, or nothing."""
    return functools.partial(CudaGraph, generators) if mode == "captured" else None


class HostWaits(TorchDispatchMode):
    """Collects the operations that no recording can hold: they wait for a value, or their shapes depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not can_be_recorded(func, args, kwargs):
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def waits_for_a_value(operation: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether the host must know a tensor's values to call this operation or to know the shape of its result."""
    if operation is torch.ops.aten.index.Tensor:  # tagged for its masks; indices have a fixed shape
        return any(mask is not None and mask.dtype in (torch.bool, torch.uint8) for mask in arguments[1])
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(operation.tags))


def can_be_recorded(operation: Any, arguments: tuple[Any, ...], options: dict[str, Any] | None = None) -> bool:
    """Whether a CUDA graph can hold this operation."""
    name = operation.overloadpacket.__name__
    if name in _CHECKED_ON_THE_HOST or _copies_between_devices(name, arguments, options or {}):
        return False
    return not waits_for_a_value(operation, arguments)


def _copies_between_devices(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """As ``torch.tensor([1.0, 2.0]).to(device)`` in a step does: the host's memory would have to stay as it is."""
    if name == "_to_copy":
        device = options.get("device")
        return device is not None and torch.device(device).type != arguments[0].device.type
    return name == "copy_" and arguments[0].device.type != arguments[1].device.type


class Repeated:
    """Calls a function that acts on tensors alone: WARM_UP_STEPS times for real, then recorded, then replayed.

    A function that waits for a value in its last warm-up call stays as it is, and so does one whose recording fails:
    a log line at level WARNING says which operation it was. Without a recording every call is real.

    Args:
        function: reads and writes tensors that stay where they are; the host's values do not change from call to call.
        make_recording: an empty recording; None: none is made.
    """

    def __init__(self, function: Callable[[], None], make_recording: Callable[[], Recording] | None) -> None:
        self.function = function
        self._make_recording = make_recording
        self._recording: Recording | None = None
        self._calls = 0

    @property
    def mode(self) -> Mode:
        """What the newest call was, or the next one will be where none has been recorded yet."""
        return "eager" if self._make_recording is None else "captured"

    def __call__(self) -> None:
        if self._recording is not None:
            self._recording.replay()
        elif self._make_recording is None or self._calls < WARM_UP_STEPS - 1:
            self._calls += 1
            self.function()
        elif self._calls < WARM_UP_STEPS:
            self._calls += 1
            self._look_for_waits()
        else:
            self._record(self._make_recording())

    def _look_for_waits(self) -> None:
        with HostWaits() as waits:
            self.function()
        if waits.found:
            self._give_up(f"{', '.join(sorted(set(waits.found)))} waits for the device")

    def _record(self, recording: Recording) -> None:
        try:
            recording.record(self.function)
        except torch.OutOfMemoryError:
            raise  # fewer Runs side by side may do, slower steps would not
        except RuntimeError as error:
            self._give_up(str(error).partition("\n")[0])
            self.function()
        else:
            self._recording = recording

    def _give_up(self, reason: str) -> None:
        self._make_recording = None
        logger.warning("this run's steps are not captured: %s; they run eagerly", reason)

    def forget(self) -> None:
        """Warm up and record anew: tensors that the recording knows were replaced."""
        self._recording, self._calls = None, 0
