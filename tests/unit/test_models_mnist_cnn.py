"""DomainBed's small network: the paper's layers and parameters, and what a Gaussian code draws."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reproduce import models
from reproduce.errors import UserError
from reproduce.method import Site, gaussian_code
from reproduce.models import Sizes

SIZES = Sizes((1, 28, 28), 10)
SMALL = {"width": 8, "code": 16}


def build(sizes: Sizes = SIZES, **options: Any) -> Any:
    draws = torch.Generator().manual_seed(5)
    return models.build("mnist_cnn", options, sizes, torch.Generator().manual_seed(0), draws)


def batch(n: int = 6, sizes: Sizes = SIZES) -> Tensor:
    return torch.rand(n, *sizes.input_shape, generator=torch.Generator().manual_seed(1))


def as_in_the_appendix(outputs: int, width: int = 64) -> nn.Sequential:
    """Nguyen et al. (2022), appendix D.2, layer by layer: 8 groups where width is 64, each of 8 channels at least."""
    groups = [min(8, channels // 8) for channels in (width, 2 * width, outputs)]
    return nn.Sequential(
        nn.Conv2d(1, width, 3, 1, 1), nn.ReLU(), nn.GroupNorm(groups[0], width),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.GroupNorm(groups[1], 2 * width),
        nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.ReLU(), nn.GroupNorm(groups[1], 2 * width),
        nn.Conv2d(2 * width, outputs, 3, 1, 1), nn.ReLU(), nn.GroupNorm(groups[2], outputs),
        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(),
    )  # fmt: skip


@pytest.mark.parametrize(("gaussian", "outputs"), [(False, 256), (True, 512)])
def test_parameters_are_those_of_the_papers_network(gaussian: bool, outputs: int) -> None:
    model, wanted = build(gaussian=gaussian), as_in_the_appendix(outputs)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in wanted.parameters()) + 256 * 10 + 10


def test_it_computes_what_those_layers_compute() -> None:
    model, layers = build(**SMALL, gaussian=True).eval(), as_in_the_appendix(32, width=8)
    for own, other in zip(model.features.parameters(), layers.parameters(), strict=True):
        other.data.copy_(own)
    code = layers(batch())
    mean, deviation = code[:, :16], F.softplus(code[:, 16:])
    shares = [F.softmax(model.classifier(mean + deviation * noise), 1) for noise in model.draw.noise[:, 0]]
    assert len(shares) == 20
    torch.testing.assert_close(model(batch()), torch.stack(shares).mean(0).log())
    plain, layers = build(**SMALL), as_in_the_appendix(16, width=8)
    for own, other in zip(plain.features.parameters(), layers.parameters(), strict=True):
        other.data.copy_(own)
    torch.testing.assert_close(plain(batch()), plain.classifier(layers(batch())))


def test_training_reads_one_draw_from_the_given_generator() -> None:
    model = build(**SMALL, gaussian=True)
    codes: list[Tensor] = []
    model.code.register_forward_hook(lambda site, inputs, output: codes.append(output))
    before = torch.get_rng_state()
    found = model(batch())
    mean, deviation = gaussian_code(codes[0])
    noise = torch.empty(6, 16).normal_(generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(found, model.classifier(mean + deviation * noise))
    assert not torch.equal(found, model(batch()))
    assert torch.equal(before, torch.get_rng_state())


def test_an_evaluation_tends_to_the_mean_over_all_draws() -> None:
    """Eq. 2: E_z p(y|z), with ever more draws of its own."""
    few, many = build(**SMALL, gaussian=True).eval(), build(**SMALL, gaussian=True, evaluation_draws=5000).eval()
    many.load_state_dict({**few.state_dict(), "draw.noise": many.draw.noise})
    for model in (few, many):
        torch.testing.assert_close(model(batch()).exp().sum(1), torch.ones(6))
    gap = (few(batch()).exp() - many(batch()).exp()).abs().max()
    assert 0 < gap < 0.2
    assert abs(many.draw.noise.mean()) < 4 / math.sqrt(many.draw.noise.numel())


@pytest.mark.parametrize("side", [28, 9])
def test_sites_have_the_shapes_of_what_passes(side: int) -> None:
    sizes = Sizes((1, side, side), 10)
    model = build(sizes, **SMALL, gaussian=True)
    sites = {name: module for name, module in model.named_modules() if isinstance(module, Site)}
    met: dict[str, tuple[int, ...]] = {}
    for name, site in sites.items():
        site.register_forward_hook(lambda site, inputs, output, name=name: met.update({name: tuple(output.shape[1:])}))
    model(batch(2, sizes))
    assert met == {name: site.shape for name, site in sites.items()}
    assert list(met) == [*(f"features.{i}.0.{role}" for i in range(4) for role in ("pre", "post")), "code"]
    assert met["code"] == (32,)


def test_a_deep_copy_shares_the_generator_and_none_is_refused() -> None:
    model = build(**SMALL, gaussian=True)
    assert copy.deepcopy(model).draw.generator is model.draw.generator
    without = models.build("mnist_cnn", {**SMALL, "gaussian": True}, SIZES, torch.Generator(), None)
    with pytest.raises(ValueError, match="a Gaussian code needs a generator while training"):
        without(batch())
    without.eval()(batch())


def test_groups_are_eight_as_in_the_paper_and_fewer_in_narrow_networks() -> None:
    def groups(model: Any) -> list[int]:
        return [layer.num_groups for layer in model.modules() if isinstance(layer, nn.GroupNorm)]

    assert groups(build(gaussian=True)) == [8, 8, 8, 8]
    assert groups(build(**SMALL)) == [1, 2, 2, 2]
    for gaussian in (False, True):  # each unit of a code still differs from image to image
        codes: list[Tensor] = []
        model = build(width=8, code=8, gaussian=gaussian)
        model.code.register_forward_hook(lambda site, inputs, output, codes=codes: codes.append(output))
        model(batch())
        assert (codes[0].std(0) > 1e-3).all()


def test_widths_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="code"):
        build(code=12)
    with pytest.raises(UserError, match="takes images of shape"):
        build(Sizes((5,), 3), **SMALL)
