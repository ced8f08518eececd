"""attach() and penalty() leave a model as they found it: tried in a dry run, read, copied, computed again."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from methods.activity_norm.method import ActivityNorm
from methods.compound_batchnorm.method import CompoundBatchNorm
from methods.orthogonal.method import OrthogonalRegularization
from methods.vcl.method import VCL
from methods.weight_norm_penalty.method import WeightNormPenalty
from reproduce.method.attach import attach

L2 = ActivityNorm(kind="l2", strength=1.0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Merging(nn.Linear):
    """An adapter that is merged into the weight in evaluation, as loralib does it."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.adapter, self.is_merged = nn.Parameter(torch.ones(6, 4)), False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if mode == self.is_merged:
            self.weight.data += self.adapter.data if not mode else -self.adapter.data
            self.is_merged = not mode
        return self

    def forward(self, value: Tensor) -> Tensor:
        weight = self.weight if self.is_merged else self.weight + self.adapter
        return nn.functional.linear(value, weight, self.bias)


def test_a_dry_run_merges_no_adapter() -> None:
    model = nn.Sequential(Merging(), nn.Tanh())
    before = model[0].weight.detach().clone()
    handle = attach(L2, model, example=drawn(8, 4))
    assert not model[0].is_merged
    torch.testing.assert_close(model[0].weight.detach(), before, rtol=0, atol=0)
    model(drawn(8, 4))
    handle.penalty().backward()
    assert model[0].adapter.grad.abs().sum() > 0


class Carrying(nn.Module):
    """It counts its passes and goes on from the state of the last one, in buffers, attributes and both."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.act = nn.RNN(4, 6), nn.Tanh()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("state", None)
        self.last: Any = None
        self.n_passes = 0

    def forward(self, value: Tensor) -> Tensor:
        output, hidden = self.cell(value, self.state)
        self.state, self.steps, self.n_passes = hidden.detach(), self.steps + 1, self.n_passes + 1
        self.last = self.seen = output.detach()
        return self.act(output)


def test_a_dry_run_leaves_no_state_behind() -> None:
    torch.manual_seed(0)
    model = Carrying()
    twin = Carrying()
    twin.load_state_dict(model.state_dict())
    handle, own = attach(L2, model, example=drawn(5, 3, 4, seed=1)), attach(L2, twin)
    assert (model.steps.item(), model.state, model.last, model.n_passes) == (0.0, None, None, 0)
    assert not hasattr(model, "seen")
    model(drawn(5, 2, 4)), twin(drawn(5, 2, 4))  # of another batch than the example
    torch.testing.assert_close(handle.penalty(), own.penalty(), rtol=0, atol=0)


class Drop(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return nn.functional.dropout(weight, 0.5)


@pytest.mark.parametrize(
    ("make", "name"), [(lambda: nn.MultiheadAttention(4, 2), "in_proj_weight"), (lambda: Conv1D(6, 4), "weight")]
)
@pytest.mark.parametrize("method", [WeightNormPenalty(strength=1.0), OrthogonalRegularization(strength=1.0)])
def test_reading_a_parametrized_weight_moves_nothing(make: Any, name: str, method: Any) -> None:
    torch.manual_seed(0)
    inputs = drawn(3, 2, 4)
    part = make()
    arguments = (inputs,) * 3 if isinstance(part, nn.MultiheadAttention) else (inputs,)
    parametrizations.spectral_norm(part, name)
    handle = attach(method, part)
    part(*arguments)
    before = part.parametrizations[name][0]._u.clone()
    handle.penalty()
    torch.testing.assert_close(part.parametrizations[name][0]._u, before, rtol=0, atol=0)
    if isinstance(part, Conv1D):
        other = make()
        parametrize.register_parametrization(other, name, Drop())
        handle = attach(method, other)
        other(*arguments)
        state = torch.get_rng_state()
        handle.penalty()
        assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("step", [1, 3])
def test_ar_and_tar_of_a_sequence_in_pieces_are_refused(step: int) -> None:
    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(4, 6)

        def forward(self, value: Tensor) -> Tensor:
            state, outputs = None, []
            for part in value.split(step):
                output, state = self.cell(part, state)
                outputs.append(output)
            return torch.cat(outputs)

    model = Pieces()
    handle = attach(ActivityNorm(kind="ar_tar", strength=0.0, temporal_strength=1.0), model)
    model(drawn(6, 2, 4))
    with pytest.raises(ValueError, match=r"Site 'cell' was called several times .* once, on the whole sequence"):
        handle.penalty()
    output = model(drawn(step, 2, 4))
    wanted = output.diff(dim=0).square().sum() / max(1, step - 1) / 2 / 6  # no neighbours, no penalty
    torch.testing.assert_close(handle.penalty(), wanted)


@pytest.mark.parametrize("is_scripted", [False, True])
def test_an_embedding_is_no_kernel_though_it_is_scripted(is_scripted: bool) -> None:
    table = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6))
    model = nn.Sequential(torch.jit.script(table) if is_scripted else table, nn.Linear(6, 3))
    handle = attach(WeightNormPenalty(strength=1.0, kind="l2"), model)
    model(torch.arange(9))
    wanted = sum(weight.square().sum() for weight in (table[1].weight, model[1].weight))
    torch.testing.assert_close(handle.penalty(), wanted)


def test_a_model_with_learnt_betas_is_pickled() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    attach(VCL(strength=0.1), model, sites="pre", example=drawn(16, 4))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(drawn(3, 4)), model(drawn(3, 4)))


def test_inputs_made_without_autograd_are_recorded() -> None:
    with torch.inference_mode():
        features = drawn(8, 4)
    model = nn.Sequential(nn.Tanh(), nn.Linear(4, 3), nn.Tanh())
    handle = attach(ActivityNorm(kind="l2", strength=1.0, sites="pre"), model, sites="pre")
    model(features)
    wanted = features.square().sum(1).mean() + model[1](model[0](features.clone())).square().sum(1).mean()
    torch.testing.assert_close(handle.penalty(), wanted)


def test_compound_batchnorm_is_not_computed_again() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    attach(CompoundBatchNorm(), model, sites="pre", example=drawn(16, 4))
    output = checkpoint(model, drawn(16, 4), use_reentrant=False)
    with pytest.raises(ValueError, match="compound batch normalization cannot be computed again in the backward pass"):
        output.sum().backward()
