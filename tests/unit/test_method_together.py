"""Losses of all Sites together: the bits of each Site's loss alone, in far fewer operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from methods.energy_distance.method import EnergyDistance, energy_distance
from methods.per.method import PER, per_loss
from methods.sigreg.method import SIGReg, sigreg
from methods.vcl.method import VCL, variance_constancy_loss
from reproduce import models
from reproduce.data import ImageData, Images
from reproduce.experiment.dataset_card import DatasetCard, Statistics
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Method, Record, losses_together, mean_of_each, sum_of_each
from reproduce.method.rng import Generators
from reproduce.method.sites import Trace, watch
from reproduce.models import Sizes
from reproduce.training.host import build_task
from reproduce.training.step import Step

CPU = torch.device("cpu")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_sites_that_are_alike_share_a_call_and_keep_their_order() -> None:
    calls = []

    def losses(activations: list[Tensor], weight: float, order: list[Tensor] | None) -> Tensor:
        calls.append((len(activations), weight, None if order is None else len(order)))
        return weight * torch.stack([h.sum() for h in activations])

    last = seeded(2, 3, 4, 5).to(memory_format=torch.channels_last)
    activations = [torch.full((2,), 1.0), torch.full((3,), 1.0), torch.full((2,), 2.0), torch.full((2,), 3.0)]
    activations += [last.contiguous(), last, torch.full((2,), 1.0, dtype=torch.float64)]
    orders = [torch.arange(2), None, torch.arange(2), torch.arange(2), None, None, None]
    found = losses_together(losses, activations, [1.0, 2.0, 1.0, 5.0, 1.0, 1.0, 1.0], orders)
    wanted = [2.0, 6.0, 4.0, 30.0, last.sum().item(), last.sum().item(), 2.0]
    torch.testing.assert_close(found, torch.tensor(wanted).to(found.dtype))
    assert calls == [(2, 1.0, 2), (1, 2.0, None), (1, 5.0, 1), (1, 1.0, None), (1, 1.0, None), (1, 1.0, None)]


def test_entries_are_given_for_every_site() -> None:
    with pytest.raises(ValueError, match="shorter"):
        losses_together(lambda h, weight: h[0], [torch.ones(2), torch.ones(2)], [1.0])


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 35, 20), (3, 16, 8, 8), (3, 2**15 - 1), (3, 2**15 + 5)])
def test_sums_and_means_are_those_of_each_alone(shape: tuple[int, ...], threads: int) -> None:
    stacked = seeded(*shape).exp()
    assert torch.equal(sum_of_each(stacked), torch.stack([own.sum() for own in stacked]))
    assert torch.equal(mean_of_each(stacked), torch.stack([own.mean() for own in stacked]))


def convolutional() -> tuple[nn.Module, tuple[Any, ...]]:
    model = models.build("resnet", {"depth": 14}, Sizes((3, 8, 8), 5), torch.Generator().manual_seed(1), None)
    with torch.no_grad():  # Fixup starts from zeros, at which too much is equal
        for parameter in model.parameters():
            parameter.add_(0.1 * seeded(*parameter.shape, seed=2))
    images = seeded(35, 3, 8, 8).to(memory_format=torch.channels_last)
    return model.to(memory_format=torch.channels_last), (images,)


def recurrent() -> tuple[nn.Module, tuple[Any, ...]]:
    options = {"hidden": 9, "layers": 3}
    model = models.build("lstm", options, Sizes((), 7), torch.Generator().manual_seed(1), torch.Generator())
    return model, (torch.arange(13 * 11).view(13, 11) % 7, model.initial_state(11))


def of_maps(loss: Callable[..., Tensor], *options: Any) -> Callable[..., Tensor]:
    return lambda record, generator: loss(record.activation, 3, *options)


def of_times(loss: Callable[..., Tensor], *options: Any) -> Callable[..., Tensor]:
    return lambda record, generator: loss(record.activation, 1, *options, generator)


def with_betas(record: Record, generator: torch.Generator) -> Tensor:
    is_recurrent = record.site.axes == "tnc"
    activations = record.activation.transpose(0, 1) if is_recurrent else record.activation
    return variance_constancy_loss(activations, record.site.beta)


ALONE: dict[str, tuple[Method, Callable[[], tuple[nn.Module, tuple[Any, ...]]], Callable[..., Tensor]]] = {
    "per of maps": (PER(strength=0.3), convolutional, of_maps(per_loss)),
    "per of times": (PER(strength=0.3), recurrent, lambda record, generator: per_loss(record.activation)),
    "vcl of maps": (VCL(strength=0.3), convolutional, with_betas),
    "vcl of times": (VCL(strength=0.3, sites="post"), recurrent, with_betas),
    "energy of maps": (EnergyDistance(strength=0.3), convolutional, of_maps(energy_distance, 8)),
    "energy of times": (EnergyDistance(strength=0.3, group_size=10), recurrent, of_times(energy_distance, 10)),
    "sigreg of maps": (SIGReg(strength=0.3), convolutional, of_maps(sigreg, 16)),
    "sigreg of times": (SIGReg(strength=0.3, group_size=10), recurrent, of_times(sigreg, 10)),
}


@pytest.mark.parametrize("name", ALONE)
def test_all_sites_together_give_the_bits_of_each_alone(name: str, threads: int) -> None:
    method, build, loss = ALONE[name]

    def separately(trace: Trace, generator: torch.Generator) -> Tensor:
        return 0.3 * torch.stack([loss(record, generator) for record in trace.select(method.sites)]).sum()

    def together(trace: Trace, generator: torch.Generator) -> Tensor:
        return method.penalty(trace, torch.tensor(0.5), generator)

    found = []
    for penalty in (separately, together):
        model, inputs = build()
        method.prepare(model, torch.Generator())
        trace = watch(model.train())
        outputs = model(*inputs)
        task_loss = (outputs[0] if isinstance(outputs, tuple) else outputs).square().mean()
        value = penalty(trace, torch.Generator().manual_seed(3))
        (value + task_loss).backward()
        gradients = {place: parameter.grad for place, parameter in model.named_parameters()}
        found.append((value, gradients))
    (value, gradients), (joint_value, joint_gradients) = found
    assert value != 0
    assert torch.equal(joint_value, value)
    for place, gradient in gradients.items():
        assert torch.equal(joint_gradients[place], gradient), place


class Operations(TorchDispatchMode):
    """Counts the operations that compute something: views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("method", "limit"),
    [(PER(), 900), (VCL(), 1500), (EnergyDistance(), 1500), (SIGReg(), 1500)],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else value,
)
def test_a_step_of_a_deep_network_has_few_operations(method: Method, limit: int) -> None:
    """A step of ResNet-56 at batch 128: on a GPU each of its operations takes microseconds to start.

    On images of 8 x 8 they are as many as on larger ones.
    """
    labels = torch.arange(128) % 10
    split = Images(torch.randint(0, 256, (128, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), labels)
    statistics = Statistics(mean=(0.5,) * 3, std=(0.3,) * 3, source="made here")
    card = DatasetCard.model_construct(name="noise", statistics=statistics)
    data = ImageData(card=card, train=split, validation=None, test=split, classes=10, origin="made here")
    spec = TaskSpec(kind="image_classification", dataset="noise", model="resnet", model_options={"depth": 56})
    recipe = Recipe(steps=2, batch_size=128, learning_rate=0.1, momentum=0.9)
    generators = Generators.seeded(0, CPU)
    task = build_task(spec, recipe, data, generators, CPU)
    step = Step(task, method, recipe, generators, CPU)
    task.start_epoch()
    step()  # what is made once and kept
    with Operations() as operations:
        step()
    assert torch.isfinite(step.penalty)
    assert operations.count <= limit
