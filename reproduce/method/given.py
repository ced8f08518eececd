"""What is given to `attach` and its handle: refused in one line where it is something else, and tried in a dry run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.method import Method
from reproduce.method.contents import Contents
from reproduce.method.distributed import reshard
from reproduce.method.first_tensor import at_first_tensor
from reproduce.method.restore import Values, tensors_of
from reproduce.method.rng import GlobalRandomness
from reproduce.method.sites import Site


def refuse_arguments(method: Any, model: Any) -> None:
    if isinstance(method, type) and issubclass(method, Method):
        raise ValueError(f"attach() takes a method, {method.__name__}() say, got the class {method.__name__}")
    if not isinstance(method, Method) or not isinstance(model, nn.Module):
        given = f"{type(method).__name__} and {type(model).__name__}"
        raise ValueError(f"attach() takes a method and then a model, attach(method, model), got {given}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("the model is scripted or traced, and takes no hooks: attach to the model that it was made of")


def fraction(progress: Any) -> Any:
    """What ``progress`` is, if it is one."""
    if isinstance(progress, Tensor) and progress.dim() == 0 and progress.device.type != "cpu":
        return progress
    is_number = isinstance(progress, Real) or (isinstance(progress, Tensor) and progress.dim() == 0)
    if not is_number or not 0 <= progress <= 1:
        raise ValueError(
            f"progress is the fraction of training that is done, a number in [0, 1], got {progress!r}: give "
            "step / number_of_steps"
        )
    return progress


def device_for(model: nn.Module, example: Any) -> torch.device:
    """Where the model lies; for one without parameters and buffers, where its example lies."""
    found = next((tensor.device for tensor in tensors_of(model)), None)
    if found is not None:
        return found
    devices: list[torch.device] = []
    at_first_tensor(example, lambda tensor, _: devices.append(tensor.device) or tensor)  # type: ignore[func-returns-value]
    return devices[0] if devices else torch.device("cpu")


def dry_run(model: nn.Module, example: Any, device: torch.device) -> None:
    """One forward pass in eval mode, without gradient; all that it changes is put back, also where it raises an error.

    That is: modes, buffers and attributes of modules; among attributes and in the example, the entries of lists,
    dictionaries and sets, the numbers in tensors and arrays, and the states of generators; the global generators of
    torch, NumPy and Python. Not put back are parameters that ``forward`` itself writes, what other objects hold that
    are attributes, what classes and Python's modules hold, and files.
    """
    modules = list(model.modules())
    states: list[Any] = [
        GlobalRandomness([device, *(tensor.device for tensor in tensors_of(model))]),
        *(_Fastpath(), Values(model.buffers()), Contents([example, *_attributes(modules)])),
        *map(_Held, modules),
        *map(_Mode, modules),
    ]
    with contextlib.ExitStack() as stack:
        for state in states:  # each, also where another fails; values last, when modules hold again what they held
            stack.callback(state.put_back)
        stack.callback(reshard, model)
        for module in modules:  # not by eval(), in which an adapter may merge its weights
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)  # around the modules of a transformer
        with torch.no_grad():
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*(example if isinstance(example, tuple | list) else (example,)))


class _Mode:
    """Of a module: training or not."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.training = module, module.training

    def put_back(self) -> None:
        self.module.training = self.training


class _Fastpath:
    """Of torch's attention: in use or not."""

    def __init__(self) -> None:
        self.is_enabled = torch.backends.mha.get_fastpath_enabled()

    def put_back(self) -> None:
        torch.backends.mha.set_fastpath_enabled(self.is_enabled)


class _Held:
    """Which buffers and attributes a module has: a state that it carries from pass to pass, or counts."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers = dict(module._buffers)
        self.attributes = _own_attributes(module)

    def put_back(self) -> None:
        if self.attributes is None:
            return
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        held = vars(self.module)  # a wrapper would set or delete an attribute of the module inside
        for name in _own_attributes(self.module) or ():
            if name not in self.attributes:
                del held[name]
        held.update(self.attributes)


def _attributes(modules: Iterable[nn.Module]) -> Iterator[Any]:
    for module in modules:
        yield from (_own_attributes(module) or {}).values()


def _own_attributes(module: nn.Module) -> dict[str, Any] | None:
    """None of what learns its shape in a pass: a Site, or a lazy module."""
    if isinstance(module, Site | nn.modules.lazy.LazyModuleMixin | torch.jit.ScriptModule):
        return None
    return {name: value for name, value in vars(module).items() if name not in _OF_MODULES}


_OF_MODULES = {*vars(nn.Module()), "_flat_weights", "_flat_weight_refs", "_flat_weights_names"}
