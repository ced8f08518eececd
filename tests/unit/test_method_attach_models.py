"""attach() on models that people use: a VGG, a ResNet, recurrent layers, a transformer, structured outputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from methods.activity_norm.method import ActivityNorm
from methods.batchnorm.method import BatchNorm
from methods.per.method import PER
from reproduce.method.attach import attach
from reproduce.method.taps import SUBMODULE

L2 = ActivityNorm(kind="l2", strength=1.0, reduction="mean")  # the mean of squares, summed over Sites


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def observed(model: nn.Module, call: Any, *names: str) -> list[Tensor]:
    """The outputs of some modules, seen by plain hooks."""
    seen: list[Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, arguments, output: seen.append(output.detach()))
        for name in names
    ]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_a_dry_run_changes_nothing(images: Tensor) -> None:
    model = torchvision.models.vgg11_bn(num_classes=4, weights=None)
    model.features.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    handle = attach(PER(), model, example=images)
    assert handle.sites[0].shape == (64, 32, 32)
    assert handle.sites[-1].shape == (4096,)
    handle.remove()
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_resnet18_records_each_call_of_its_shared_modules(images: Tensor) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4, weights=None)
    assert len([module for module in model.modules() if isinstance(module, nn.ReLU)]) == 9
    handle = attach(PER(strength=1e-3, features="channels"), model)
    model(images)
    assert len(handle.trace.records) == 17
    assert {record.site.axes for record in handle.trace.records} == {"nchw"}
    penalty = handle.penalty()
    penalty.backward()
    assert torch.isfinite(penalty)
    assert torch.isfinite(model.conv1.weight.grad).all()
    handle.remove()
    with pytest.raises(ValueError, match="called 2 times in a forward pass"):
        attach(BatchNorm(sites="post"), model, sites="post", example=images)
    assert not any(SUBMODULE in name for name in model.state_dict())


@pytest.mark.parametrize(("batch_first", "axes"), [(False, "tnc"), (True, "ntc")])
def test_recurrent_layers(batch_first: bool, axes: str) -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 6, num_layers=2, batch_first=batch_first)
    tokens = torch.randn(5, 3, 4)
    output, _ = model(tokens)
    handle = attach(ActivityNorm(kind="ar_tar", strength=0.0, temporal_strength=1.0), model)
    found, (hidden, _) = model(tokens)
    assert torch.equal(found, output)
    assert hidden.shape[-1] == 6
    assert handle.trace.records[0].site.axes == axes
    time = output if axes == "tnc" else output.transpose(0, 1)
    torch.testing.assert_close(handle.penalty(), time.diff(dim=0).square().mean())


def test_roles_by_name_and_a_packed_sequence() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(rnn=nn.GRU(4, 6), first=_First(), drop=nn.Dropout(0.5)))
    method = ActivityNorm(kind="ar_tar", strength=1.0, temporal_strength=1.0)
    handle = attach(method, model, sites={"rnn": "post", "drop": "dropped"}, axes="tnc")
    tokens = torch.randn(5, 2, 4)
    dropped = model(tokens)
    raw = handle.trace.records[0].activation
    torch.testing.assert_close(handle.penalty(), dropped.square().mean() + raw.diff(dim=0).square().mean())
    packed = nn.Sequential(nn.GRU(4, 6))
    handle = attach(L2, packed)
    output, _ = packed(nn.utils.rnn.pack_padded_sequence(tokens, torch.tensor([5, 3])))
    torch.testing.assert_close(handle.penalty(), output.data.square().mean())


class _First(nn.Module):
    def forward(self, value: tuple[Tensor, Any]) -> Tensor:
        return value[0]


def test_a_transformer_of_functions_is_seen_by_the_names_of_its_layers() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    with pytest.raises(ValueError, match=r"F\.relu.*layers\.\*\.self_attn"):
        attach(L2, model)
    handle = attach(L2, model, sites=["layers.0.linear1", "layers.1.linear1"])
    tokens = torch.randn(2, 5, 8)
    outputs = observed(model, lambda: model(tokens), "layers.0.linear1", "layers.1.linear1")
    assert {site.axes for site in handle.sites} == {"ntc"}
    torch.testing.assert_close(handle.penalty(), sum(output.square().mean() for output in outputs))
    assert model.eval()(tokens).shape == tokens.shape


@dataclass
class Output:
    loss: Tensor | None
    ids: Tensor
    hidden: Tensor


class Returns(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(4, 6)

    def forward(self, inputs: Tensor) -> Any:
        hidden, ids = self.linear(inputs), torch.arange(3)
        if self.kind == "dataclass":
            return Output(None, ids, hidden)
        if self.kind == "mapping":
            return OrderedDict(loss=None, ids=ids, hidden=hidden)
        return [ids, (None, hidden)]


@pytest.mark.parametrize("kind", ["dataclass", "mapping", "list"])
def test_the_first_tensor_of_structured_outputs(kind: str, inputs: Tensor) -> None:
    model = nn.Sequential(OrderedDict(body=Returns(kind)))
    handle = attach(L2, model, sites=["body"])
    model(inputs)
    torch.testing.assert_close(handle.penalty(), model.body.linear(inputs).square().mean())
    handle.remove()
    attach(BatchNorm(), model, sites=["body"], example=inputs)
    output = model(inputs)
    hidden = {"dataclass": lambda: output.hidden, "mapping": lambda: output["hidden"], "list": lambda: output[1][1]}
    expected = F.batch_norm(model.body.linear(inputs), None, None, training=True)
    torch.testing.assert_close(hidden[kind](), expected)
    assert type(output) is {"dataclass": Output, "mapping": OrderedDict, "list": list}[kind]
