"""What nodes and driver say to each other while Runs train. It passes through an actor beside the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Letter:
    """What a node has to say of one attempt at a Run since its last one."""

    attempt: int
    news: list[bytes] = field(default_factory=list)  # lists of news, pickled: who passes them on loads no torch for it
    files: dict[str, bytes] = field(default_factory=dict)  # of the Run's folder, by name


class PostOffice:
    """Keeps letters until the driver collects them. Of a file it keeps the newest: the driver may be slow."""

    def __init__(self) -> None:
        self._letters: dict[int, Letter] = {}
        self._stopping = False

    def hand_in(self, letter: Letter) -> bool:
        """Whether Runs are to stop."""
        if letter.news or letter.files:
            kept = self._letters.setdefault(letter.attempt, Letter(letter.attempt))
            kept.news += letter.news
            kept.files |= letter.files
        return self._stopping

    def collect(self) -> list[Letter]:
        letters, self._letters = self._letters, {}
        return list(letters.values())

    def stop(self) -> None:
        self._stopping = True


def post_office(ray: Any) -> Any:
    """An office as an actor on this node, which asks for no core; where this node ends, so does the driver."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(PostOffice).options(scheduling_strategy=here).remote()
