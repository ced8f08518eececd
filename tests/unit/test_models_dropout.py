"""Dropout: elementwise, locked and alpha masks, their rate, what they keep, and when they are idle."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from reproduce.errors import UserError
from reproduce.models import Sizes, build
from reproduce.models.dropout import AlphaDropout, Dropout, LockedDropout

ONES = torch.ones(7, 40, 50)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", [Dropout, LockedDropout])
def test_rate_and_scale(kind):
    dropped = kind(0.3, generator())(ONES)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    draws = 40 * 50 * (1 if kind is LockedDropout else 7)
    rate = (dropped == 0).double().mean()
    assert abs(rate - 0.3) < 3 * math.sqrt(0.3 * 0.7 / draws)


def test_a_locked_mask_is_constant_over_time_and_an_elementwise_one_is_not():
    locked = LockedDropout(0.5, generator())
    first, second = locked(ONES), locked(ONES)
    assert torch.equal(first, first[:1].expand_as(first))
    assert not torch.equal(first, second)  # a new mask for every call
    assert not torch.equal(first[0, 0], first[0, 1])  # and for every sequence
    plain = Dropout(0.5, generator())(ONES)
    assert not torch.equal(plain, plain[:1].expand_as(plain))


@pytest.mark.parametrize("kind", [Dropout, LockedDropout, AlphaDropout])
def test_idle_in_eval_and_at_probability_zero(kind):
    source = generator()
    start = source.get_state()
    assert kind(0.5, source).eval()(ONES) is ONES
    assert kind(0.0, source)(ONES) is ONES
    assert kind(0.0, None)(ONES) is ONES
    assert torch.equal(source.get_state(), start)


def test_gradient_is_the_mask():
    value = ONES.clone().requires_grad_()
    dropped = Dropout(0.5, generator())(value)
    dropped.sum().backward()
    assert torch.equal(value.grad, dropped.detach())


def test_errors():
    for probability in (-0.1, 1.0):
        with pytest.raises(ValueError, match=str(probability)):
            Dropout(probability, generator())
    with pytest.raises(ValueError, match="generator"):
        Dropout(0.5, None)(ONES)


def test_deep_copies_share_the_generator():
    locked = LockedDropout(0.5, generator()).eval()
    pair = copy.deepcopy(torch.nn.ModuleList([locked, Dropout(0.2, locked.generator)]))
    assert [module.generator is locked.generator for module in pair] == [True, True]
    assert isinstance(pair[0], LockedDropout)
    assert [module.training for module in pair] == [False, True]
    assert [module.probability for module in pair] == [0.5, 0.2]


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_alpha_dropout_has_the_two_values_of_torchs(probability):
    """Of ones, torch's makes a + b where it keeps and a alpha' + b where it drops."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = F.alpha_dropout(ONES.double(), probability, training=True).unique()
    found = AlphaDropout(probability, generator())(ONES.double())
    torch.testing.assert_close(found.unique(), expected)
    dropped = (found == found.unique()[0]).double().mean().item()
    assert abs(dropped - probability) < 3 * math.sqrt(probability * (1 - probability) / ONES.numel())


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_alpha_dropout_keeps_mean_and_variance(probability):
    count = 200_000
    value = torch.randn(count, dtype=torch.float64, generator=generator())
    dropped = AlphaDropout(probability, torch.Generator().manual_seed(1))(value)
    fourth = (dropped - dropped.mean()).pow(4).mean().item()
    assert abs(dropped.mean().item()) < 3 / math.sqrt(count)
    assert abs(dropped.var().item() - 1) < 3 * math.sqrt((fourth - 1) / count)
    plain = Dropout(probability, torch.Generator().manual_seed(1))(value)
    assert plain.var().item() > 1 + 0.9 * probability  # 1 / (1 - p)


def test_a_deep_network_of_selu_stays_normalised_under_alpha_dropout_only():
    """Sixteen layers: with alpha dropout after every one their outputs keep mean 0 and variance 1."""
    images = torch.randn(400, 256, generator=generator())
    options = {"width": 256, "depth": 16, "activation": "selu", "initialisation": "lecun"}
    found = {}
    for kind in ("alpha", "plain"):
        dropping = {"dropout": 0.1, "dropout_kind": kind, "dropout_after": "every"}
        model = build("mlp", options | dropping, Sizes((256,), 3), generator(), generator())
        seen = []
        model.classifier.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            model.train()(images)
        found[kind] = seen[0].mean().item(), seen[0].var().item()
    assert abs(found["alpha"][0]) < 0.1
    assert abs(found["alpha"][1] - 1) < 0.1
    assert abs(found["plain"][1] - 1) > 0.2


@pytest.mark.parametrize(("after", "layers"), [("last", [2]), ("every", [0, 1, 2])])
def test_an_mlp_drops_after_these_layers(after, layers):
    options = {"width": 60, "depth": 3, "activation": "sigmoid", "dropout": 0.5, "dropout_after": after}
    model = build("mlp", options, Sizes((4,), 3), generator(), generator())
    seen = []
    for module in (*model.layers[1:], model.classifier):
        module.register_forward_pre_hook(lambda module, inputs: seen.append(bool((inputs[0] == 0).any())))
    model(torch.randn(6, 4, generator=generator()))
    assert [index for index, dropped in enumerate(seen) if dropped] == layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "elu", "dropout": 0.1, "dropout_kind": "alpha"}, "is for activation 'selu', found 'elu'$"),
        ({"activation": "selu", "dropout_kind": "alpha"}, "need option 'dropout' above 0$"),
        ({"dropout_after": "every"}, "need option 'dropout' above 0$"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        build("mlp", {"width": 5, "depth": 1} | options, Sizes((4,), 3), generator(), generator())
