"""Oracles for kernel penalties: values by hand, weight decay, which weights count, and what only activities see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from methods.weight_norm_penalty.figures import FIGURES, ridge_shrinkage
from methods.weight_norm_penalty.method import WeightNormPenalty, kernel_l1, kernel_l2
from reproduce.method.sites import Trace


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def penalty(model: nn.Module, **fields) -> Tensor:
    return WeightNormPenalty(**fields).penalty(Trace(model), torch.tensor(0.5), torch.Generator())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3))
        self.lstm = nn.LSTM(3, 4)
        self.classifier = nn.Linear(3, 2)


def test_values_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    assert kernel_l1(weight).item() == 6.0
    assert kernel_l2(weight).item() == 14.0


@pytest.mark.parametrize("term", [kernel_l1, kernel_l2])
def test_equals_a_loop_and_has_its_gradient(term) -> None:
    weight = seeded(3, 2, 2, 2)
    size = abs if term is kernel_l1 else lambda value: value * value
    assert term(weight).item() == pytest.approx(math.fsum(size(value) for value in weight.flatten().tolist()))
    assert torch.autograd.gradcheck(term, weight.requires_grad_())


def test_the_gradient_of_l1_at_zero_is_zero() -> None:
    weight = torch.zeros(2, 3, requires_grad=True)
    kernel_l1(weight).backward()
    assert torch.equal(weight.grad, torch.zeros(2, 3))


def test_half_precision_does_not_overflow() -> None:
    weight = torch.full((10, 10), 300.0, dtype=torch.float16)
    assert kernel_l2(weight).item() == 100 * 300.0**2


def test_l2_is_a_weight_decay_of_twice_its_strength() -> None:
    """The same steps of SGD as torch's own weight decay, on the weights and only there."""
    inputs, targets = seeded(20, 4), seeded(20, 2, seed=1)
    trained = []
    for strength, decay in ((0.03, 0.0), (0.0, 0.06)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        weights, biases = [], []
        for parameter in model.parameters():
            (weights if parameter.dim() > 1 else biases).append(parameter)
        groups = [{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        for _ in range(20):
            optimizer.zero_grad()
            loss = (model(inputs) - targets).square().mean()
            (loss + penalty(model, strength=strength)).backward()
            optimizer.step()
        trained.append([parameter.detach() for parameter in model.parameters()])
    for one, other in zip(*trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_weights_are_what_has_two_axes_and_embeddings_are_left_out() -> None:
    net = Net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert [names[id(weight)] for weight in WeightNormPenalty().weights(net)] == [
        "body.0.weight",
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "classifier.weight",
    ]
    assert [names[id(weight)] for weight in WeightNormPenalty(layers=("weight_hh", "body")).weights(net)] == [
        "body.0.weight",
        "lstm.weight_hh_l0",
    ]
    assert [names[id(weight)] for weight in WeightNormPenalty(layers=("embedding",), exclude=()).weights(net)] == [
        "embedding.weight"
    ]


def test_tied_weights_count_once() -> None:
    net = Net()
    net.classifier.weight = net.lstm.weight_ih_l0
    assert len(WeightNormPenalty().weights(net)) == 3


def test_embeddings_are_known_by_type_and_so_is_a_head_that_is_tied_to_one() -> None:
    words, head = nn.Embedding(9, 4), nn.Linear(4, 9)
    head.weight = words.weight
    model = nn.ModuleDict({"head": head, "wte": words, "body": nn.Linear(4, 4)})
    assert [id(weight) for weight in WeightNormPenalty().weights(model)] == [id(model["body"].weight)]
    assert [id(weight) for weight in WeightNormPenalty(layers=("embedding",), exclude=()).weights(model)] == [
        id(words.weight)
    ]


def test_parametrized_weights_are_those_in_use() -> None:
    """Weight normalization does not see the length of what it makes a weight from."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 6)
    expected = [layer.weight.square().sum().item(), layer.weight.abs().sum().item()]
    nn.utils.parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original1.mul_(10)
    found = [penalty(layer, strength=1.0, kind=kind) for kind in ("l2", "l1")]
    assert [value.item() for value in found] == pytest.approx(expected, rel=1e-5)
    found[0].backward()
    along = (layer.parametrizations.weight.original1.grad * layer.parametrizations.weight.original1).sum()
    assert along.abs().item() < 1e-6


def test_penalty_sums_the_weights_and_is_weighted() -> None:
    net = Net()
    for kind, term in (("l1", kernel_l1), ("l2", kernel_l2)):
        wanted = 0.5 * sum(term(weight) for weight in (net.body[0].weight, net.classifier.weight))
        found = penalty(net, kind=kind, strength=0.5, layers=("body", "classifier"))
        torch.testing.assert_close(found, wanted)
        assert found.shape == ()


def test_strength_zero_is_exactly_zero() -> None:
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, math.nan)
    assert penalty(net, strength=0.0).item() == 0.0


def test_small_weights_with_huge_outputs_are_seen_by_the_activity_penalty_only() -> None:
    """Inputs a thousand times as large, weights a thousandth: the outputs are the same, and so is their penalty."""
    inputs, weight = seeded(50, 4), seeded(3, 4, seed=1)
    outputs = [(scale * inputs) @ (weight / scale).T for scale in (1.0, 1000.0)]
    activity = [output.square().sum(-1).mean().item() for output in outputs]
    assert activity[1] == pytest.approx(activity[0])
    assert kernel_l2(weight / 1000).item() == pytest.approx(1e-6 * kernel_l2(weight).item())


def test_shrinkage_is_that_of_least_squares() -> None:
    """Fitted by torch: one input of a given scale, a kernel or an activity penalty on the prediction."""
    x, noise = seeded(200), seeded(200, seed=1)
    x = (x - x.mean()) / x.std(correction=0)
    y = x + 0.1 * noise
    for scale in (0.1, 1.0, 30.0):
        for kind in ("kernel", "activity"):
            weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
            loss = (scale * x * weight - y).square().mean()
            loss = loss + 0.5 * (weight.square() if kind == "kernel" else (scale * x * weight).square().mean())
            (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
            (curvature,) = torch.autograd.grad(slope, weight)
            fitted = -slope / curvature  # the loss is quadratic: one Newton step from zero
            shrinkage = (fitted * scale / (x * y).mean()).item()
            assert shrinkage == pytest.approx(ridge_shrinkage(kind, 0.5, scale))


def test_figures_draw() -> None:
    assert all(draw([]).axes for _, draw in FIGURES.values())


def test_unusable_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not empty, got torch.float32 \(0, 2\)"):
        kernel_l1(torch.zeros(0, 2))
    with pytest.raises(TypeError, match=r"^a weight is a tensor, got Linear: give layer\.weight$"):
        kernel_l2(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"got torch.int64"):
        kernel_l2(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"layers \['decoder'\].*the model has embedding.weight, body.0.weight"):
        WeightNormPenalty(layers=("decoder",)).weights(Net())
    with pytest.raises(ValueError, match="empty fragment"):
        WeightNormPenalty(layers=("",))
    with pytest.raises(ValueError, match="strength"):
        WeightNormPenalty(strength=-1.0)
