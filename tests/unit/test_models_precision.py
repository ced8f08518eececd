"""What bfloat16 autocast makes of models: every Site in bfloat16, recurrent layers in float32 where they must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from reproduce.method.sites import sites_of, watch
from reproduce.models import Sizes, build
from reproduce.models.precision import like, recurs_in_float32, run_recurrent

IMAGES, WORDS = Sizes((3, 8, 8), 10), Sizes((), 11)
# Beside these configurations, `test_models` goes over every file of a model.
MODELS: dict[str, list[tuple[dict[str, Any], Sizes]]] = {
    "mlp": [
        ({"width": 7, "depth": 2, "dropout": 0.3, "dropout_after": "every"}, IMAGES),
        ({"width": 7, "depth": 2, "activation": "selu", "dropout": 0.3, "dropout_kind": "alpha"}, IMAGES),
    ],
    "rectified_mlp": [({"width": 7, "depth": 2}, IMAGES)],
    "resnet": [({"depth": 20, "width": 4}, IMAGES), ({"depth": 20, "width": 4, "variant": "he"}, IMAGES)],
    "cnn11": [({}, IMAGES), ({"activation": "relu", "scalar_bias": True}, IMAGES)],
    "row_rnn": [
        *(({"hidden": 6, "cell": cell}, IMAGES) for cell in ("lstm", "gru", "tanh")),
        ({"hidden": 6, "cell": "tanh", "initialisation": "orthogonal", "margin": 0.1}, IMAGES),
    ],
    "lstm": [({"hidden": 6, "dropout": 0.3, "dropout_kind": kind}, WORDS) for kind in ("plain", "locked")],
    "code_lstm": [({"hidden": 6, "d_sae": 5, "dropout": 0.3}, WORDS)],
    "autoencoder": [
        ({"d_sae": 5, "input_dropout": 0.3}, IMAGES),
        ({"d_sae": 5, "tied": True, "decoder": "unit_norm", "activation": "sigmoid"}, IMAGES),
        ({"d_sae": 5, "activation": "topk", "k": 2, "centred": False, "decoder_bias": False}, IMAGES),
    ],
    "pixels": [({}, IMAGES)],
    "wide_resnet": [({"depth": 16, "widen": 2, "dropout": 0.3}, IMAGES)],
    "bottleneck_resnet": [({"depth": 20}, IMAGES)],
    "resnext": [({"depth": 20, "cardinality": 2, "width": 4, "stem": 4}, IMAGES)],
    "resnet18": [({"width": 4, "sites": sites}, IMAGES) for sites in ("every", "blocks")],
}
CONFIGURATIONS = [(name, options, sizes) for name, chosen in MODELS.items() for options, sizes in chosen]


def built(name: str, options: dict[str, Any], sizes: Sizes) -> Any:
    return build(name, options, sizes, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)).train()


def output_of(model: Any, sizes: Sizes, device: str = "cpu") -> Tensor:
    if not sizes.input_shape:
        return model(torch.zeros(3, 2, dtype=torch.int64, device=device), model.initial_state(2))[0]
    return model(torch.ones(2, *sizes.input_shape, device=device))


@pytest.mark.parametrize(("name", "options", "sizes"), CONFIGURATIONS)
def test_every_site_is_bfloat16_under_autocast(name: str, options: dict[str, Any], sizes: Sizes) -> None:
    model = built(name, options, sizes)
    trace = watch(model)
    with torch.autocast("cpu", torch.bfloat16):
        output_of(model, sizes).float().square().mean().backward()
    assert [record.site for record in trace.records] == list(sites_of(model))
    in_float32 = options.get("cell") == "gru"  # torch has no bfloat16 GRU on a CPU
    if any(isinstance(module, nn.RNNBase) for module in model.modules()) and recurs_in_float32("cpu"):
        return  # see the next test
    expected = torch.float32 if in_float32 else torch.bfloat16
    assert all(record.activation.dtype == expected for record in trace.records)
    assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}


def test_without_autocast_nothing_is_cast() -> None:
    """The same tensor, so that no bit of a float32 Run can change."""
    parameter = nn.Parameter(torch.ones(1))
    assert like(parameter, torch.ones(2)) is parameter


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_run_in_float32_on_processors_without_one_in_bfloat16(
    cell: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of x86 without AVX-512, on which torch's LSTM ends under autocast."""
    monkeypatch.setattr("reproduce.models.precision.recurs_in_float32", lambda kind: True)
    torch.manual_seed(0)
    layer, inputs = cell(3, 4, num_layers=2), torch.randn(5, 2, 3)
    state = torch.randn(2, 2, 4)
    given = (state, state) if cell is nn.LSTM else None
    with torch.autocast("cpu", torch.bfloat16):
        output = run_recurrent(layer, inputs.bfloat16(), given)[0]
    assert output.dtype == torch.float32
    torch.testing.assert_close(output, layer(inputs.bfloat16().float(), given)[0], rtol=0, atol=0)


RECURRENT = [
    (name, options, sizes) for name, options, sizes in CONFIGURATIONS if name in ("row_rnn", "lstm", "code_lstm")
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
@pytest.mark.parametrize(("name", "options", "sizes"), RECURRENT)
def test_recurrent_layers_run_in_float32_on_cuda(
    name: str, options: dict[str, Any], sizes: Sizes, dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors that only claim to lie on a GPU, and with layers that only say what they were called with."""
    seen: list[tuple[bool, set[torch.dtype]]] = []

    def forward(layer: nn.RNNBase, inputs: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        given = {inputs.dtype, *(part.dtype for part in state or ())}
        seen.append((torch.is_autocast_enabled("cuda"), given))
        return inputs.new_zeros(*inputs.shape[:2], layer.hidden_size), state

    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda layer: None)  # it asks cuDNN
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        monkeypatch.setattr(kind, "forward", forward)
    model = built(name, options | ({"dropout": 0.0} if "dropout" in options else {}), sizes)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to("cuda")
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_dtype("cuda", dtype or before[1])  # torch.autocast refuses where there is no GPU
        torch.set_autocast_enabled("cuda", dtype is not None)
        try:
            output = output_of(model, sizes, "cuda")
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
    assert seen
    assert all(call == (False, {torch.float32}) for call in seen)
    assert output.dtype == (dtype or torch.float32)  # the classifier or decoder is under autocast again
