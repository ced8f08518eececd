"""One seed, one result: every random draw of a Run comes from one of these named generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor


def derived_seed(seed: int, name: str) -> int:
    """A 63-bit seed for one named stream, so that streams of neighbouring seeds share nothing."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Generators:
    """The streams of a Run. Arms with the same seed share all of them, so their differences are paired."""

    initialisation: torch.Generator  # CPU: the same weights on every device
    order: torch.Generator  # CPU: the same batches on every device
    augmentation: torch.Generator
    dropout: torch.Generator
    method: torch.Generator  # all that a method may draw from

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> Generators:
        cpu = torch.device("cpu")
        homes = {"initialisation": cpu, "order": cpu}
        made = {}
        for field in fields(cls):
            generator = torch.Generator(homes.get(field.name, device))
            made[field.name] = generator.manual_seed(derived_seed(seed, field.name))
        return cls(**made)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {field.name: getattr(self, field.name).get_state() for field in fields(self)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for field in fields(self):
            getattr(self, field.name).set_state(state[field.name].cpu())


class GlobalRandomness:
    """The state of the global generators: torch's of the CPU and of other devices, NumPy's and Python's.

    Args:
        devices: where something may draw, beside the CPU.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.devices = [device for device in dict.fromkeys(devices) if device.type not in ("cpu", "meta")]
        self.before = self._now()
        self.of_others = np.random.get_state(), random.getstate()

    def is_as_before(self) -> bool:
        """Of torch's."""
        return all(map(torch.equal, self._now(), self.before))

    def put_back(self) -> None:
        torch.set_rng_state(self.before[0])
        np.random.set_state(self.of_others[0])
        random.setstate(self.of_others[1])
        for device, state in zip(self.devices, self.before[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, device)

    def _now(self) -> list[Tensor]:
        others = [torch.get_device_module(device).get_rng_state(device) for device in self.devices]
        return [torch.get_rng_state(), *others]
