"""What surrounds a model that is attached: other defaults of the process, scripted parts, a model that calls itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce import attach, load_method
from reproduce.experiment.folder import METHODS, all_methods
from tests.contract.test_attach_remove import convolutions, perceptron


@pytest.fixture
def elsewhere() -> Iterator[Any]:
    """Sets another default device than the model's; one on which nothing has a value shows whatever is made there."""
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), device="cpu")


def trained(name: str, move: Any, is_before: bool, **fields: Any) -> list[Tensor]:
    """Penalties of two steps, and the output afterwards."""
    torch.manual_seed(0)
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if is_before:
        move()
    handle = attach(name, model, example=noise(16, 6), **fields)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    move()
    found = []
    for _ in range(2):
        output = model(noise(16, 6))
        found.append(handle.penalty(progress=0.5))
        (output.square().mean() + found[-1]).backward()
        optimizer.step()
        handle.after_step(optimizer)
        optimizer.zero_grad()
    return [*(each.detach() for each in found), model.eval()(noise(16, 6)).detach()]


@pytest.mark.parametrize("is_before", [True, False], ids=["attached_there", "trained_there"])
@pytest.mark.parametrize(
    "name",
    [
        *("activity_norm", "activity_prior", "batchnorm", "compound_batchnorm", "distribution_mismatch_correction"),
        *("energy_distance", "orthogonal", "per", "quantile_activation", "sigreg", "sliced_wasserstein", "vcl"),
        *("variance_preserving_init", "vcreg", "weight_norm_penalty"),
    ],
)
def test_a_default_device_of_the_users_changes_no_number(name: str, is_before: bool, elsewhere: Any) -> None:
    usual = trained(name, lambda: None, is_before)
    assert all(map(torch.equal, trained(name, elsewhere, is_before), usual))


@pytest.mark.parametrize("name", ["energy_distance", "per", "sigreg", "sliced_wasserstein"])
def test_constants_that_are_kept_lie_on_the_cpu(name: str, elsewhere: Any) -> None:
    """Of a width and number that no other test has: they are made here."""
    model = nn.Sequential(nn.Linear(4, 37), nn.Tanh())
    handle = attach(name, model)
    elsewhere()
    model(noise(41, 4))
    found = handle.penalty()
    torch.set_default_device(None)
    model(noise(41, 4))
    twin = attach(name, model)
    model(noise(41, 4))
    torch.testing.assert_close(found, twin.penalty())


@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("sites", ["pre", "post"])
def test_activations_of_a_scripted_part_are_refused(sites: str, is_traced: bool) -> None:
    part = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    scripted = torch.jit.trace(part, noise(2, 4)) if is_traced else torch.jit.script(part)
    model = nn.Sequential(scripted, nn.Linear(6, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"^module '0.1', ReLU, lies in a part that is scripted or traced"):
        attach("activity_norm", model, sites=sites)
    handle = attach("activity_norm", model, sites=["2"], kind="l2", strength=1.0)
    output = model(noise(8, 4))
    torch.testing.assert_close(handle.penalty(), output.square().sum(1).mean())


def test_recurrent_layers_of_a_scripted_part_are_refused() -> None:
    model = nn.ModuleDict({"cell": torch.jit.script(nn.LSTMCell(4, 6)), "act": nn.ReLU()})
    with pytest.raises(ValueError, match=r"^module 'cell', LSTMCell, lies in a part that is scripted"):
        attach("activity_norm", model)
    attach("activity_norm", model, sites="pre").remove()  # there it gives none


def test_a_scripted_part_without_activations_is_no_matter() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(4, 6)), nn.ReLU())
    handle = attach("activity_norm", model, kind="l2", strength=1.0)
    output = model(noise(8, 4))
    torch.testing.assert_close(handle.penalty(), output.square().sum(1).mean())


class Dropped(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.5)


class Recursive(nn.Module):
    """Reads its weight at each of its own calls, or at the outermost alone, and keeps what it has read."""

    def __init__(self, reads_inside: bool) -> None:
        super().__init__()
        self.linear, self.reads_inside = nn.Linear(4, 4), reads_inside
        self.read: list[Tensor] = []

    def forward(self, value: Tensor, depth: int = 0) -> Tensor:
        if depth == 0 or self.reads_inside:
            self.read.append(self.linear.weight)
        output = nn.functional.linear(value, self.read[-1])
        if depth == 2:
            raise ArithmeticError("too deep")
        return output if depth else self(output, depth=1)


def test_a_model_that_calls_itself_has_one_pass() -> None:
    model = Recursive(reads_inside=False)
    nn.utils.parametrize.register_parametrization(model.linear, "weight", Dropped())
    handle = attach("weight_norm_penalty", model, strength=1.0, kind="l2")
    for _ in range(2):
        model(noise(3, 4))
        torch.testing.assert_close(handle.penalty(), model.read[-1].square().sum())


def test_a_weight_that_inner_calls_draw_anew_is_refused() -> None:
    model = Recursive(reads_inside=True)
    nn.utils.parametrize.register_parametrization(model.linear, "weight", Dropped())
    handle = attach("weight_norm_penalty", model, strength=1.0, kind="l2")
    model(noise(3, 4))
    with pytest.raises(ValueError, match=r"is another weight each time that it is read"):
        handle.penalty()


def test_a_pass_after_one_that_failed_inside_is_a_new_one() -> None:
    model = Recursive(reads_inside=False)
    nn.utils.parametrize.register_parametrization(model.linear, "weight", Dropped())
    handle = attach("weight_norm_penalty", model, strength=1.0, kind="l2")
    model(noise(3, 4))
    with pytest.raises(ArithmeticError):
        model(noise(3, 4), depth=2)
    model(noise(3, 4))
    torch.testing.assert_close(handle.penalty(), model.read[-1].square().sum())


def test_one_example_without_a_batch_is_refused_by_what_to_do() -> None:
    for model in (perceptron(), nn.ModuleList([nn.LSTMCell(6, 5)])[0]):
        attach("activity_norm", model)
        with pytest.raises(ValueError, match=r"have one axis, and examples and features are two: call the model with"):
            model(noise(6))


def test_sparse_weights_are_refused_by_name() -> None:
    model = perceptron()
    model[2].weight = nn.Parameter(model[2].weight.detach().to_sparse_csr())
    with pytest.raises(ValueError, match=r"^'2.weight' is sparse, torch.sparse_csr: a penalty on weights needs dense"):
        attach("orthogonal", model).penalty()


def test_a_batch_without_examples_leaves_a_memory_as_it_is() -> None:
    model = convolutions()
    handle = attach("distribution_mismatch_correction", model, example=noise(4, 1, 6, 6))
    model(noise(8, 1, 6, 6))
    before = [site.transform.reference.clone() for site in handle.sites]
    assert model(noise(8, 1, 6, 6)[:0]).shape == (0, 3)
    assert all(torch.equal(site.transform.reference, was) for site, was in zip(handle.sites, before, strict=True))


@pytest.mark.parametrize("name", ["batchnorm", "vcl"])
def test_a_model_without_activation_modules_is_told_where_sites_are(name: str) -> None:
    class Sentences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 6)

        def forward(self, value: Tensor) -> Tensor:
            return self.rnn(value)[0]

    with pytest.raises(ValueError, match=r"recurrent layers.* give are Sites 'post'"):
        attach(name, Sentences(), example=noise(5, 12, 4))
    handle = attach("vcl", Sentences(), sites="post", example=noise(5, 12, 4))
    handle.model(noise(5, 12, 4))
    assert handle.penalty() > 0
    assert load_method("vcl", sites="post").sites == "post"


def test_the_page_names_the_methods_that_need_an_example() -> None:
    needing = set()
    for name in all_methods():
        try:
            attach(name, perceptron())
        except ValueError as error:
            needing |= {name} if "has not seen a batch yet: give `example=`" in str(error) else set()
    page = (METHODS.parent / "docs" / "own_model.md").read_text("utf-8")
    (named,) = re.findall(r"They are those that put something into the\s+network: (.*?), and\s", page, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", named)) == needing
