"""Which kernels a model has, gate by gate and group by group, and what they cost: float64 numpy, loops, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from methods.orthogonal.method import OrthogonalRegularization, draw_start, kernels, srip
from methods.orthogonal.test_method import NUMPY_NORMS, Various, gram_less_identity, keras_regularizer, penalty_of
from reproduce.method.sites import watch


def test_kernels_are_cut_into_gates_and_chosen_by_kind_or_name() -> None:
    model = Various()
    shapes = {name: tuple(weight.shape) for name, weight in kernels(model)}
    assert [name for name, _ in kernels(model, "linear")] == ["linear.weight", "attention.out_proj.weight"]
    assert [name for name, _ in kernels(model, "conv")] == ["conv.weight", "deconv.weight[0]", "deconv.weight[1]"]
    recurrent = kernels(model, "recurrent")
    assert len(recurrent) == 2 * 4 + 3 + 1
    assert {tuple(weight.shape) for _, weight in recurrent} == {(3, 3)}
    assert torch.equal(dict(recurrent)["lstm.weight_hh_l0[2]"], model.lstm.weight_hh_l0[6:9])
    assert shapes["gru.weight_ih_l0[1]"] == (3, 6)
    assert shapes["deconv.weight[1]"] == (3, 2, 3, 3)
    assert torch.equal(dict(kernels(model))["deconv.weight[1]"][1], model.deconv.weight[2:, 1])
    assert [shapes[f"attention.in_proj_weight[{index}]"] for index in range(3)] == [(4, 4)] * 3
    assert not any("embedding" in name or "bias" in name for name in shapes)
    assert [name for name, _ in kernels(model, "gru.weight_hh")] == [f"gru.weight_hh_l0[{gate}]" for gate in range(3)]
    with pytest.raises(ValueError, match=r"layers = 'decoder': it has lstm\.weight_ih_l0\[0\]"):
        kernels(model, "decoder")


def grouped(groups: int = 3, per_group: int = 4) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(2 * groups, per_group * groups, 3, groups=groups)


@pytest.mark.parametrize(("groups", "per_group"), [(3, 4), (6, 1), (2, 25)])
@pytest.mark.parametrize(
    "fields",
    [
        {"formula": "soft"},
        {"formula": "soft", "norm": "spectral"},
        {"formula": "double_soft"},
        {"formula": "mutual_coherence"},
        {"formula": "off_diagonal"},
        {"formula": "cosine", "gram": "columns"},
    ],
    ids=lambda fields: "-".join(fields.values()),
)
def test_groups_of_a_convolution_are_kernels_of_their_own(groups: int, per_group: int, fields: dict[str, str]) -> None:
    """As a convolution of each group alone: in float64 numpy, without the groups' other inputs, which are zero."""
    model = grouped(groups, per_group)
    blocks = model.weight.detach().double().numpy().reshape(groups, per_group, -1)
    expected, gram = 0.0, fields.get("gram", "smaller")
    for block in blocks:
        deviation = gram_less_identity(torch.from_numpy(block), gram)
        match fields["formula"]:
            case "soft":
                expected += NUMPY_NORMS[fields.get("norm", "squared_frobenius")](deviation)
            case "double_soft":
                both = (gram_less_identity(torch.from_numpy(block), side) for side in ("rows", "columns"))
                expected += sum(map(NUMPY_NORMS["squared_frobenius"], both))
            case "mutual_coherence":
                expected += NUMPY_NORMS["max"](deviation)
            case "off_diagonal":
                expected += float((deviation**2).sum() - (np.diag(deviation) ** 2).sum())
            case "cosine":
                expected += keras_regularizer(block, "columns")
    assert penalty_of(model, strength=1.0, **fields) == pytest.approx(expected, rel=1e-5)
    apart = {name: tuple(weight.shape) for name, weight in kernels(model)}
    assert apart == {f"weight[{group}]": (per_group, 2, 3, 3) for group in range(groups)}


def test_the_identity_in_groups_costs_nothing_and_as_one_matrix_something() -> None:
    conv = nn.Conv2d(4, 4, 1, groups=2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(2).repeat(2, 1).view(4, 2, 1, 1))
    inputs = torch.randn(2, 4, 3, 3)
    assert torch.equal(conv(inputs), inputs)
    assert penalty_of(conv, strength=1.0) == 0.0

    class AsOneMatrix(OrthogonalRegularization):
        groups = "together"

    together = AsOneMatrix(strength=1.0).penalty(watch(conv), torch.tensor(0.0), torch.Generator())
    assert together.item() == 2.0
    assert [name for name, _ in kernels(conv, groups="together")] == ["weight"]
    with pytest.raises(ValueError, match="'apart' or 'together', got 'alone'"):
        kernels(conv, groups="alone")


def test_srip_of_groups_has_a_start_for_each() -> None:
    model = grouped(3, 4)
    for redraw in (True, False):
        method = OrthogonalRegularization(formula="srip", redraw=redraw, strength=1.0, n_iterations=2)
        generator = torch.Generator().manual_seed(3)
        method.prepare(model, generator)
        found = method.penalty(watch(model), torch.tensor(0.0), generator)
        starts = draw_start(12, "normal", torch.Generator().manual_seed(3)).view(3, 4)
        own = zip(model.weight.chunk(3), starts, strict=True)
        expected = sum(srip(weight, 2, start=start).item() for weight, start in own)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_depthwise_convolution_is_one_operation_and_not_one_for_each_channel() -> None:
    counts = []
    for groups in (4, 64):
        with CountOperations() as operations:
            penalty_of(nn.Conv2d(groups, groups, 3, groups=groups))
        counts.append(operations.count)
    assert counts[0] == counts[1]


class CountOperations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_weights_of_unknown_modules_are_reported_and_found_by_name(caplog: pytest.LogCaptureFixture) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixing, self.layer = nn.Parameter(torch.eye(3, 4)), nn.Linear(3, 2)

    method = OrthogonalRegularization()
    method.prepare(Own(), torch.Generator())
    assert "it is not known which axis counts outputs: mixing (layers may name one of them)" in caplog.text
    assert [name for name, _ in kernels(Own())] == ["layer.weight"]
    assert penalty_of(Own(), layers="mixing") == 0.0
    with pytest.raises(ValueError, match=r"it has layer\.weight; not read, .*: mixing"):
        kernels(Own(), "recurrent")


def test_strength_zero_draws_nothing_and_leaves_the_model_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_parameter("mixing", nn.Parameter(torch.eye(3, 4)))
    names, generator = list(model.state_dict()), torch.Generator().manual_seed(0)
    state = generator.get_state()
    OrthogonalRegularization(formula="srip", redraw=False, strength=0.0).prepare(model, generator)
    assert list(model.state_dict()) == names
    assert torch.equal(generator.get_state(), state)
    assert not caplog.records


def test_a_plain_kernel_is_the_parameter_itself_and_lasts_beyond_a_step() -> None:
    """A view would be refused by autograd as soon as an optimiser has written the weight in place."""
    linear = nn.Linear(3, 4)
    ((_, kernel),) = kernels(linear)
    assert kernel is linear.weight
    torch.optim.SGD(linear.parameters(), 0.1).step()
    kernel.square().sum().backward()
    torch.testing.assert_close(linear.weight.grad, 2 * linear.weight.detach())
