"""A module that is replaced after `attach` takes hooks and Sites along: noticed in each pass, or by the penalty."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from reproduce import attach, load_method
from reproduce.method.places import Links

INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
TRANSFORMS = ["batchnorm", "quantile_activation", "distribution_mismatch_correction"]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


class Encoder(nn.Module):
    """What is put at ``enc`` lies in its last part without children."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
        self.out = nn.Linear(6, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.enc(inputs))


class Twice(nn.Module):
    """One activation module in two places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 6)
        self.act1 = self.act2 = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act2(self.second(self.act1(self.first(inputs))))


def by_row(*activations: Tensor) -> float:
    return sum(each.detach().double().square().sum(1).mean().item() for each in activations)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("use", ["training pass", "evaluation", "penalty"])
def test_a_transform_that_went_with_its_module_is_refused(name: str, use: str) -> None:
    model = small()
    handle = attach(load_method(name), model, sites="pre", example=INPUTS)
    model(INPUTS)
    model[1] = nn.ReLU()
    uses: dict[str, Callable[[], Any]] = {
        "training pass": lambda: model(INPUTS),
        "evaluation": lambda: model.eval()(INPUTS),
        "penalty": handle.penalty,
    }
    with pytest.raises(ValueError, match=r"module '1' was replaced after attach\(\), and its Sites with it: remove"):
        uses[use]()
    handle.remove()
    assert torch.equal(model(INPUTS), model[2](model[1](model[0](INPUTS))))


@pytest.mark.parametrize("name", ["vcl", "batchnorm"])
def test_what_lies_in_a_module_that_was_replaced_is_missed(name: str) -> None:
    model = Encoder()
    handle = attach(load_method(name), model, sites={"enc": "pre"}, example=INPUTS)
    model.enc[1] = nn.Linear(6, 6)
    message = r"module 'enc\.1' was replaced .* what the method put there for module 'enc': remove\(\)"
    for use in (lambda: model(INPUTS), handle.penalty):
        with pytest.raises(ValueError, match=message):
            use()
    handle.remove()
    assert torch.equal(model(INPUTS), model.out(model.enc[1](model.enc[0](INPUTS))))


def test_one_of_two_places_is_missed_and_a_move_is_not() -> None:
    model = Twice()
    handle = attach(load_method("activity_norm", strength=1.0), model)
    model.act2 = nn.ReLU()
    model(INPUTS)
    with pytest.raises(ValueError, match=r"module 'act1' was replaced"):
        handle.penalty()
    model.act2 = model.act1
    first = model.act1(model.first(INPUTS))
    for _ in range(2):
        second = model(INPUTS)
        assert handle.penalty().item() == pytest.approx(by_row(first, second))
        model.act2 = nn.Sequential(model.act2)  # around it: the next pass goes through it all the same
    model.act2[0] = nn.Sequential(nn.GELU())
    model(INPUTS)
    with pytest.raises(ValueError, match=r"module 'act1' was replaced"):
        handle.penalty()


def test_evaluation_of_a_model_whose_sites_hold_nothing_goes_on() -> None:
    """Only what a penalty would be of is missed."""
    model = small()
    handle = attach(load_method("activity_norm", strength=1.0), model)
    model[1] = nn.GELU()
    assert torch.equal(model.eval()(INPUTS), model[2](model[1](model[0](INPUTS))))
    weights_alone = attach(load_method("weight_norm_penalty", strength=1.0), model)
    model[1] = nn.ReLU()
    model.train()(INPUTS)
    expected = sum(model[index].weight.detach().double().square().sum().item() for index in (0, 2))
    assert weights_alone.penalty().item() == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"module '1' was replaced"):
        handle.penalty()


def test_a_copy_is_not_watched_and_a_removed_handle_watches_no_more() -> None:
    model = small()
    handle = attach(load_method("batchnorm"), model, sites="pre", example=INPUTS)
    copied = copy.deepcopy(model)
    copied[1] = nn.ReLU()
    assert torch.equal(copied(INPUTS), copied[2](copied[1](copied[0](INPUTS))))
    assert [bool(links.filled) for links in links_of(copied)] == [False]
    handle.remove()
    assert not links_of(model)


def test_a_compiled_model_misses_it_in_the_penalty() -> None:
    model = small()
    handle = attach(load_method("batchnorm"), model, sites="pre", example=INPUTS)
    compiled = torch.compile(model, backend="eager")
    compiled(INPUTS)
    handle.penalty()
    model[1] = nn.ReLU()
    compiled(INPUTS)
    with pytest.raises(ValueError, match=r"module '1' was replaced"):
        handle.penalty()


def links_of(module: nn.Module) -> list[Links]:
    owners = [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]
    return [owner for owner in owners if isinstance(owner, Links)]


def is_appended(model: nn.Sequential) -> None:
    model.extend([nn.Linear(2, 2), nn.Tanh()])


def lies_in_a_new_head(model: nn.Sequential) -> None:
    """There are as many modules in each place as before."""
    model[2] = nn.Sequential(nn.Linear(6, 6), nn.Tanh())


@pytest.mark.parametrize("name", ["activity_norm", "batchnorm"])
@pytest.mark.parametrize(("add", "where"), [(is_appended, "4"), (lies_in_a_new_head, r"2\.1")])
def test_an_activation_that_is_added_is_refused(name: str, add: Callable[[Any], None], where: str) -> None:
    model = small()
    handle = attach(load_method(name, sites="pre"), model, sites="pre", example=INPUTS)
    model(INPUTS)
    handle.penalty()
    add(model)
    for _ in range(2):
        model(INPUTS)
        with pytest.raises(ValueError, match=rf"module '{where}' was added after attach\(\), and would be left out"):
            handle.penalty()
    handle.remove()
    handle = attach(load_method(name, sites="pre"), model, sites="pre", example=INPUTS)
    model(INPUTS)
    assert len(handle.trace.records) in (0, 2)  # batch normalization reads none
    handle.penalty()


@pytest.mark.parametrize(("sites", "is_refused"), [("pre", False), ("post", True), (["act1"], False)])
def test_a_recurrent_layer_that_is_added_is_one_of_those_meant_by_post(sites: Any, is_refused: bool) -> None:
    model = Twice()
    handle = attach(load_method("activity_norm", sites="pre" if sites == "pre" else "post"), model, sites=sites)
    model.later = nn.GRU(2, 2)
    model(INPUTS)
    if is_refused:
        with pytest.raises(ValueError, match="module 'later' was added"):
            handle.penalty()
    else:
        assert handle.penalty() > 0


def is_no_activation(model: Any) -> None:
    model.later = nn.Sequential(nn.Linear(2, 2), nn.Dropout())


def is_put_around(model: Any) -> None:
    model.act1 = nn.Sequential(model.act1, nn.Dropout(0.0))


def makes_a_weight(model: Any) -> None:
    parametrize.register_parametrization(model.first, "weight", nn.Tanh())


def is_of_another_handle(model: Any) -> None:
    attach(load_method("batchnorm"), model, sites={"first": "pre"}, example=INPUTS)


@pytest.mark.parametrize("add", [is_no_activation, is_put_around, makes_a_weight, is_of_another_handle])
def test_what_may_be_added(add: Callable[[Any], None]) -> None:
    model = Twice()
    handle = attach(load_method("activity_norm", kind="l2"), model)
    model(INPUTS)
    before = handle.penalty()
    add(model)
    model(INPUTS)
    assert handle.penalty() != 0 < before
