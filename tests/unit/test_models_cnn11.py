"""The 11-layer network: exact counts, its uneven padding, pooling and scalar biases."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reproduce.method.sites import sites_of, watch
from reproduce.models import Sizes, build
from reproduce.models.cnn11 import same_convolution
from reproduce.models.dropout import Dropout


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(shape=(3, 32, 32), **options):
    return build("cnn11", options, Sizes(shape, 10), generator(), generator(1))


@pytest.mark.parametrize(
    ("width_factor", "parameters", "channels", "locations"),
    [(1, 1_641_938, 2_544, 350_460), (2, 6_439_514, 4_896, 504_312)],
)
def test_counts(width_factor, parameters, channels, locations):
    model = network(width_factor=width_factor)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    for role in ("pre", "post"):
        sites = [site for site in sites_of(model) if site.role == role]
        assert len(sites) == 10
        assert sum(math.prod(site.shape) for site in sites) == locations
    assert sum(site.features for site in sites) == channels


def test_a_2x2_convolution_is_padded_on_the_right_and_below():
    layer = same_convolution(3, 5, 2)
    image = torch.randn(2, 3, 4, 6, generator=generator())
    weight, bias = layer[1].weight, layer[1].bias
    torch.testing.assert_close(layer(image), F.conv2d(F.pad(image, (0, 1, 0, 1)), weight, bias))
    assert not torch.allclose(layer(image), F.conv2d(F.pad(image, (1, 0, 1, 0)), weight, bias))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 1, 5), (3, 64, 64)])
def test_site_shapes_at_other_sizes(shape):
    model = network(shape)
    trace = watch(model)
    assert model(torch.randn(1, *shape, generator=generator())).shape == (1, 10)
    assert [record.activation.shape[1:] for record in trace.records] == [site.shape for site in sites_of(model)]


def test_pooling_stops_at_one_pixel():
    def maps(shape):
        return [site.shape[1:] for site in sites_of(network(shape)) if site.role == "pre"]

    assert maps((3, 32, 32)) == [(32, 32)] + 2 * [(16, 16)] + 2 * [(8, 8)] + 2 * [(4, 4)] + 2 * [(2, 2)] + [(1, 1)]
    assert maps((1, 8, 8)) == [(8, 8)] + 2 * [(4, 4)] + 2 * [(2, 2)] + 5 * [(1, 1)]


def test_the_network_written_out_without_dropout():
    """Functional calls in the order of the reference code: convolution, ELU, pooling after every stack but the last."""
    model = network((3, 32, 32), dropout=False).double()
    assert not any(isinstance(module, Dropout) for module in model.modules())
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [layer.kernel_size[0] for layer in layers] == [5, 1, 3, 1, 2, 1, 2, 1, 2, 1, 1]
    assert [layer.out_channels for layer in layers] == [192, 192, 240, 240, 260, 260, 280, 280, 300, 300, 10]
    for layer in layers:
        nn.init.normal_(layer.bias, generator=generator(layer.out_channels))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=generator())
    value = images
    for index, layer in enumerate(layers):
        before, after = {1: (0, 0), 2: (0, 1), 3: (1, 1), 5: (2, 2)}[layer.kernel_size[0]]
        value = F.conv2d(F.pad(value, (before, after, before, after)), layer.weight, layer.bias)
        if index < 10:
            value = F.elu(value)
        if index in (0, 2, 4, 6, 8):
            value = F.max_pool2d(value, 2)
    torch.testing.assert_close(model(images), value.flatten(1))


def test_dropout_of_the_stacks():
    rates = [module.probability for module in network().modules() if isinstance(module, Dropout)]
    assert rates == [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_the_scalar_bias_comes_after_the_activation_and_before_the_post_site(activation):
    model = network((3, 8, 8), activation=activation, scalar_bias=True)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("scalar_bias")]
    assert [tuple(bias.shape) for bias in biases] == [(1,)] * 10
    assert not torch.cat(biases).any()
    for index, bias in enumerate(biases):
        nn.init.constant_(bias, 0.1 * index - 0.5)
    trace = watch(model)
    model(torch.randn(1, 3, 8, 8, generator=generator()))
    function = {"relu": F.relu, "leaky_relu": F.leaky_relu}[activation]
    for bias, pre, post in zip(biases, trace.select("pre"), trace.select("post"), strict=True):
        torch.testing.assert_close(post.activation, function(pre.activation) + bias)


@pytest.mark.parametrize(("initialisation", "gain"), [("torch", 1 / 3), ("lecun", 1.0), ("he", 2.0)])
def test_initial_weights(initialisation, gain):
    model = network(initialisation=initialisation)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.detach().double()
            ratio = weight.square().mean() * weight[0].numel() / gain
            assert abs(ratio - 1) < 4 * math.sqrt(2 / weight.numel())  # 4: eleven layers are looked at
            assert not layer.bias.any()
