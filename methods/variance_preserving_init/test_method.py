"""Oracles: quadrature, exact expectations of random layers within 3 standard errors, loops, and a deep network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor, nn

from methods.variance_preserving_init.method import (
    FirstBatchStandardisation,
    VariancePreservingInit,
    centred_correlation_map,
    centred_rows_,
    relu_correlation_map,
    sample_variance_gain,
    sample_variance_share,
    unit_sample_variance_,
)
from reproduce import attach, models
from reproduce.method import Site
from reproduce.models import Sizes

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(depth: int, width: int, seed: int = 0, inputs: int = 16, **options: object) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("mlp", {"width": width, "depth": depth, **options}, Sizes((inputs,), 3), generator, None)


def prepared(model: nn.Module, **fields: object) -> nn.Module:
    VariancePreservingInit(**fields).prepare(model, torch.Generator())
    return model


def pre_activations(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [layer.pre.register_forward_hook(lambda *seen: found.append(seen[2].detach())) for layer in model.layers]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return found


def share(values: Tensor) -> float:
    return (values.var(0).mean() / values.square().mean()).item()


# The correlation of two samples


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.4, 0.8, 0.99])
def test_map_is_the_integral_over_two_normal_variables(rho: float) -> None:
    rest = math.sqrt(1 - rho**2)

    def inner(x: float) -> float:  # x E relu(rho x + rest z), z normal
        mean = rho * x
        return x * (mean * stats.norm.cdf(mean / rest) + rest * stats.norm.pdf(mean / rest)) * stats.norm.pdf(x)

    wanted = 2 * integrate.quad(inner, 0, 12, epsabs=1e-12)[0]
    assert relu_correlation_map(rho).item() == pytest.approx(wanted, abs=1e-10)
    assert centred_correlation_map(rho).item() == pytest.approx((wanted - 1 / math.pi) / (1 - 1 / math.pi), abs=1e-10)


def test_the_share_decays_with_the_square_of_depth_under_he_and_comes_back_with_centred_rows() -> None:
    start = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64)
    deep = sample_variance_share(start, 1000)
    torch.testing.assert_close(deep * 1000**2, torch.full_like(deep, 4.5 * math.pi**2), rtol=0.06, atol=0)
    assert sample_variance_share(0.999, 100, centred=True).item() == pytest.approx(1, abs=1e-9)
    near = sample_variance_share(1e-4, 1, centred=True)  # the slope at the fixed point 0
    assert (1 - near.item()) / 1e-4 == pytest.approx(0.5 / (1 - 1 / math.pi), rel=1e-3)
    assert sample_variance_share(0.25, 0).item() == 0.75


@settings(max_examples=50, deadline=None)
@given(rho=st.floats(-1, 0.999))
def test_every_pair_of_samples_comes_closer_under_he_and_tends_to_0_with_centred_rows(rho: float) -> None:
    assert relu_correlation_map(rho) > rho
    assert abs(centred_correlation_map(rho)) <= abs(rho) + 1e-15


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.95])
@pytest.mark.parametrize("centred", [False, True])
def test_random_layers_have_the_correlation_of_the_map(rho: float, centred: bool) -> None:
    """Unbiased at any width: 400 pairs of samples of 24 units, each through a ReLU and a kernel of its own."""
    width, repeats = 24, 400
    first, other = seeded(repeats, width), seeded(repeats, width, seed=1)
    second = rho * first + math.sqrt(1 - rho**2) * other
    kernels = seeded(repeats * width, width, seed=2) * math.sqrt(2 / width)
    if centred:
        centred_rows_(kernels, RELU_GAIN)
    kernels = kernels.view(repeats, width, width)
    one, two = ((kernels @ value.relu()[..., None])[..., 0] for value in (first, second))
    products = (one * two).mean(1)
    wanted = centred_correlation_map(rho) if centred else relu_correlation_map(rho)
    error = products.std() / math.sqrt(repeats)
    assert abs(products.mean() - wanted) < 3 * error
    assert error < 0.05
    squares = one.square().mean(1)
    assert abs(squares.mean() - 1) < 3 * squares.std() / math.sqrt(repeats)


# The gain, and the rows


def test_the_gain_of_a_relu_is_closed_and_of_others_an_integral() -> None:
    assert sample_variance_gain() == pytest.approx(RELU_GAIN, rel=1e-6)
    for module in (nn.LeakyReLU(0.1), nn.ELU(), nn.SELU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.ReLU(inplace=True)):

        def moment(power: int, module: nn.Module = module) -> float:
            def value(z: float) -> float:
                return module(torch.tensor(z, dtype=torch.float64)).item() ** power * stats.norm.pdf(z)

            return sum(integrate.quad(value, *ends, epsabs=1e-9)[0] for ends in ((-9, 0), (0, 9)))

        assert sample_variance_gain(module) == pytest.approx((moment(2) - moment(1) ** 2) ** -0.5, rel=1e-5)


def test_rows_by_hand_and_in_a_loop() -> None:
    found = centred_rows_(torch.tensor([[1.0, 3.0]]), 2.0)
    torch.testing.assert_close(found, torch.tensor([[-math.sqrt(2), math.sqrt(2)]]))
    kernel = seeded(3, 2, 2, 2)
    wanted = []
    for row in kernel.flatten(1).tolist():
        mean = statistics.fmean(row)
        length = math.sqrt(sum((value - mean) ** 2 for value in row))
        wanted.append([1.5 * (value - mean) / length for value in row])
    assert centred_rows_(kernel, 1.5) is kernel
    np.testing.assert_allclose(kernel.flatten(1).numpy(), wanted)


@settings(max_examples=50, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(2, 9)),
    shift=st.floats(-3, 3),
    scale=st.floats(0.01, 100),
    gain=st.floats(0.1, 10),
    seed=st.integers(0, 99),
)
def test_rows_forget_their_mean_and_their_length(
    shape: tuple[int, int], shift: float, scale: float, gain: float, seed: int
) -> None:
    kernel = seeded(*shape, seed=seed)
    found = centred_rows_(kernel.clone(), gain)
    torch.testing.assert_close(found.norm(dim=1), torch.full(shape[:1], gain, dtype=torch.float64))
    torch.testing.assert_close(found, centred_rows_(scale * (kernel + shift), gain))
    torch.testing.assert_close(found.sum(1), torch.zeros(shape[0], dtype=torch.float64), atol=1e-8, rtol=0)


def test_half_precision_is_centred_in_float32() -> None:
    kernel = seeded(4, 4096).bfloat16() + 1
    single = centred_rows_(kernel.float(), RELU_GAIN)
    torch.testing.assert_close(centred_rows_(kernel, RELU_GAIN), single.bfloat16())


def test_the_price_is_a_gradient_that_grows() -> None:
    """Its mean square by gain^2 / 2 = pi / (pi - 1) a layer; He's keeps it."""
    width, repeats = 24, 400
    masks = (seeded(repeats, width) > 0).double()
    upstream = seeded(repeats, width, seed=1)
    kernels = seeded(repeats * width, width, seed=2)
    centred_rows_(kernels, RELU_GAIN)
    below = masks * (upstream[:, None] @ kernels.view(repeats, width, width))[:, 0]
    growth = below.square().sum(1) / upstream.square().sum(1)
    assert abs(growth.mean() - math.pi / (math.pi - 1)) < 3 * growth.std() / math.sqrt(repeats)


# The method in networks


def test_only_kernels_that_read_an_activation_are_rewritten() -> None:
    plain, found = mlp(2, 8, initialisation="torch"), prepared(mlp(2, 8, initialisation="torch"))
    assert torch.equal(found.layers[0].layer.weight, plain.layers[0].layer.weight)
    assert torch.equal(found.layers[0].layer.bias, plain.layers[0].layer.bias)
    for before, after in ((plain.layers[1].layer, found.layers[1].layer), (plain.classifier, found.classifier)):
        torch.testing.assert_close(after.weight.detach(), centred_rows_(before.weight.detach().clone(), RELU_GAIN))
        assert not after.bias.any()


def test_convolutions_get_the_gain_of_their_activation() -> None:
    model = models.build("cnn11", {"dropout": False}, Sizes((3, 8, 8), 5), torch.Generator().manual_seed(0), None)
    prepared(model)
    kernels = [module.weight.detach().flatten(1) for module in model.modules() if isinstance(module, nn.Conv2d)]
    gain = sample_variance_gain(nn.ELU())
    for kernel in kernels[1:]:
        torch.testing.assert_close(kernel.norm(dim=1), torch.full((len(kernel),), gain))
        assert kernel.sum(1).abs().max() < 1e-4
    assert kernels[0].sum(1).abs().min() > 1e-4


def test_a_deep_relu_network_loses_its_sample_variance_and_the_cures_keep_it() -> None:
    """20 layers of 256 units, inputs of correlation 1/2, means of 4 networks: He's share scatters by 0.04 in each."""
    inputs = nn.functional.normalize(seeded(32, 64) + seeded(1, 64, seed=1)).float()
    networks = {
        "he": [mlp(20, 256, seed, inputs=64) for seed in range(4)],
        "rows": [prepared(mlp(20, 256, seed, inputs=64)) for seed in range(4)],
        "units": [prepared(mlp(20, 256, seed, inputs=64), mode="sample_statistics") for seed in range(4)],
    }
    layers = {name: [pre_activations(one, inputs) for one in found] for name, found in networks.items()}
    found = {
        name: [statistics.fmean(share(one[layer]) for one in drawn) for layer in range(20)]
        for name, drawn in layers.items()
    }
    start = 1 - found["he"][0]
    for layer in (4, 9, 19):
        assert found["he"][layer] == pytest.approx(sample_variance_share(start, layer).item(), abs=0.06)
        assert found["rows"][layer] == pytest.approx(sample_variance_share(start, layer, centred=True).item(), abs=0.06)
        assert found["units"][layer] == pytest.approx(32 / 31, abs=1e-3)
    assert found["he"][19] < 0.15 < 0.85 < found["rows"][19]
    variance = [one[19].var(0).mean().item() / one[9].var(0).mean().item() for one in layers["rows"]]
    assert statistics.fmean(variance) == pytest.approx(1, abs=0.25)


def kernel_and_map(axes: str, of_layer: bool) -> tuple[nn.Module, FirstBatchStandardisation]:
    kernel = nn.Linear(4, 3) if axes == "nc" else nn.Conv2d(4, 3, 2)
    with torch.no_grad():
        kernel.weight.copy_(seeded(*kernel.weight.shape, seed=7))
        kernel.bias.copy_(seeded(3, seed=8))
    shape = (3,) if axes == "nc" else (3, 3, 1)
    layer = FirstBatchStandardisation(Site("pre", axes, shape), kernel, of_layer)
    return kernel.double(), layer.double()


@pytest.mark.parametrize(("axes", "batch"), [("nc", (40, 3)), ("nchw", (9, 3, 4, 2))])
@pytest.mark.parametrize("of_layer", [False, True])
def test_the_first_batch_is_standardised_and_its_statistics_stay(
    axes: str, batch: tuple[int, ...], of_layer: bool
) -> None:
    _, layer = kernel_and_map(axes, of_layer)
    first, second = 3 * seeded(*batch) - 5, seeded(*batch, seed=1)
    assert torch.equal(layer.eval()(first), first)  # nothing is known yet
    outputs = [layer.train()(first), layer(second), layer.eval()(second)]
    for unit in range(3):
        taken = first.flatten().tolist() if of_layer else first[:, unit].flatten().tolist()
        mean, deviation = statistics.fmean(taken), statistics.pstdev(taken)
        for value, output in zip((first, second, second), outputs, strict=True):
            torch.testing.assert_close(output[:, unit], (value[:, unit] - mean) / deviation)


@pytest.mark.parametrize(("axes", "batch"), [("nc", (40, 4)), ("nchw", (9, 4, 4, 2))])
@pytest.mark.parametrize("of_layer", [False, True])
def test_folded_weights_are_the_same_function_without_the_map(
    axes: str, batch: tuple[int, ...], of_layer: bool
) -> None:
    kernel, layer = kernel_and_map(axes, of_layer)
    value = seeded(*batch)
    wanted = layer(kernel(value))
    for _ in range(2):  # folding again changes nothing
        layer.fold()
        torch.testing.assert_close(kernel(value), wanted)
        assert layer(wanted) is wanted


def test_after_the_first_step_no_map_is_left() -> None:
    model = prepared(mlp(3, 8), mode="sample_statistics")
    inputs = seeded(20, 16).float()
    wanted = model.train()(inputs)
    VariancePreservingInit(mode="sample_statistics").after_step(model, None, torch.tensor(0.0), torch.Generator())
    for layer in model.layers:
        layer.pre.transform = None
    torch.testing.assert_close(model(inputs), wanted)


def test_silent_units_are_centred_and_nothing_more() -> None:
    layer = kernel_and_map("nc", False)[1].float()
    batch = torch.stack([torch.zeros(6), torch.full((6,), 7.3), torch.arange(6.0)], dim=1)
    found = layer(batch)
    assert not found[:, :2].any()
    assert found[:, 2].std(correction=0).item() == pytest.approx(1)


def test_a_probe_that_puts_buffers_back_leaves_the_choice_to_the_first_batch() -> None:
    layer = kernel_and_map("nc", False)[1]
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer(seeded(9, 3))
    for name, buffer in layer.named_buffers():
        buffer.copy_(before[name])
    assert layer(5 * seeded(9, 3, seed=1)).std(0, correction=0).sum().item() == pytest.approx(3)


def test_two_passes_before_the_gradient() -> None:
    layer, value = kernel_and_map("nc", False)[1], seeded(9, 3).requires_grad_()
    (layer(value).square().sum() + layer(value + 1).square().sum()).backward()
    assert value.grad is not None
    assert value.grad.isfinite().all()


# Recurrent layers


def language_model(seed: int = 0) -> nn.Module:
    options = {"hidden": 128, "layers": 3}
    return models.build("lstm", options, Sizes((), 200), torch.Generator().manual_seed(seed), None)


def gate_shares(model: nn.Module) -> list[tuple[float, float]]:
    """Of each layer's gates as the inputs make them, for random words: variance over words, and its share."""
    words = torch.randint(0, 200, (40, 16), generator=torch.Generator().manual_seed(1))
    found, value = [], model.embedding(words).detach()
    for layer in model.layers:
        weight, bias = layer.lstm.weight_ih_l0.detach(), layer.lstm.bias_ih_l0.detach() + layer.lstm.bias_hh_l0.detach()
        gates = (value @ weight.T + bias)[20:].flatten(0, 1)  # the first steps remember zeros
        found.append((gates.var(0).mean().item(), share(gates)))
        value = layer.lstm(value)[0].detach()
    return found


def test_gates_lose_their_sample_variance_with_depth_and_keep_it_when_scaled() -> None:
    plain, scaled = gate_shares(language_model()), gate_shares(prepared(language_model()))
    assert plain[0][1] > 10 * plain[1][1] > 100 * plain[2][1]
    for variance, part in scaled:
        assert variance == pytest.approx(1, abs=0.1)
        assert part > 0.85


def test_rows_of_unit_sample_variance_in_a_loop() -> None:
    kernel, variance = seeded(3, 5), seeded(5, seed=1).square()
    wanted = [
        [w / math.sqrt(sum(v * u * u for u, v in zip(row, variance.tolist(), strict=True))) for w in row]
        for row in kernel.tolist()
    ]
    assert unit_sample_variance_(kernel, variance) is kernel
    np.testing.assert_allclose(kernel.numpy(), wanted)


def test_what_cannot_be_used_is_refused() -> None:
    for kernel in (torch.ones(3), torch.zeros(0, 3), torch.zeros(3, 1)):
        with pytest.raises(ValueError, match="two inputs, found"):
            centred_rows_(kernel, 1.0)
    with pytest.raises(ValueError, match="1 constant of 2 rows"):
        centred_rows_(torch.tensor([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]]), 1.0)
    with pytest.raises(ValueError, match="found 0"):
        sample_variance_gain(torch.zeros_like)
    with pytest.raises(ValueError, match=r"in \[-1, 1\], found 1.5"):
        relu_correlation_map(1.5)
    with pytest.raises(ValueError, match="at least 0, found -1"):
        sample_variance_share(0.5, -1)
    with pytest.raises(ValueError, match=r"found \(2, 3\), \(4,\)"):
        unit_sample_variance_(torch.ones(2, 3), torch.ones(4))
    with pytest.raises(ValueError, match="found 2 of 2 rows without"):
        unit_sample_variance_(torch.ones(2, 3), torch.zeros(3))


def test_models_that_cannot_be_treated_are_refused() -> None:
    residual = models.build("resnet", {"depth": 8, "width": 2}, Sizes((3, 8, 8), 5), torch.Generator(), None)
    with pytest.raises(ValueError, match="0 of them and 7 'pre' Sites"):
        prepared(residual)
    with pytest.raises(ValueError, match="kernel that reads an activation"):
        prepared(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    zero = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    nn.init.zeros_(zero[2].weight)
    with pytest.raises(ValueError, match="2: centred rows need weights that vary"):
        prepared(zero)
    with pytest.raises(ValueError, match="no 'pre' Site"):
        prepared(nn.Sequential(nn.Linear(3, 3)), mode="sample_statistics")
    for network in (residual, nn.Sequential(nn.Linear(3, 4), Site("pre", "nc", (5,)))):
        with pytest.raises(ValueError, match="needs to be no sequence, and a kernel with as many biases"):
            prepared(network, mode="layer_statistics")
    for recurrent in (nn.LSTM(3, 4), nn.Sequential(nn.Embedding(5, 3), nn.LSTM(3, 4, num_layers=2))):
        with pytest.raises(ValueError, match="needs"):
            prepared(recurrent)
    with pytest.raises(ValueError, match="already holds FirstBatchStandardisation"):
        prepared(prepared(mlp(1, 4), mode="sample_statistics"), mode="layer_statistics")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("mode", ["closed_form", "sample_statistics"])
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_weights_that_are_made_from_others_are_refused(wrap: Callable[[nn.Module], nn.Module], mode: str) -> None:
    """What is written into them would be lost at the next forward pass."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), wrap(nn.Linear(6, 6)), nn.ReLU())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"weight of .*Linear is made from other parameters, .* prepare the model"):
        attach(VariancePreservingInit(mode=mode), model, sites="pre", example=torch.randn(8, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
