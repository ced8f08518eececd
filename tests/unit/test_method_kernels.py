"""The kernels of a model: every weight once, as it is used, with its outputs where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from reproduce import models
from reproduce.errors import UserError
from reproduce.method import Site, kernels_of
from reproduce.models import Sizes

IMAGE, WORDS, NUMBERS = Sizes((3, 32, 32), 10), Sizes((), 7), Sizes((5,), 5)
OPTIONS: dict[str, tuple[dict[str, Any], Sizes]] = {
    "mlp": ({"width": 8, "depth": 2}, NUMBERS),
    "rectified_mlp": ({"width": 8, "depth": 1}, IMAGE),
    "resnet": ({"depth": 14}, IMAGE),
    "lstm": ({"hidden": 6}, WORDS),
    "code_lstm": ({"hidden": 6, "layers": 1, "d_sae": 8}, WORDS),
    "autoencoder": ({"d_sae": 8}, NUMBERS),
    "row_rnn": ({"hidden": 6}, IMAGE),
    "wide_resnet": ({"depth": 10}, IMAGE),
    "bottleneck_resnet": ({"depth": 11}, IMAGE),
    "resnext": ({"depth": 11, "cardinality": 2, "width": 4, "stem": 4}, IMAGE),
    "resnet18": ({"width": 4}, IMAGE),
}


def kinds(model: nn.Module) -> dict[str, str]:
    return {kernel.name: kernel.kind for kernel in kernels_of(model)}


@pytest.mark.parametrize("name", models.known_models())
def test_models_of_the_suite_have_the_parameters_of_two_axes(name: str) -> None:
    """Each once, under its own name and in the order of the model's parameters, and by what type of layer holds it."""
    options, sizes = OPTIONS.get(name, ({}, IMAGE))
    try:
        model = models.build(name, options, sizes, torch.Generator(), torch.Generator())
    except UserError as error:
        pytest.skip(f"needs options that this test does not know: {error}")
    owners = dict(model.named_modules())
    expected = []
    for path, parameter in model.named_parameters():
        owner = owners[path.rpartition(".")[0]]
        if parameter.dim() >= 2:
            if isinstance(owner, nn.LSTM | nn.RNN):
                kind = "recurrent" if "_hh_" in path else "other"
            else:
                of_type = {nn.Linear: "linear", nn.Conv2d: "conv", nn.Embedding: "embedding"}
                kind = of_type.get(type(owner), "unknown")
            expected.append((path, kind, parameter))
    found = kernels_of(model)
    assert [(kernel.name, kernel.kind) for kernel in found] == [(path, kind) for path, kind, _ in expected]
    assert all(kernel.weight is parameter for kernel, (_, _, parameter) in zip(found, expected, strict=True))


@pytest.mark.parametrize("gate_module", [nn.LSTM(4, 6, 2, bidirectional=True, proj_size=3), nn.GRU(4, 6), nn.RNN(4, 6)])
def test_recurrent_kernels_have_the_order_of_their_parameters(gate_module: nn.RNNBase) -> None:
    expected = [name for name, parameter in gate_module.named_parameters() if parameter.dim() == 2]
    assert [kernel.name for kernel in kernels_of(gate_module)] == expected
    blocks = {kernel.name: kernel.blocks for kernel in kernels_of(gate_module)}
    assert blocks["weight_hh_l0"] * gate_module.hidden_size == len(gate_module.weight_hh_l0)
    assert blocks.get("weight_hr_l0", 1) == 1


def test_parametrized_weights_are_those_in_use_each_once() -> None:
    lstm = nn.LSTM(4, 6)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    found = {kernel.name: kernel for kernel in kernels_of(lstm)}
    assert list(found) == ["weight_ih_l0", "weight_hh_l0"]
    assert found["weight_hh_l0"].kind == "recurrent"
    assert found["weight_hh_l0"].blocks == 4
    assert torch.equal(found["weight_hh_l0"].weight, lstm.weight_hh_l0)

    layers = nn.Sequential(nn.Linear(4, 5), nn.Linear(4, 5))
    parametrizations.orthogonal(layers[0])  # its own map holds a matrix, which is no kernel
    parametrizations.weight_norm(layers[1])
    with torch.no_grad():
        layers[1].parametrizations.weight.original1.mul_(10)
    assert [kernel.name for kernel in kernels_of(layers)] == ["0.weight", "1.weight"]
    for kernel, layer in zip(kernels_of(layers), layers, strict=True):
        assert torch.equal(kernel.weight, layer.weight)


@pytest.mark.parametrize("old", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_the_older_hooks_are_read_as_the_weight_that_they_make(old: Any) -> None:
    layer = old(nn.Linear(4, 5))
    layer(torch.ones(2, 4))
    ((name, kind, weight, *_),) = kernels_of(layer)
    assert (name, kind) == ("weight", "linear")
    assert torch.equal(weight, layer.weight)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixing, self.scale = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3))
        parametrize.register_parametrization(self, "mixing", Doubled())


def test_weights_of_unknown_modules_are_listed_as_such() -> None:
    model = nn.Sequential(Own(), nn.LayerNorm((3, 4)), nn.PReLU())
    ((name, kind, weight, *_),) = kernels_of(model)
    assert (name, kind) == ("0.mixing", "unknown")
    assert torch.equal(weight, model[0].mixing)


def test_what_a_method_has_put_at_a_site_is_no_kernel() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Site("pre", "nchw", (4, 2, 2)))
    model[1].register_parameter("beta", nn.Parameter(torch.ones(4, 2, 2)))
    assert list(kinds(model)) == ["0.weight"]


def test_attention_without_packed_projections_and_with_biases() -> None:
    packed, apart = nn.MultiheadAttention(4, 2, add_bias_kv=True), nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
    assert {kernel.name: kernel.blocks for kernel in kernels_of(packed)} == {"in_proj_weight": 3, "out_proj.weight": 1}
    assert list(kinds(apart)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


@pytest.mark.parametrize("head_first", [False, True])
def test_a_head_that_is_tied_to_an_embedding_is_the_embedding(head_first: bool) -> None:
    head, table = nn.Linear(4, 9, bias=False), nn.Embedding(9, 4)
    head.weight = table.weight
    model = nn.ModuleDict({"head": head, "words": table} if head_first else {"words": table, "head": head})
    assert kinds(model) == {"words.weight": "embedding"}


def test_a_weight_shared_by_two_layers_counts_once() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    assert list(kinds(nn.Sequential(one, other, one))) == ["0.weight"]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_outputs_of_a_transposed_convolution_come_first(groups: int) -> None:
    """The response to an impulse in one input channel is that input's part of each output's kernel, in its group."""
    layer = nn.ConvTranspose2d(8, 12, 3, groups=groups, bias=False)
    (kernel,) = kernels_of(layer)
    assert kernel.blocks == groups
    weight = kernel.outputs_first
    assert weight.shape == (12, 8 // groups, 3, 3)
    for channel in range(8):
        impulse = torch.zeros(1, 8, 1, 1)
        impulse[0, channel] = 1
        group, place = divmod(channel, 8 // groups)
        expected = torch.zeros(12, 3, 3)
        own = slice(group * 12 // groups, (group + 1) * 12 // groups)
        expected[own] = weight[own, place]
        torch.testing.assert_close(layer(impulse)[0], expected)


def test_conv1d_of_transformers_is_turned_and_its_projections_are_cut() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    layer = conv1d(6, 4)
    (kernel,) = kernels_of(layer)
    inputs = torch.randn(3, 4)
    torch.testing.assert_close(inputs @ kernel.outputs_first.mT + layer.bias, layer(inputs))
    assert kernel.blocks == 1
    assert [kernel.blocks for kernel in kernels_of(nn.ModuleDict({"c_attn": conv1d(12, 4)}))] == [3]


def test_gpt2_has_every_kernel_and_its_tied_head_is_the_embedding() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model = transformers.GPT2LMHeadModel(config)
    block = "transformer.h.0."
    assert kinds(model) == {
        "transformer.wte.weight": "embedding",
        "transformer.wpe.weight": "embedding",
        f"{block}attn.c_attn.weight": "linear",
        f"{block}attn.c_proj.weight": "linear",
        f"{block}mlp.c_fc.weight": "linear",
        f"{block}mlp.c_proj.weight": "linear",
    }


def test_a_lazy_module_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'1\.weight' has no shape yet: call the model once"):
        kernels_of(nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(2)))
