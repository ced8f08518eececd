"""The recurrent highway network: against loops over times, transitions and units in float64, its masks and sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reproduce.errors import UserError
from reproduce.method.sites import watch
from reproduce.models import Sizes, build

WORDS = 11
TOKENS = torch.randint(WORDS, (5, 3), generator=torch.Generator().manual_seed(2))
DRY = {"dropout": 0.0, "recurrent_dropout": 0.0, "embedding_dropout": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(sizes: Sizes = Sizes((), WORDS), **options: Any) -> Any:
    return build("recurrent_highway", {"hidden": 4, "depth": 3, **options}, sizes, generator(), generator(1))


def product(kernel: list[list[float]], vector: list[float]) -> list[float]:
    return [math.fsum(a * b for a, b in zip(row, vector, strict=True)) for row in kernel]


def loop(layer: Any, inputs: list[list[float]], input_mask: list[float], state_mask: list[float]) -> list[list[float]]:
    """The states of one stream from zero: rows of a kernel are first the candidate's, then the gate's."""
    units, outputs = len(state_mask), []
    state = [0.0] * units
    for given in inputs:
        read = product(layer.from_input.weight.tolist(), [x * z for x, z in zip(given, input_mask, strict=True)])
        for depth, transition in enumerate(layer.from_state):
            sums = product(transition.weight.tolist(), [s * z for s, z in zip(state, state_mask, strict=True)])
            sums = [a + b for a, b in zip(sums, transition.bias.tolist(), strict=True)]
            if depth == 0:
                sums = [a + b for a, b in zip(sums, read, strict=True)]
            carried = []
            for unit in range(units):
                gate = 1 / (1 + math.exp(-sums[units + unit]))
                carried.append(gate * math.tanh(sums[unit]) + (1 - gate) * state[unit])
            state = carried
        outputs.append(state)
    return outputs


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_is_the_loop_and_its_state_is_carried(tied: bool) -> None:
    model = model_of(tied=tied, initial_bound=0.9, gate_bias=-0.5, **DRY).double()
    state, found = model.initial_state(3), []
    for window in TOKENS.split(2):
        logits, state = model(window, state)
        found.append(logits)
    table = model.embedding.weight.tolist()
    for stream in range(3):
        inputs = [table[word] for word in TOKENS[:, stream].tolist()]
        states = loop(model.layer, inputs, [1.0] * 4, [1.0] * 4)
        assert state[0][0, stream].tolist() == pytest.approx(states[-1])
        for hidden, logits in zip(states, torch.cat(found)[:, stream].tolist(), strict=True):
            wanted = product(table if tied else model.decoder.weight.tolist(), hidden)
            assert logits == pytest.approx([a + b for a, b in zip(wanted, model.decoder.bias.tolist(), strict=True)])


def test_masks_hold_for_a_window_and_for_all_transitions() -> None:
    model = model_of(initial_bound=0.9, dropout=0.4, recurrent_dropout=0.3, embedding_dropout=0.2).double().train()
    drawn: dict[str, Tensor] = {}
    keep = drawn.__setitem__
    model.layer.input_mask.register_forward_hook(lambda _, given, out: keep("input", out / given[0]))
    model.layer.state_mask.register_forward_hook(lambda _, given, out: keep("state", out))
    inputs = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator(3))
    trace = watch(model)
    outputs, _ = model.layer(inputs, inputs.new_zeros(3, 4))
    of_input, of_state = drawn["input"], drawn["state"][0]
    torch.testing.assert_close(of_input, of_input[:1].expand_as(of_input))
    for mask, kept in ((of_input[0], 0.6), (of_state, 0.7)):
        assert {round(value, 6) for value in mask.flatten().tolist()} == {0.0, round(1 / kept, 6)}
    for stream in range(3):
        wanted = loop(model.layer, inputs[:, stream].tolist(), of_input[0, stream].tolist(), of_state[stream].tolist())
        torch.testing.assert_close(outputs[:, stream], torch.tensor(wanted, dtype=torch.float64))
    (record,) = trace.records
    assert (record.site.name, record.site.axes) == ("layer.post", "tnc")
    assert torch.equal(record.activation, outputs)


def test_words_and_outputs_are_dropped_and_nothing_in_evaluation() -> None:
    model = model_of(hidden=40, depth=1, dropout=0.5, embedding_dropout=0.5)
    read: list[Tensor] = []
    model.decoder.register_forward_pre_hook(lambda decoder, given: read.append(given[0]))
    model.layer.register_forward_pre_hook(lambda layer, given: read.append(given[0]))
    model(TOKENS, model.initial_state(3))
    words, outputs = read
    dropped = {int(word) for word in TOKENS[(words == 0).all(-1)]}
    assert dropped
    assert dropped < set(TOKENS.flatten().tolist())
    assert not dropped & {int(word) for word in TOKENS[(words != 0).any(-1)]}, "a word is dropped wherever it stands"
    zero = outputs == 0
    assert bool((zero == zero[:1]).all())
    assert 0.3 < zero.double().mean() < 0.7
    model.eval()
    assert torch.equal(model(TOKENS, model.initial_state(3))[0], model(TOKENS, model.initial_state(3))[0])


def test_gradients_are_those_of_differences() -> None:
    layer = model_of(hidden=2, depth=2, initial_bound=0.9, **DRY).double().layer
    inputs = torch.randn(3, 2, 2, dtype=torch.float64, generator=generator(3), requires_grad=True)
    state = torch.randn(2, 2, dtype=torch.float64, generator=generator(4), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, s, *_: layer(x, s)[0], (inputs, state, *layer.parameters()))


@pytest.mark.parametrize(
    ("hidden", "depth", "tied", "millions"), [(890, 8, False, 32), (830, 10, True, 23), (1000, 5, True, 22)]
)
def test_sizes_are_the_published_ones(hidden: int, depth: int, tied: bool, millions: int) -> None:
    """Of the Penn Treebank's 10,000 words, in the README's millions."""
    model = model_of(Sizes((), 10_000), hidden=hidden, depth=depth, tied=tied)
    count = sum(parameter.numel() for parameter in model.parameters())
    tables = 10_000 * (hidden * (1 if tied else 2) + 1)
    assert count == tables + 2 * hidden * ((depth + 1) * hidden + depth)
    assert round(count / 1e6) == millions


def test_the_start_has_one_bound_and_gates_that_are_closed() -> None:
    model = model_of(Sizes((), 500), hidden=100)
    for name, parameter in model.named_parameters():
        if name.startswith("layer.from_state") and name.endswith("bias"):
            assert set(parameter[100:].tolist()) == {-2.0}
            parameter = parameter[:100]
        values = parameter.detach().double()
        assert 0.035 < values.abs().max() <= 0.04
        assert abs(values.square().mean() / (0.04**2 / 3) - 1) < 4 * math.sqrt(0.8 / values.numel())


def test_images_are_refused() -> None:
    with pytest.raises(UserError, match="takes words"):
        model_of(Sizes((1, 8, 8), 10))
