"""The kernels of a model: every weight once, as it is used, with its outputs where they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from methods.activity_norm.method import l2_activity
from reproduce import attach, load_method, models
from reproduce.errors import UserError
from reproduce.method import Site, kernels_of
from reproduce.models import Sizes

IMAGE, WORDS, NUMBERS = Sizes((3, 32, 32), 10), Sizes((), 7), Sizes((5,), 5)
OPTIONS: dict[str, tuple[dict[str, Any], Sizes]] = {
    "mlp": ({"width": 8, "depth": 2}, NUMBERS),
    "rectified_mlp": ({"width": 8, "depth": 1}, IMAGE),
    "resnet": ({"depth": 14}, IMAGE),
    "lstm": ({"hidden": 6}, WORDS),
    "awd_lstm": ({"hidden": 6, "embedding": 5}, WORDS),
    "variational_lstm": ({"hidden": 6}, WORDS),
    "code_lstm": ({"hidden": 6, "layers": 1, "d_sae": 8}, WORDS),
    "autoencoder": ({"d_sae": 8}, NUMBERS),
    "row_rnn": ({"hidden": 6}, IMAGE),
    "wide_resnet": ({"depth": 10}, IMAGE),
    "bottleneck_resnet": ({"depth": 11}, IMAGE),
    "resnext": ({"depth": 11, "cardinality": 2, "width": 4, "stem": 4}, IMAGE),
    "resnet18": ({"width": 4}, IMAGE),
    "code_classifier": ({"d_sae": 8}, IMAGE),
    "layered_autoencoder": ({"d_sae": 8}, IMAGE),
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


def _weight_norm(layer: nn.Module) -> Tensor:
    v = layer.weight_v.double()
    return layer.weight_g.double() * v / v.flatten(1).square().sum(1).sqrt().view(-1, *[1] * (v.dim() - 1))


def _spectral_norm(layer: nn.Module) -> Tensor:
    matrix = layer.weight_orig.double().flatten(1)
    return layer.weight_orig.double() / (layer.weight_u.double() @ matrix @ layer.weight_v.double())


def _pruned(layer: nn.Module) -> Tensor:
    return layer.weight_orig.double() * layer.weight_mask.double()


def _prune_twice(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.3)
    return prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)


OLD_HOOKS = [
    (nn.utils.weight_norm, _weight_norm),
    (nn.utils.spectral_norm, _spectral_norm),
    (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), _pruned),
    (_prune_twice, _pruned),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("layer", [nn.Linear(4, 5), nn.Conv2d(2, 4, 3)])
@pytest.mark.parametrize(("wrap", "by_hand"), OLD_HOOKS)
def test_what_the_older_hooks_make_is_made_anew_from_its_parameters(wrap: Any, by_hand: Any, layer: nn.Module) -> None:
    """Also after a pass without gradients and a step of the parameters, and it can be differentiated twice over."""
    layer = wrap(copy.deepcopy(layer))
    with torch.no_grad():
        layer(torch.ones(2, *layer.weight.shape[1:]))
        for parameter in layer.parameters():
            parameter.mul_(3).add_(0.1)
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    for _ in range(2):
        ((name, kind, weight, *_),) = kernels_of(layer)
        assert (name, kind) == ("weight", "linear" if isinstance(layer, nn.Linear) else "conv")
        torch.testing.assert_close(weight.double(), by_hand(layer))
        originals = [parameter for name, parameter in layer.named_parameters() if name.startswith("weight")]
        found = torch.autograd.grad(weight.square().sum(), originals)
        expected = torch.autograd.grad(by_hand(layer).square().sum(), originals)
        torch.testing.assert_close(found, expected)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in layer.named_buffers())


def test_a_pruned_weight_of_an_unknown_module_is_the_pruned_one() -> None:
    module = nn.Module()
    module.mixing = nn.Parameter(torch.randn(3, 4))
    prune.l1_unstructured(module, "mixing", 0.5)
    ((name, kind, weight, *_),) = kernels_of(module)
    assert (name, kind) == ("mixing", "unknown")
    assert torch.equal(weight, module.mixing_orig * module.mixing_mask)


def test_a_pruned_weight_shared_by_two_layers_counts_once_for_each_mask() -> None:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    for layer in (one, other):
        prune.l1_unstructured(layer, "weight", 0.5)
    assert one.weight_orig is other.weight_orig
    assert one.weight_mask is not other.weight_mask
    assert list(kinds(nn.Sequential(one, other))) == ["0.weight"]
    other.weight_mask = 1 - one.weight_mask
    assert list(kinds(nn.Sequential(one, other))) == ["0.weight", "1.weight"]


def test_reading_a_weight_takes_no_power_iteration() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(4, 5))
    layer(torch.ones(2, 4))
    norm = layer.parametrizations.weight[0]
    before = norm._u.clone(), norm._v.clone()
    ((_, _, weight, *_),) = kernels_of(layer)
    assert torch.equal(norm._u, before[0])
    assert torch.equal(norm._v, before[1])
    assert norm.training
    original = layer.parametrizations.weight.original
    torch.testing.assert_close(weight, original / (before[0] @ original @ before[1]))


def test_a_weight_that_unknown_code_makes_in_the_forward_pass_is_refused() -> None:
    layer = nn.Linear(4, 5)
    layer.raw = layer.weight
    del layer.weight
    layer.register_forward_pre_hook(lambda module, _: setattr(module, "weight", 2 * module.raw))
    layer(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"'0\.weight' is no parameter: .* use torch\.nn\.utils\.parametrize"):
        kernels_of(nn.Sequential(layer))


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


@pytest.mark.parametrize(
    ("name", "outputs", "blocks"), [("qkv", 12, 3), ("c_attn", 12, 3), ("qkv", 8, 1), ("fc", 12, 1)]
)
def test_queries_keys_and_values_of_a_fused_linear_layer_are_kernels_of_their_own(
    name: str, outputs: int, blocks: int
) -> None:
    """As those of `nn.MultiheadAttention`: three orthonormal ones cost nothing, and one matrix of them would."""
    model = nn.ModuleDict({"block": nn.ModuleDict({name: nn.Linear(4, outputs, bias=False)})})
    ((_, kind, weight, found, _),) = kernels_of(model)
    assert (kind, found) == ("linear", blocks)
    with torch.no_grad():
        weight.copy_(torch.cat([nn.init.orthogonal_(torch.empty(4, 4)) for _ in range(outputs // 4)]))
    penalty = attach(load_method("orthogonal", strength=1.0), model).penalty().item()
    # Of k stacked orthonormal matrices W^T W = k I, and |k I - I|^2 = 4 (k - 1)^2.
    assert penalty == pytest.approx(0.0 if blocks == 3 else 4 * (outputs // 4 - 1) ** 2, abs=1e-4)


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


@pytest.mark.parametrize("name", ["weight_norm_penalty", "orthogonal"])
def test_a_penalty_on_frozen_kernels_alone_is_refused(name: str) -> None:
    """As one on activations of frozen layers; a model that is frozen as a whole, or without gradients, is measured."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    handle = attach(load_method(name, strength=1.0), model)
    for layer in (model[0], model[2]):
        assert handle.penalty().requires_grad
        layer.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="all weights that the penalty reads are frozen: choose `layers` that train"):
        handle.penalty()
    with torch.no_grad():
        measured = handle.penalty()
    assert handle.model.requires_grad_(False)
    assert handle.penalty() == measured > 0


@pytest.mark.parametrize("name", ["orthogonal", "weight_norm_penalty"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu])
def test_kernels_of_eight_bits_are_refused_by_name_and_may_be_left_out(name: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(ValueError, match=rf"^kernel '0.weight': found {dtype} \(4, 3\).*needed is bfloat16 or wider"):
        attach(name, model).penalty()
    layers: Any = "1.weight" if name == "orthogonal" else ("1.weight",)
    alone = nn.Sequential(nn.Identity(), model[1])
    torch.testing.assert_close(
        attach(name, model, layers=layers).penalty(), attach(name, alone).penalty(), rtol=0, atol=0
    )


def test_activations_of_eight_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found torch.float8_e5m2 \(5, 3\), in which torch does not compute"):
        l2_activity(torch.zeros(5, 3).to(torch.float8_e5m2))
