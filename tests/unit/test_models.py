"""What holds for every model: counts, shapes, Sites, and where its random numbers come from."""

import copy
import math
from importlib import import_module

import pytest
import torch
from torch import nn

from reproduce.errors import UserError
from reproduce.method.sites import sites_of, watch
from reproduce.models import Sizes, build, check_options, known_models
from reproduce.models.initialisation import draw_weight
from reproduce.models.precision import recurs_in_float32

CIFAR = Sizes((3, 32, 32), 10)
SIZES = (Sizes((1, 8, 8), 10), Sizes((), 11), Sizes((1, 8, 8), 64))  # images, words, images from features
MORE = {  # options beside the required ones, so that whatever draws is on
    "mlp": {"width": 7, "depth": 2, "dropout": 0.3},
    "lstm": {"dropout": 0.3},
    "resnet": {"depth": 8, "width": 4},
    "autoencoder": {"input_dropout": 0.3},
    "code_lstm": {"dropout": 0.3},
    "awd_lstm": {"embedding": 5, "layers": 2},
    "variational_lstm": {"dropout": 0.3, "recurrent_dropout": 0.2, "embedding_dropout": 0.1},
    "wide_resnet": {"depth": 10, "dropout": 0.3},
    "bottleneck_resnet": {"depth": 11},
    "resnext": {"depth": 11, "cardinality": 2, "width": 4, "stem": 4},
    "resnet18": {"width": 4},
}


def small(name: str) -> tuple[dict, Sizes]:
    """Options of a small model, and the first sizes that it takes; those of a new file need no entry above."""
    fields = import_module(f"reproduce.models.{name}").Options.model_fields
    needed = {key: {int: 6, float: 0.5}[field.annotation] for key, field in fields.items() if field.is_required()}
    options = needed | MORE.get(name, {})
    refusals = []
    for sizes in SIZES:
        try:
            build(name, options, sizes, generator(0), generator(1))
        except UserError as error:
            refusals.append(str(error))
        else:
            return options, sizes
    raise AssertionError(f"add options of {name} to MORE: {refusals}")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def built(name: str, options: dict, sizes: Sizes, seed: int = 0) -> nn.Module:
    return build(name, options, sizes, generator(seed), generator(100 + seed))


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def forward(model: nn.Module, name: str, sizes: Sizes) -> torch.Tensor:
    if not sizes.input_shape:  # words
        return model(torch.arange(6).reshape(3, 2), model.initial_state(2))[0]
    return model(torch.randn(2, *sizes.input_shape, generator=generator(5)))


SMALL = {name: small(name) for name in known_models()}


def test_the_models_are_found():
    assert {"mlp", "lstm", "resnet", "autoencoder"} <= set(known_models())
    assert set(MORE) <= set(known_models())


@pytest.mark.parametrize("name", SMALL)
def test_every_site_is_bfloat16_under_autocast(name):
    options, sizes = SMALL[name]
    model = built(name, options, sizes).train()
    trace = watch(model)
    with torch.autocast("cpu", torch.bfloat16):
        forward(model, name, sizes).float().square().mean().backward()
    assert [record.site for record in trace.records] == list(sites_of(model))
    recurs = any(isinstance(module, nn.RNNBase) for module in model.modules()) and recurs_in_float32("cpu")
    allowed = {torch.bfloat16, torch.float32} if recurs else {torch.bfloat16}
    assert {record.activation.dtype for record in trace.records} <= allowed
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        *((name, {}) for name in SMALL),
        ("mlp", {"initialisation": "torch"}),
        ("mlp", {"initialisation": "lecun"}),
        ("mlp", {"initialisation": "gaussian", "initialisation_std": 0.1}),
        ("lstm", {"tied": True, "dropout_kind": "locked"}),
        ("awd_lstm", {"tied": False}),
        ("variational_lstm", {"tied": True, "masks": "gate"}),
        ("resnet", {"variant": "he"}),
        ("cnn11", {"activation": "relu", "scalar_bias": True, "initialisation": "he"}),
        ("cnn11", {"width_divisor": 8}),
    ],
)
def test_every_parameter_comes_from_the_given_generator(name, changed):
    options, sizes = SMALL[name][0] | changed, SMALL[name][1]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = built(name, options, sizes).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    second = built(name, options, sizes).state_dict()
    other = built(name, options, sizes, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key, value in first.items():
        assert value.isfinite().all()
        constant = bool((value == value.flatten()[0]).all())  # biases, and what Fixup sets to 0
        assert torch.equal(value, other[key]) == constant


@pytest.mark.parametrize("name", SMALL)
def test_dropout_draws_from_its_generator_alone(name):
    options, sizes = SMALL[name]
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        outputs.append(forward(built(name, options, sizes).train(), name, sizes))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("name", SMALL)
def test_sites_know_their_shapes_and_logits_have_none(name):
    options, sizes = SMALL[name]
    model = built(name, options, sizes)
    trace = watch(model)
    logits = forward(model, name, sizes)
    reconstructs = name in ("autoencoder", "layered_autoencoder", "pixels")
    expected = (2, *sizes.input_shape) if reconstructs else (2, sizes.outputs) if sizes.input_shape else (3, 2, 11)
    assert logits.shape == expected
    assert len(trace.records) == len(list(sites_of(model)))  # each Site is passed once
    for site, activation in trace.records:
        leading = 2 if site.axes == "tnc" else 1
        assert activation.shape[leading:] == site.shape
        # The outputs of a rectified MLP are no logits: a law may be asked of them.
        assert activation.shape != logits.shape or name == "rectified_mlp"


def test_a_deep_copy_computes_the_same_and_shares_the_stream_of_masks():
    options, sizes = SMALL["mlp"]
    model = built("mlp", options, sizes)
    copied = copy.deepcopy(model)
    assert copied.dropout is not model.dropout
    assert copied.dropout.generator is model.dropout.generator
    start = model.dropout.generator.get_state()
    first = forward(model, "mlp", sizes)
    model.dropout.generator.set_state(start)
    assert torch.equal(forward(copied, "mlp", sizes), first)
    assert not torch.equal(forward(copied, "mlp", sizes), first)  # the stream went on
    assert torch.equal(forward(copied.eval(), "mlp", sizes), forward(model.eval(), "mlp", sizes))


def test_bad_requests_name_model_and_option():
    cases = [
        ("transformer", {}, rf"^unknown model 'transformer': there are {', '.join(known_models())}$"),
        ("dropout", {}, r"^unknown model 'dropout'"),
        ("mlp", {"depth": 1}, r"^model 'mlp': width: missing key$"),
        (
            "mlp",
            {"width": 5, "depth": 1, "heads": 2},
            r"^model 'mlp' takes width, .* and no 'heads', found 2$",
        ),
        ("mlp", {"width": 5.5, "depth": 1}, r"^model 'mlp': width: .*integer.*found 5.5$"),
        (
            "mlp",
            {"width": 5, "depth": 1, "initialisation_std": 0.1},
            r"^model 'mlp': initialisation 'gaussian'",
        ),
        ("mlp", {"width": 5, "depth": 1, "initialisation": "gaussian"}, r"'initialisation_std'$"),
        ("lstm", {"hidden": 5, "embedding": 4, "tied": True}, r"^model 'lstm': option 'tied' .*4 .*5$"),
        ("lstm", {"hidden": 5, "dropout": 1.0}, r"^model 'lstm': dropout: .*found 1.0$"),
        ("resnet", {"depth": 18}, r"^model 'resnet': depth: .*6n \+ 2.*found 18$"),
        ("wide_resnet", {"depth": 26}, r"^model 'wide_resnet': depth: .*6n \+ 4.*found 26$"),
        ("bottleneck_resnet", {"depth": 50}, r"^model 'bottleneck_resnet': depth: .*9n \+ 2.*found 50$"),
        ("resnext", {"depth": 2}, r"^model 'resnext': depth: .*9n \+ 2.*found 2$"),
        (
            "cnn11",
            {"activation": "selu", "width_factor": 3},
            r"^model 'cnn11': width_factor: .*; also activation: .*selu': did you mean elu.$",
        ),
    ]
    for name, options, message in cases:
        with pytest.raises(UserError, match=message):
            check_options(name, options)
    for name in ("mlp", "resnet", "cnn11", "wide_resnet", "bottleneck_resnet", "resnext", "resnet18"):
        with pytest.raises(UserError, match=rf"^model '{name}': takes .* got \(\)$"):
            build(name, SMALL[name][0], Sizes((), 10), generator(0), None)
    with pytest.raises(UserError, match=r"^model 'lstm': takes words.*\(3, 32, 32\)$"):
        build("lstm", {"hidden": 5}, CIFAR, generator(0), None)


def test_variances_of_the_initialisations():
    """Mean and variance within 3 standard errors, from the fourth moment of each distribution."""
    for shape in ((300, 200), (40, 20, 3, 5)):
        weight = torch.empty(shape, dtype=torch.float64)
        fan_in = math.prod(shape[1:])
        for kind, variance, kurtosis in (
            ("he", 2 / fan_in, 3.0),
            ("lecun", 1 / fan_in, 3.0),
            ("torch", 1 / (3 * fan_in), 1.8),
            ("glorot", 2 / (fan_in + shape[0] * math.prod(shape[2:])), 1.8),
            ("gaussian", 0.25, 3.0),
        ):
            draw_weight(weight, kind, generator(3), 0.5 if kind == "gaussian" else None)
            count = weight.numel()
            assert abs(weight.mean()) < 3 * math.sqrt(variance / count)
            assert abs(weight.square().mean() - variance) < 3 * variance * math.sqrt((kurtosis - 1) / count)
    with pytest.raises(ValueError, match="'gaussian'"):
        draw_weight(weight, "gaussian", generator(3))


def test_mlp_is_the_textbook_formula():
    """BN's Figure 1 network, against matrix products written out."""
    options = {"width": 100, "depth": 3, "activation": "sigmoid"}
    options |= {"initialisation": "gaussian", "initialisation_std": 0.1}
    model = built("mlp", options, Sizes((1, 28, 28), 10)).double()
    assert parameter_count(model) == 785 * 100 + 2 * 101 * 100 + 101 * 10
    assert [name for name, module in model.named_modules() if name.endswith((".pre", ".post"))] == [
        f"layers.{index}.{role}" for index in range(3) for role in ("pre", "post")
    ]
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64, generator=generator(0))
    weights = list(model.parameters())
    value = images.reshape(5, 784)
    for weight, bias in zip(weights[:6:2], weights[1:6:2], strict=True):
        assert not bias.any()
        value = 1 / (1 + torch.exp(-(value @ weight.T + bias)))
    torch.testing.assert_close(model(images), value @ weights[6].T + weights[7])


def test_mlp_drops_after_the_last_hidden_layer():
    options, sizes = {"width": 50, "depth": 1, "dropout": 0.5}, Sizes((4,), 3)
    model = built("mlp", options, sizes)
    hidden, seen = [], []
    model.layers[-1].register_forward_hook(lambda module, inputs, output: hidden.append(output))
    model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.randn(6, 4, generator=generator(1)))
    kept = seen[0] != 0
    assert 0 < kept.sum() < (hidden[0] != 0).sum()
    torch.testing.assert_close(seen[0][kept], 2 * hidden[0][kept])
