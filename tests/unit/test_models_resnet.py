"""Residual networks: exact counts, Fixup's start, and one block of each kind written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reproduce.method.sites import sites_of, watch
from reproduce.models import Sizes, build
from reproduce.models.resnet import FixupBlock, HeBlock


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def residual_network(shape=(3, 32, 32), **options):
    return build("resnet", options, Sizes(shape, 10), generator(), None)


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("depth", "count"), [(56, 849_091), (110, 1_720_138)])
def test_fixup_parameter_counts(depth, count):
    assert parameter_count(residual_network(depth=depth)) == count


@pytest.mark.parametrize(
    ("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)]
)
def test_he_parameter_counts_with_batch_normalisation_in_every_pre_site(depth, count):
    model = residual_network(depth=depth, variant="he")
    for site in sites_of(model):
        if site.role == "pre":
            site.transform = nn.BatchNorm2d(site.features)
    assert parameter_count(model) == count


@pytest.mark.parametrize("variant", ["fixup", "he"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 15, 10)])
def test_every_convolution_has_a_pre_and_a_post_site(variant, shape):
    model = residual_network(shape, depth=14, width=4, variant=variant)
    trace = watch(model)
    model(torch.randn(2, *shape, generator=generator()))
    for role in ("pre", "post"):
        maps = [record.activation.shape[1:] for record in trace.select(role)]
        assert len(maps) == 13
        assert maps == [site.shape for site in sites_of(model) if site.role == role]
        height, width = math.ceil(shape[1] / 4), math.ceil(shape[2] / 4)
        assert maps[-1] == (16, height, width)
    assert all((record.activation >= 0).all() for record in trace.select("post"))
    assert any((record.activation < 0).any() for record in trace.select("pre"))


def test_fixup_starts_as_the_identity_with_zero_logits():
    model = residual_network((3, 16, 16), depth=20)
    stem: list[torch.Tensor] = []
    model.post.register_forward_hook(lambda module, inputs, output: stem.append(output))
    last: list[torch.Tensor] = []
    model.blocks.register_forward_hook(lambda module, inputs, output: last.append(output))
    logits = model(torch.randn(2, 3, 16, 16, generator=generator()))
    assert torch.equal(logits, torch.zeros(2, 10))
    assert torch.equal(last[0][:, :16], stem[0][:, :, ::4, ::4])
    assert not last[0][:, 16:].any()
    assert stem[0].any()


def test_fixup_initial_weights():
    """Branch convolutions N(0, 2 / fan_out / blocks) within 3 standard errors; stem U(+-1 / sqrt(27))."""
    model = residual_network(depth=56)
    assert len(model.blocks) == 27
    for channels in (16, 32, 64):
        found = [block.conv_1.weight for block in model.blocks if block.shape[0] == channels]
        weights = torch.cat([weight.detach().flatten() for weight in found]).double()
        variance = 2 / (9 * channels) / 27
        assert abs(weights.square().mean() / variance - 1) < 3 * math.sqrt(2 / weights.numel())
    stem = model.conv.weight.detach()
    assert 0.98 / math.sqrt(27) < stem.abs().max() <= 1 / math.sqrt(27)
    assert residual_network(depth=56, stem_initialisation="he").conv.weight.abs().max() > 1 / math.sqrt(27)
    assert [parameter.item() for name, parameter in model.named_parameters() if "scale" in name] == [1.0] * 27


def test_he_initial_weights():
    model = residual_network(depth=20, variant="he")
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 19
    scaled = torch.cat(
        [layer.weight.detach().flatten() * math.sqrt(layer.weight[0].numel() / 2) for layer in convolutions]
    ).double()
    assert abs(scaled.square().mean() - 1) < 3 * math.sqrt(2 / scaled.numel())
    assert not model.classifier.bias.any()
    assert model.classifier.weight.all()


@pytest.mark.parametrize("inputs", [6, 3])
def test_a_fixup_block_in_float64(inputs):
    """Against the block of the authors' code: pooling of (x + bias1a) where the map is halved."""
    halved = inputs == 3
    block = FixupBlock(inputs, (6, 4, 4) if halved else (6, 8, 8)).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, generator=generator(parameter.numel()))
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64, generator=generator(9))
    stride = 2 if halved else 1
    trace = watch(block)
    result = block(x)
    before = F.conv2d(x + block.bias_1a, block.conv_1.weight, stride=stride, padding=1) + block.bias_1b
    hidden = F.relu(before)
    out = F.conv2d(hidden + block.bias_2a, block.conv_2.weight, padding=1)
    out = out * block.scale + block.bias_2b
    identity = x
    if halved:
        identity = F.avg_pool2d(x + block.bias_1a, kernel_size=1, stride=2)
        identity = torch.cat([identity, torch.zeros_like(identity)], dim=1)
    torch.testing.assert_close(result, F.relu(out + identity))
    expected = {"pre_1": before, "post_1": hidden, "pre_2": out + identity, "post_2": result}
    assert [record.site.name for record in trace.records] == list(expected)
    for record in trace.records:
        torch.testing.assert_close(record.activation, expected[record.site.name])


@pytest.mark.parametrize("inputs", [6, 3])
def test_a_he_block_normalises_before_the_addition(inputs):
    halved = inputs == 3
    block = HeBlock(inputs, (6, 4, 4) if halved else (6, 8, 8)).double()
    block.pre_1.transform = nn.BatchNorm2d(6).double()
    block.pre_2.transform = nn.BatchNorm2d(6).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, generator=generator(parameter.numel()))
    x = torch.randn(4, inputs, 8, 8, dtype=torch.float64, generator=generator(9))

    def normalised(value, layer):
        return F.batch_norm(value, None, None, layer.weight, layer.bias, training=True)

    out = F.conv2d(x, block.conv_1.weight, stride=2 if halved else 1, padding=1)
    out = F.relu(normalised(out, block.pre_1.transform))
    out = normalised(F.conv2d(out, block.conv_2.weight, padding=1), block.pre_2.transform)
    identity = x
    if halved:
        identity = torch.cat([x[:, :, ::2, ::2], torch.zeros(4, 3, 4, 4, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(block(x), F.relu(out + identity))
