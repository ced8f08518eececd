"""A Ray cluster for as long as it is needed: one that is there, or one of this machine alone."""

from __future__ import annotations

import math
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from reproduce.errors import UserError
from reproduce.processors import usable_cores
from reproduce.training.side_by_side import RUNS_ON_A_GPU

HOW_TO_INSTALL = "--engine ray needs Ray, which is not installed: pip install -e '.[ray]'"
LOGGED = "error"  # of what Ray has to say in the driver's terminal


@dataclass(frozen=True)
class Request:
    """What one Run asks of the node that trains it."""

    cpus: int = 1  # and so its number of threads
    gpus: float = 0.0  # or a fraction of one
    memory: int = 0  # bytes; 0: it is not counted

    @property
    def options(self) -> dict[str, Any]:
        """As Ray's tasks take it."""
        asked: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return asked | ({"memory": self.memory} if self.memory else {})

    def fit(self, resources: Mapping[str, float]) -> int:
        """How many such Runs a node with these resources has room for."""
        asked = {"CPU": float(self.cpus), "GPU": self.gpus, "memory": float(self.memory)}
        small = 1e-9  # 8 times 1/8 of a GPU are one GPU
        return min(int(resources.get(name, 0.0) / share + small) for name, share in asked.items() if share)

    def __str__(self) -> str:
        memory = f",memory={self.memory / 2**30:g}G" if self.memory else ""
        return f"cpus={self.cpus}" + (f",gpus={self.gpus:g}" if self.gpus else "") + memory


def parse_request(text: str, has_gpus: bool) -> Request:
    """``cpus=2,gpus=0.25,memory=4G``, in any order, each left out or given; what is left out is the usual.

    Args:
        has_gpus: whether a Run is to have a share of a GPU where the text says nothing of it.

    Raises:
        UserError: another name, or a value that is no such amount.
    """
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in ("cpus", "gpus", "memory") or name in found:
            raise UserError(f"--resources {text!r}: expected each of cpus=N, gpus=SHARE and memory=SIZE once at most")
        found[name] = value
    gpus = _number(found["gpus"], text) if "gpus" in found else (1 / RUNS_ON_A_GPU if has_gpus else 0.0)
    if gpus > 1:
        raise UserError(f"--resources {text!r}: gpus={gpus:g}: one run trains on one GPU or on a part of it")
    cpus = _number(found.get("cpus", "1"), text)
    if cpus < 1 or cpus != int(cpus):
        raise UserError(f"--resources {text!r}: cpus={cpus:g}: expected a whole number of cores, which are its threads")
    return Request(int(cpus), gpus, _bytes(found["memory"], text) if "memory" in found else 0)


def _number(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"--resources {whole!r}: {text!r} is not a number of 0 or more")
    return value


def _bytes(text: str, whole: str) -> int:
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([MG])", text)
    if not found:
        raise UserError(f"--resources {whole!r}: memory={text}: expected a size like 500M or 4G")
    return int(float(found[1]) * {"M": 2**20, "G": 2**30}[found[2]])


@dataclass(frozen=True)
class Cluster:
    """What a driver is connected to."""

    ray: ModuleType
    dashboard: str  # its address; "": there is none

    def nodes(self) -> list[dict[str, float]]:
        """The resources of the nodes that live."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def has_gpus(self) -> bool:
        return any(node.get("GPU", 0.0) > 0 for node in self.nodes())

    def room_for(self, request: Request) -> int:
        """How many such Runs train at once; one that has no node now waits for the next node."""
        return max(1, sum(request.fit(node) for node in self.nodes()))

    def check(self, request: Request) -> None:
        """
        Raises:
            UserError: no node has what a Run is to have.
        """
        if not any(request.fit(node) for node in self.nodes()):
            raise UserError(f"no node of the cluster has {request}, which each run is to have: see --resources")

    @property
    def said(self) -> str:
        """In one line."""
        nodes = self.nodes()
        cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
        has = f"{cpus:g} cores" + (f" and {gpus:g} GPUs" if gpus else "")
        link = f"; dashboard: http://{self.dashboard}" if self.dashboard else ""
        return f"Ray: {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} with {has}{link}"


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster at ``address`` ("auto", "host:port"), or, at "", one of this machine that ends with the block.

    The latter listens on loopback alone and has no dashboard. Neither reports its use to anybody.

    Raises:
        UserError: no Ray, no cluster there, or an address of another kind.
    """
    if "://" in address:
        raise UserError(f"--address {address}: expected auto or host:port, on a machine that is a node of the cluster")
    ray = _ray(is_local=not address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        context = ray.init(**_how(address))
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = " ".join(str(error).split())
        where = f"--address {address}" if address else "Ray"
        raise UserError(f"{where}: cannot connect ({reason[:200]}): start a node with `ray start`") from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would end this process without its checkpoints
    try:
        yield Cluster(ray, context.dashboard_url or "")
    finally:
        ray.shutdown()


def _ray(is_local: bool) -> ModuleType:
    """Ray, which reads these variables when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a node at 127.0.0.1, on any system
    try:
        import ray
    except ImportError as error:
        raise UserError(HOW_TO_INSTALL) from error
    return ray


def _how(address: str) -> dict[str, Any]:
    quiet = {"logging_level": LOGGED, "log_to_driver": False}
    if address:
        return {"address": address, **quiet}
    here = {"address": "local", "num_cpus": usable_cores(), "include_dashboard": False}
    return {**here, "_node_ip_address": "127.0.0.1", **quiet}
