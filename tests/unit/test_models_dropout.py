"""Dropout: elementwise and locked masks, their rate, and when they are idle."""

import copy
import math

import pytest
import torch

from reproduce.models.dropout import Dropout, LockedDropout

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


@pytest.mark.parametrize("kind", [Dropout, LockedDropout])
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
