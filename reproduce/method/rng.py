"""One seed, one result: every random draw of a Run comes from one of these named generators."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch


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
