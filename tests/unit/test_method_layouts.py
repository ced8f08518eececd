"""Which axes attach() finds on models that people use, and what it says where nothing tells them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from torchvision.models.convnext import CNBlock
from torchvision.models.swin_transformer import SwinTransformerBlock
from transformers import GPT2Config, GPT2Model

from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.per.method import PER
from methods.vcl.method import VCL
from methods.vcreg.method import VCReg
from reproduce.method.attach import Handle, attach
from reproduce.method.layouts import Layouts

L2 = ActivityNorm(kind="l2", strength=1.0)


class UNet1d(nn.Module):
    """Down, up, and a skip that joins channels; its activation is one module, given before all layers."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()
        self.down = nn.Conv1d(2, 6, 3, padding=1)
        self.middle = nn.Conv1d(6, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose1d(12, 6, 2, stride=2)
        self.last = nn.Conv1d(12, 2, 3, padding=1)

    def forward(self, signal: Tensor) -> Tensor:
        top = self.act(self.down(signal))
        below = self.act(self.middle(top))
        joined = self.act(torch.cat([top, self.up(below)], 1))
        return self.last(joined)


class Tagger(nn.Module):
    """A recurrent layer, a transposition that no module shows, and a head."""

    def __init__(self, batch_first: bool, transpose: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 6, batch_first=batch_first)
        self.head = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
        self.transpose = transpose

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.rnn(tokens)[0]
        return self.head(states.transpose(0, 1) if self.transpose else states)


class ConvThenTransposed(nn.Module):
    """Channels are moved between the convolution and the activation; sizes do not tell, memory does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, 2)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.act(self.conv(signal).transpose(1, 2)))


def transformer(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2)


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16))


def vit() -> nn.Module:
    return VisionTransformer(image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)


Case = tuple[Callable[[], nn.Module], Any, Any, list[tuple[str, tuple[int, ...]]]]
ZOO: dict[str, Case] = {
    "convnext_block": (lambda: CNBlock(12, 1.0, 0.0), torch.ones(4, 12, 5, 7), "pre", [("nhwc", (48, 5, 7))]),
    "convnext_output": (
        lambda: nn.Sequential(CNBlock(12, 1.0, 0.0)),
        torch.ones(4, 12, 5, 7),
        ["0"],
        [("nchw", (12, 5, 7))],
    ),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()), torch.ones(4, 3, 20), "post", [("ncl", (8, 18))]),
    "square_conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()),
        torch.ones(4, 3, 10),
        "post",
        [("ncl", (8, 8))],
    ),
    "conv1d_pooled": (
        lambda: nn.Sequential(
            nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.MaxPool1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4), nn.ReLU()
        ),
        torch.ones(4, 3, 10),
        "post",
        [("ncl", (8, 4)), ("nc", (4,))],
    ),
    "conv1d_transposed": (ConvThenTransposed, torch.ones(4, 3, 8), "pre", [("ntc", (8,))]),
    "conv1d_gated": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.GLU(dim=1)),
        torch.ones(4, 3, 6),
        "post",
        [("ncl", (4, 4))],
    ),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
        torch.ones(4, 3, 10, 10),
        "post",
        [("nchw", (8, 8, 8))],
    ),
    "conv3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 5, 3), nn.GroupNorm(1, 5), nn.ReLU()),
        torch.ones(4, 2, 5, 6, 7),
        "pre",
        [("ncdhw", (5, 3, 4, 5))],
    ),
    "activation_first": (
        lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 3)),
        torch.ones(4, 3, 6, 6, requires_grad=True),
        "pre",
        [("nchw", (3, 6, 6))],
    ),
    "decoder": (
        lambda: nn.Sequential(nn.Linear(6, 32), nn.Unflatten(1, (8, 2, 2)), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2)),
        torch.ones(4, 6),
        "post",
        [("nchw", (8, 2, 2))],
    ),
    "unet1d": (UNet1d, torch.ones(3, 2, 10), "post", [("ncl", (6, 10)), ("ncl", (12, 5))]),
    "mlp_on_sequences": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
        torch.ones(3, 5, 4),
        "post",
        [("ntc", (6,))],
    ),
    "mlp_on_maps": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
        torch.ones(3, 5, 5, 4),
        "post",
        [("nhwc", (6, 5, 5))],
    ),
    "mlp_on_volumes": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()),
        torch.ones(3, 2, 5, 5, 4),
        "post",
        [("ndhwc", (6, 2, 5, 5))],
    ),
    "transformer": (lambda: transformer(False), torch.ones(5, 3, 8), "post", [("tnc", (16,))] * 2),
    "transformer_batch_first": (lambda: transformer(True), torch.ones(3, 5, 8), "post", [("ntc", (16,))] * 2),
    "lstm": (lambda: nn.LSTM(4, 6), torch.ones(5, 3, 4), "post", [("tnc", (6,))]),
    "lstm_batch_first": (lambda: nn.LSTM(4, 6, batch_first=True), torch.ones(3, 5, 4), "post", [("ntc", (6,))]),
    "lstm_both_ways": (lambda: nn.LSTM(4, 6, bidirectional=True), torch.ones(5, 3, 4), "post", [("tnc", (12,))]),
    "tagger": (lambda: Tagger(False, False), torch.ones(5, 3, 4), "pre", [("tnc", (7,))]),
    "tagger_transposed": (lambda: Tagger(False, True), torch.ones(5, 3, 4), "pre", [("ntc", (7,))]),
    "tagger_batch_first": (lambda: Tagger(True, False), torch.ones(3, 5, 4), "pre", [("ntc", (7,))]),
    "embedded": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.GRU(6, 5)),
        torch.ones(5, 3, 4),
        "pre",
        [("tnc", (6,))],
    ),
    "vit": (vit, torch.ones(2, 3, 16, 16), "post", [("ntc", (16,))] * 2),
    "swin_block": (
        lambda: SwinTransformerBlock(8, 2, [4, 4], [2, 2]),
        torch.ones(2, 8, 8, 8),
        "post",
        [("nhwc", (32, 8, 8))],
    ),
    "gpt2": (gpt2, torch.ones(3, 5, dtype=torch.int64), ["h.0.mlp.act", "h.1.mlp.c_fc"], [("ntc", (64,))] * 2),
}


def found(handle: Handle) -> list[tuple[str, tuple[int, ...] | None]]:
    return [("|".join((site.axes, *site.could_be)), site.shape) for site in handle.sites]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("has_example", [True, False], ids=["dry_run", "first_step"])
def test_the_axes_follow_the_layers_beside(name: str, has_example: bool) -> None:
    make, example, sites, expected = ZOO[name]
    torch.manual_seed(0)
    model = make()
    method = L2.model_copy(update={"sites": "pre" if sites == "pre" else "post"})
    handle = attach(method, model, sites=sites, example=example if has_example else None)
    named = {site.name for site in handle.sites}
    for _ in range(2):
        model(example)
        assert found(handle) == expected
        assert handle.penalty() > 0
    # Only Sites are hooked from then on, the model itself, and layers that have not run.
    hooked = {name for name, module in model.named_modules() if module._forward_hooks} - named - {""}
    assert not hooked & called(model, example)
    handle.remove()
    assert not any(module._forward_hooks for module in model.modules())


class Functions(nn.Module):
    """An activation between functions: no layer is beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.weight3 = nn.Parameter(torch.ones(8, 3, 3))

    def forward(self, signal: Tensor) -> Tensor:
        return self.act(F.conv1d(signal, self.weight3))


def called(model: nn.Module, example: Any) -> set[str]:
    """The modules that run."""
    names: set[str] = set()

    def note(name: str) -> Any:
        return lambda *_: names.add(name)

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules()]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return names


REFUSAL = r"Site 'act.*': no layer beside it says whether its axes are 'ntc' or 'tnc' or 'ncl': give axes="


@pytest.mark.parametrize("method", [VCReg(), PER(), ActivityNorm(), PER(features="channels", mode="sliced")])
def test_what_nobody_says_is_refused_where_it_matters(method: Any) -> None:
    model, signal = Functions(), torch.randn(4, 3, 10)
    handle = attach(method, model)
    model(signal)
    with pytest.raises(ValueError, match=REFUSAL):
        handle.penalty()
    assert len(handle.sites) == 1
    model(signal[..., 1:])  # a guess has no width: another length makes no Site
    assert len(handle.sites) == 1
    handle.remove()
    attach(method, model, axes="ncl")
    model(signal)


@pytest.mark.parametrize("method", [BatchNorm(sites="post"), VCL(sites="post")])
def test_what_nobody_says_is_refused_before_training(method: Any) -> None:
    with pytest.raises(ValueError, match=REFUSAL):
        attach(method, Functions(), example=torch.randn(4, 3, 10))


@pytest.mark.parametrize("kernel", [nn.Conv1d(3, 8, 3), nn.Conv2d(3, 8, 3)], ids=["1d", "2d"])
def test_a_convolution_without_a_batch_is_refused(kernel: nn.Module) -> None:
    example = torch.ones(3, *[6] * len(kernel.kernel_size))
    with pytest.raises(
        ValueError, match=r"module '1': activations .* follow a convolution whose input has no batch axis"
    ):
        attach(L2, nn.Sequential(kernel, nn.ReLU()), example=example)


def test_what_nobody_says_is_no_matter_to_a_sum_over_all_units() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 3, 4)), nn.Tanh())
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    values = torch.randn(5, 24, requires_grad=True)
    handle = attach(L2, model)
    model(values)
    assert found(handle) == [("nchw|nhwc", (2, 3, 4))]
    torch.testing.assert_close(handle.penalty(), values.tanh().square().sum(1).mean())


def test_the_length_of_a_signal_makes_no_new_site() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU())
    handle = attach(VCReg(), model)
    for length in (20, 21, 10, 22):  # at 10 there are 8 positions of 8 channels
        signal = torch.randn(4, 3, length)
        model(signal)
        rows = model[0](signal).relu().double().transpose(1, 2).flatten(0, 1)
        covariance = rows.T.cov()
        hinge = (1 - (covariance.diagonal() + 1e-4).sqrt()).relu().mean()
        expected = 0.1 * hinge + 0.01 * (covariance.square().sum() - covariance.diagonal().square().sum()) / 8
        torch.testing.assert_close(handle.penalty().double(), expected, rtol=1e-4, atol=1e-6)
    assert [(site.axes, site.features) for site in handle.sites] == [("ncl", 8)]


def test_a_size_that_betas_do_not_have_is_refused() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU())
    handle = attach(VCL(sites="post", sample_size=2), model, example=torch.ones(4, 3, 3))
    model(torch.randn(4, 3, 3))
    assert handle.penalty() > 0
    model(torch.randn(4, 3, 9))
    with pytest.raises(ValueError, match=r"maps of \(8, 7\), and VCL has a beta at each place of \(8, 1\)"):
        handle.penalty()


def test_batch_normalization_of_a_convnext_block_is_that_of_its_channels() -> None:
    torch.manual_seed(0)
    block, images = CNBlock(12, 1.0, 0.0), torch.randn(4, 12, 8, 8)
    attach(BatchNorm(), block, sites="pre", example=images)
    hidden = block.block[:4]
    with torch.no_grad():
        widened = hidden(images)
    expected = F.batch_norm(widened.movedim(-1, 1), None, None, training=True).movedim(1, -1)
    seen: list[Tensor] = []
    block.block[4].register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    block(images)
    torch.testing.assert_close(seen[0], expected)


def test_one_module_in_several_layouts_has_a_site_for_each() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.act = nn.Conv1d(3, 8, 3), nn.Linear(6, 5), nn.ReLU()

        def forward(self, signal: Tensor, is_direct: bool = False) -> Tensor:
            return self.act(signal if is_direct else self.linear(self.act(self.conv(signal)).flatten(2)))

    model = Both()
    handle = attach(L2, model)
    for _ in range(2):
        model(torch.randn(4, 3, 8))
        assert [(r.site.axes, r.site.features) for r in handle.trace.records] == [("ncl", 8), ("ntc", 5)]
    with pytest.raises(ValueError, match="module 'act' meets activations of several layouts"):
        model(torch.ones(2, 3, 4, requires_grad=True), is_direct=True)


@pytest.mark.parametrize("carried", [copy.deepcopy, lambda model: torch.load(saved(model), weights_only=False)])
def test_a_copy_before_the_first_step_is_its_own(carried: Callable[[nn.Module], nn.Module]) -> None:
    model, signal = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()), torch.randn(4, 3, 8)
    handle = attach(L2, model)
    copied = carried(model)
    torch.testing.assert_close(copied(signal), model(signal))
    assert found(handle) == [("ncl", (8, 6))]
    part = copy.deepcopy(model[1])
    (hook,) = part._forward_hooks.values()
    held = [value for value in vars(hook.__self__).values() if isinstance(value, Layouts)]
    assert held
    assert not any(isinstance(value, nn.Module) for layouts in held for value in vars(layouts).values())


def saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file
