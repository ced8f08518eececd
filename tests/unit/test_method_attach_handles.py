"""attach(): several handles on one model, what remove() gives back, types, and methods that act after a step."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.orthogonal.method import OrthogonalRegularization
from methods.per.method import PER
from methods.sparse_autoencoder.method import SparseAutoencoder
from methods.vanilla.method import Vanilla
from methods.variance_preserving_init.method import FirstBatchStandardisation, VariancePreservingInit
from methods.vcl.method import VCL
from reproduce.method import sites_of
from reproduce.method.attach import attach

L2 = ActivityNorm(kind="l2", strength=1.0, reduction="mean")  # the mean of squares, summed over Sites
PRE = L2.model_copy(update={"sites": "pre"})


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh())


def normalized(model: nn.Module) -> list[str]:
    """The modules that hold a batch normalization."""
    return [name.split(".activation")[0] for name, part in model.named_modules() if isinstance(part, nn.BatchNorm1d)]


def test_two_handles_do_not_see_each_other(inputs: Tensor) -> None:
    model = perceptron()
    plain = model[0](inputs).square().mean()
    first = attach(PRE, model, sites={"0": "pre"})
    second = attach(BatchNorm(), model, sites={"2": "pre"}, example=inputs)
    assert normalized(model) == ["2"]
    assert [site.name for site in first.sites + second.sites] == ["0", "2"]
    model(inputs)
    torch.testing.assert_close(first.penalty(), plain)
    second.remove()
    assert normalized(model) == []
    model(inputs)
    torch.testing.assert_close(first.penalty(), plain)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_one_method_at_two_places_is_removed_in_any_order(inputs: Tensor, order: list[int]) -> None:
    model = perceptron()
    output, keys = model(inputs), list(model.state_dict())
    handles = [attach(BatchNorm(), model, sites={name: "pre"}, example=inputs) for name in ("0", "2")]
    assert normalized(model) == ["0", "2"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 65 + 2 * 6 + 2 * 5
    for index in order:
        handles[index].remove()
    assert torch.equal(model(inputs), output)
    assert list(model.state_dict()) == keys


def test_a_deep_copy_of_an_attached_model_is_attached_like_any_other(inputs: Tensor) -> None:
    model = perceptron()
    attach(VCL(strength=1.0), model, sites={"0": "pre"}, example=inputs)
    copied = copy.deepcopy(model)
    handle = attach(VCL(strength=1.0), copied, sites={"0": "pre", "2": "pre"}, example=inputs)
    assert [site.name for site in handle.sites] == ["0", "2"]
    copied(inputs)
    handle.penalty().backward()
    assert all(site.beta.grad is not None for site in handle.sites)
    assert all(parameter.grad is None for parameter in model.parameters())
    handle.remove()
    assert list(copied.state_dict()) == list(model.state_dict())


class Named(nn.Module):
    """One module under two names."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.one = self.other = part

    def forward(self, value: Tensor) -> Any:
        return self.one(value)


def test_parts_that_occur_twice_count_once(inputs: Tensor) -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    alias = Named(shared)
    betas = attach(VCL(strength=1.0), alias, sites={"one": "pre", "other": "pre"}, example=inputs)
    assert len(list(alias.parameters())) == 2 + 1
    betas.remove()
    first = attach(PRE, model, sites=["0", "2"])
    model(inputs)
    hidden = shared(inputs)
    expected = hidden.square().mean() + shared(hidden.relu()).square().mean()  # each call is an activation
    torch.testing.assert_close(first.penalty(), expected)


def test_what_is_no_handles_is_not_its_own(inputs: Tensor) -> None:
    """Transforms of another handle are neither folded nor seen."""
    model = perceptron()
    method = VariancePreservingInit(mode="sample_statistics")
    first, second = (attach(method, model, sites={name: "pre"}, example=inputs) for name in ("0", "2"))
    model(inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    second.penalty()
    second.after_step(optimizer)
    folded = [site.transform.is_folded for site in first.sites + second.sites]  # type: ignore[union-attr]
    assert folded == [False, True]
    assert isinstance(first.sites[0].transform, FirstBatchStandardisation)
    assert list(sites_of(model)) == []  # they are no Sites of the model's own


def test_what_one_handle_added_another_does_not_replace(inputs: Tensor) -> None:
    model = perceptron()
    method = OrthogonalRegularization(formula="srip", redraw=False)
    first = attach(method, model)
    value = first.penalty()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"'srip_start_0' of Sequential is in use by Orthogonal.*remove\(\)"):
        attach(method, model, seed=1)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(first.penalty(), value)
    first.remove()
    attach(method, model, seed=1)


def test_an_average_of_an_attached_model_is_a_model_that_records_nothing(inputs: Tensor) -> None:
    model = perceptron()
    attach(BatchNorm(), model, sites="pre", example=inputs)
    handle = attach(L2, model, sites=["3"])
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    output = model(inputs)
    average(2 * inputs)
    torch.testing.assert_close(handle.penalty(), output.square().mean())
    average.update_parameters(model)
    model.eval()
    average.eval()
    torch.testing.assert_close(average(inputs), model(inputs))


@pytest.mark.parametrize("training", [False, True])
def test_an_attached_model_is_exported(inputs: Tensor, training: bool) -> None:
    model = perceptron().train(training)
    expected = model(inputs)
    handle = attach(L2, model, example=inputs)
    exported = torch.export.export(model, (inputs,))
    torch.testing.assert_close(exported.module()(inputs), expected)
    assert handle.trace.is_empty
    model.train()(inputs)
    torch.testing.assert_close(handle.penalty(), model[:2](inputs).square().mean() + expected.square().mean())


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Invasive(Vanilla):
    """Does everything to a model that can be done to it."""

    fails: bool = False

    def prepare(self, model: Any, generator: torch.Generator) -> None:
        parametrize.register_parametrization(model[0], "weight", Doubled())
        nn.utils.parametrizations.weight_norm(model[2], "weight")
        with torch.no_grad():
            model[2].bias.fill_(7.0)
        model[1] = nn.Sequential(model[1], nn.Identity())
        model.extra = "an attribute"
        model.register_buffer("count", torch.zeros(()), persistent=False)
        model.register_forward_hook(lambda module, arguments, output: 3 * output)
        model[0].bias.requires_grad_(False)
        del model[3].some
        model[3].steps = torch.ones(3)
        if self.fails:
            raise ValueError("this model needs something else")


def invaded() -> nn.Sequential:
    model = perceptron()
    model[3].register_buffer("some", torch.ones(2))
    model[3].register_buffer("steps", torch.zeros(3))
    return model


def described(model: nn.Module) -> list[Any]:
    hooks = [len(value) for part in model.modules() for name, value in vars(part).items() if name.endswith("hooks")]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    return [
        *([type(part) for part in model.modules()], list(model.state_dict()), hooks, trained, set(vars(model))),
        [id(parameter) for parameter in model.parameters()],
    ]


def test_remove_gives_back_the_model_with_trained_weights_whatever_the_method_did(inputs: Tensor) -> None:
    model = invaded()
    before, weight = described(model), model[0].weight.detach().clone()
    handle = attach(Invasive(), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(inputs).square().mean() + handle.penalty()).backward()
        optimizer.step()
    trained = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    assert not torch.equal(trained[0], 2 * weight)
    expected = model(inputs) / 3
    handle.remove()
    assert described(model) == before
    torch.testing.assert_close([model[0].weight.detach(), model[2].weight.detach()], trained)
    torch.testing.assert_close(model(inputs), expected)
    assert torch.equal(model[3].steps, torch.zeros(3))


def test_a_method_that_fails_midway_leaves_no_trace(inputs: Tensor) -> None:
    model = invaded()
    before, output = described(model), model(inputs)
    with pytest.raises(ValueError, match="needs something else"):
        attach(Invasive(fails=True), model, example=inputs)
    assert described(model) == before
    assert torch.equal(model(inputs), output)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), nn.ReLU()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, value: Tensor) -> Tensor:
        self.calls += 1
        return self.act(self.linear(value))


def test_a_dry_run_moves_no_buffer(inputs: Tensor) -> None:
    model = Counting()
    attach(L2, model, example=[inputs])  # a list of arguments, as a tuple
    assert model.calls == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_what_is_added_fits_the_models_type(inputs: Tensor, dtype: torch.dtype) -> None:
    model = perceptron().to(dtype)
    parts = copy.deepcopy(model)
    twin = nn.Sequential(parts[0], nn.BatchNorm1d(6), parts[1], parts[2], nn.BatchNorm1d(5), parts[3])
    kept = torch.float64 if dtype == torch.float64 else torch.float32  # a statistic needs more than eight bits
    twin[1].to(kept)
    twin[4].to(kept)
    handle = attach(BatchNorm(), model, sites="pre", example=inputs.to(dtype))
    other = attach(VCL(strength=1.0), model, sites="pre", example=inputs.to(dtype))
    output = model(inputs.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output, twin(inputs.to(dtype)))
    added = [value for site in handle.sites + other.sites for value in site.state_dict().values()]
    assert {value.dtype for value in added if value.is_floating_point()} == {kept}
    (output.sum() + other.penalty()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)


class Auto(nn.Module):
    """An autoencoder with functions for layers, and a module for its code."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.W_enc, self.b_enc = nn.Parameter(torch.randn(4, 12)), nn.Parameter(torch.zeros(12))
        self.W_dec, self.act = nn.Parameter(torch.randn(12, 4)), nn.ReLU()

    def forward(self, value: Tensor) -> Tensor:
        return self.act(value @ self.W_enc + self.b_enc) @ self.W_dec


@pytest.mark.parametrize("is_inner", [False, True])
def test_resampling_is_attached_to_an_autoencoder(inputs: Tensor, is_inner: bool) -> None:
    auto = Auto()
    model, site = (nn.Sequential(nn.Identity(), auto), "1.act") if is_inner else (auto, "act")
    keys = list(model.state_dict())
    with torch.no_grad():
        auto.b_enc[3] = -1e3  # a dead latent
    handle = attach(SparseAutoencoder(resample_every=4, l1_coefficient=1e-3), model, {site: "code"}, example=inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(4):
        assert auto.b_enc[3] < -900, step
        optimizer.zero_grad()
        ((model(inputs) - inputs).square().mean() + handle.penalty(progress=0.1)).backward()
        optimizer.step()
        handle.after_step(optimizer)
    assert auto.b_enc[3] == 0
    torch.testing.assert_close(auto.W_dec[3].norm(), torch.tensor(1.0))
    assert auto.resampling.steps == 4
    handle.remove()
    assert list(model.state_dict()) == keys
    assert not auto._forward_hooks


def test_a_method_that_does_nothing_after_a_step_asks_for_nothing(inputs: Tensor) -> None:
    model = Auto()
    handle = attach(SparseAutoencoder(l1_coefficient=1e-3), model, sites={"act": "code"}, example=inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        for half in inputs.chunk(2):
            ((model(half) - half).square().mean() + handle.penalty()).backward()
        optimizer.step()
    handle.after_step(optimizer)  # allowed, and does nothing


@pytest.mark.parametrize("fused", [False, True])
def test_accumulated_batches_are_one_step(inputs: Tensor, fused: bool) -> None:
    """A latent that fires in one of two halves has fired; a step that is not told of is noticed."""
    model = Auto()
    handle = attach(SparseAutoencoder(resample_every=100), model, sites={"act": "code"}, example=inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=fused)
    code = (inputs @ model.W_enc).relu()
    for half in inputs.chunk(2):
        (model(half).square().mean() + handle.penalty()).backward()
    torch.optim.SGD([nn.Parameter(torch.ones(1, requires_grad=True))], lr=0.1).step()  # of another model
    optimizer.step()
    handle.after_step(optimizer)
    assert torch.equal(model.resampling.idle == 0, (code > 0).any(0))
    assert model.resampling.steps == 1
    model(inputs)
    handle.penalty()
    optimizer.step()
    model(inputs)
    with pytest.raises(ValueError, match=r"call handle\.after_step\(optimizer\)"):
        handle.penalty()


def test_a_handle_says_what_is_recorded(inputs: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 3, 1), nn.ELU())
    with caplog.at_level(logging.INFO, logger="reproduce"):
        handle = attach(PER(strength=0.5), model)
    assert [record.getMessage() for record in caplog.records] == [repr(handle)]
    assert repr(handle).splitlines()[1:] == ["  1: post, not met yet", "  4: post, not met yet"]
    model(inputs)
    first, *sites = repr(handle).splitlines()
    assert first.startswith("PER(strength=0.5, ")
    assert first.endswith("attached to Sequential")
    assert sites == ["  1: post, nc (6,)", "  4: post, nchw (3, 1, 1)"]
    handle.remove()
    assert repr(handle).endswith("removed from Sequential")
    for reader in (nn.Linear(2, 2), nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))):
        layers = "1, 3" if isinstance(reader, nn.Sequential) else "the model"
        said = f"\n  no Sites: it reads weights alone; layers with kernels: {layers}"
        assert repr(attach(OrthogonalRegularization(), reader)).endswith(said)


def test_a_handle_goes_on_from_a_saved_state(inputs: Tensor) -> None:
    """Its progress, and what the method draws next; the weights are the model's own."""
    model, twin = perceptron(), perceptron()
    method = PER(strength=1.0, mode="sliced")
    handle, other = attach(method, model), attach(method, twin)

    def penalties(network: nn.Module, attached: Any, n: int) -> list[float]:
        return [(network(inputs), attached.penalty().item())[1] for _ in range(n)]

    model(inputs)
    handle.penalty(progress=0.25)
    state = handle.state_dict()
    expected = penalties(model, handle, 3)
    assert len(set(expected)) == 3  # each has its own directions
    assert penalties(twin, other, 3) != expected
    other.load_state_dict(state)
    assert penalties(twin, other, 3) == expected
    assert other.progress == 0.25


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "^a handle's state has progress and generator, found none$"),
        ({"0.weight": torch.zeros(())}, "found 0.weight$"),
        (
            {"progress": torch.zeros(()), "generator": torch.zeros(16, dtype=torch.uint8)},
            "^the handle's state is not from cpu, where the model lies",
        ),
    ],
)
def test_what_is_no_state_of_this_handle_is_refused(state: dict[str, Tensor], message: str) -> None:
    handle = attach(PRE, perceptron(), "pre")
    before = handle.state_dict()
    with pytest.raises(ValueError, match=message):
        handle.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in handle.state_dict().items())


@pytest.mark.parametrize(
    "method",
    [Vanilla(), BatchNorm(), ActivityNorm(kind="l2", strength=0.0), OrthogonalRegularization(strength=0.0)],
    ids=lambda method: type(method).__name__,
)
def test_what_is_written_into_a_penalty_of_zero_stays_in_it(method: Any, inputs: Tensor) -> None:
    model = perceptron()
    handle = attach(method, model, sites="pre", example=inputs)
    for _ in range(3):
        output = model(inputs).square().mean()
        loss = handle.penalty()
        assert (loss.item(), loss.shape) == (0.0, ())
        logged = loss.detach()
        loss += output
        loss.backward()
        assert loss.item() == logged.item() == output.item()
