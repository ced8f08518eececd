"""What each of two processes on the CPU does; the tests of this folder start them once and look at what they found."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from reproduce import attach
from reproduce.bench.tiny_tasks import configurations
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods
from reproduce.method import Method

RANKS, STEPS, ROWS = 2, 3, 12  # rows of each process
FOLDERS = {**all_methods(), "_template": MethodFolder("_template", METHODS / "_template")}
# Beside the defaults and variants of each method: what its card makes an exception of, and other things that it keeps.
MORE: dict[str, list[dict[str, Any]]] = {
    "activity_norm": [{"kind": "ar_tar", "strength": 0.1, "temporal_strength": 0.1}, {"reduction": "mean"}],
    "activity_prior": [
        {"across": "units"},
        {"across": "all"},
        {"distance": "moments"},
        {"across": "units", "mode": "l2_after_batchnorm"},
    ],
    "orthogonal": [{"formula": "srip", "redraw": False}, {"norm": "spectral"}],
    "per": [{"reduction": "sum"}, {"mode": "limit"}, {"mode": "sliced", "reduction": "sum"}],
    "sigreg": [{"reduction": "mean"}, {"mode": "weak", "n_slices": 4}],
    "sparse_autoencoder": [
        {"reduction": "batch_sum"},
        {"kl_coefficient": 0.1},
        {"l1_coefficient": 0.1, "norm_weighted": True},
        {"l1_coefficient": 0.1, "resample_every": 2, "resample_until": 1.0},
    ],
    "vcl": [{"learn_beta": False}],
    "vcreg": [{"covariance_strength": 0.0, "target_std": 4.0}],
}
ORDERS = ("attach, wrap", "wrap, attach to the module", "wrap, attach to the wrapper")
SHARDINGS = {  # of an FSDP2 model: which layers are cut, beside what is left of the whole
    "one part": None,
    "layers": {},
    "layers that stay whole": {"reshard_after_forward": False},
}


def configured(name: str, params: dict[str, Any]) -> Method:
    return FOLDERS[name].load().model_validate_json(json.dumps(params))


CONFIGURATIONS: dict[str, Method] = {
    **{f"{name}-{key}": method for name in FOLDERS for key, method in configurations(FOLDERS[name]).items()},
    **{f"{name}-{params}": configured(name, params) for name, others in MORE.items() for params in others},
}

TRIED_SHARDINGS = {"vcl": list(SHARDINGS), "norms of the decoder": list(SHARDINGS), "batchnorm": ["layers"]}
ACCUMULATED = configured("vcl", {"strength": 0.5})
IN_SHARDS = {
    "per": configured("per", {"strength": 0.1}),
    "vcl": configured("vcl", {"strength": 0.5}),
    "batchnorm": configured("batchnorm", {}),
    "initialised": configured("variance_preserving_init", {}),
    "norms of the decoder": configured("sparse_autoencoder", {"l1_coefficient": 0.1, "norm_weighted": True}),
    "resampled": configured("sparse_autoencoder", {"l1_coefficient": 0.1, "resample_every": 2}),
}


class Autoencoder(nn.Module):
    """Three latents of ten are silent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
        self.decoder = nn.Linear(10, 6)
        nn.init.constant_(self.encoder[0].bias[:3], -20.0)

    def forward(self, rows: Tensor) -> Tensor:
        return self.decoder(self.encoder(rows))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.drop, self.decoder = nn.LSTM(6, 5, batch_first=True), nn.Dropout(0.0), nn.Linear(5, 6)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.decoder(self.drop(self.rnn(sequences)[0]))


def is_recurrent(method: Method) -> bool:
    return "dropped" in method.recorded_roles or type(method).__name__ == "RecurrentBatchNorm"


def made(method: Method) -> nn.Module:
    return Recurrent() if is_recurrent(method) else Autoencoder()


def rows_of(method: Method, step: int, ranks: slice = slice(0, RANKS)) -> Tensor:
    """The same whole batch everywhere; a process takes its own part."""
    shape = (3, 6) if is_recurrent(method) else (6,)
    whole = torch.randn(RANKS, ROWS, *shape, generator=torch.Generator().manual_seed(step))
    return whole[ranks].flatten(0, 1)


def attached(method: Method, model: nn.Module, prefix: str = "") -> Any:
    role = getattr(method, "sites", "pre")
    sites = {"encoder.0" if role == "pre" else "encoder.1": role}
    if is_recurrent(method):
        sites = {"rnn": "post", "drop": "dropped"}
    elif type(method).__name__ == "LatentDensity":  # one layer is decoded from another
        sites = {"encoder.0": role, "encoder.1": role}
    return attach(method, model, {prefix + name: role for name, role in sites.items()}, rows_of(method, 0))


def stepped(method: Method, whole: nn.Module, handle: Any, rank: int | None) -> torch.optim.Optimizer:
    """A few steps, of one process or with the whole batch."""
    own = slice(0, RANKS) if rank is None else slice(rank, rank + 1)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        rows = rows_of(method, step, own)
        loss = (whole(rows) - rows).square().mean()
        (loss + handle.penalty(progress=step / STEPS, source_examples=len(rows) // 2)).backward()
        optimizer.step()
        handle.after_step(optimizer)
    with torch.no_grad():
        whole.eval()(rows)  # buffers are sent before a forward pass
    return optimizer


def trained(method: Method, rank: int | None, order: str = ORDERS[0]) -> dict[str, Tensor]:
    """Parameters, buffers and the optimiser's state after a few steps, or of one process with the whole batch."""
    model = made(method)
    whole: nn.Module = model
    if order == ORDERS[0]:
        handle = attached(method, model)
        whole = model if rank is None else DistributedDataParallel(model)
    else:
        whole = DistributedDataParallel(model)
        handle = attached(method, model) if order == ORDERS[1] else attached(method, whole, "module.")
    optimizer = stepped(method, whole, handle, rank)
    found = {name: value.detach().clone() for name, value in model.state_dict().items()}
    moments = (optimizer.state[parameter] for parameter in model.parameters() if parameter in optimizer.state)
    return found | {f"moment {index}": state["momentum_buffer"].clone() for index, state in enumerate(moments)}


def passed(method: Method, ranks: slice) -> tuple[Tensor, Tensor]:
    """Output and penalty of the first forward pass."""
    model = made(method)
    handle = attached(method, model)
    output = model(rows_of(method, 0, ranks)).detach()
    return output, handle.penalty(progress=0.5, source_examples=len(output) // 2).detach()


def trained_in_shards(method: Method, rank: int, layers: dict[str, Any] | None, is_attached_first: bool) -> Any:
    """The whole parameters after a few steps with FSDP2."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    model = made(method)
    handle = attached(method, model) if is_attached_first else None
    for layer in (model.encoder[0], model.decoder) if layers is not None else ():
        fully_shard(layer, mesh=init_device_mesh("cpu", (RANKS,)), **layers)
    fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
    handle = handle or attached(method, model)
    stepped(method, model, handle, rank)
    for part in model.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # the last forward pass left it whole
    return {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}


def accumulated(method: Method, rank: int | None) -> dict[str, Tensor]:
    """Weights after steps of two batches each, of which the first is not sent; or of one process with all four."""
    model = made(method)
    handle = attached(method, model)
    whole = DistributedDataParallel(model) if rank is not None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        batches = [(part, own) for part in range(2) for own in (range(RANKS) if rank is None else (rank,))]
        for part, own in batches:
            rows = rows_of(method, 2 * step + part, slice(own, own + 1))
            with whole.no_sync() if rank is not None and part == 0 else contextlib.nullcontext():
                loss = (whole(rows) - rows).square().mean() + handle.penalty()
                (loss / len(batches)).backward()
        optimizer.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@contextlib.contextmanager
def refusals(found: dict[str, Any], key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        found[key] = str(error)


def battery(rank: int) -> dict[str, Any]:
    """What one process finds for every configuration, and for those that FSDP2 is tried with."""
    found: dict[str, Any] = {"in shards": {}, "accumulated": accumulated(ACCUMULATED, rank)}
    tried = set()
    for name, method in CONFIGURATIONS.items():
        found[name] = {"pass": passed(method, slice(rank, rank + 1))}
        for order in ORDERS if type(method) not in tried else ORDERS[:2]:
            with refusals(found[name], order):
                found[name][order] = trained(method, rank, order)
        tried.add(type(method))
    for name, method in IN_SHARDS.items():
        found["of " + name] = trained(method, rank)
        for sharding in TRIED_SHARDINGS.get(name, ["one part"]):
            for is_attached_first in (True, False):
                key = f"{name}, {sharding}, {'attached' if is_attached_first else 'cut'} first"
                with refusals(found["in shards"], key):
                    found["in shards"][key] = trained_in_shards(method, rank, SHARDINGS[sharding], is_attached_first)
    return found
