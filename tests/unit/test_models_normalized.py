"""Residual networks with batch normalization inside: published counts, torchvision's networks, blocks written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from reproduce import tasks
from reproduce.data import ImageData, Images
from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import TaskSpec
from reproduce.method import Unregularized
from reproduce.method.rng import Generators
from reproduce.method.sites import sites_of, watch
from reproduce.models import Sizes, build
from reproduce.models.residual import PreActivationBlock
from reproduce.training.step import Step

CPU = torch.device("cpu")
WRN = {"depth": 10, "widen": 2}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **options: Any) -> Any:
    return build(name, options, Sizes(shape, classes), generator(), generator(1))


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "count", "millions"),
    [
        # Zagoruyko & Komodakis 2016, Tables 4 and 5
        ("wide_resnet", {"depth": 28, "widen": 10}, 36_479_194, 36.5),
        ("wide_resnet", {"depth": 16, "widen": 8}, 10_961_370, 11.0),
        ("wide_resnet", {"depth": 40, "widen": 4}, 8_949_210, 8.9),
        ("wide_resnet", {"depth": 40, "widen": 1}, 563_930, 0.6),
        # Xie et al. 2017, Table 7
        ("resnext", {"depth": 29}, 34_426_698, 34.4),
        # what Keras' summary of its example calls trainable
        ("bottleneck_resnet", {"depth": 20}, 570_602, 0.57),
        ("bottleneck_resnet", {"depth": 56}, 1_663_338, 1.66),
        ("bottleneck_resnet", {"depth": 110}, 3_302_442, 3.30),
        ("resnet18", {}, 11_173_962, 11.17),
    ],
)
def test_parameter_counts(name: str, options: dict[str, Any], count: int, millions: float) -> None:
    found = parameter_count(network(name, **options))
    assert found == count
    decimals = len(str(millions).partition(".")[2])
    assert round(found / 1e6, decimals) == millions


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Parameters and buffers in the order in which two networks of the same layers hold them."""
    for kind in ("parameters", "buffers"):
        pairs = itertools.zip_longest(getattr(source, kind)(), getattr(target, kind)())
        for given, taken in pairs:
            taken.data.copy_(given.data)


def images(shape: tuple[int, int, int] = (3, 32, 32), n: int = 4) -> Tensor:
    return torch.randn((n, *shape), generator=generator(7), dtype=torch.float64)


def randomised(model: nn.Module) -> nn.Module:
    """In float64, with scales and shifts that are not 1 and 0, so that a normalization in the wrong place shows."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator(layer.num_features))
            nn.init.normal_(layer.bias, 0.0, 0.5, generator=generator(layer.num_features + 1))
    return model.double()


@pytest.mark.parametrize("training", [True, False])
def test_resnet18_is_torchvisions_with_another_stem(training: bool) -> None:
    ours = randomised(network("resnet18", classes=100)).train(training)
    theirs = torchvision.models.resnet18(num_classes=100, weights=None)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    assert parameter_count(theirs) == parameter_count(ours)
    theirs = theirs.double().train(training)
    copy_in_order(ours, theirs)
    torch.testing.assert_close(ours(images()), theirs(images()))


def test_resnext_is_made_of_torchvisions_bottlenecks() -> None:
    ours = randomised(network("resnext", depth=20, cardinality=4, width=6, stem=8))
    blocks: list[nn.Module] = []
    inputs = 8
    for planes, stride in ((8, 1), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1)):
        shortcut = None
        if inputs != 4 * planes:
            shortcut = nn.Sequential(nn.Conv2d(inputs, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
        # torchvision counts widths in 64ths of planes: 6 channels a group where planes are 8
        blocks.append(Bottleneck(inputs, planes, stride, shortcut, groups=4, base_width=48))
        inputs = 4 * planes
    theirs = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)),
    ).double()
    copy_in_order(ours, theirs)
    torch.testing.assert_close(ours(images()), theirs(images()))


def normalised(value: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    """By hand, over batch and space."""
    mean = value.mean((0, 2, 3), keepdim=True)
    variance = (value - mean).square().mean((0, 2, 3), keepdim=True)
    scale, shift = (parameter.view(1, -1, 1, 1) for parameter in (layer.weight, layer.bias))
    return scale * (value - mean) / (variance + layer.eps).sqrt() + shift


@pytest.mark.parametrize("index", [0, 1])
def test_a_wide_block_written_out(index: int) -> None:
    """The first block of a stage projects what is activated; the others pass what is not."""
    block = randomised(network("wide_resnet", depth=16, widen=2)).blocks[2 + index]
    x = images((32 if index == 0 else 64, 8, 8))
    first = F.relu(normalised(x, block.activations[0].layer))
    stride = 2 - index
    hidden = F.conv2d(first, block.convolutions[0].weight, stride=stride, padding=1)
    hidden = F.relu(normalised(hidden, block.activations[1].layer))
    branch = F.conv2d(hidden, block.convolutions[1].weight, padding=1)
    identity = x if index else F.conv2d(first, block.projection.weight, stride=2)
    torch.testing.assert_close(block(x), identity + branch)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_bottleneck_block_written_out(index: int) -> None:
    """The first block of all reads the stem as it is; projections read what is not activated, and have biases."""
    block: PreActivationBlock = randomised(network("bottleneck_resnet", depth=20)).blocks[index]
    for parameter in block.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator(3))
    x = images((16 if index == 0 else 64, 8, 8))
    stride = 2 if index == 2 else 1
    value = x if index == 0 else F.relu(normalised(x, block.activations[0].layer))
    for number, (layer, kernel) in enumerate(zip(block.convolutions, (1, 3, 1), strict=True)):
        if number:
            value = F.relu(normalised(value, block.activations[number].layer))
        value = F.conv2d(value, layer.weight, layer.bias, stride if number == 0 else 1, kernel // 2)
    identity = x if index == 1 else F.conv2d(x, block.projection.weight, block.projection.bias, stride)
    torch.testing.assert_close(block(x), identity + value)


def test_dropout_of_a_wide_block_lies_before_its_last_convolution() -> None:
    model = network("wide_resnet", **WRN, dropout=0.5)
    block = model.blocks[0]
    seen: list[Tensor] = []
    block.convolutions[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    trace = watch(model)
    model(images().float())
    after = next(record.activation for record in trace.records if record.site is block.activations[1].post)
    kept = seen[0] != 0
    torch.testing.assert_close(seen[0][kept], 2 * after[kept])
    dropped = ((seen[0] == 0) & (after > 0)).sum() / (after > 0).sum()
    assert abs(dropped - 0.5) < 0.02
    given: list[Tensor] = []
    block.activations[1].register_forward_hook(lambda module, inputs, output: given.append(output))
    model.eval()(images().float())
    assert torch.equal(seen[1], given[0])


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("wide_resnet", {"depth": 28}, 25),  # before each convolution but the stem's, and before pooling
        ("bottleneck_resnet", {"depth": 29}, 28),  # stem, 3 a block but for the first block's first, before pooling
        ("resnext", {"depth": 29, "cardinality": 2, "width": 4, "stem": 4}, 28),
        ("resnet18", {"width": 4}, 17),
        ("resnet18", {"width": 4, "sites": "blocks"}, 8),
    ],
)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 15, 10)])
def test_every_relu_has_its_two_sites(
    name: str, options: dict[str, Any], count: int, shape: tuple[int, int, int]
) -> None:
    model = network(name, shape, **options)
    trace = watch(model)
    model(images(shape).float())
    assert [record.site for record in trace.records] == list(sites_of(model))
    pre, post = trace.select("pre"), trace.select("post")
    assert len(pre) == len(post) == count
    for before, after in zip(pre, post, strict=True):
        torch.testing.assert_close(after.activation, F.relu(before.activation))
        assert before.activation.shape[1:] == before.site.shape
    halvings = 3 if name == "resnet18" else 2
    assert post[-1].site.shape is not None
    assert post[-1].site.shape[1:] == tuple(math.ceil(side / 2**halvings) for side in shape[1:])


def test_sites_at_blocks_alone_leave_the_network_as_it_is() -> None:
    every, blocks = (network("resnet18", width=4, sites=sites) for sites in ("every", "blocks"))
    assert torch.equal(every(images().float()), blocks(images().float()))
    trace, outputs = watch(blocks), []
    for block in blocks.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    blocks(images().float())
    assert all(
        torch.equal(record.activation, output) for record, output in zip(trace.select("post"), outputs, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "options", "scaled"),
    [
        ("wide_resnet", {"depth": 16, "widen": 4}, lambda weight: weight[:, 0].numel() / 2),
        ("resnext", {"depth": 29, "cardinality": 4, "width": 8, "stem": 8}, lambda weight: weight[:, 0].numel() / 2),
        ("bottleneck_resnet", {"depth": 29}, lambda weight: weight[0].numel() / 2),
        ("resnet18", {"width": 16}, lambda weight: 3 * weight[0].numel()),
    ],
)
def test_initial_weights(name: str, options: dict[str, Any], scaled: Any) -> None:
    """Variances 2 / fan_out, 2 / fan_in and 1 / (3 fan_in), to three standard errors of normal weights."""
    model = network(name, **options)
    weights = [layer.weight.detach() for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    found = torch.cat([(weight * math.sqrt(scaled(weight))).flatten() for weight in weights]).double()
    assert abs(found.square().mean() - 1) < 3 * math.sqrt(2 / found.numel())
    biases = [layer.bias for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None]
    assert (len(biases) > 0) == (name == "bottleneck_resnet")
    assert not any(bias.any() for bias in biases)
    assert bool(model.classifier.bias.any()) == (name == "resnet18")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wide_resnet", {"depth": 28, "widen": 10, "dropout": 0.3}),
        ("wide_resnet", {"depth": 16, "widen": 8, "dropout": 0.4}),
        ("bottleneck_resnet", {"depth": 110}),
        ("resnext", {"depth": 29}),
        ("resnet18", {"sites": "blocks"}),
    ],
)
def test_the_full_networks_train(name: str, options: dict[str, Any]) -> None:
    """Two steps and an evaluation of what the papers trained, on small images."""
    pixels = torch.randint(0, 256, (12, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    split = Images(pixels, torch.arange(12) % 3)
    data = ImageData(DatasetCard.model_construct(name="tiny"), split, None, split, 3, "here")
    spec = {"kind": "image_classification", "dataset": "tiny", "model": name, "model_options": options}
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.01, momentum=0.9, eval_batch_size=4, probe_examples=4)
    generators = Generators.seeded(0, CPU)
    task = tasks.build(TaskSpec.model_validate(spec), recipe, data, generators, CPU)
    step = Step(task, Unregularized(), recipe, generators, CPU)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.start_epoch()
    for _ in range(2):
        step()
        assert math.isfinite(float(step.loss))
    moved = [name for name, value in task.model.state_dict().items() if not torch.equal(value, before[name])]
    # A bias right before a normalization has no gradient but rounding's, which may be none.
    still = before.keys() - set(moved)
    assert not still or (name == "bottleneck_resnet" and all(key.endswith("bias") for key in still))
    assert 0 <= task.evaluate()["test"]["error"] <= 100
