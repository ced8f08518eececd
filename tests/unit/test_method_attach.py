"""attach(): what is recorded, what is put back, and what is refused."""

from __future__ import annotations

import copy
import doctest
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reproduce.method.taps
from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.per.method import PER
from methods.vanilla.method import Vanilla
from reproduce.method.attach import attach

L2 = ActivityNorm(kind="l2", strength=1.0, reduction="mean")  # the mean of squares, summed over Sites


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def observed(model: nn.Module, call: Any, *names: str) -> list[Tensor]:
    """The outputs of some modules, seen by plain hooks."""
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, arguments, output: seen.append(output.detach()))
        for name in names
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_the_example_in_the_docstring_runs() -> None:
    printed = io.StringIO()
    tests = doctest.DocTestFinder(recurse=False).find(attach, "attach", globs={"attach": attach})
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test, out=printed.write)
    assert runner.summarize(verbose=False).attempted >= 8, printed.getvalue()
    assert runner.failures == 0, printed.getvalue()


def test_post_reads_outputs_of_activations(inputs: Tensor) -> None:
    model = perceptron()
    outputs = observed(model, lambda: model(inputs), "1", "3")
    handle = attach(L2, model)
    model(inputs)
    expected = sum(output.square().mean() for output in outputs)
    torch.testing.assert_close(handle.penalty(), expected)
    assert [(site.name, site.role, site.axes, site.shape) for site in handle.sites] == [
        ("1", "post", "nc", (6,)),
        ("3", "post", "nc", (5,)),
    ]


@pytest.mark.parametrize("inplace", [False, True])
def test_pre_reads_inputs_of_activations_even_in_place_ones(inputs: Tensor, inplace: bool) -> None:
    model = perceptron()
    model[1] = nn.ReLU(inplace=inplace)
    before = model(inputs)
    expected = model[0](inputs).square().mean() + model[2](model[0](inputs).relu()).square().mean()
    handle = attach(L2.model_copy(update={"sites": "pre"}), model, sites="pre")
    assert torch.equal(model(inputs), before)
    penalty = handle.penalty()
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_gradients_are_those_of_the_same_loss_by_hand(inputs: Tensor) -> None:
    model, twin = perceptron(), perceptron()
    handle = attach(L2, model)
    (model(inputs).sum() + handle.penalty()).backward()
    hidden = twin[1](twin[0](inputs))
    second = twin[3](twin[2](hidden))
    (twin[4](second).sum() + hidden.square().mean() + second.square().mean()).backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_remove_leaves_the_model_as_it_was(inputs: Tensor) -> None:
    model = perceptron().eval()
    before, keys, hooks = model(inputs), list(model.state_dict()), [len(m._forward_hooks) for m in model.modules()]
    handle = attach(BatchNorm(), model, sites="pre", example=inputs)
    assert [name for name in model.state_dict() if name not in keys]
    assert not torch.equal(model.train()(inputs), before)
    handle.remove()
    handle.remove()
    model.eval()
    assert torch.equal(model(inputs), before)
    assert list(model.state_dict()) == keys
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ValueError, match="removed handle"):
        handle.penalty()


def test_batch_normalization_equals_a_model_that_has_it(inputs: Tensor) -> None:
    model, twin = perceptron(), perceptron()
    model(inputs)
    twin = nn.Sequential(twin[0], nn.BatchNorm1d(6), twin[1], twin[2], nn.BatchNorm1d(5), twin[3], twin[4])
    n_before = len(list(model.parameters()))
    handle = attach(BatchNorm(), model, sites="pre", example=inputs)
    assert len(list(model.parameters())) == n_before + 4
    torch.testing.assert_close(model(inputs), twin(inputs))
    torch.testing.assert_close(model.eval()(inputs), twin.eval()(inputs))
    assert [type(site.transform) for site in handle.sites] == [nn.BatchNorm1d] * 2


def test_methods_that_need_shapes_say_so(inputs: Tensor) -> None:
    model = perceptron()
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match="has not seen a batch yet: give `example=`"):
        attach(BatchNorm(), model, sites="pre")
    assert list(model.state_dict()) == keys
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model(inputs).shape == (3, 2)


def test_evaluation_records_nothing_and_a_part_in_evaluation_what_trains(inputs: Tensor) -> None:
    model = perceptron()
    handle = attach(L2, model)
    model.eval()(inputs)
    with pytest.raises(ValueError, match="nothing was recorded"):
        handle.penalty()
    model.train()
    model[3].eval()
    first, last = observed(model, lambda: model(inputs), "1", "3")
    torch.testing.assert_close(handle.penalty(), first.square().mean() + last.square().mean())
    model[:2].eval().requires_grad_(False)  # a backbone that is frozen
    last = observed(model, lambda: model(inputs), "3")[0]
    torch.testing.assert_close(handle.penalty(), last.square().mean())


def test_a_penalty_consumes_and_a_second_forward_replaces(inputs: Tensor) -> None:
    model = perceptron()
    handle = attach(L2, model)
    model(inputs)
    model(10 * inputs)
    second = handle.penalty()
    with pytest.raises(ValueError, match="nothing was recorded"):
        handle.penalty()
    model(10 * inputs)
    torch.testing.assert_close(second, handle.penalty())
    assert handle.trace.records == []


def test_one_module_met_with_several_widths_has_several_sites(inputs: Tensor) -> None:
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 6), relu, nn.Unflatten(1, (2, 3, 1)), nn.Conv2d(2, 5, 1), relu)
    handle = attach(L2, model)
    model(inputs)
    assert [(site.name, site.axes, site.shape) for site in handle.sites] == [
        ("1", "nc", (6,)),
        ("1", "nchw", (5, 3, 1)),
    ]
    assert len(handle.trace.records) == 2


def test_the_generator_is_seeded_and_the_global_one_untouched(inputs: Tensor) -> None:
    method = PER(strength=1.0, mode="sliced", n_slices=4)
    state = None
    found = []
    for seed in (0, 0, 1):
        model = perceptron()
        handle = attach(method, model, seed=seed)
        model(inputs)
        state = torch.get_rng_state()
        found.append(handle.penalty().item())
        assert torch.equal(state, torch.get_rng_state())
    assert found[0] == found[1] != found[2]


def test_progress_reaches_the_method(inputs: Tensor) -> None:
    class Scheduled(Vanilla):
        def penalty(self, trace, progress, generator):
            return progress.clone()

    model = perceptron()
    handle = attach(Scheduled(), model)
    found = []
    for progress in (None, 0.25, None, torch.tensor(0.5)):
        model(inputs)
        found.append(handle.penalty(progress).item())
    assert found == [0.0, 0.25, 0.25, 0.5]


def test_a_method_that_acts_after_the_step_and_adds_to_the_model(inputs: Tensor) -> None:
    class Halving(Vanilla):
        def prepare(self, model, generator):
            model.register_buffer("halvings", torch.zeros(()))

        def after_step(self, model, optimizer, progress, generator):
            model.halvings += 1
            with torch.no_grad():
                model[0].weight.mul_(0.5)

    model = perceptron()
    keys, weight = list(model.state_dict()), model[0].weight.detach().clone()
    handle = attach(Halving(), model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        (model(inputs).sum() + handle.penalty()).backward()
        with pytest.raises(ValueError, match="nothing was recorded"):
            handle.penalty()
        optimizer.step()
        handle.after_step(optimizer)
    assert model.halvings == 2
    assert torch.equal(model[0].weight, weight / 4)
    model(inputs)
    handle.penalty()
    optimizer.step()
    model(inputs)
    with pytest.raises(ValueError, match=r"call handle\.after_step\(optimizer\)"):
        handle.penalty()
    handle.remove()
    assert list(model.state_dict()) == keys


def test_a_deep_copy_keeps_transforms_and_records_nothing(inputs: Tensor) -> None:
    model = perceptron()
    attach(BatchNorm(), model, sites="pre", example=inputs)
    reading = attach(L2, model)
    output = model(inputs)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(inputs), output)
    n_records = len(reading.trace.records)
    copied(inputs).sum().backward()
    assert len(reading.trace.records) == n_records > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in copied.parameters())
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    torch.testing.assert_close(loaded.eval()(inputs), model.eval()(inputs))


def test_two_methods_on_one_model(inputs: Tensor) -> None:
    model = perceptron()
    expected = observed(model, lambda: model(inputs), "1", "3")
    first, second = attach(L2, model), attach(PER(strength=1.0), model)
    model(inputs)
    torch.testing.assert_close(first.penalty(), sum(output.square().mean() for output in expected))
    assert second.penalty() > 0
    first.remove()
    model(inputs)
    assert second.penalty() > 0
    second.remove()
    assert len(list(model.modules())) == 6


def test_overwritten_activations_are_noticed(inputs: Tensor) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.ReLU(inplace=True))
    handle = attach(L2, model, sites=["0"])
    model(inputs)
    assert handle.penalty() > 0
    handle.remove()
    handle = attach(L2, nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True)), sites=["0"])
    handle.model(inputs)
    with pytest.raises(ValueError, match="Site '0': its activations were overwritten in place"):
        handle.penalty()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": "middle"}, "'pre', 'post' or a list of module names, got 'middle'"),
        ({"sites": ["1", "nowhere"]}, "no module 'nowhere'; there are: 0, 1, 2, 3, 4"),
        ({"sites": []}, "sites names none of: 0, 1, 2, 3, 4"),
        ({"sites": {"1": "middle"}}, "a Site has role"),
        ({"axes": "cn"}, r"axes are .* got 'cn'"),
        ({"axes": {"7": "nc"}}, "no module '7'"),
        ({"axes": "nchw", "example": torch.ones(2, 4)}, r"axes 'nchw' do not fit activations \(2, 6\)"),
        (
            {"example": torch.ones(2, 1, 1, 1, 1, 4)},
            r"no layer says which axes activations \(2, 1, 1, 1, 1, 6\) have: give axes=",
        ),
    ],
)
def test_what_cannot_be_attached_is_refused_and_changes_nothing(options: dict, message: str, inputs: Tensor) -> None:
    model = perceptron()
    before = model(inputs)
    with pytest.raises(ValueError, match=message):
        attach(L2, model, **options)
    assert torch.equal(model(inputs), before)
    assert len(list(model.modules())) == 6
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_new_width_after_the_example_is_refused(inputs: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Tanh())
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    attach(BatchNorm(), model, sites="pre", example=inputs)
    with pytest.raises(ValueError, match=r"width 8 .* is new to it"):
        model(torch.ones(3, 8))


def test_under_torch_compile(inputs: Tensor) -> None:
    model = perceptron()
    expected = observed(model, lambda: model(inputs), "1", "3")
    handle = attach(L2, model)
    compiled = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        output = compiled(inputs)
        penalty = handle.penalty()
        torch.testing.assert_close(penalty, sum(value.square().mean() for value in expected))
        (output.sum() + penalty).backward()
    torch.testing.assert_close(output, model(inputs))
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_every_elementwise_activation_of_torch_is_known() -> None:
    found = {getattr(nn, name) for name in torch.nn.modules.activation.__all__}
    left_out = {kind.__name__ for kind in found if not issubclass(kind, reproduce.method.taps.ACTIVATIONS)}
    assert left_out == {"MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin"}
