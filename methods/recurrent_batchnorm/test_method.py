"""Oracles for recurrent batch normalization: loops in float64, bookkeeping of moments, LSTMs of anyone's, refusals."""

from __future__ import annotations

import copy
import math
import pickle
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from methods.recurrent_batchnorm.method import (
    BatchNormalizedLSTM,
    Moments,
    Normalization,
    RecurrentBatchNorm,
    StepNormalization,
    batch_normalized_lstm,
)
from reproduce import attach
from reproduce.method import kernels_of

EPS = 1e-5
Rows = list[list[float]]


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def product(rows: Rows, kernel: Rows) -> Rows:
    """Each row times the transpose of a kernel (out, in)."""
    return [[math.fsum(a * b for a, b in zip(row, unit, strict=True)) for unit in kernel] for row in rows]


def standardized(rows: Rows, scale: list[float], shift: list[float], moments: Any = None) -> tuple[Rows, Any]:
    """Unit by unit, with Python's own mean and variance over the mini-batch, or with given ones."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    if moments is None:
        moments = [(statistics.fmean(column), statistics.pvariance(column)) for column in columns]
    new = [
        [scale[k] * (x - mean) / math.sqrt(variance + EPS) + shift[k] for x in column]
        for k, (column, (mean, variance)) in enumerate(zip(columns, moments, strict=True))
    ]
    return [list(row) for row in zip(*new, strict=True)], moments


def loop(inputs: list[Rows], h: Rows, c: Rows, w: dict[str, Any], terms: Any, population: Any = None) -> Any:
    """Equations 6 to 8, number by number. ``population[term][t]`` are moments of each unit."""
    units = len(c[0])
    outputs, met = [], {name: [] for name in terms}
    for t, x in enumerate(inputs):
        parts = {"input": product(x, w["weight_ih"]), "hidden": product(h, w["weight_hh"])}
        for name in ("input", "hidden"):
            if name in terms:
                known = population[name][t] if population else None
                parts[name], moments = standardized(parts[name], w[name], [0.0] * 4 * units, known)
                met[name].append(moments)
        gates = [
            [a + b + bias for a, b, bias in zip(one, other, w["bias"], strict=True)]
            for one, other in zip(parts["input"], parts["hidden"], strict=True)
        ]
        c = [
            [
                sigmoid(gate[units + k]) * row[k] + sigmoid(gate[k]) * math.tanh(gate[2 * units + k])
                for k in range(units)
            ]
            for gate, row in zip(gates, c, strict=True)
        ]
        shown = c
        if "cell" in terms:
            known = population["cell"][t] if population else None
            shown, moments = standardized(c, w["cell"], w["cell_shift"], known)
            met["cell"].append(moments)
        h = [
            [sigmoid(gate[3 * units + k]) * math.tanh(row[k]) for k in range(units)]
            for gate, row in zip(gates, shown, strict=True)
        ]
        outputs.append(h)
    return outputs, h, c, met


WEIGHTS = {
    "weight_ih": seeded(12, 2, seed=1),
    "weight_hh": seeded(12, 3, seed=2),
    "bias": seeded(12, seed=3),
    "input": seeded(12, seed=4).exp(),
    "hidden": seeded(12, seed=5).exp(),
    "cell": seeded(3, seed=6).exp(),
    "cell_shift": seeded(3, seed=7),
}
LISTS = {name: value.tolist() for name, value in WEIGHTS.items()}
TERMS = {"all": ("input", "hidden", "cell"), "gates": ("input", "hidden"), "input": ("input",)}


def normalizations(terms: tuple[str, ...], population: dict[str, Moments] | None = None) -> Any:
    return {
        name: Normalization(
            WEIGHTS[name], WEIGHTS["cell_shift"] if name == "cell" else None, population and population[name], EPS
        )
        for name in terms
    }


def run(inputs: Tensor, hidden: Tensor, cell: Tensor, rules: Any, met: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    kernels = (WEIGHTS[name] for name in ("weight_ih", "weight_hh", "bias"))
    return batch_normalized_lstm(inputs, hidden, cell, *kernels, rules, met)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("of_population", [False, True])
def test_equals_the_loop_over_steps_examples_and_units(terms: tuple[str, ...], of_population: bool) -> None:
    inputs, hidden, cell = seeded(5, 4, 2), seeded(4, 3, seed=8), seeded(4, 3, seed=9)
    known = lists = None
    if of_population:
        known = {
            name: Moments(seeded(5, len(WEIGHTS[name]), seed=20), seeded(5, len(WEIGHTS[name]), seed=21).exp())
            for name in terms
        }
        lists = {
            name: [list(zip(*step, strict=True)) for step in zip(*(part.tolist() for part in pair), strict=True)]
            for name, pair in known.items()
        }
    met: dict[Any, Moments] = {}
    outputs, h, c = run(inputs, hidden, cell, normalizations(terms, known), met)
    wanted = loop(inputs.tolist(), hidden.tolist(), cell.tolist(), LISTS, terms, lists)
    for found, expected in zip((outputs, h, c), wanted[:3], strict=True):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    assert met.keys() == set(terms)
    for name, moments in met.items():
        expected = torch.tensor(wanted[3][name], dtype=torch.float64)  # (T, units, 2)
        torch.testing.assert_close(torch.stack(moments, -1), expected, rtol=1e-8, atol=1e-10)


def test_gradients_are_those_of_finite_differences() -> None:
    """Through the moments too, of inputs, state, kernels, bias and scales."""
    names = ("weight_ih", "weight_hh", "bias", "input", "hidden", "cell", "cell_shift")
    values = [WEIGHTS[name].clone().requires_grad_() for name in names]
    given = [seeded(3, 4, 2).requires_grad_(), *(seeded(4, 3, seed=s).requires_grad_() for s in (8, 9))]

    def call(inputs: Tensor, hidden: Tensor, cell: Tensor, *w: Tensor) -> tuple[Tensor, ...]:
        rules: Any = {
            "input": Normalization(w[3]),
            "hidden": Normalization(w[4]),
            "cell": Normalization(w[5], w[6]),
        }
        return batch_normalized_lstm(inputs, hidden, cell, w[0], w[1], w[2], rules)

    assert torch.autograd.gradcheck(call, (*given, *values))


def test_without_normalizations_it_is_torch_s_lstm() -> None:
    lstm = nn.LSTM(2, 3).double()
    inputs, h, c = seeded(5, 4, 2), seeded(1, 4, 3, seed=8), seeded(1, 4, 3, seed=9)
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    outputs, hidden, cell = batch_normalized_lstm(inputs, h[0], c[0], lstm.weight_ih_l0, lstm.weight_hh_l0, bias, {})
    wanted, (wanted_h, wanted_c) = lstm(inputs, (h, c))
    torch.testing.assert_close(outputs, wanted)
    torch.testing.assert_close(torch.stack([hidden, cell]), torch.cat([wanted_h, wanted_c]))


def test_the_normalized_terms_do_not_see_the_scale_of_the_kernels() -> None:
    """What a batch normalization is for; eps is the only trace of the scale."""
    inputs, hidden, cell = seeded(5, 8, 2), seeded(8, 3, seed=8), seeded(8, 3, seed=9)
    rules: Any = {name: Normalization(WEIGHTS[name], eps=1e-12) for name in ("input", "hidden", "cell")}
    one, other = (
        batch_normalized_lstm(
            inputs, hidden, cell, factor * WEIGHTS["weight_ih"], factor * WEIGHTS["weight_hh"], WEIGHTS["bias"], rules
        )[0]
        for factor in (1.0, 7.0)
    )
    torch.testing.assert_close(one, other)


# What the population's moments are, step by step.


def moments(*values: float) -> Moments:
    """Mean v and variance 10 v of one unit, a step each."""
    column = torch.tensor(values).unsqueeze(1)
    return Moments(column, 10 * column)


def test_moving_averages_are_kept_for_each_step_and_begin_with_zero_and_one() -> None:
    term = StepNormalization(1, 3, 0.1, has_shift=False, eps=EPS, momentum=0.25)
    term.update(moments(4.0, 8.0, 12.0))
    term.update(moments(8.0, 8.0))
    assert term.running_mean.flatten().tolist() == [0.75 * 1.0 + 2.0, 0.75 * 2.0 + 2.0, 3.0]
    assert term.running_var.flatten().tolist() == [0.75 * 10.75 + 20, 0.75 * 20.75 + 20, 30.75]
    assert term.updates.tolist() == [2, 2, 1]


def test_without_momentum_they_are_the_mean_of_all_mini_batches() -> None:
    term = StepNormalization(1, 2, 0.1, has_shift=False, eps=EPS, momentum=None)
    for newest in (moments(3.0, 1.0), moments(6.0), moments(9.0, 2.0)):
        term.update(newest)
    assert term.running_mean.flatten().tolist() == pytest.approx([6.0, 1.5])
    assert term.running_var.flatten().tolist() == pytest.approx([60.0, 15.0])


def test_steps_beyond_the_last_share_it_in_training_and_in_evaluation() -> None:
    term = StepNormalization(1, 2, 0.1, has_shift=False, eps=EPS, momentum=1.0)
    term.update(moments(1.0, 2.0, 3.0, 7.0))
    assert term.running_mean.flatten().tolist() == [1.0, 4.0]
    assert term.population(4).mean.flatten().tolist() == [1.0, 4.0, 4.0, 4.0]
    assert term.population(1).variance.flatten().tolist() == [10.0]  # a short window reads a prefix


def test_steps_that_training_never_reached_take_the_last_that_it_did() -> None:
    term = StepNormalization(1, 5, 0.1, has_shift=False, eps=EPS, momentum=1.0)
    assert term.population(2).variance.flatten().tolist() == [1.0, 1.0]  # nothing is known yet
    term.update(moments(1.0, 2.0))
    assert term.population(5).mean.flatten().tolist() == [1.0, 2.0, 2.0, 2.0, 2.0]


def prepared(lstm: nn.LSTM, **fields: Any) -> BatchNormalizedLSTM:
    RecurrentBatchNorm(**fields).prepare(lstm, torch.Generator().manual_seed(3))
    assert isinstance(lstm, BatchNormalizedLSTM)
    return lstm


def test_evaluation_uses_the_population_of_each_step_and_changes_nothing() -> None:
    """Momentum 1 makes the population that of the last mini-batch: evaluation on it gives what training gave."""
    lstm = prepared(nn.LSTM(2, 3, 2).double(), momentum=1.0, steps=6)
    inputs = seeded(6, 4, 2)
    trained, state = lstm(inputs)
    kept = copy.deepcopy(lstm.state_dict())
    found, end = lstm.eval()(inputs)
    torch.testing.assert_close(found, trained, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(end, state, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(lstm(inputs[:, :1])[0], trained[:, :1], rtol=1e-6, atol=1e-9)  # a single example too
    assert all(torch.equal(value, kept[name]) for name, value in lstm.state_dict().items())


def test_a_carried_state_begins_again_at_the_first_step() -> None:
    """Windows count their steps from one; the state that they go on from is not normalized in between."""
    lstm = prepared(nn.LSTM(2, 3).double(), momentum=1.0, steps=4)
    inputs = seeded(8, 5, 2)
    _, state = lstm(inputs[:4])
    second, _ = lstm(inputs[4:], state)
    assert lstm.normalizations[0].terms["hidden"].updates.tolist() == [2] * 4
    bias, own = lstm.bias_ih_l0 + lstm.bias_hh_l0, lstm.normalizations[0].terms
    rules: Any = {name: Normalization(term.weight, term.bias) for name, term in own.items()}
    wanted, *_ = batch_normalized_lstm(
        inputs[4:], state[0][0], state[1][0], lstm.weight_ih_l0, lstm.weight_hh_l0, bias, rules
    )
    torch.testing.assert_close(second, wanted)


# LSTMs of anyone's.


@pytest.mark.parametrize("terms", ["all", "gates", "input"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_and_directions_are_layers_one_by_one(
    terms: Any, batch_first: bool, bidirectional: bool, bias: bool
) -> None:
    """The whole against single layers that read, forward or backward, what the layer below wrote."""
    options: dict[str, Any] = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    lstm = prepared(nn.LSTM(2, 3, 2, **options).double(), terms=terms, forget_bias=1.0 if bias else None)
    ways = 2 if bidirectional else 1
    inputs, h, c = seeded(5, 4, 2), seeded(2 * ways, 4, 3, seed=8), seeded(2 * ways, 4, 3, seed=9)
    outputs, (hidden, cell) = lstm(inputs.transpose(0, 1) if batch_first else inputs, (h, c))
    value, ends = inputs, []
    for layer in range(2):
        parts = []
        for way, end in enumerate(("", "_reverse")[:ways]):
            single = nn.LSTM(value.shape[-1], 3, bias=bias).double()
            for name, parameter in single.named_parameters():
                parameter.data = lstm.get_parameter(f"{name.removesuffix('_l0')}_l{layer}{end}").data
            prepared(single, terms=terms, forget_bias=None)
            place = slice(layer * ways + way, layer * ways + way + 1)
            output, state = single(value.flip(0) if way else value, (h[place], c[place]))
            parts.append(output.flip(0) if way else output)
            ends.append(state)
        value = torch.cat(parts, -1)
    torch.testing.assert_close(outputs.transpose(0, 1) if batch_first else outputs, value)
    torch.testing.assert_close(hidden, torch.cat([end[0] for end in ends]))
    torch.testing.assert_close(cell, torch.cat([end[1] for end in ends]))


def test_dropout_between_layers_is_the_lstm_s_own() -> None:
    lstm = prepared(nn.LSTM(2, 3, 2, dropout=0.5))
    inputs = seeded(5, 4, 2).float()
    torch.manual_seed(0)
    first, again = lstm(inputs)[0], lstm(inputs)[0]
    assert not torch.equal(first, again)
    lstm.eval()
    assert torch.equal(lstm(inputs)[0], lstm(inputs)[0])


def test_one_example_without_a_batch_axis_is_evaluated() -> None:
    lstm = prepared(nn.LSTM(2, 3, batch_first=True)).eval()
    inputs = seeded(5, 2).float()
    whole, (h, c) = lstm(inputs.unsqueeze(0))
    single, (single_h, single_c) = lstm(inputs)
    assert torch.equal(single, whole[0])
    assert torch.equal(torch.stack([single_h, single_c]), torch.stack([h[:, 0], c[:, 0]]))
    again, _ = lstm(inputs, (single_h, single_c))
    assert torch.equal(again, lstm(inputs.unsqueeze(0), (h, c))[0][0])


def test_the_start_of_training() -> None:
    lstm = prepared(nn.LSTM(2, 3, 2), initial_scale=0.3, forget_bias=2.0, learn_initial_state=True)
    for name, parameter in lstm.named_parameters(recurse=False):
        if "bias" in name:
            wanted = [0.0] * 3 + [2.0 if "ih" in name else 0.0] * 3 + [0.0] * 6
            assert parameter.tolist() == wanted
    for own in lstm.normalizations:
        assert all(bool((term.weight == torch.tensor(0.3)).all()) for term in own.terms.values())
        assert {name for name, term in own.terms.items() if term.bias is not None} == {"cell"}
        assert own.initial_hidden.tolist() == own.initial_cell.tolist() == [0.0] * 3


def test_its_own_biases_stay_where_no_forget_bias_is_given() -> None:
    lstm = nn.LSTM(2, 3)
    before = copy.deepcopy(lstm.state_dict())
    prepared(lstm, forget_bias=None)
    assert all(torch.equal(value, lstm.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("terms", ["all", "input"])
def test_a_learned_start_is_used_where_the_caller_gives_none(terms: Any) -> None:
    lstm = prepared(nn.LSTM(2, 3).double(), learn_initial_state=True, terms=terms)
    own = lstm.normalizations[0]
    nn.init.constant_(own.initial_hidden, 0.5)
    nn.init.constant_(own.initial_cell, -0.25)
    inputs = seeded(5, 4, 2)
    given = torch.full((1, 4, 3), 0.5).double(), torch.full((1, 4, 3), -0.25).double()
    output, _ = lstm(inputs)
    assert torch.equal(output, lstm(inputs, given)[0])
    output.square().sum().backward()
    assert bool((own.initial_cell.grad.abs() > 1e-4).all())
    # What all examples share, the normalization of the hidden term takes away.
    assert bool(((own.initial_hidden.grad.abs() > 1e-4) == (terms == "input")).all())


def test_noise_is_on_the_first_hidden_state_in_training_alone_and_from_the_generator() -> None:
    inputs = seeded(5, 400, 2)
    lstm, again = (prepared(nn.LSTM(2, 3).double(), initial_state_noise=0.1, forget_bias=None) for _ in range(2))
    again.load_state_dict(lstm.state_dict())
    torch.manual_seed(0)
    before = torch.get_rng_state()
    start, _ = lstm.normalizations[0].initial_state(inputs, 3)
    assert start.std().item() == pytest.approx(0.1, rel=0.1)
    again.normalizations[0].initial_state(inputs, 3)
    assert torch.equal(lstm(inputs)[0], again(inputs)[0])  # equal generators
    assert not torch.equal(lstm(inputs)[0], lstm(inputs)[0])
    assert torch.equal(before, torch.get_rng_state())
    copied = copy.deepcopy(lstm)
    assert copied.normalizations[0].generator is lstm.normalizations[0].generator
    lstm.eval()
    assert torch.equal(lstm(inputs)[0], lstm(inputs)[0])


class Tagger(nn.Module):
    """Somebody's model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.out = nn.Embedding(7, 4), nn.LSTM(4, 6, 2, batch_first=True), nn.Linear(6, 7)

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(words))[0])


def test_attached_to_somebody_s_model_it_trains_and_is_taken_back() -> None:
    torch.manual_seed(0)
    model, words = Tagger(), torch.arange(12 * 9).view(12, 9) % 7
    names = list(model.state_dict())
    handle = attach(RecurrentBatchNorm(steps=8, momentum=0.5), model, sites=["lstm"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten())
        (loss + handle.penalty()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    model.eval()
    evaluated = nn.functional.cross_entropy(model(words[:, :-1]).flatten(0, 1), words[:, 1:].flatten()).item()
    assert evaluated < 0.2 * losses[0]  # the population's moments serve
    assert model(words[:1, :5]).shape == (1, 5, 7)
    assert [kernel.name for kernel in kernels_of(model) if kernel.kind == "recurrent"] == [
        "lstm.weight_hh_l0",
        "lstm.weight_hh_l1",
    ]
    loaded = pickle.loads(pickle.dumps(copy.deepcopy(model.lstm)))
    assert torch.equal(loaded(torch.ones(1, 3, 4))[0], model.lstm(torch.ones(1, 3, 4))[0])
    weights = model.lstm.weight_hh_l0.detach().clone()
    handle.remove()
    assert type(model.lstm) is nn.LSTM
    assert list(model.state_dict()) == names
    assert torch.equal(model.lstm.weight_hh_l0, weights)


@pytest.mark.parametrize(
    ("model", "fields", "expected"),
    [
        (nn.Linear(2, 2), {}, "needs an nn.LSTM, and the model has none"),
        (nn.Sequential(nn.GRU(2, 2)), {}, "needs an nn.LSTM, and the model has GRU"),
        (nn.ModuleDict({"rnn": nn.LSTM(2, 4, proj_size=3)}), {}, "'rnn' has proj_size 3"),
        (nn.LSTM(2, 4, bias=False), {}, "this LSTM has no biases, and forget_bias 1.0 needs them: give None"),
        (type("Own", (nn.LSTM,), {})(2, 4), {}, "is a Own, and recurrent batch normalization needs nn.LSTM itself"),
    ],
)
def test_models_that_it_refuses(model: nn.Module, fields: dict[str, Any], expected: str) -> None:
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=expected):
        RecurrentBatchNorm(**fields).prepare(model, torch.Generator())
    assert list(model.state_dict()) == before


def test_a_second_time_and_one_bad_lstm_of_two_are_refused() -> None:
    lstm = prepared(nn.LSTM(2, 3))
    with pytest.raises(ValueError, match="is normalized already"):
        RecurrentBatchNorm().prepare(lstm, torch.Generator())
    pair = nn.ModuleList([nn.LSTM(2, 3), nn.LSTM(2, 3, bias=False)])
    with pytest.raises(ValueError, match="LSTM '1' has no biases"):
        RecurrentBatchNorm().prepare(pair, torch.Generator())
    assert type(pair[0]) is nn.LSTM


def test_inputs_that_it_refuses() -> None:
    lstm = prepared(nn.LSTM(2, 3))
    with pytest.raises(ValueError, match="mini-batch of at least 2 examples, got 1"):
        lstm(torch.ones(5, 1, 2))
    with pytest.raises(ValueError, match=r"of at least one step, got \(0, 4, 2\)"):
        lstm(torch.ones(0, 4, 2))
    with pytest.raises(ValueError, match="padded sequences"):
        lstm(pack_padded_sequence(torch.ones(5, 2, 2), torch.tensor([5, 3])))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        lstm(torch.ones(5, 2, 2), (torch.ones(1, 3, 3), torch.ones(1, 3, 3)))
    rules = normalizations(("hidden",), {"hidden": Moments(seeded(2, 12), seeded(2, 12).exp())})
    with pytest.raises(ValueError, match="hidden: population moments of 2 steps for inputs of 5"):
        run(seeded(5, 4, 2), seeded(4, 3), seeded(4, 3), rules)
