"""Corruptions against NumPy, SciPy, Pillow and colorsys, and the statistics of what is drawn."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image
from torch import Tensor

from reproduce.data.corruptions import STRENGTHS, corrupted
from reproduce.experiment.shifts import CORRUPTIONS, SEVERITIES

PUBLISHED = sorted(STRENGTHS)


def photographs(n: int = 5, channels: int = 3, size: int = 32) -> Tensor:
    """Smooth random images, with black and white in them."""
    noise = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))
    smooth = torch.from_numpy(scipy.ndimage.gaussian_filter(noise.numpy(), (0, 0, 2, 2)))
    return (128 + 900 * smooth).clamp(0, 255).to(torch.uint8)


def assert_same_pixels(found: Tensor, wanted: np.ndarray) -> None:
    """Cut to whole values, so that a last bit may move one of them by 1; hardly ever it does."""
    gap = np.abs(found.numpy().astype(int) - np.clip(wanted + 1e-6, 0, 255).astype(np.uint8).astype(int))
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.01


@pytest.mark.parametrize("severities", PUBLISHED)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_is_scipys(severities, severity: int) -> None:
    images = photographs()
    sigma = STRENGTHS[severities]["gaussian_blur"][severity - 1]
    wanted = scipy.ndimage.gaussian_filter(
        images.numpy() / 255, (0, 0, sigma, sigma), mode="nearest", truncate=4
    )  # as skimage.filters.gaussian, which the published sets are made with
    assert_same_pixels(corrupted(images, "gaussian_blur", severity, severities), wanted * 255)


@pytest.mark.parametrize("severities", PUBLISHED)
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("size", [28, 32])
def test_pixels_are_pillows(severities, severity: int, size: int) -> None:
    images = photographs(size=size)
    smaller = int(size * STRENGTHS[severities]["pixelate"][severity - 1])
    found = corrupted(images, "pixelate", severity, severities)
    for image, ours in zip(images, found, strict=True):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((smaller, smaller), Image.Resampling.BOX)
        wanted = np.asarray(small.resize((size, size), Image.Resampling.BOX)).transpose(2, 0, 1)
        assert np.abs(ours.numpy().astype(int) - wanted.astype(int)).max() <= 1


@pytest.mark.parametrize("severities", PUBLISHED)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_and_brightness_are_numpys_and_colorsys(severities, severity: int) -> None:
    images = photographs(2, size=8)
    unit = images.numpy() / 255
    factor, added = (STRENGTHS[severities][kind][severity - 1] for kind in ("contrast", "brightness"))
    mean = unit.mean((2, 3), keepdims=True)
    assert_same_pixels(corrupted(images, "contrast", severity, severities), 255 * ((unit - mean) * factor + mean))
    wanted = np.empty_like(unit)
    for place in np.ndindex(2, 8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*unit[place[0], :, place[1], place[2]])
        wanted[place[0], :, place[1], place[2]] = colorsys.hsv_to_rgb(hue, saturation, min(1, value + added))
    assert_same_pixels(corrupted(images, "brightness", severity, severities), 255 * wanted)


def test_noises_have_their_laws() -> None:
    grey = torch.full((200, 1, 28, 28), 128, dtype=torch.uint8)
    for severity in SEVERITIES:
        strength = {kind: values[severity - 1] for kind, values in STRENGTHS["cifar10_c"].items()}
        gaussian = corrupted(grey, "gaussian_noise", severity).double()
        assert float(gaussian.std()) == pytest.approx(255 * strength["gaussian_noise"], rel=0.02)
        shot = corrupted(grey, "shot_noise", severity).double()
        assert float(shot.std()) == pytest.approx(255 * math.sqrt(128 / 255 / strength["shot_noise"]), rel=0.02)
        for noisy in (gaussian, shot):
            assert float(noisy.mean()) == pytest.approx(127.5, abs=0.3)  # values are cut, which costs one half
        impulse = corrupted(grey, "impulse_noise", severity)
        for end in (0, 255):
            assert float((impulse == end).double().mean()) == pytest.approx(strength["impulse_noise"] / 2, rel=0.1)
        assert set(impulse.unique().tolist()) == {0, 128, 255}


def test_a_point_is_smeared_along_a_line_by_half_a_bell() -> None:
    point = torch.zeros(400, 1, 33, 33, dtype=torch.uint8)
    point[:, :, 16, 16] = 255
    smeared = corrupted(point, "motion_blur", 5).double() / 255
    deviation = STRENGTHS["cifar10_c"]["motion_blur"][4][1]
    weights = np.exp(-(np.arange(19) ** 2) / (2 * deviation**2))
    ours = smeared.sum((1, 2, 3))
    assert float((ours - 1).abs().max()) < 19 / 255  # each point is cut to a whole value
    np.testing.assert_allclose(smeared[:, 0, 16, 16].numpy(), weights[0] / weights.sum(), atol=1 / 255 + 1e-9)
    rows, columns = torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")
    touched = smeared[:, 0] > 0
    assert not touched[:, columns > 0].any(), "it leaves to one side"
    centre_row = (smeared[:, 0] * rows).sum((1, 2)) / ours
    centre_column = (smeared[:, 0] * columns).sum((1, 2)) / ours
    angles = torch.rad2deg(torch.atan2(centre_row, -centre_column))
    assert float(angles.abs().max()) < 50
    assert float(angles.std()) == pytest.approx(90 / math.sqrt(12), rel=0.15)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_corruption_is_one_and_the_same_and_grows(kind) -> None:
    images = photographs(1003, channels=1, size=12)
    before = images.clone()
    state = torch.get_rng_state()
    gaps = []
    for severity in SEVERITIES:
        found = corrupted(images, kind, severity)
        assert found.dtype == torch.uint8
        assert found.shape == images.shape
        assert torch.equal(found, corrupted(images, kind, severity))
        assert torch.equal(found[:1000], corrupted(images[:1000], kind, severity)), "what follows changes nothing"
        gaps.append(float((found.double() - images.double()).abs().mean()))
    assert gaps[0] < gaps[-1]
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn but from its own generator"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"kind": "fog"}, "'fog'"),
        ({"severity": 6}, "6"),
        ({"severities": "imagenet_c"}, "imagenet_c"),
        ({"images": torch.zeros(1, 1, 4, 4)}, "float32"),
        ({"images": torch.zeros(4, 4, dtype=torch.uint8)}, r"\(4, 4\)"),
    ],
)
def test_what_it_does_not_know_is_refused(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        corrupted(**{"images": photographs(1), "kind": "contrast", "severity": 1, **arguments})
