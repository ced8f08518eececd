"""The recurrent model of modReLUs: against loops over times and units in float64, its start, and its published size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.linalg
import torch

from reproduce.errors import UserError
from reproduce.method.sites import watch
from reproduce.models import Sizes, build
from reproduce.models.modrelu_rnn import ModReLU, rotations

WORDS = 11
TOKENS = torch.randint(WORDS, (6, 3), generator=torch.Generator().manual_seed(2))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_of(sizes: Sizes = Sizes((), WORDS), **options: Any) -> Any:
    return build("modrelu_rnn", {"hidden": 5, "embedding": 4, **options}, sizes, generator(), None)


def modrelu(value: float, offset: float) -> float:
    return math.copysign(max(abs(value) + offset, 0.0), value)


@pytest.mark.parametrize("initialisation", ["glorot", "rotations"])
def test_the_model_is_the_loop_and_its_state_is_carried(initialisation: str) -> None:
    model = model_of(initialisation=initialisation).double()
    with torch.no_grad():
        model.activation.bias.copy_(torch.linspace(-0.3, 0.2, 5))
    parameters = {name: value.tolist() for name, value in model.named_parameters()}
    state, outputs = model.initial_state(3), []
    trace = watch(model.train())
    for window in TOKENS.split(4):
        logits, state = model(window, state)
        outputs.append(logits)
    for row in range(3):
        hidden = [0.0] * 5
        for step, logits in enumerate(torch.cat(outputs)[:, row].tolist()):
            word = parameters["embedding.weight"][int(TOKENS[step, row])]
            before, hidden = hidden, []
            for unit in range(5):
                total = parameters["from_input.bias"][unit]
                total += math.fsum(a * b for a, b in zip(parameters["from_input.weight"][unit], word, strict=True))
                total += math.fsum(a * b for a, b in zip(parameters["from_hidden.weight"][unit], before, strict=True))
                hidden.append(modrelu(total, parameters["activation.bias"][unit]))
            for kernel, offset, found in zip(
                parameters["decoder.weight"], parameters["decoder.bias"], logits, strict=True
            ):
                assert found == pytest.approx(math.fsum(a * b for a, b in zip(kernel, hidden, strict=True)) + offset)
        assert state[0][0, row].tolist() == pytest.approx(hidden)
    assert [(record.site.name, tuple(record.activation.shape)) for record in trace.records] == [
        ("post", (4, 3, 5)),
        ("post", (2, 3, 5)),
    ]


def test_modrelu_has_a_dead_zone_where_its_offset_is_negative() -> None:
    unit = ModReLU(1)
    with torch.no_grad():
        unit.bias.fill_(-0.5)
    values = torch.tensor([[-2.0], [-0.4], [0.0], [0.4], [0.75]])
    assert unit(values).flatten().tolist() == [-1.5, 0.0, 0.0, 0.0, 0.25]


@pytest.mark.parametrize("units", [6, 7])
def test_rotations_are_the_exponential_of_their_angles(units: int) -> None:
    kernel = rotations(units, generator())
    torch.testing.assert_close(kernel @ kernel.T, torch.eye(units))
    skew = torch.zeros(units, units, dtype=torch.float64)
    for first in range(0, units - 1, 2):
        angle = math.atan2(float(kernel[first, first + 1]), float(kernel[first, first]))
        assert -1 < angle < 0, "-tan(t / 2) of t from 0 to pi / 2"
        skew[first, first + 1], skew[first + 1, first] = angle, -angle
    torch.testing.assert_close(kernel.double(), torch.from_numpy(scipy.linalg.expm(skew.numpy())), rtol=0, atol=1e-6)


def test_angles_have_the_law_of_their_source() -> None:
    """The mean of -sqrt((1 - cos t) / (1 + cos t)), t uniform up to pi / 2: -(4 / pi) log(sqrt 2)."""
    kernel = rotations(4000, generator(3)).double()
    first = torch.arange(0, 4000, 2)
    angles = torch.atan2(kernel[first, first + 1], kernel[first, first])
    error = angles.std().item() / math.sqrt(len(angles))
    assert abs(angles.mean().item() + 4 / math.pi * math.log(math.sqrt(2))) < 3 * error
    assert error < 0.01


def test_parameters_of_the_published_size() -> None:
    """About 1.32 million, of 50 characters: 1024 (1024 + 200 + 1 + 1) + 50 (200 + 1024 + 1)."""
    model = model_of(Sizes((), 50), hidden=1024, embedding=200)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 1024 * 1226 + 50 * 1225
    assert round(count / 1e6, 2) == 1.32


def test_ranges_at_the_start() -> None:
    model = model_of(hidden=300, embedding=200, initialisation="glorot")
    for weight, variance in (
        (model.from_hidden.weight, 1 / 300),
        (model.from_input.weight, 2 / 200),
        (model.embedding.weight, 0.1**2 / 3),
        (model.decoder.weight, 0.1**2 / 3),
        (model.activation.bias, 0.01**2 / 3),
    ):
        ratio = weight.detach().double().square().mean().item() / variance
        assert abs(ratio - 1) < 4 * math.sqrt(2 / weight.numel())
    assert not model.decoder.bias.any()
    assert 0 < model.from_input.bias.abs().max() <= 1 / math.sqrt(200)


def test_images_are_refused() -> None:
    with pytest.raises(UserError, match="takes words"):
        model_of(Sizes((1, 8, 8), 10))
