"""What each of two processes on the CPU does; the tests of this folder start them once and look at what they found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from methods.orthogonal.method import OrthogonalRegularization
from methods.vcl.method import VCL
from methods.weight_norm_penalty.method import WeightNormPenalty
from reproduce import attach
from reproduce.method import Method, Trace
from tests.unit import ranks_battery

RANKS, STEPS, RATE = 2, 3, 0.1
DDP_OPTIONS: dict[str, dict[str, bool]] = {
    "plain": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
}
SHARDED: dict[str, Method] = {
    "soft": OrthogonalRegularization(strength=0.3),
    "spectral": OrthogonalRegularization(strength=0.3, norm="spectral"),
    "srip": OrthogonalRegularization(strength=0.3, formula="srip", n_iterations=2),
    "cosine": OrthogonalRegularization(strength=0.3, formula="cosine", layers="linear"),
    "l1": WeightNormPenalty(strength=0.3, kind="l1"),
    "l2": WeightNormPenalty(strength=0.3),
}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def attached() -> tuple[nn.Module, Any]:
    model = dense()
    return model, attach(VCL(strength=0.5, sample_size=3), model, sites="pre", example=torch.zeros(8, 4))


def stepped(model: nn.Module, loss: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """The weights after a few steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(step).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def batch(step: int, rank: int) -> Tensor:
    return seeded(8, 4, seed=10 * step + rank)


def with_ddp(rank: int, options: dict[str, bool]) -> dict[str, Tensor]:
    model, handle = attached()
    wrapped = DistributedDataParallel(model, **options)
    stepped(wrapped, lambda step: wrapped(batch(step, rank)).square().mean() + handle.penalty())
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4, 5), nn.Linear(5, 3))


def images(rank: int) -> Tensor:
    return seeded(4, 4, 4, 4, seed=rank)


def penalty_of(method: Method, model: nn.Module) -> Tensor:
    return method.penalty(Trace(model), torch.tensor(0.0), torch.Generator().manual_seed(5))


def with_fsdp2(rank: int, method: Method) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    model, mesh = convolutional(), init_device_mesh("cpu", (RANKS,))
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = penalty_of(method, model).item()
    loss = model(images(rank)).square().mean()
    penalty = penalty_of(method, model)
    (loss + penalty).backward()
    gradients = {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()}
    return {"before": before, "penalty": penalty.item(), "gradients": gradients}


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found = {name: with_ddp(rank, options) for name, options in DDP_OPTIONS.items()}
    found |= {name: with_fsdp2(rank, method) for name, method in SHARDED.items()}
    found |= ranks_battery.battery(rank)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
