"""The language model against torch's own two-layer LSTM, and the published parameter counts."""

import itertools
import math

import pytest
import torch
from torch import nn

from methods.weight_norm_penalty.method import WeightNormPenalty
from reproduce.method.sites import watch
from reproduce.models import Sizes, build
from reproduce.models.dropout import LockedDropout


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def language_model(vocabulary: int = 30, **options):
    return build("lstm", options, Sizes((), vocabulary), generator(), generator(1))


@pytest.mark.parametrize(("tied", "count"), [(False, 19_780_400), (True, 13_280_400)])
def test_parameters_of_the_650_unit_ptb_model(tied, count):
    model = language_model(10_000, hidden=650, tied=tied, dropout=0.5)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert (model.decoder.weight is model.embedding.weight) == tied


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_equals_torch_lstm_of_two_layers(dropout):
    """The same numbers as embedding, nn.LSTM(num_layers=2) and decoder with copied weights, state carried."""
    model = language_model(hidden=12, embedding=9, dropout=dropout).eval()
    reference = nn.LSTM(9, 12, num_layers=2)
    for index, layer in enumerate(model.layers):
        for name, parameter in layer.lstm.named_parameters():
            getattr(reference, name.replace("l0", f"l{index}")).data.copy_(parameter.data)
    state, pair = model.initial_state(4), None
    for window in torch.randint(30, (3, 5, 4), generator=generator(2)):
        logits, state = model(window, state)
        output, pair = reference(model.embedding(window), pair)
        torch.testing.assert_close(logits, model.decoder(output))
        torch.testing.assert_close(torch.cat(state[0::2]), pair[0])
        torch.testing.assert_close(torch.cat(state[1::2]), pair[1])
    assert state[0].any()


def test_initial_state_is_zero_and_follows_the_parameters():
    model = language_model(hidden=5, layers=3).double()
    state = model.initial_state(4)
    assert [tuple(tensor.shape) for tensor in state] == [(1, 4, 5)] * 6
    assert all(tensor.dtype == torch.float64 and not tensor.any() for tensor in state)
    assert model.to("meta").initial_state(2)[0].is_meta


def test_ranges_of_the_initial_parameters():
    model = language_model(1000, hidden=100)
    for weight, bound in [(model.embedding.weight, 0.1), (model.decoder.weight, 0.1)] + [
        (parameter, 0.1)
        for parameter in model.layers.parameters()  # 1 / sqrt(100)
    ]:
        assert abs(weight.detach()).max() <= bound
        square = weight.detach().double().square().mean()
        error = math.sqrt(0.8 / weight.numel())  # of a uniform variable's mean square: kurtosis 1.8
        assert abs(square / (bound**2 / 3) - 1) < 3.5 * error  # ten tensors are looked at
    assert not torch.equal(model.embedding.weight, model.decoder.weight)
    assert not model.decoder.bias.any()
    wide = language_model(hidden=400)
    assert 0.049 < max(parameter.abs().max() for parameter in wide.layers.parameters()) <= 0.05


@pytest.mark.parametrize("tied", [False, True])
def test_one_bound_for_every_parameter(tied):
    """Zaremba et al. draw all of them from one interval, the decoder's bias among them; a tied weight once."""
    model = language_model(1000, hidden=100, tied=tied, initial_bound=0.05)
    drawn = list(model.parameters())
    assert len(drawn) == (10 if tied else 11)  # two layers of four, the embedding, the decoder's weight and bias
    for parameter in drawn:
        values = parameter.detach().double()
        assert 0.04 < values.abs().max() <= 0.05
        error = math.sqrt(0.8 / values.numel())
        assert abs(values.square().mean() / (0.05**2 / 3) - 1) < 3.5 * error
    assert torch.equal(model.decoder.weight, model.embedding.weight) == tied


@pytest.mark.parametrize("kind", ["plain", "locked"])
def test_sites_see_the_output_before_and_after_its_dropout(kind):
    model = language_model(hidden=40, dropout=0.5, dropout_kind=kind)
    trace = watch(model)
    model(torch.randint(30, (7, 3), generator=generator(2)), model.initial_state(3))
    assert [(record.site.name, record.site.role) for record in trace.records] == [
        (f"layers.{index}.{role}", role) for index in range(2) for role in ("post", "dropped")
    ]
    for raw, dropped in zip(trace.select("post"), trace.select("dropped"), strict=True):
        kept = dropped.activation != 0
        assert 0.3 < kept.double().mean() < 0.7
        torch.testing.assert_close(dropped.activation[kept], 2 * raw.activation[kept])
        assert bool((kept == kept[:1]).all()) == (kind == "locked")
    first, second = (record.activation != 0 for record in trace.select("dropped"))
    assert not torch.equal(first, second)  # each layer has its own mask


def test_embedding_dropout_is_the_general_rate_unless_given():
    model = language_model(hidden=5, dropout=0.4, dropout_kind="locked")
    assert isinstance(model.embedding_dropout, LockedDropout)
    assert model.embedding_dropout.probability == 0.4
    assert language_model(hidden=5, dropout=0.4, embedding_dropout=0.0).embedding_dropout.probability == 0.0


def test_the_first_layer_reads_the_dropped_embedding_and_the_decoder_the_last_dropped_output():
    model = language_model(hidden=40, dropout=0.5, embedding_dropout=0.25)
    trace, inputs = watch(model), []
    model.layers[0].register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    tokens = torch.randint(30, (7, 3), generator=generator(2))
    logits, _ = model(tokens, model.initial_state(3))
    kept = inputs[0] != 0
    assert 0.6 < kept.double().mean() < 0.9
    torch.testing.assert_close(inputs[0][kept], model.embedding(tokens)[kept] / 0.75)
    assert torch.equal(logits, model.decoder(trace.select("dropped")[-1].activation))


@pytest.mark.parametrize(
    ("tied", "projection", "count"),
    [(False, False, 4.65e6), (True, False, 2.65e6), (False, True, 4.69e6), (True, True, 2.69e6)],
)
def test_sizes_of_the_small_models_of_press_and_wolf(tied, projection, count):
    """Their Table 6 in millions; of the LSTM's two bias vectors theirs has one."""
    model = language_model(10_000, hidden=200, tied=tied, projection=projection, initial_bound=0.1)
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert round((ours - 2 * 4 * 200) / 1e6, 2) == count / 1e6


def test_a_projection_is_a_linear_layer_before_the_decoder():
    plain, projected = (language_model(hidden=6, projection=flag).double() for flag in (False, True))
    projected.load_state_dict({**projected.state_dict(), **plain.state_dict()})
    tokens = torch.randint(30, (5, 3), generator=generator(2))
    outputs = []
    plain.decoder.register_forward_pre_hook(lambda module, arguments: outputs.append(arguments[0]))
    plain(tokens, plain.initial_state(3))
    logits, _ = projected(tokens, projected.initial_state(3))
    kernel, bias = (part.tolist() for part in projected.projection.parameters())
    read = torch.zeros_like(outputs[0])
    for step, row, unit in itertools.product(range(5), range(3), range(6)):
        given = outputs[0][step, row].tolist()
        read[step, row, unit] = math.fsum(a * b for a, b in zip(kernel[unit], given, strict=True)) + bias[unit]
    torch.testing.assert_close(logits, plain.decoder(read))
    assert abs(projected.projection.weight).max() <= 1 / math.sqrt(6)


def test_the_projection_alone_is_penalised_by_its_name():
    """As an arm of Press & Wolf's Table 6 names it."""
    model = language_model(hidden=6, projection=True, tied=True)
    penalty = WeightNormPenalty(strength=1 / 5200, layers=("projection",))
    found = penalty.penalty(watch(model), torch.tensor(0.0), generator())
    wanted = math.fsum(value**2 for value in model.projection.weight.double().flatten().tolist()) / 5200
    assert found.item() == pytest.approx(wanted, rel=1e-6)
