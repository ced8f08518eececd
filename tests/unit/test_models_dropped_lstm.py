"""LSTMs with several dropouts: against loops over times, gates and units in float64, and counted masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reproduce.errors import UserError
from reproduce.method.sites import watch
from reproduce.models import Sizes, build
from reproduce.models.dropout import WordDropout

WORDS = 30
TOKENS = torch.randint(WORDS, (6, 3), generator=torch.Generator().manual_seed(2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(name: str, words: int = WORDS, seed: int = 1, **options: Any) -> Any:
    return build(name, options, Sizes((), words), generator(), generator(seed)).double()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def loop(
    inputs: np.ndarray,
    lstm: nn.LSTM,
    kernel: np.ndarray,
    input_mask: Any = lambda gate, row, unit: 1.0,
    hidden_mask: Any = lambda gate, row, unit: 1.0,
) -> np.ndarray:
    """Outputs of one layer, number by number, from zeros: torch's gates i, f, g, o, each with its own masks."""
    n_steps, batch, n_inputs = inputs.shape
    width = lstm.hidden_size
    from_input = lstm.weight_ih_l0.detach().numpy()
    bias = (lstm.bias_ih_l0 + lstm.bias_hh_l0).detach().numpy()
    outputs = np.zeros((n_steps, batch, width))
    for row in range(batch):
        hidden, cell = [0.0] * width, [0.0] * width
        for step in range(n_steps):
            gates = np.zeros((4, width))
            for gate in range(4):
                for unit in range(width):
                    total = bias[gate * width + unit]
                    for other in range(n_inputs):
                        masked = inputs[step, row, other] * input_mask(gate, row, other)
                        total += from_input[gate * width + unit, other] * masked
                    for other in range(width):
                        total += kernel[gate * width + unit, other] * hidden[other] * hidden_mask(gate, row, other)
                    gates[gate, unit] = total
            for unit in range(width):
                i, f, g, o = gates[:, unit]
                cell[unit] = sigmoid(f) * cell[unit] + sigmoid(i) * math.tanh(g)
                hidden[unit] = sigmoid(o) * math.tanh(cell[unit])
            outputs[step, row] = hidden
    return outputs


class Watched:
    """What the dropouts of a model gave, in the order in which they were asked."""

    def __init__(self, module: nn.Module) -> None:
        self.given: list[Tensor] = []
        module.register_forward_hook(lambda module, inputs, output: self.given.append(output.detach()))


def test_a_weight_dropped_layer_is_the_loop_with_one_dropped_kernel() -> None:
    model = model_of("awd_lstm", hidden=4, embedding=3, layers=1, tied=False, weight_dropout=0.5).train()
    layer = model.layers[0]
    kernels = Watched(layer.weight_dropout)
    inputs = torch.randn(6, 3, 3, dtype=torch.float64, generator=generator(3))
    trace = watch(model)
    zeros = inputs.new_zeros(1, 3, 4)
    layer(inputs, zeros, zeros)
    (kernel,) = kernels.given  # one draw for the whole window
    raw = layer.lstm.weight_hh_l0.detach()
    assert 0.2 < (kernel == 0).double().mean() < 0.8
    torch.testing.assert_close(kernel[kernel != 0], 2 * raw[kernel != 0])
    expected = loop(inputs.numpy(), layer.lstm, kernel.numpy())
    np.testing.assert_allclose(trace.records[0].activation.detach().numpy(), expected, atol=1e-12)


def test_gradients_of_a_dropped_kernel_reach_what_is_kept() -> None:
    model = model_of("awd_lstm", hidden=5, embedding=3, layers=1, tied=False, weight_dropout=0.5).train()
    layer = model.layers[0]
    kernels = Watched(layer.weight_dropout)
    inputs, zeros = torch.randn(4, 2, 3, dtype=torch.float64, generator=generator(3)), torch.zeros(1, 2, 5).double()
    layer(inputs, zeros, zeros)[0].sum().backward()
    assert torch.equal(layer.lstm.weight_hh_l0.grad != 0, kernels.given[0] != 0)


def test_kernels_are_dropped_anew_in_each_window_and_at_their_rate() -> None:
    """Of 4 x 50 x 50 elements so many are dropped as a coin says, within four deviations; windows are independent."""
    model = model_of("awd_lstm", hidden=50, embedding=7, layers=1, tied=False, weight_dropout=0.3).train()
    kernels = Watched(model.layers[0].weight_dropout)
    for _ in range(2):
        model(TOKENS, model.initial_state(3))
    n = 4 * 50 * 50
    first, second = (given == 0 for given in kernels.given)
    for dropped, rate in ((first, 0.3), (second, 0.3), (first & second, 0.09)):
        assert abs(int(dropped.sum()) - rate * n) < 4 * math.sqrt(n * rate * (1 - rate))


@pytest.mark.parametrize("name", ["awd_lstm", "variational_lstm"])
def test_nothing_is_dropped_in_evaluation(name: str) -> None:
    """Then a model is embedding, torch's layers one after the other, and decoder; the state is carried."""
    rates = {"awd_lstm": {"embedding": 5}, "variational_lstm": {"dropout": 0.5, "recurrent_dropout": 0.5}}[name]
    model = model_of(name, hidden=8, layers=3, **rates).eval()
    state: Any = model.initial_state(3)
    pairs: list[Any] = [None] * 3
    for window in (TOKENS, TOKENS.flip(0)):
        logits, state = model(window, state)
        value = model.embedding(window)
        for index, layer in enumerate(model.layers):
            plain = nn.LSTM(layer.lstm.input_size, layer.lstm.hidden_size).double()
            plain.load_state_dict(layer.lstm.state_dict())
            value, pairs[index] = plain(value, pairs[index])
            torch.testing.assert_close(state[2 * index], pairs[index][0])
            torch.testing.assert_close(state[2 * index + 1], pairs[index][1])
        torch.testing.assert_close(logits, model.decoder(value))


def test_sizes_and_count_of_the_published_awd_lstm() -> None:
    """24M on PTB and 33M on WikiText-2, as its tables say; the last layer is as wide as the embedding."""
    for words, millions in ((10_000, 24), (33_278, 33)):
        model = build("awd_lstm", {"hidden": 1150}, Sizes((), words), generator(), generator())
        assert [layer.lstm.hidden_size for layer in model.layers] == [1150, 1150, 400]
        assert model.decoder.weight is model.embedding.weight
        assert sum(parameter.numel() for parameter in model.parameters()) // 10**6 == millions
    wide = model_of("awd_lstm", hidden=6, embedding=5, tied=False)
    assert [layer.lstm.hidden_size for layer in wide.layers] == [6, 6, 6]
    assert wide.decoder.weight is not wide.embedding.weight


def test_each_place_has_its_own_rate() -> None:
    rates = {"dropout": 0.1, "hidden_dropout": 0.2, "input_dropout": 0.3, "embedding_dropout": 0.4}
    model = model_of("awd_lstm", hidden=6, embedding=5, weight_dropout=0.5, **rates)
    assert model.word_dropout.probability == 0.4
    assert model.input_dropout.probability == 0.3
    assert [layer.dropout.probability for layer in model.layers] == [0.2, 0.2, 0.1]
    assert [layer.weight_dropout.probability for layer in model.layers] == [0.5] * 3


def test_words_are_dropped_whole_and_wherever_they_stand() -> None:
    model = model_of("awd_lstm", hidden=6, embedding=40, layers=1, input_dropout=0.0, embedding_dropout=0.5).train()
    given: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    tokens = torch.randint(WORDS, (20, 8), generator=generator(5))
    model(tokens, model.initial_state(8))
    (read,) = given
    gone = (read == 0).all(-1)
    for word in range(WORDS):
        here = tokens == word
        assert len(gone[here].unique()) <= 1
        if here.any() and not gone[here].any():
            torch.testing.assert_close(read[here], 2 * model.embedding.weight[word].expand(int(here.sum()), -1))
    n_gone = sum(bool(gone[tokens == word].any()) for word in range(WORDS))
    assert 5 < n_gone < 25


def test_word_dropout_counts() -> None:
    dropped = WordDropout(0.1, generator(4))(torch.ones(20_000, 2))
    gone = (dropped == 0).all(1)
    assert torch.equal(gone, (dropped == 0).any(1))
    assert abs(int(gone.sum()) - 2000) < 4 * math.sqrt(20_000 * 0.1 * 0.9)
    torch.testing.assert_close(dropped[~gone], torch.full_like(dropped[~gone], 1 / 0.9))


@pytest.mark.parametrize("masks", ["layer", "gate", "shared"])
def test_a_variational_layer_is_the_loop_with_its_masks(masks: str) -> None:
    model = model_of("variational_lstm", hidden=4, layers=2, masks=masks, dropout=0.4, recurrent_dropout=0.4).train()
    layer = model.layers[1]
    inputs = torch.randn(6, 3, 4, dtype=torch.float64, generator=generator(3))
    of_hidden = [Watched(mask) for mask in layer.hidden_masks]
    of_input = [Watched(mask) for mask in layer.input_masks]
    assert len(of_hidden) == (4 if masks == "gate" else 1)
    assert len(of_input) == {"layer": 1, "gate": 4, "shared": 0}[masks]
    zeros = inputs.new_zeros(1, 3, 4)
    trace = watch(model)
    output, hidden, _ = layer(inputs, zeros, zeros)
    drawn = [watched.given[0][0].numpy() for watched in of_hidden]
    ratios = [(watched.given[0] / inputs).numpy().round(9) for watched in of_input]
    for ratio in ratios:
        assert (ratio == ratio[:1]).all()  # the same at all times
    expected = loop(
        inputs.numpy(),
        layer.lstm,
        layer.lstm.weight_hh_l0.detach().numpy(),
        (lambda gate, row, unit: ratios[gate % len(ratios)][0, row, unit]) if ratios else (lambda gate, row, unit: 1.0),
        lambda gate, row, unit: drawn[gate % len(drawn)][row, unit],
    )
    np.testing.assert_allclose(trace.records[0].activation.detach().numpy(), expected, atol=1e-8)
    np.testing.assert_allclose(hidden[0].detach().numpy(), expected[-1], atol=1e-8)
    goes_up = expected * drawn[0] if masks == "shared" else expected
    np.testing.assert_allclose(output.detach().numpy(), goes_up, atol=1e-8)
    for mask in drawn:
        assert set(np.unique(mask.round(9))) <= {0.0, round(1 / 0.6, 9)}


@pytest.mark.parametrize("masks", ["layer", "gate", "shared"])
def test_gradients_of_a_variational_layer(masks: str) -> None:
    model = model_of("variational_lstm", hidden=3, layers=1, masks=masks, dropout=0.3, recurrent_dropout=0.3).train()
    layer, mask_generator = model.layers[0], model.layers[0].hidden_masks[0].generator
    inputs = torch.randn(3, 2, 3, dtype=torch.float64, generator=generator(3), requires_grad=True)
    zeros = torch.zeros(1, 2, 3, dtype=torch.float64)
    start = mask_generator.get_state()

    def run(*tensors: Tensor) -> Tensor:
        mask_generator.set_state(start)
        return layer(tensors[0], zeros, zeros)[0]

    assert torch.autograd.gradcheck(run, (inputs, *layer.parameters()))


def test_what_the_decoder_reads_has_its_own_mask_unless_it_is_shared() -> None:
    for masks, expected in (("layer", nn.Module), ("shared", nn.Identity)):
        model = model_of("variational_lstm", hidden=4, masks=masks, dropout=0.4, recurrent_dropout=0.4)
        assert isinstance(model.output_dropout, expected)
        assert isinstance(model.output_dropout, nn.Identity) == (masks == "shared")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": "shared", "dropout": 0.5}, "recurrent_dropout 0.0 must be dropout 0.5"),
        ({"tied": True, "embedding": 5}, "embedding 5 to be as wide as hidden 8"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        model_of("variational_lstm", hidden=8, **options)
