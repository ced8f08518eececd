"""Statistics are moved into the layer right before a Site, and into no other."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reproduce import attach

REFUSED = r"Site '\w+' needs the output of a kernel right before it, .* changed in between, or is of another layer"


class Wired(nn.Module):
    """Two linear layers and an activation, defined in this order, that a function calls."""

    def __init__(self, wire: Callable[[Wired, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(inplace=True)
        self.norm, self.drop, self.same = nn.LayerNorm(8), nn.Dropout(0.5), nn.Identity()
        self.wire = wire
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.wire(self, inputs)


DIRECT: list[Callable[[Wired, Tensor], Tensor]] = [
    lambda m, x: m.act(m.second(m.first(x))),
    lambda m, x: m.act(m.same(m.second(x))),
    lambda m, x: m.first(m.act(m.second(x)).clone()),
    lambda m, x: m.act(m.second(x).view(x.shape)),
]
OTHER: list[Callable[[Wired, Tensor], Tensor]] = [
    lambda m, x: m.act(m.norm(m.second(x))),
    lambda m, x: m.act(m.drop(m.second(x))),
    lambda m, x: m.act(m.first(m.second(x))),
    lambda m, x: m.act(m.first(x)),
    lambda m, x: m.act(m.second(x) + x),
    lambda m, x: m.act(m.second(x) * 2),
    lambda m, x: m.act(m.second(x) * 2 * 2),
    lambda m, x: m.act(m.second(x).mul_(2)),
    lambda m, x: m.act(m.second(x)[:, torch.arange(7, -1, -1)]),
]


def noise(seed: int) -> Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mode", ["sample_statistics", "layer_statistics"])
@pytest.mark.parametrize("wire", DIRECT)
def test_folding_changes_no_function(wire: Callable[[Wired, Tensor], Tensor], mode: str) -> None:
    model = Wired(wire)
    handle = attach("variance_preserving_init", model, mode=mode, sites="pre", example=noise(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    copied = copy.deepcopy(model)
    (model(noise(1)).sum() + handle.penalty()).backward()
    expected = model.eval()(noise(2))
    optimizer.step()
    handle.after_step(optimizer)
    torch.testing.assert_close(model(noise(2)), expected)
    torch.testing.assert_close(model.train()(noise(2)), expected)
    copied(noise(1))  # has hooks of its own
    torch.testing.assert_close(copied.eval()(noise(2)), expected)
    handle.remove()
    torch.testing.assert_close(model(noise(2)), expected)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("wire", OTHER)
def test_what_is_not_right_before_the_site_is_refused(wire: Callable[[Wired, Tensor], Tensor]) -> None:
    model = Wired(wire)
    attach("variance_preserving_init", model, mode="sample_statistics", sites="pre", example=noise(1))
    with pytest.raises(ValueError, match=REFUSED):
        model(noise(1))
    model.eval()(noise(1))  # where nothing is known yet, it is the identity


def test_a_first_batch_without_autograd_is_taken() -> None:
    model = Wired(lambda m, x: m.act(m.second(x)))
    attach("variance_preserving_init", model, mode="sample_statistics", sites="pre", example=noise(1))
    with torch.inference_mode():
        model(noise(1))


def test_a_site_at_the_output_of_the_kernel_itself() -> None:
    model = Wired(lambda m, x: m.act(m.norm(m.second(x))))
    attach("variance_preserving_init", model, mode="sample_statistics", sites={"second": "pre"}, example=noise(1))
    reached: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda module, inputs: reached.append(inputs[0]))
    model(noise(1))
    torch.testing.assert_close(reached[0].var(0, correction=0), torch.ones(8, dtype=torch.float64))
