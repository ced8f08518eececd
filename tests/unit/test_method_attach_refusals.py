"""attach(): what would train something else than was meant is right, or one line."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.quantile_activation.method import QAct
from methods.sparse_autoencoder.method import SparseAutoencoder
from methods.vcl.method import VCL
from methods.vcreg.method import VCReg
from methods.weight_norm_penalty.method import WeightNormPenalty
from reproduce.method.attach import attach

L2 = ActivityNorm(kind="l2", strength=1.0)  # a sum over a sample, the mean over samples


@pytest.fixture
def inputs() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(16, 4)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU())


def two_blocks() -> nn.Sequential:
    return nn.Sequential(small(), nn.Sequential(nn.Linear(6, 5), nn.ReLU()))


def by_row(activation: Tensor) -> Tensor:
    return activation.double().square().sum(-1).mean()


def assert_penalty(handle: Any, expected: Tensor, **options: Any) -> None:
    torch.testing.assert_close(handle.penalty(**options).double(), expected, rtol=1e-6, atol=0)


class Residual(nn.Sequential):
    def forward(self, value: Tensor) -> Tensor:
        for layer in self:
            value = value + layer(value)
        return value


class Ensemble(nn.ModuleList):
    def forward(self, value: Tensor) -> Any:
        return sum(layer(value) for layer in self) / len(self)


class Dense(nn.ModuleDict):
    def forward(self, value: Tensor) -> Tensor:
        for layer in self.values():
            value = torch.cat([value, layer(value)], 1)
        return value


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, value: Tensor) -> Any:
        return self.body(value) + self.body[-1](value)


CONTAINERS: dict[str, tuple[Any, str]] = {
    "sequential": (lambda: nn.Sequential(Residual(nn.Linear(4, 4), nn.Linear(4, 4))), "0"),
    "list": (lambda: nn.Sequential(Ensemble([nn.Linear(4, 4), nn.Linear(4, 4)])), "0"),
    "dict": (lambda: nn.Sequential(Dense({"a": nn.Linear(4, 4), "b": nn.Linear(8, 4)})), "0"),
    "index": (Last, "body"),
    "root": (lambda: Residual(nn.Linear(4, 4), nn.Linear(4, 4)), ""),
    "empty": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Sequential()), "1"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_do_not_meet_what_is_attached_to_them(inputs: Tensor, name: str) -> None:
    make, site = CONTAINERS[name]
    model = make()
    part = model.get_submodule(site)
    children, output, keys = list(part.children()), model(inputs), list(model.state_dict())
    handle = attach(L2, model, sites=[site])
    assert torch.equal(model(inputs), output)
    assert_penalty(handle, by_row(part(inputs) if name != "empty" else output))
    assert torch.equal(model.eval()(inputs), output)
    assert (list(part.children()), list(model.state_dict())) == (children, keys)
    handle.remove()
    # What a method puts in is a part of the model, and the container still does not meet it.
    handle = attach(BatchNorm(sites="post"), model.train(), sites={site: "post"}, example=inputs)
    assert list(part.children()) == children
    assert len(list(model.state_dict())) == len(keys) + 5
    expected = nn.functional.batch_norm(output, None, None, training=True)
    if name != "index":  # whose last layer is added to what is normalized
        torch.testing.assert_close(model(inputs), expected)
    torch.testing.assert_close(copy.deepcopy(model)(inputs), model(inputs))
    handle.remove()
    assert torch.equal(model(inputs), output)


@pytest.mark.parametrize("others", [[], [L2], [BatchNorm()]])
def test_names_in_the_state_are_the_methods_own(inputs: Tensor, others: list[Any]) -> None:
    model = small()
    for method in others:
        attach(method, model, sites="pre", example=inputs)
    attach(VCL(), model, sites="pre", example=inputs)
    assert [key for key in model.state_dict() if "vcl" in key] == ["1.activation_sites_vcl_pre.0.beta"]


def test_a_part_in_evaluation_that_trains_is_recorded(inputs: Tensor) -> None:
    model = two_blocks()
    model[0].insert(1, nn.BatchNorm1d(6))
    for sites in ("post", ["0.2", "1.1"], ["0.2"]):
        handle = attach(L2, model.train(), sites=sites)  # type: ignore[arg-type]
        model[0].eval()  # its statistics are frozen, its weights are not
        model(inputs)
        last = by_row(model(inputs)) if sites != ["0.2"] else 0
        assert_penalty(handle, by_row(model[0](inputs)) + last)
        handle.remove()
    handle = attach(VCL(strength=1.0), model.train(), sites="pre", example=inputs)
    model[0].eval()
    model(inputs)
    assert [record.site.name for record in handle.trace.records] == ["0.2", "1.1"]


def test_a_way_that_only_training_takes_is_not_shared(inputs: Tensor) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act = nn.Linear(4, 6), nn.ReLU()

        def forward(self, value: Tensor) -> Any:
            once = self.act(self.linear(value))
            return (once, self.act(self.linear(value + 5))) if self.training else once

    model = Views()
    attach(BatchNorm(), model, sites="pre", example=inputs)
    model.eval()(inputs)
    with pytest.raises(ValueError, match="module 'act' is called 2 times in a forward pass"):
        model.train()(inputs)


def test_a_dry_run_takes_no_fast_path() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=nn.ReLU(), dropout=0.0)
    model, tokens = nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 8)
    is_padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    handle = attach(L2, model, example={"src": tokens, "src_key_padding_mask": is_padding})
    assert torch.backends.mha.get_fastpath_enabled()
    hidden: list[Tensor] = []
    hooks = [one.activation.register_forward_hook(lambda *given: hidden.append(given[2])) for one in model.layers]
    model(tokens, src_key_padding_mask=is_padding)
    assert len(hooks) == len(hidden) == 2
    expected = sum((by_row(one[~is_padding]) for one in hidden), torch.zeros((), dtype=torch.float64))
    assert_penalty(handle, expected, mask=~is_padding)


LENGTHS = [5, 2, 4, 3]


class Recurrent(nn.Module):
    def __init__(self, is_packed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.is_packed = nn.GRU(3, 6, batch_first=True), is_packed

    def forward(self, tokens: Tensor) -> Any:
        if not self.is_packed:
            return self.gru(tokens)[0]
        packed = pack_padded_sequence(tokens, LENGTHS, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("method", [L2, VCReg(), SparseAutoencoder(sites="post")])
def test_a_packed_sequence_is_the_padded_one_with_its_mask(method: Any) -> None:
    tokens, mask = torch.randn(4, 5, 3), torch.arange(5) < torch.tensor(LENGTHS)[:, None]
    packed, padded = Recurrent(True), Recurrent(False)
    handle, other = (attach(method, model, sites={"gru": "post"}) for model in (packed, padded))
    packed(tokens)
    padded(tokens)
    penalty = handle.penalty()
    assert (handle.sites[0].is_packed, handle.sites[0].is_sequence) == (True, True)
    torch.testing.assert_close(penalty, other.penalty(mask=mask), rtol=1e-5, atol=1e-7)
    packed(tokens)
    torch.testing.assert_close(handle.penalty(mask=mask), penalty)
    packed(tokens)
    with pytest.raises(ValueError, match=r"Site 'gru' holds 14 rows"):
        handle.penalty(mask=mask | True)


@pytest.mark.parametrize("method", [QAct(sites="post"), VCL(sites="post")])
def test_what_has_a_place_in_a_packed_sequence_is_refused(method: Any) -> None:
    model = Recurrent(True)
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match=r"'gru' has a packed sequence.*pad_packed_sequence"):
        attach(method, model, sites={"gru": "post"}, example=torch.randn(4, 5, 3))
    assert list(model.state_dict()) == keys


def test_what_reads_neighbouring_steps_of_a_packed_sequence_is_refused() -> None:
    model = Recurrent(True)
    handle = attach(ActivityNorm(kind="ar_tar", strength=0.0, temporal_strength=1.0), model, sites=["gru"])
    model(torch.randn(4, 5, 3))
    with pytest.raises(ValueError, match=r"'gru' has a packed sequence.*pad_packed_sequence"):
        handle.penalty()
    with pytest.raises(ValueError, match="sequence"):  # as of a padded one
        attach(BatchNorm(sites="post"), Recurrent(True), sites={"gru": "post"}, example=torch.randn(4, 5, 3))


class Meeting(nn.Module):
    """Two blocks, and something that happens between them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.between = two_blocks(), lambda: None

    def forward(self, value: Tensor) -> Any:
        value = self.blocks[0](value)
        self.between()
        return self.blocks[1](value)


@pytest.fixture
def elsewhere() -> Any:
    """Calls a function in another thread, and returns what it raised."""

    def call(function: Any) -> BaseException | None:
        raised: list[BaseException] = []

        def catching() -> None:
            try:
                function()
            except ValueError as error:
                raised.append(error)

        thread = threading.Thread(target=catching)
        thread.start()
        thread.join()
        return raised[0] if raised else None

    return call


def test_another_threads_pass_closes_nothing(inputs: Tensor, elsewhere: Any) -> None:
    model = Meeting()
    handle = attach(L2, model)
    first = model.blocks[0](inputs)
    expected = by_row(first) + by_row(model.blocks[1](first))

    def act() -> None:
        model.between = lambda: None
        with torch.no_grad():
            model(2 * inputs)

    for _ in range(2):
        model.between = lambda: elsewhere(act)
        model(inputs)
        assert_penalty(handle, expected)
    refused: list[Any] = []

    def train() -> None:
        model.between = lambda: None
        model(2 * inputs)

    model.between = lambda: refused.append(elsewhere(train))
    model(inputs)
    assert "two threads train one attached model" in str(refused[0])
    assert_penalty(handle, expected)
    assert elsewhere(lambda: model(inputs)) is None  # one after the other
    assert_penalty(handle, expected)


def test_a_pass_that_raised_has_no_penalty(inputs: Tensor) -> None:
    model = Meeting()
    handle = attach(L2, model)
    model.between = lambda: inputs @ inputs
    with pytest.raises(RuntimeError):
        model(inputs)
    with pytest.raises(ValueError, match="the forward pass raised an error"):
        handle.penalty()
    model.between = lambda: None
    output = model(inputs)
    assert_penalty(handle, by_row(model.blocks[0](inputs)) + by_row(output))


@pytest.mark.parametrize("progress", [7, -3.0, float("nan"), "x", torch.tensor([0.25]), torch.tensor(1.5)])
def test_a_progress_that_is_no_fraction_is_refused(progress: Any) -> None:
    handle = attach(WeightNormPenalty(), small())
    with pytest.raises(ValueError, match=r"progress is the fraction .*\[0, 1\], got .*step / number_of_steps"):
        handle.penalty(progress)
    for allowed in (0, 1, 0.25, torch.tensor(0.5)):
        handle.penalty(allowed)
        assert handle.progress == float(allowed)


def test_an_optimiser_that_does_not_hold_what_was_added_is_refused(inputs: Tensor) -> None:
    model = small()
    early = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(VCL(strength=1.0), model, sites="pre", example=inputs)

    def step(*optimizers: torch.optim.Optimizer) -> None:
        (model(inputs).square().mean() + handle.penalty()).backward()
        for optimizer in optimizers:
            optimizer.step()

    step(early)
    with pytest.raises(
        ValueError, match=r"before the method added '1\.activation_sites_vcl_pre\.0\.beta'.*after attach"
    ):
        step(early)
    before = handle.sites[0].beta.detach().clone()
    late = torch.optim.SGD([handle.sites[0].beta], lr=0.1)
    late.step()
    for _ in range(2):
        step(early, late)
    assert not torch.equal(handle.sites[0].beta, before)


def test_two_optimisers_of_which_one_steps_less_often(inputs: Tensor) -> None:
    """What the method added is held by the other, which has not stepped yet, as in adversarial training."""
    model = nn.Sequential(*small(), nn.Linear(6, 2))
    handle = attach(VCL(strength=1.0), model, sites="pre", example=inputs)
    often = torch.optim.SGD(model[0].parameters(), lr=0.1)
    rarely = torch.optim.SGD([*model[1].parameters(), *model[2].parameters()], lr=0.1)
    before = handle.sites[0].beta.detach().clone()
    for step in range(4):
        (model(inputs).square().mean() + handle.penalty()).backward()
        often.step()
        if step % 2:
            rarely.step()
            often.zero_grad()
            rarely.zero_grad()
    assert not torch.equal(handle.sites[0].beta, before)


@pytest.mark.parametrize("with_example", [True, False])
def test_a_lazy_model_that_has_no_shapes_yet(inputs: Tensor, with_example: bool) -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3))
    handle = attach(L2, model, example=inputs if with_example else None)
    model(inputs)
    assert_penalty(handle, by_row(model[1](model[0](inputs))))
    handle.remove()
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    unmet = nn.Sequential(nn.LazyLinear(6), nn.ReLU())
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet: call the model once"):
        attach(WeightNormPenalty(strength=1.0), unmet).penalty()
    with pytest.raises(ValueError, match="has not seen a batch yet: give `example=`"):
        attach(VCL(strength=1.0), unmet, sites="pre")


def test_a_module_that_was_replaced_is_refused(inputs: Tensor) -> None:
    for path in ("1", "0.1", "0"):
        model = two_blocks()
        handle = attach(L2, model)
        parent, _, key = path.rpartition(".")
        setattr(model.get_submodule(parent), key, nn.Linear(4, 6) if path == "0" else nn.GELU())
        model(inputs) if path != "1" else None
        with pytest.raises(ValueError, match=rf"module '{path}[.1]*' was replaced after attach\(\)"):
            handle.penalty()
    model = two_blocks()
    handle = attach(L2, model)
    model[0][1] = nn.Sequential(model[0][1], nn.Identity())  # wrapped, and still called
    output = model(inputs)
    assert_penalty(handle, by_row(model[0](inputs)) + by_row(output))


def test_arguments_of_another_kind_are_refused() -> None:
    model = small()
    for arguments, message in (
        ((model, L2), r"attach\(method, model\), got Sequential and ActivityNorm$"),
        ((ActivityNorm, model), r"ActivityNorm\(\) say, got the class ActivityNorm$"),
        ((L2, model, [1]), "as text, got 1; there are: 0, 1$"),
        ((L2, model, [model[1]]), "as text, got a ReLU; there are: 0, 1$"),
    ):
        with pytest.raises(ValueError, match=message):
            attach(*arguments)  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_attached_in_inference_mode_trains(inputs: Tensor) -> None:
    model = small()
    with torch.inference_mode():
        handle = attach(VCL(strength=1.0), model, sites="pre", example=inputs)
    model(inputs)
    handle.penalty(0.5).backward()
    assert handle.sites[0].beta.grad is not None


def test_forward_mode_has_the_derivative_of_the_penalty(inputs: Tensor) -> None:
    model, direction = small().double(), torch.ones(16, 4, dtype=torch.float64)
    handle = attach(L2, model)

    def penalty(value: Tensor) -> Any:
        model(value)
        return handle.penalty()

    rows = inputs.double()
    _, found = torch.func.jvp(penalty, (rows,), (direction,))
    hidden = model(rows)
    expected = 2 * (hidden * (direction @ model[0].weight.T)).sum(1).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.fixture(params=[torch.float64, torch.bfloat16])
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", [BatchNorm(), VCL(strength=1.0)])
def test_what_is_added_has_the_models_type_whatever_the_default_is(default: torch.dtype, method: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 6, dtype=torch.float32), nn.ReLU())
    rows = torch.randn(16, 4, dtype=torch.float32)
    handle = attach(method, model, sites="pre", example=rows)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    output = model(rows)
    assert (output.dtype, handle.progress.dtype, torch.get_default_dtype()) == (torch.float32, torch.float32, default)
    assert handle.penalty(0.3).dtype == torch.float32
    assert handle.progress == torch.tensor(0.3, dtype=torch.float32)
