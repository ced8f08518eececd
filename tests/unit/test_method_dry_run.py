"""What a dry run changes is put back: in the model, in what it holds, in the example and in the process."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.batchnorm.method import BatchNorm
from reproduce import attach


class Busy(nn.Module):
    """It draws from every generator, and writes into whatever it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act = nn.Linear(3, 4), nn.ReLU()
        self.losses: list[Tensor] = []
        self.cache: dict[str, Any] = {"seen": {1}, "steps": [torch.zeros(2)]}
        self.newest: deque[int] = deque([1, 2], maxlen=2)
        self.steps, self.array = torch.zeros(()), np.zeros(2)
        self.unfolded = torch.arange(5.0).unfold(0, 3, 1)  # entries share memory
        self.own = torch.Generator().manual_seed(0)
        self.others: tuple[Any, ...] = (random.Random(0), np.random.default_rng(0), np.random.RandomState(0))
        self.register_buffer("mask", torch.zeros(1).expand(5))

    def forward(self, value: Tensor) -> Tensor:
        hidden = self.act(self.layer(value.mul_(2)))
        self.losses.append(hidden.mean())
        self.cache["seen"].add(2), self.cache.update(last=hidden)
        self.cache["steps"][0] += 1
        self.newest.append(3)
        self.steps += 1
        self.array += 1
        self.unfolded[0, 0] = 7.0
        self.mask[0] = 1.0
        drawn = [
            random.random(),
            np.random.rand(),
            self.others[0].random(),
            self.others[1].random(),
            self.others[2].rand(),
        ]
        return hidden + sum(drawn) + torch.rand(4) + torch.rand(4, generator=self.own)


def test_nothing_is_left_of_what_a_pass_draws_and_writes() -> None:
    model = Busy()
    example = torch.ones(4, 3)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    handle = attach(BatchNorm(), model, sites="pre", example=example)
    assert (random.random(), np.random.rand()) == (0.8444218515250481, 0.5488135039273248)  # the first ones of seed 0
    assert torch.rand(()).item() == torch.rand((), generator=torch.Generator().manual_seed(0)).item()
    assert torch.equal(torch.rand(2, generator=model.own), torch.rand(2, generator=torch.Generator().manual_seed(0)))
    assert model.others[0].random() == 0.8444218515250481
    assert model.others[1].random() == np.random.default_rng(0).random()
    assert model.others[2].rand() == 0.5488135039273248
    assert model.losses == []
    assert list(model.cache) == ["seen", "steps"]
    assert model.cache["steps"][0].tolist() == [0, 0]
    assert model.cache["seen"] == {1}
    assert list(model.newest) == [1, 2]
    assert model.steps.item() == 0
    assert model.array.tolist() == [0, 0]
    assert model.unfolded.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert model.mask.tolist() == [0] * 5
    assert model.mask.stride() == (0,)
    assert example.tolist() == torch.ones(4, 3).tolist()
    assert model.training
    assert handle.sites[0].shape == (4,)


def expanded() -> Tensor:
    return torch.zeros(1).expand(5)


def of_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(5)


@pytest.mark.parametrize("make", [expanded, of_inference_mode])
@pytest.mark.parametrize("fails", [False, True])
def test_buffers_of_any_kind_and_a_pass_that_fails_leave_the_model_as_it_was(make: Any, fails: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout().eval())
    model.register_buffer("mask", make())
    mask, keys, is_fast = model.mask, list(model.state_dict()), torch.backends.mha.get_fastpath_enabled()
    if fails:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            attach(BatchNorm(), model, sites="pre", example=torch.ones(4, 5))
        assert list(model.state_dict()) == keys
        assert not model._forward_hooks
        assert not model[1]._forward_pre_hooks
    else:
        handle = attach(BatchNorm(), model, sites="pre", example=torch.ones(4, 3))
        assert handle.sites[0].shape == (8,)
        model(torch.randn(4, 3)).sum().backward()
    assert model.mask is mask
    assert mask.tolist() == [0] * 5
    assert [module.training for module in model] == [True, True, False]
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled() == is_fast


def test_a_buffer_of_inference_mode_that_is_written_is_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
            self.register_buffer("steps", of_inference_mode())

        def forward(self, value: Tensor) -> Tensor:
            with torch.inference_mode():
                self.steps += 1
            return self.act(value)

    model = Counting()
    attach(BatchNorm(), model, sites="pre", example=torch.ones(4, 3))
    assert model.steps.tolist() == [0] * 5


def test_a_tensor_that_a_graph_keeps_is_not_written_without_need() -> None:
    """Its gradient would be refused: a value that was saved for it had been changed."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model.saved = torch.ones(3, requires_grad=True) * 2
    loss = model.saved.square().sum()
    attach(BatchNorm(), model, sites="pre", example=torch.ones(4, 3))
    loss.backward()


def test_an_attribute_that_a_wrapper_gets_in_the_pass_does_not_go_to_the_module_inside() -> None:
    class Noting(nn.Module):
        """As `torch.compile` does, it passes on what is set."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            object.__setattr__(self, "n_passes", 0)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in ("inner", "training") or name.startswith("_"):
                super().__setattr__(name, value)
            else:
                setattr(self.inner, name, value)

        def forward(self, value: Tensor) -> Tensor:
            object.__setattr__(self, "n_passes", self.n_passes + 1)
            return self.inner(value)

    model = Noting(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))
    attach(BatchNorm(), model, sites="pre", example=torch.ones(4, 3))
    assert model.n_passes == 0
    assert not hasattr(model.inner, "n_passes")
