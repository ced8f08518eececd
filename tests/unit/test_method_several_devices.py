"""Two processes on the CPU train every method, and its card says what of it belongs to one device's own batch."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from reproduce import attach
from reproduce.bench.tiny_tasks import configurations
from reproduce.experiment.folder import METHODS, MethodFolder, all_methods
from reproduce.method import Method
from reproduce.report.method_card import MethodCard

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


def configured(name: str, params: dict[str, Any]) -> Method:
    return FOLDERS[name].load().model_validate_json(json.dumps(params))


CONFIGURATIONS: dict[str, Method] = {
    **{f"{name}-{key}": method for name in FOLDERS for key, method in configurations(FOLDERS[name]).items()},
    **{f"{name}-{params}": configured(name, params) for name, others in MORE.items() for params in others},
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
    return "dropped" in method.recorded_roles


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
    return attach(method, model, {prefix + name: role for name, role in sites.items()}, rows_of(method, 0))


def trained(method: Method, rank: int | None, order: str = ORDERS[0]) -> dict[str, Tensor]:
    """Parameters, buffers and the optimiser's state after a few steps, or of one process with the whole batch."""
    model, own = made(method), slice(0, RANKS) if rank is None else slice(rank, rank + 1)
    whole: nn.Module = model
    if order == ORDERS[0]:
        handle = attached(method, model)
        whole = model if rank is None else DistributedDataParallel(model)
    else:
        whole = DistributedDataParallel(model)
        handle = attached(method, model) if order == ORDERS[1] else attached(method, whole, "module.")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        rows = rows_of(method, step, own)
        loss = (whole(rows) - rows).square().mean()
        (loss + handle.penalty(progress=step / STEPS)).backward()
        optimizer.step()
        handle.after_step(optimizer)
    with torch.no_grad():
        whole.eval()(rows)  # buffers are sent before a forward pass
    found = {name: value.detach().clone() for name, value in model.state_dict().items()}
    moments = (optimizer.state[parameter] for parameter in model.parameters() if parameter in optimizer.state)
    return found | {f"moment {index}": state["momentum_buffer"].clone() for index, state in enumerate(moments)}


def passed(method: Method, ranks: slice) -> tuple[Tensor, Tensor]:
    """Output and penalty of the first forward pass."""
    model = made(method)
    handle = attached(method, model)
    output = model(rows_of(method, 0, ranks)).detach()
    return output, handle.penalty(progress=0.5).detach()


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    found: dict[str, Any] = {}
    for name, method in CONFIGURATIONS.items():
        found[name] = {"pass": passed(method, slice(rank, rank + 1))}
        for order in ORDERS:
            with refusals(found[name], order):
                found[name][order] = trained(method, rank, order)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@contextlib.contextmanager
def refusals(found: dict[str, Any], order: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        found[order] = str(error)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes found."""
    folder = Path(tmp_path_factory.mktemp("ranks"))
    multiprocessing.spawn(process, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def is_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_process_has_the_same_model(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (found[name][ORDERS[0]] for found in ranks)
    assert is_alike(first, second)
    before = made(CONFIGURATIONS[name]).state_dict()
    assert not torch.equal(first["decoder.weight"], before["decoder.weight"])


@pytest.mark.parametrize("order", ORDERS[1:])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_attaching_after_wrapping_is_right_or_refused(ranks: list[dict[str, Any]], name: str, order: str) -> None:
    method = CONFIGURATIONS[name]
    model = made(method)
    known = set(model.parameters())
    attached(method, model)
    if known.issuperset(model.parameters()):
        assert is_alike(ranks[0][name][order], ranks[1][name][order])
        for key, value in made(method).state_dict().items():  # a buffer may be the wrapper's
            assert torch.equal(ranks[0][name][order][key], ranks[0][name][ORDERS[0]][key]), value
    else:
        for found in ranks:
            assert re.fullmatch(
                r"the method adds the parameter '[\w.]+', and DistributedDataParallel was there before it, .*: "
                r"attach\(\) to the model first, and then DistributedDataParallel\(model\)",
                found[name][order],
            )


def test_what_is_resampled_is_resampled_in_every_process(ranks: list[dict[str, Any]]) -> None:
    name = next(name for name, method in CONFIGURATIONS.items() if getattr(method, "resample_until", 0) == 1)
    for found in ranks:
        assert (found[name][ORDERS[0]]["encoder.0.bias"] > -1).all()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_card_says_whether_the_split_matters(ranks: list[dict[str, Any]], name: str) -> None:
    method = CONFIGURATIONS[name]
    output, penalty = passed(method, slice(0, RANKS))
    outputs, penalties = zip(*(found[name]["pass"] for found in ranks), strict=True)
    is_same = torch.allclose(torch.stack(penalties).mean(), penalty, rtol=1e-5, atol=0)
    is_same = is_same and torch.allclose(torch.cat(outputs), output, rtol=1e-5, atol=1e-6)
    said = MethodCard(FOLDERS[name.partition("-")[0]].path).batch_of(method.model_dump(mode="json"))
    assert said == ("any split" if is_same else "own batch"), (penalties, penalty)
    if is_same and not method.acts_after_step:
        for key, value in trained(method, None).items():
            torch.testing.assert_close(ranks[0][name][ORDERS[0]][key], value, rtol=1e-4, atol=1e-5)
