"""What is given to `attach` and its handle: refused in one line where it is something else, and tried in a dry run."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from reproduce.method import Method
from reproduce.method.distributed import reshard
from reproduce.method.first_tensor import at_first_tensor
from reproduce.method.restore import Values, tensors_of
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
    """One forward pass that leaves no trace: in eval mode, without gradient, with torch's global generator, the
    model's buffers and the attributes of its modules put back.
    """
    buffers = Values(model.buffers())
    modes = [(module, module.training) for module in model.modules()]
    held = [_Held(module) for module in model.modules()]
    has_fast_path = torch.backends.mha.get_fastpath_enabled()  # around the modules of a transformer
    for module, _ in modes:  # not by eval(), in which an adapter may merge its weights
        module.training = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            if isinstance(example, Mapping):
                model(**example)
            else:
                model(*(example if isinstance(example, tuple | list) else (example,)))
    finally:
        torch.backends.mha.set_fastpath_enabled(has_fast_path)
        reshard(model)
        for each in held:
            each.put_back()
        buffers.put_back()
        for module, training in modes:
            module.training = training


class _Held:
    """The buffers and attributes of a module: a state that it carries from pass to pass, or counts."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.buffers = dict(module._buffers)
        self.attributes = _own_attributes(module)

    def put_back(self) -> None:
        if self.attributes is None:
            return
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        for name in _own_attributes(self.module) or ():
            if name not in self.attributes:
                delattr(self.module, name)
        for name, value in self.attributes.items():
            if vars(self.module).get(name) is not value:
                setattr(self.module, name, value)


def _own_attributes(module: nn.Module) -> dict[str, Any] | None:
    """None of what learns its shape in a pass: a Site, or a lazy module."""
    if isinstance(module, Site | nn.modules.lazy.LazyModuleMixin | torch.jit.ScriptModule):
        return None
    return {name: value for name, value in vars(module).items() if name not in _OF_MODULES}


_OF_MODULES = {*vars(nn.Module()), "_flat_weights", "_flat_weight_refs", "_flat_weights_names"}
