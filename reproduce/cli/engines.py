"""`--engine`: where Runs train, on this machine or on a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reproduce.cli.campaign import Workers, workers_on
from reproduce.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from reproduce.training.cluster.connection import Cluster, Request
    from reproduce.training.side_by_side import Room
    from reproduce.training.workers import Engine

LOCAL, RAY = "local", "ray"

EngineOption = Annotated[str, typer.Option("--engine", help="local: this machine; ray: a cluster, one task a run.")]
AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        help="With --engine ray: the cluster's, auto or host:port; left out, Ray is started here, on loopback alone.",
    ),
]
ResourcesOption = Annotated[
    str,
    typer.Option(
        "--resources",
        help="With --engine ray: what each run has, as cpus=2,gpus=0.25,memory=4G; default: 1 core, which is its "
        "number of threads, and where there are GPUs an eighth of one.",
    ),
]

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        help="With --engine ray: a URL that all nodes reach (file://, s3://, gs://), for checkpoints and Results; left "
        "out, they travel to this machine's --runs.",
    ),
]


@dataclass(frozen=True)
class RayWorkers(Workers):
    """Tasks of a cluster that this process is connected to."""

    cluster: Cluster
    request: Request
    store: str

    @cached_property
    def device_name(self) -> str:
        """Of the node that is asked: a cluster of several kinds of device is estimated by one of them."""
        from reproduce.training.run import device_name, torch_device

        device = self.device
        ask = self.cluster.ray.remote(**self.request.options)(lambda: device_name(torch_device(device)))
        return self.cluster.ray.get(ask.remote())

    @property
    def at_once(self) -> int:
        """On a GPU, as many as have a share of it; else as many as the largest node has room for."""
        if self.request.gpus:
            return int(1 / self.request.gpus + 1e-9)
        return max(self.request.fit(node) for node in self.cluster.nodes())

    def engine(self, n_runs: int) -> Engine:
        from reproduce.training.cluster.engine import RayEngine

        return RayEngine(self.cluster, self.request, self.store)

    def room(self) -> Room:
        from reproduce.training.side_by_side import Room

        return Room(self.how.jobs, capacity=lambda: self.cluster.room_for(self.request))


@dataclass(frozen=True)
class EngineChoice:
    """What was asked for."""

    name: str = LOCAL
    address: str = ""
    resources: str = ""
    store: str = ""

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL

    def check(self, device: str, jobs: int, mode: str) -> None:
        """Refuse what can be refused before anything is read or started.

        Raises:
            UserError: an engine, device, mode, number of jobs or request of resources that there is not; no Ray.
        """
        if self.is_local:
            if self.address or self.resources or self.store:
                raise UserError("--address, --resources and --store are of --engine ray: name it, or leave them out")
            workers_on(device, jobs, 0, mode)
            return
        if self.name != RAY:
            raise UserError(f"--engine {self.name!r}: {did_you_mean(self.name, [LOCAL, RAY])}")
        from reproduce.training.cluster.connection import HOW_TO_INSTALL, parse_request
        from reproduce.training.run import parse_device, step_mode

        if find_spec("ray") is None:
            raise UserError(HOW_TO_INSTALL)
        if jobs < 0:
            raise UserError(f"--jobs {jobs}: expected 0 or more")
        parse_request(self.resources, has_gpus=False)
        if device:
            if parse_device(device).index is not None:
                raise UserError(f"--device {device}: Ray gives each run its GPU: say --device cuda")
            step_mode(mode, parse_device(device))

    def fetch_results(self, runs: Path) -> list[str]:
        """Copy what lies sealed in the shared store, if one was named; a line for each Result that does not read."""
        if not self.store:
            return []
        from reproduce.training.cluster.stores import open_store

        return open_store(self.store).fetch_results(runs)

    def workers(self, context: typer.Context, device: str, jobs: int, n_runs: int, mode: str) -> Workers:
        """The connection to a cluster ends with the command, whose context it is.

        Raises:
            UserError: what `check` refuses; no cluster there, or none of its nodes has what a run is to have.
        """
        if self.is_local:
            return workers_on(device, jobs, n_runs, mode)
        from reproduce.training.cluster.connection import connected, parse_request
        from reproduce.training.run import parse_device, step_mode
        from reproduce.training.side_by_side import SideBySide

        cluster = context.with_resource(connected(self.address))
        chosen = device or ("cuda" if cluster.has_gpus() else "cpu")
        request = parse_request(self.resources, has_gpus=chosen == "cuda")
        if chosen == "cpu":
            request = replace(request, gpus=0.0)
        elif not request.gpus:
            raise UserError(f"--resources {self.resources!r}: a run on a GPU has a share of it: gpus=0.125, say")
        cluster.check(request)
        said = f"{cluster.said}; each run has {request}"
        how = SideBySide(max(1, min(jobs or n_runs, n_runs)), request.cpus, said=said)
        return RayWorkers(chosen, step_mode(mode, parse_device(chosen)), how, cluster, request, self.store)
