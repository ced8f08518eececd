"""attach(): which forward passes are recorded, of which modules, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.orthogonal.method import OrthogonalRegularization
from methods.per.method import PER
from methods.variance_preserving_init.method import VariancePreservingInit
from methods.weight_norm_penalty.method import WeightNormPenalty
from reproduce import attach as public_attach
from reproduce.errors import UserError
from reproduce.method.attach import attach

L2 = ActivityNorm(kind="l2", strength=1.0, reduction="mean")  # the mean of squares, summed over Sites


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU())


def test_nested_tensors_pass_in_evaluation_as_without_a_handle() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=nn.ReLU())
    model = nn.TransformerEncoder(layer, 2).eval()
    mask = torch.tensor([[False] * 5, [False, False, False, True, True]])
    tokens = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = model(tokens, src_key_padding_mask=mask)
        attach(PER(), model)
        torch.testing.assert_close(model(tokens, src_key_padding_mask=mask), expected)


@pytest.mark.parametrize("value", [torch.ones(4), torch.ones(2, 1, 1, 1, 1, 4)])
def test_without_a_record_and_a_transform_any_shape_passes(value: Tensor) -> None:
    model = small()
    expected = model(value)
    attach(PER(), model)
    assert torch.equal(model.eval()(value), expected)
    with torch.no_grad():
        assert torch.equal(model.train()(value), expected)


def test_evaluation_passes_what_is_no_tensor(inputs: Tensor) -> None:
    class Length(nn.Module):
        def forward(self, value: Tensor) -> int | Tensor:
            return value if self.training else len(value)

    model = nn.Sequential(nn.Linear(4, 6), Length())
    handle = attach(L2, model, sites=["1"])
    assert model.eval()(inputs) == 8
    model.train()(inputs)
    assert handle.penalty() > 0


def test_nested_tensors_are_refused_where_they_would_be_recorded() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    attach(L2, model)
    rows = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)])
    with pytest.raises(ValueError, match="module '1': nested tensors cannot be recorded"):
        model(rows)


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool, before: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.use_reentrant = nn.Linear(4, 6), use_reentrant
        self.first = before or nn.Identity()
        self.b = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))

    def forward(self, value: Tensor) -> Any:
        return checkpoint(self.b, self.first(self.a(value)), use_reentrant=self.use_reentrant)


def test_a_checkpoint_without_reentry_gives_the_penalty_and_its_gradient(inputs: Tensor) -> None:
    model, twin = Checkpointed(False), Checkpointed(False)
    handle = attach(L2, model)
    output = model(inputs)
    penalty = handle.penalty()
    (output.sum() * 0 + penalty).backward()
    assert handle.trace.records == []  # what is computed again is not recorded
    with pytest.raises(ValueError, match="nothing was recorded"):
        handle.penalty()
    expected = twin.b[1](twin.b[0](twin.a(inputs))).square().mean()
    expected.backward()
    torch.testing.assert_close(penalty, expected)
    torch.testing.assert_close(model.a.weight.grad, twin.a.weight.grad)
    torch.testing.assert_close(model.b[0].weight.grad, twin.b[0].weight.grad)


def test_a_reentrant_checkpoint_is_refused(inputs: Tensor) -> None:
    model = Checkpointed(True)
    handle = attach(L2, model)
    output = model(inputs)
    with pytest.raises(ValueError, match=r"b\.1 was passed without gradients.*use_reentrant=False"):
        handle.penalty()
    handle.remove()
    output.sum().backward()  # the graph is as it was
    handle = attach(L2, model, sites=["a"])  # outside
    model(inputs)
    torch.testing.assert_close(handle.penalty(), model.a(inputs).square().mean())


def test_a_reentrant_checkpoint_among_other_sites_is_refused_in_the_backward_pass(inputs: Tensor) -> None:
    model = Checkpointed(True, before=nn.ReLU())
    handle = attach(L2, model)
    output = model(inputs)
    penalty = handle.penalty()
    with pytest.raises(ValueError, match=r"module 'b\.1' lies in a reentrant checkpoint"):
        (output.sum() + penalty).backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpoint_around_the_whole_model(inputs: Tensor, use_reentrant: bool) -> None:
    model = small()
    handle = attach(L2, model)
    output = checkpoint(model, inputs.requires_grad_(), use_reentrant=use_reentrant)
    if use_reentrant:
        with pytest.raises(ValueError, match="use_reentrant=False"):
            handle.penalty()
        output.sum().backward()
    else:
        penalty = handle.penalty()
        torch.testing.assert_close(penalty, model(inputs).square().mean())
        model(inputs)
        handle.penalty()
        (output.sum() + penalty).backward()
    with pytest.raises(ValueError, match="nothing was recorded"):
        handle.penalty()


def test_passes_that_do_not_train_neither_record_nor_replace(inputs: Tensor) -> None:
    model = small()
    expected = model(inputs).square().mean()
    handle = attach(L2, model)
    model(inputs)
    with torch.no_grad():
        model(2 * inputs)
    with torch.inference_mode():
        model(2 * inputs)
    model[0](2 * inputs)
    model[1](2 * inputs)  # a part of it alone
    model.eval()(2 * inputs)
    model.train()
    penalty = handle.penalty()
    assert penalty.requires_grad
    torch.testing.assert_close(penalty, expected)
    with torch.no_grad():
        model(inputs)
    with pytest.raises(ValueError, match=r"nothing was recorded: .* not under no_grad"):
        handle.penalty()


class Teacher(nn.Module):
    """Calls itself without gradients, and has a part that passes without them."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.student = small(), nn.Sequential(nn.Linear(6, 6), nn.Tanh())

    def forward(self, value: Tensor, again: bool = True) -> Tensor:
        with torch.no_grad():
            features = self.frozen(value)
            if again:
                self(value, again=False)
        return self.student(features)


def test_parts_without_gradients_are_left_out(inputs: Tensor) -> None:
    model = Teacher()
    handle = attach(L2, model)
    output = model(inputs)
    penalty = handle.penalty()
    torch.testing.assert_close(penalty, output.square().mean())
    penalty.backward()


def test_an_error_in_a_forward_pass_is_no_end_of_recording(inputs: Tensor) -> None:
    model = small()
    handle = attach(L2, model)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            model(torch.ones(8, 5))
    output = model(inputs)
    torch.testing.assert_close(handle.penalty(), output.square().mean())


def test_frozen_layers_have_no_penalty(inputs: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    handle = attach(L2, model)
    model(inputs)
    with pytest.raises(ValueError, match="no activation that was recorded has a gradient: the layers"):
        handle.penalty()
    model.requires_grad_(False)
    model(inputs)
    assert handle.penalty() > 0  # a model that does not train is only measured


def test_modules_that_are_named_and_never_called(inputs: Tensor) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens = torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"'self_attn\.out_proj' was named, and is never called: nn.Multihead"):
        attach(PER(), model, sites=["self_attn.out_proj", "linear1"], example=tokens)
    assert not any(part._forward_hooks for part in model.modules())
    handle = attach(L2, model, sites=["self_attn", "linear1"], example=tokens)
    model(tokens)
    assert len(handle.trace.records) == 2


class Heads(nn.Module):
    """Of two tasks, which are called in turn; one more is never called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 6)
        self.heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, 5), nn.ReLU()) for name in "abc"})

    def forward(self, inputs: Tensor, task: str) -> Tensor:
        return self.heads[task](self.trunk(inputs))


@pytest.mark.parametrize("example", [None, {"inputs": torch.zeros(2, 4), "task": "a"}])
def test_named_modules_may_take_turns(inputs: Tensor, example: Any) -> None:
    """What is not called is told once, and each penalty is of the head that was."""
    model = Heads()
    handle = attach(L2, model, sites=["heads.*.1"], example=example)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for task in "abab":
            made = model(inputs, task)
            torch.testing.assert_close(handle.penalty(), made.square().mean())
    (one,) = told
    assert str(one.message).startswith("module 'heads.b.1' (and 1 more) was named, and is not called in this forward")
    assert one.filename == __file__


def test_named_modules_that_have_all_been_called_are_not_told_of(inputs: Tensor) -> None:
    model = Heads()
    handle = attach(L2, model, sites=["heads.a.1", "heads.b.1"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for task in "ab":  # without a penalty for the first
            model(inputs, task)
        assert handle.penalty() > 0
        model(inputs, "a")
        assert handle.penalty() > 0


def test_named_modules_of_which_none_is_called_are_refused(inputs: Tensor) -> None:
    model = Heads()
    handle = attach(L2, model, sites=["heads.b.1", "heads.c"])
    model(inputs, "a")
    with pytest.raises(ValueError, match=r"'heads\.b\.1' \(and 1 more\) was named, and is not called.*reaches them"):
        handle.penalty()


def test_a_model_without_parameters() -> None:
    values = torch.tensor([[1.0, -2.0]], requires_grad=True)
    model = nn.Sequential(nn.Flatten(), nn.ReLU())
    handle = attach(L2, model)
    model(values)
    assert handle.penalty().item() == 0.5
    attach(BatchNorm(), model, sites="pre", example=torch.ones(3, 2))
    assert handle.device == torch.device("cpu")
    with pytest.raises(ValueError, match="orthogonality needs kernels, and the model has none"):
        attach(OrthogonalRegularization(), model).penalty()


def test_a_model_on_the_meta_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"meta device, where nothing is computed.*then attach\(\)"):
        attach(L2, nn.Sequential(nn.Linear(2, 2, device="meta"), nn.ReLU()))


def test_a_module_of_several_names(inputs: Tensor) -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 6)
            self.b = self.a

        def forward(self, value: Tensor) -> Any:
            return self.b(value)

    model = Aliased()
    for sites in (["b"], ["a", "b"], {"b": "post", "a": "post"}, ["?"]):
        handle = attach(L2, model, sites=sites, axes={"b": "nc"} if "b" in sites else None)
        output = model(inputs)
        assert len(handle.sites) == 1
        torch.testing.assert_close(handle.penalty(), output.square().mean())
        handle.remove()


@pytest.mark.parametrize("method", [OrthogonalRegularization(strength=1.0), WeightNormPenalty(strength=1.0)])
def test_methods_of_weights_need_no_sites_and_no_forward_pass(method: Any) -> None:
    handle = attach(method, nn.Linear(4, 4))
    assert handle.sites == []
    penalty = handle.penalty()
    penalty.backward()
    torch.testing.assert_close(handle.penalty(), penalty)
    with_sites = attach(method, small())
    with_sites.model(torch.ones(2, 4))
    assert with_sites.trace.records == []


def test_lists_serve_where_a_field_is_a_tuple() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    handle = public_attach("weight_norm_penalty", model, strength=1.0, layers=["1.weight"])
    assert handle.method == WeightNormPenalty(strength=1.0, layers=("1.weight",))
    with pytest.raises(UserError, match="layers"):
        public_attach("weight_norm_penalty", model, layers="1.weight")


def test_a_method_that_fills_sites_says_that_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"modes of statistics.*no 'pre' Site"):
        attach(VariancePreservingInit(mode="sample_statistics"), nn.Linear(4, 4))


def deep() -> nn.Module:
    block = nn.ModuleDict({"mlp": nn.ModuleDict({"lin": nn.Linear(4, 4), "act": nn.GELU()})})
    return nn.ModuleDict({"encoder": nn.ModuleList([block, block, nn.ModuleDict({"act": nn.ReLU()})])})


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        (["encoder.*.mlp.act"], ["encoder.0.mlp.act"]),  # block 1 is block 0
        (["encoder.*.act"], ["encoder.2.act"]),
        (["encoder.[12].*"], ["encoder.1.mlp", "encoder.2.act"]),
        ({"*.*.mlp.l?n": "pre", "encoder.2.act": "post"}, ["encoder.0.mlp.lin", "encoder.2.act"]),
    ],
)
def test_patterns_of_names(sites: Any, found: list[str]) -> None:
    assert [site.name for site in attach(L2, deep(), sites=sites).sites] == found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlp.act", r"no module 'mlp\.act'; did you mean .*'encoder\.0\.mlp\.act'"),
        ("encoder.0.mpl.act", r"did you mean 'encoder\.0\.mlp\.act'"),
        ("encoder.*.atc", r"no module that fits 'encoder\.\*\.atc'; did you mean .*'encoder\.2\.act'"),
        ("zzz", r"no module 'zzz'; there are: encoder, encoder\.0, "),
    ],
)
def test_unknown_names_are_answered_with_near_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(L2, deep(), sites=[name])


class Unrolled(nn.Module):
    """A cell in a loop over (time, batch, features)."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, value: Tensor) -> Tensor:
        state: Any = None
        states = []
        for step in value:
            state = self.cell(step, state)
            states.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(states)


@pytest.mark.parametrize(("cell", "layer"), [(nn.LSTMCell, nn.LSTM), (nn.GRUCell, nn.GRU), (nn.RNNCell, nn.RNN)])
@pytest.mark.parametrize(
    "method",
    [
        L2,
        PER(strength=1.0, mode="exact", reduction="sum"),
        ActivityNorm(kind="ar_tar", strength=0.0, temporal_strength=2.0),
    ],
)
def test_a_cell_in_a_loop_has_the_penalty_of_the_layer(cell: Any, layer: Any, method: Any) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(layer(4, 6))
    loop = Unrolled(cell(4, 6))
    for name, parameter in loop.cell.named_parameters():
        parameter.data.copy_(getattr(whole[0], f"{name}_l0"))
    tokens = torch.randn(5, 3, 4)
    handles = [attach(method, model) for model in (whole, loop)]
    for handle in handles:
        handle.model(tokens)
    one, other = (handle.penalty() for handle in handles)
    torch.testing.assert_close(one, other)
    one.backward()
    other.backward()
    torch.testing.assert_close(whole[0].weight_hh_l0.grad, loop.cell.weight_hh.grad)
    assert [(site.name, site.axes, site.shape) for site in handles[1].sites] == [("cell", "tnc", (6,))]


class OwnCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 6)

    def forward(self, step: Tensor, state: Any) -> Tensor:
        return self.linear(step).tanh()


def test_calls_of_other_modules_are_activations_unless_axes_say_that_they_are_steps() -> None:
    model, tokens = Unrolled(OwnCell()), torch.randn(5, 3, 4)
    states = model(tokens)
    for axes, expected in ((None, 5 * states.square().mean()), ("tnc", states.square().mean())):
        handle = attach(L2, model, sites=["cell"], axes=axes)
        model(tokens)
        torch.testing.assert_close(handle.penalty(), expected)
        handle.remove()


def test_steps_of_different_batches_are_refused() -> None:
    model = Unrolled(OwnCell())
    handle = attach(L2, model, sites=["cell"], axes="tnc")
    model([torch.ones(3, 4), torch.ones(2, 4)][:1])
    assert handle.penalty() > 0
    model.forward = lambda value: [model.cell(step, None) for step in value]  # type: ignore[method-assign]
    model([torch.ones(3, 4), torch.ones(2, 4)])
    with pytest.raises(ValueError, match=r"Site 'cell': its calls are time steps.*found \(2, 6\), \(3, 6\)"):
        handle.penalty()
