"""The battery, third part: every method in each of its configurations is attached to five kinds of model, and removed.

What a model does not fit is refused in one line. In each case the model is afterwards what it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reproduce import attach
from reproduce.method import Method

RAN: Counter[str] = Counter()


class Sentences(nn.Module):
    """An LSTM language model, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.decoder = nn.Embedding(7, 8), nn.LSTM(8, 9), nn.Linear(9, 7)
        self.drop = nn.Dropout(0.1)

    def forward(self, words: Tensor) -> Tensor:
        return self.decoder(self.drop(self.rnn(self.embedding(words))[0]))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
        self.decoder = nn.Linear(10, 6)

    def forward(self, rows: Tensor) -> Tensor:
        return self.decoder(self.encoder(rows))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def convolutions() -> nn.Module:
    first = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*first, nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3))


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True, activation=nn.GELU())
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@dataclass(frozen=True)
class Kind:
    make: Callable[[], nn.Module]
    example: Tensor
    named: dict[str, str]  # Sites for a method whose role no activation module has


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


KINDS = {
    "perceptron": Kind(perceptron, _noise(16, 6), {"1": "post", "2": "gaussian"}),
    "convolutions": Kind(convolutions, _noise(16, 1, 6, 6), {"4": "post"}),
    "language": Kind(Sentences, torch.arange(5 * 16).view(5, 16) % 7, {"rnn": "post", "drop": "dropped"}),
    "transformer": Kind(transformer, _noise(16, 5, 8), {"layers.0.linear1": "post"}),
    "autoencoder": Kind(Autoencoder, _noise(16, 6), {"encoder.1": "code"}),
}


def _sites(method: Method, kind: Kind) -> list[Any]:
    """Where the method reads by default, before and after activations, and the Sites that this model names."""
    return [None, "pre", "post", kind.named]


def _described(model: nn.Module) -> list[Any]:
    """Classes, attributes, hooks and parameters, by identity."""
    hooks = [
        (name, list(value)) for part in model.modules() for name, value in vars(part).items() if name.endswith("hooks")
    ]
    attributes = [(type(part), sorted(vars(part)), part.training) for part in model.modules()]
    return [list(model.state_dict()), attributes, hooks, [(id(p), p.requires_grad) for p in model.parameters()]]


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _output(model: nn.Module, kind: Kind) -> Tensor:
    modes = [(part, part.training) for part in model.modules()]
    with torch.no_grad():
        found = model.eval()(kind.example)
    for part, training in modes:
        part.training = training
    return found


def _assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


def _train(model: nn.Module, handle: Any, kind: Kind) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        (model(kind.example).square().mean() + handle.penalty(progress=step / 2, source_examples=8)).backward()
        optimizer.step()
        handle.after_step(optimizer)


@pytest.mark.parametrize("name", KINDS)
def test_attach_and_remove(configured: Any, name: str) -> None:
    subject, method = configured
    kind = KINDS[name]
    for sites in _sites(method, kind):
        torch.manual_seed(0)
        model = kind.make()
        described, values, output = _described(model), _values(model), _output(model, kind)
        handle: Any = None
        reason = None
        try:
            handle = attach(method, model, sites, example=kind.example)
        except ValueError as error:
            reason = str(error)
        if reason is not None:
            assert "\n" not in reason, f"{subject.name} refuses in several lines: {reason}"
            assert _described(model) == described
            _assert_equal(_values(model), values)
            assert torch.equal(_output(model, kind), output)
            RAN[f"{subject.name} refused"] += 1
            continue
        RAN[f"{subject.name} attached"] += 1
        try:
            _train(model, handle, kind)
            RAN[f"{subject.name} trained"] += 1
        except ValueError as error:  # no such Site: only the penalty meets that
            reason = str(error)
        assert "\n" not in (reason or ""), f"the penalty of {subject.name} refuses in several lines: {reason}"
        trained = _values(model)
        handle.remove()
        assert _described(model) == described
        _assert_equal(_values(model), {key: trained[key] for key in values})
        untouched = kind.make()
        untouched.load_state_dict(_values(model))
        assert torch.equal(_output(model, kind), _output(untouched, kind))


def test_every_method_trained_something(subjects: Any) -> None:
    """Runs after all checks."""
    missing = [name for name in subjects if not RAN[f"{name} trained"]]
    assert missing == []
    n_cases = sum(len(subject.configurations) for subject in subjects.values()) * len(KINDS)
    assert sum(RAN[f"{name} attached"] + RAN[f"{name} refused"] for name in subjects) == 4 * n_cases
