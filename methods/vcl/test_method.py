"""Oracles for VCL: loops in float64, the closed form by simulation, what is read and learned, what is refused."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor, nn

from methods.vcl.figures import FIGURES, expected_loss, few_modes, mixture_kurtosis
from methods.vcl.method import (
    VCL,
    two_slice_variance_constancy_loss,
    variance_constancy_loss,
    variance_constancy_losses,
)
from reproduce.experiment.recipe import Recipe
from reproduce.method import Site
from reproduce.method.sites import watch
from reproduce.training.optim import parameter_groups

LAWS = {
    "normal": (0.0, lambda shape, generator: torch.randn(shape, generator=generator, dtype=torch.float64)),
    "two points": (-2.0, lambda shape, generator: torch.randint(0, 2, shape, generator=generator).double() * 2 - 1),
    "uniform": (-1.2, lambda shape, generator: torch.rand(shape, generator=generator, dtype=torch.float64) * 12**0.5),
}


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(rows: list[list[float]], beta: list[float], n: int, unbiased: bool) -> float:
    """The formula with Python's own variances, unit by unit."""
    variance = statistics.variance if unbiased else statistics.pvariance
    units = list(zip(*rows, strict=True))
    return statistics.fmean(
        (1 - variance(unit[:n]) / (variance(unit[n : 2 * n]) + b)) ** 2 for unit, b in zip(units, beta, strict=True)
    )


class Net(nn.Module):
    """A linear layer between Sites of several kinds; what is recorded is what is given."""

    def __init__(self, *sites: Site) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.sites = nn.ModuleList(sites)

    def forward(self, *values: Tensor) -> None:
        for site, value in zip(self.sites, values, strict=True):
            site(value)


def penalty(method: VCL, net: Net, *values: Tensor) -> Tensor:
    method.prepare(net, torch.Generator())
    trace = watch(net)
    net.train()
    net(*values)
    return method.penalty(trace, torch.tensor(0.5), torch.Generator())


def test_a_value_by_hand() -> None:
    # Variances 2 and 8 (n - 1), or 1 and 4 (n); with beta 1: (1 - 2/9)^2 and (1 - 1/5)^2.
    h = torch.tensor([[1.0], [3.0], [0.0], [4.0], [99.0]])
    assert variance_constancy_loss(h, 1.0, sample_size=2).item() == pytest.approx((7 / 9) ** 2)
    assert variance_constancy_loss(h, 1.0, sample_size=2, unbiased=False).item() == pytest.approx(0.64)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("n", [2, 5])
def test_equals_a_loop_over_units_whatever_their_shape(n: int, unbiased: bool) -> None:
    h, beta = seeded(13, 2, 3, 4) * 2 + 1, seeded(2, 3, 4, seed=1).abs() + 0.1
    wanted = loop(h.reshape(13, 24).tolist(), beta.reshape(24).tolist(), n, unbiased)
    for layout in (h, h.contiguous(memory_format=torch.channels_last)):
        assert variance_constancy_loss(layout, beta, n, unbiased).item() == pytest.approx(wanted, rel=1e-12)
    assert two_slice_variance_constancy_loss(h, beta, n, unbiased).item() == pytest.approx(wanted, rel=1e-12)


def test_without_options_samples_of_five_rows_unbiased_variances_and_a_beta_of_one() -> None:
    h = seeded(12, 6) * 2
    wanted = loop(h.tolist(), [1.0] * 6, 5, True)
    assert variance_constancy_loss(h).item() == pytest.approx(wanted, rel=1e-12)
    assert two_slice_variance_constancy_loss(h).item() == pytest.approx(wanted, rel=1e-12)
    several = variance_constancy_losses([h, 3 * h], [torch.ones(6).double(), torch.full((6,), 9.0).double()])
    assert several.tolist() == pytest.approx([wanted, wanted], rel=1e-12)


@pytest.mark.parametrize("power", [-50, -7, 9, 50])
def test_the_loss_does_not_depend_on_the_unit_of_activations(power: int) -> None:
    """It is a ratio of variances: with beta in the squared unit, powers of two change no digit that float32 has."""
    h, beta = seeded(12, 6).float(), seeded(6, seed=1).float().abs() + 0.5
    unit = 2.0**power
    assert variance_constancy_loss(unit * h, unit**2 * beta).item() == variance_constancy_loss(h, beta).item()


def test_variances_that_float32_does_not_hold_have_their_ratio() -> None:
    h = 2.0**70 * seeded(12, 6).float()
    assert not h.var(0).isfinite().any()
    wanted = loop(h.double().tolist(), [1.0] * 6, 5, True)
    assert variance_constancy_loss(h).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("unbiased", [True, False])
def test_gradients_reach_both_samples_and_beta(unbiased: bool) -> None:
    h, beta = seeded(9, 3).requires_grad_(), (seeded(3, seed=1).abs() + 0.2).requires_grad_()

    def loss(h: Tensor, beta: Tensor) -> Tensor:
        return variance_constancy_loss(h, beta, 4, unbiased)

    assert torch.autograd.gradcheck(loss, (h, beta))
    assert torch.autograd.gradgradcheck(loss, (h, beta))
    loss(h, beta).backward()
    assert (h.grad[:4].abs().sum(0) > 0).all()
    assert (h.grad[4:8].abs().sum(0) > 0).all()
    assert (h.grad[8:] == 0).all()
    assert (beta.grad != 0).all()


def test_gradient_has_the_layout_of_the_map_and_the_values_of_the_plain_form() -> None:
    maps = seeded(12, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    gradients = []
    for loss in (variance_constancy_loss, two_slice_variance_constancy_loss):
        leaf = maps.clone().requires_grad_()
        passed = leaf * 1  # as inside a network
        passed.register_hook(lambda gradient: gradients.append(gradient))
        loss(passed).backward()
    assert gradients[0].stride() == maps.stride()
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("n", [3, 5, 10])
def test_closed_form_with_a_known_variance(law: str, n: int) -> None:
    """E (1 - s^2/sigma^2)^2 = 2/(n-1) + kappa/n: a constant second sample leaves beta, here the true variance."""
    kurtosis, draw = LAWS[law]
    units = 200_000
    first = draw((n, units), torch.Generator().manual_seed(n))
    h = torch.cat([first, torch.zeros(n, units, dtype=torch.float64)])
    found = variance_constancy_loss(h, beta=1.0, sample_size=n).item()
    assert found == pytest.approx(expected_loss(n, kurtosis), rel=0.03)


def test_closed_form_at_the_values_worked_out_by_hand() -> None:
    assert [expected_loss(n, 0) for n in (3, 5)] == [1.0, 0.5]
    assert expected_loss(10, 0) == pytest.approx(2 / 9)
    assert [expected_loss(n, -2) for n in (3, 5, 10)] == pytest.approx([1 / 3, 1 / 10, 1 / 45])


def test_fewer_modes_cost_less() -> None:
    """Two modes, three, four, six, a uniform law: the loss of the function itself rises."""
    generator = torch.Generator().manual_seed(0)
    losses = []
    for modes in (2, 3, 4, 6):
        h = torch.randint(0, modes, (10, 50_000), generator=generator).double()
        losses.append(variance_constancy_loss(h / h.std(), 1.0).item())
    losses.append(variance_constancy_loss(LAWS["uniform"][1]((10, 50_000), generator), 1.0).item())
    assert losses == sorted(losses)


def test_half_precision_is_computed_in_float32() -> None:
    h = seeded(10, 50).bfloat16().requires_grad_()
    loss = variance_constancy_loss(h, 1.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(variance_constancy_loss(h.detach().double(), 1.0).item(), rel=1e-5)
    assert h.grad.dtype == torch.bfloat16


def test_a_pole_is_not_finite_and_not_hidden() -> None:
    h = torch.cat([torch.ones(5, 1).cumsum(0), torch.zeros(5, 1)])
    assert not variance_constancy_loss(h, torch.tensor([0.0])).isfinite()


def test_sites_of_the_role_have_one_beta_for_each_unit() -> None:
    sites = [Site("pre", "nc", (3,)), Site("post", "nc", (3,)), Site("pre", "nchw", (2, 4, 5))]
    maps = seeded(11, 2, 4, 5, seed=1).float()
    net = Net(*sites)
    found = penalty(VCL(strength=0.5, initial_beta=2.0), net, seeded(11, 3).float(), maps, maps)
    assert [tuple(site.beta.shape) for site in sites if hasattr(site, "beta")] == [(3,), (2, 4, 5)]
    wanted = variance_constancy_loss(seeded(11, 3), 2.0) + variance_constancy_loss(maps, 2.0)
    assert found.item() == pytest.approx(0.5 * wanted.item(), rel=1e-5)


def test_optimiser_holds_betas_among_the_weights() -> None:
    net = Net(Site("pre", "nc", (3,)))
    VCL().prepare(net, torch.Generator())
    weights, biases = parameter_groups(net, Recipe(epochs=1, batch_size=1, learning_rate=0.1))
    assert any(parameter is net.sites[0].beta for parameter in weights["params"])
    assert [parameter.shape for parameter in biases["params"]] == [(2,)]


def test_first_layer_and_learning_are_hyperparameters() -> None:
    net = Net(Site("pre", "nc", (3,)), Site("pre", "nc", (4,)))
    first, second = seeded(10, 3).float(), seeded(10, 4, seed=1).float()
    found = penalty(VCL(strength=1.0, include_first=False, learn_beta=False), net, first * 100, second)
    assert found.item() == pytest.approx(variance_constancy_loss(second, 1.0).item())
    assert not hasattr(net.sites[0], "beta")
    assert "sites.1.beta" in dict(net.named_buffers())
    assert len(list(net.parameters())) == 2


@pytest.mark.parametrize("axes", ["tnc", "ntc"])
def test_recurrent_outputs_are_compared_at_each_time_step(axes: str) -> None:
    outputs = seeded(4, 10, 3)  # (time, batch, features)
    given = outputs if axes == "tnc" else outputs.transpose(0, 1).contiguous()
    net = Net(Site("post", axes, (3,)))
    found = penalty(VCL(strength=1.0, sites="post"), net, given.float())
    steps = [loop(outputs[t].tolist(), [1.0] * 3, 5, True) for t in range(4)]
    assert found.item() == pytest.approx(statistics.fmean(steps), rel=1e-5)
    assert net.sites[0].beta.shape == (3,)


def test_evaluation_adds_nothing_to_training() -> None:
    """The reference summed the losses of test batches into the next training step, and beta learned from them."""
    net = Net(Site("pre", "nc", (3,)))
    method = VCL()
    method.prepare(net, torch.Generator())
    trace = watch(net)
    batch, test = seeded(10, 3).float(), 50 * seeded(10, 3, seed=1).float()

    def beta_gradient(evaluate: bool) -> Tensor:
        net.sites[0].beta.grad = None
        trace.clear()
        if evaluate:
            net.eval()
            for _ in range(3):
                net(test)
            net.train()
        net(batch)
        method.penalty(trace, torch.tensor(0.0), torch.Generator()).backward()
        return net.sites[0].beta.grad.clone()

    assert torch.equal(beta_gradient(evaluate=False), beta_gradient(evaluate=True))


def test_two_models_in_one_process_do_not_mix() -> None:
    one, other = Net(Site("pre", "nc", (3,))), Net(Site("pre", "nc", (3,)))
    first, second = seeded(10, 3).float(), 9 * seeded(10, 3, seed=1).float()
    method = VCL(strength=1.0)
    alone = penalty(method, Net(Site("pre", "nc", (3,))), first)
    for net in (one, other):
        method.prepare(net, torch.Generator())
    traces = [watch(one), watch(other)]
    one(first)
    other(second)
    found = [method.penalty(trace, torch.tensor(0.0), torch.Generator()) for trace in traces]
    assert found[0].item() == alone.item()
    assert found[1].item() != alone.item()
    found[0].backward()
    assert other.sites[0].beta.grad is None


def test_strength_zero_changes_nothing() -> None:
    net = Net(Site("pre", "nc", (3,)))
    found = penalty(VCL(strength=0.0), net, torch.full((2, 3), math.nan))
    assert found.item() == 0.0
    assert len(list(net.parameters())) == 2


def test_training_on_the_loss_alone_equalises_the_samples() -> None:
    """What it is for: descent on the penalty brings the variances of small samples together."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 8, generator=generator).sign() + 0.1 * torch.randn(2000, 8, generator=generator)
    layer = nn.Linear(8, 4)
    nn.init.normal_(layer.weight, 0, 8**-0.5, generator=generator)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)

    def spread() -> float:
        samples = layer(inputs).detach()[:1995].reshape(-1, 5, 4).var(1)
        return (samples / samples.mean(0)).var(0).mean().item()

    before = spread()
    for _ in range(300):
        loss = variance_constancy_loss(layer(inputs[torch.randperm(2000, generator=generator)[:10]]), 0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
    assert spread() < 0.7 * before


@pytest.mark.parametrize(
    ("activations", "options", "named"),
    [
        (torch.ones(9, 3), {}, r"two samples of 5 and needs a batch of at least 10, got 9"),
        (torch.tensor(1.0), {}, r"at least 10, got 0"),
        (torch.ones(10, 3), {"sample_size": 1}, r"at least 2, got sample_size 1"),
        (torch.ones(10, 3), {"beta": torch.ones(2)}, r"beta of shape \(2,\) does not fit units of shape \(3,\)"),
        (torch.ones(10, 3), {"beta": torch.ones(1, 10, 3)}, r"does not fit units"),
        (torch.ones(10, 3, dtype=torch.int), {}, "floating point, got torch.int32"),
        (torch.ones(10, 0), {}, r"not empty, got shape \(10, 0\)"),
    ],
)
def test_unusable_input_is_refused(activations: Tensor, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        variance_constancy_loss(activations, **options)


def test_unusable_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no 'pre' Site; it has sites\.0 \(post\)"):
        VCL().prepare(Net(Site("post", "nc", (3,))), torch.Generator())
    with pytest.raises(ValueError, match="no 'pre' Site after the first"):
        VCL(include_first=False).prepare(Net(Site("pre", "nc", (3,))), torch.Generator())
    with pytest.raises(ValueError, match="has not seen a batch"):
        VCL().prepare(Net(Site("pre", "nc", None)), torch.Generator())
    net = Net(Site("pre", "nc", (3,)))
    VCL().prepare(net, torch.Generator())
    with pytest.raises(ValueError, match="already has betas"):
        VCL().prepare(net, torch.Generator())
    bare = Net(Site("pre", "nc", (3,)))
    trace = watch(bare)
    bare(torch.ones(10, 3))
    with pytest.raises(ValueError, match=r"call prepare\(\)"):
        VCL().penalty(trace, torch.tensor(0.0), torch.Generator())


@pytest.mark.parametrize("size", [3, 5])
def test_maps_of_another_size_than_the_betas_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"maps of \(2, {size}, {size}\).*\(2, 4, 4\): give it maps of one size"):
        penalty(VCL(), Net(Site("pre", "nchw", (2, 4, 4))), torch.ones(10, 2, size, size))


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"strength": -1.0}, "strength"), ({"initial_beta": 0.0}, "initial_beta"), ({"sample_size": 1}, "sample_size 1")],
)
def test_unusable_hyperparameters_are_refused(fields: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VCL(**fields)


# The figures of the card


@pytest.mark.parametrize(("prior", "separation"), [(0.5, 2.0), (0.2, 3.0), (0.05, 5.0)])
def test_mixture_kurtosis_is_that_of_draws(prior: float, separation: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2_000_000, generator=generator, dtype=torch.float64)
    draws += separation * (torch.rand(2_000_000, generator=generator) < prior)
    centred = draws - draws.mean()
    found = (centred**4).mean() / centred.square().mean() ** 2 - 3
    assert mixture_kurtosis(separation, prior) == pytest.approx(found.item(), abs=0.05)


def test_common_classes_are_separated_and_rare_ones_joined() -> None:
    boundary = (1 - 1 / math.sqrt(3)) / 2
    assert mixture_kurtosis(4.0, boundary) == pytest.approx(0, abs=1e-12)
    assert mixture_kurtosis(4.0, boundary + 0.02) < 0 < mixture_kurtosis(4.0, boundary - 0.02)


def test_descent_on_the_loss_turns_a_normal_law_into_two_modes() -> None:
    values = few_modes((0, 4000))
    inside = [(abs(kept) < 0.5 * abs(kept).max()).mean() for kept in values.values()]
    assert inside[0] > 0.8
    assert inside[1] < 0.15


def test_figures_of_formulas_need_no_results_and_the_others_are_none_without() -> None:
    from_results = {"pre_activations", "kurtosis_by_layer", "reference_log"}
    for name, (_, draw) in FIGURES.items():
        assert (draw([]) is None) == (name in from_results), name
