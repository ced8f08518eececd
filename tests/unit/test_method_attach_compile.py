"""attach() under torch.compile: one graph that records, the plain one in evaluation and after remove()."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.per.method import PER
from reproduce.method.attach import attach

L2 = ActivityNorm(kind="l2", strength=1.0, reduction="mean")  # the mean of squares, summed over Sites


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.act = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)

    def forward(self, value: Tensor) -> Tensor:
        return self.act(self.second(self.act(self.first(value)))) * 1.0


def sequence() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh())


class Graphs:
    """A backend that runs what it is given as it is, and counts graphs and their operations."""

    def __init__(self) -> None:
        self.operations: list[list[str]] = []

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        self.operations.append([node.name for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward


@pytest.mark.parametrize("make", [Net, sequence, lambda: nn.Sequential(sequence(), nn.Linear(6, 3), nn.ReLU())])
def test_without_an_example_the_first_pass_is_cut_and_all_others_are_one_graph(make: Any, inputs: Tensor) -> None:
    model, twin, graphs = make(), make(), Graphs()
    handle, own = attach(L2, model), attach(L2, twin)
    compiled = torch.compile(model, backend=graphs)
    n_graphs = []
    for _ in range(4):
        compiled(inputs), twin(inputs)
        torch.testing.assert_close(handle.penalty(), own.penalty())
        n_graphs.append(len(graphs.operations))
    assert n_graphs[1:] == [n_graphs[0] + 1] * 3
    model.eval()
    with torch.no_grad():
        compiled(inputs)
    model.train()
    compiled(inputs), handle.penalty()
    assert len(graphs.operations) == n_graphs[0] + 2


@pytest.mark.parametrize("make", [Net, sequence])
def test_a_model_that_trains_is_one_graph_and_else_as_without_a_handle(make: Any, inputs: Tensor) -> None:
    plain = Graphs()
    torch.compile(make(), backend=plain, fullgraph=True)(inputs)
    torch.compiler.reset()
    model, twin, graphs = make(), make(), Graphs()
    handle, own = attach(L2, model, example=inputs), attach(L2, twin)
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for _ in range(3):
        model.zero_grad()
        twin.zero_grad()
        output, expected = compiled(inputs), twin(inputs)
        penalty = handle.penalty()
        torch.testing.assert_close(penalty, own.penalty())
        (output.sum() + penalty).backward()
        twin(inputs)
        (expected.sum() + own.penalty()).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()])
    assert len(graphs.operations) == 1
    model.eval()
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(compiled(inputs), output)
    assert len(graphs.operations) == 2
    assert graphs.operations[1] == plain.operations[0]
    model.train()
    handle.remove()
    for _ in range(2):
        torch.testing.assert_close(compiled(inputs), output)
    assert len(graphs.operations) == 3
    assert graphs.operations[2] == plain.operations[0]


def test_what_is_overwritten_inside_a_graph_is_recorded_as_it_was(inputs: Tensor) -> None:
    model = Net()
    expected = model.first(inputs).square().mean()
    handle = attach(L2, model, sites=["first"])
    torch.compile(model, backend="aot_eager")(inputs)
    penalty = handle.penalty()
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    assert model.first.weight.grad.abs().sum() > 0


def test_transforms_and_checkpoints_are_compiled_too(inputs: Tensor) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.body = nn.Linear(4, 4), sequence()

        def forward(self, value: Tensor) -> Any:
            return checkpoint(self.body, self.before(value), use_reentrant=False)

    torch.manual_seed(0)
    model = Checkpointed()
    attach(BatchNorm(), model, sites="pre", example=inputs)
    handle = attach(PER(strength=1.0), model)
    model(inputs)
    expected = handle.penalty()
    output = torch.compile(model, backend="aot_eager")(inputs)
    penalty = handle.penalty()
    torch.testing.assert_close(penalty, expected)
    (output.sum() + penalty).backward()
    assert handle.trace.records == []
    with pytest.raises(ValueError, match="nothing was recorded"):
        handle.penalty()


def test_a_compiled_part_of_a_model(inputs: Tensor) -> None:
    model = nn.Sequential(sequence(), nn.Linear(6, 3), nn.ELU())
    handle = attach(L2, model)
    model(inputs)
    expected = handle.penalty()
    model[0].compile(backend="aot_eager")
    for _ in range(2):
        model(inputs)
        torch.testing.assert_close(handle.penalty(), expected)


def test_named_modules_are_missed_as_without_compiling(inputs: Tensor) -> None:
    model = Net()
    model.unused = nn.Linear(2, 2)
    handle = attach(L2, model, sites=["first", "unused"])
    compiled = torch.compile(model, backend="aot_eager")
    compiled(inputs)
    with pytest.warns(UserWarning, match="'unused' was named, and is not called in this forward pass"):
        assert handle.penalty() > 0


def test_a_model_that_was_compiled_and_called_is_compiled_anew(inputs: Tensor) -> None:
    model = Net()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(inputs)
    handle = attach(L2, model)
    compiled(inputs)
    hidden = model.first(inputs).relu()
    expected = hidden.double().square().mean() + model.second(hidden).relu().double().square().mean()
    torch.testing.assert_close(handle.penalty().double(), expected, rtol=1e-6, atol=0)
    handle.remove()
    normalized = attach(BatchNorm(), model, sites={"first": "pre"}, example=inputs)
    output = compiled(inputs)
    torch.testing.assert_close(output, model(inputs))
    assert normalized.sites[0].transform.num_batches_tracked == 2  # type: ignore[union-attr]


def test_parts_that_were_compiled_and_called_are_compiled_anew(inputs: Tensor) -> None:
    model = nn.Sequential(sequence(), nn.Linear(6, 3), nn.ELU())
    model[0].compile(backend="aot_eager")
    model(inputs)
    handle = attach(L2, model)
    model(inputs)
    rows = [part.double() for part in (model[0][:2](inputs), model[0](inputs), model(inputs))]
    model(inputs)
    expected = sum(part.square().mean() for part in rows)
    torch.testing.assert_close(handle.penalty().double(), expected, rtol=1e-6, atol=0)
