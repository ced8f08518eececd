"""Colors that mean something are told apart with simulated protanopia and deuteranopia, by day and by night."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from reproduce.experiment.folder import METHODS, ROOT
from reproduce.report.counts import KINDS
from reproduce.report.style import ARMS, VARIABLES

# Machado, Oliveira & Fernandes (2009), Table 1, severity 1.0; for linear RGB.
SIMULATED = {
    "everybody": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
# IEC 61966-2-1: linear sRGB to XYZ, and the white that it is relative to.
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)
LEAST = 10.0  # CIEDE2000
STYLE = (ROOT / "reproduce" / "report" / "templates" / "style.css").read_text("utf-8")


def palette(theme):
    """Every color that the style sheet names under this theme."""
    light, _, rest = STYLE.partition("@media (prefers-color-scheme: dark)")
    text = light if theme == "light" else rest.partition("\n}\n")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))


def linear(color):
    encoded = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    ratio = TO_XYZ @ rgb / WHITE
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def seen(color, sight):
    """The color in L*a*b* as this sight has it."""
    return lab(np.clip(SIMULATED[sight] @ linear(color), 0, 1))


def distance(first, second):
    """CIEDE2000, as Sharma, Wu & Dalal (2005) write it out, equations 2 to 22."""
    (light_1, a_1, b_1), (light_2, a_2, b_2) = first, second
    mean = (np.hypot(a_1, b_1) + np.hypot(a_2, b_2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25.0**7))
    chroma_1, chroma_2 = np.hypot(stretch * a_1, b_1), np.hypot(stretch * a_2, b_2)
    hue_1, hue_2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a_1, b_1), (a_2, b_2)))
    turn = (hue_2 - hue_1 + 180) % 360 - 180 if chroma_1 * chroma_2 else 0.0
    hue = (hue_1 + turn / 2) % 360 if chroma_1 * chroma_2 else hue_1 + hue_2
    lightness, chroma = (light_1 + light_2) / 2, (chroma_1 + chroma_2) / 2
    parts = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    weight = 1 + sum(size * np.cos(np.radians(times * hue + shift)) for size, times, shift in parts)
    by_light = (light_2 - light_1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    by_chroma = (chroma_2 - chroma_1) / (1 + 0.045 * chroma)
    by_hue = 2 * np.sqrt(chroma_1 * chroma_2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * weight)
    angle = 60 * np.exp(-(((hue - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(angle))
    return np.sqrt(by_light**2 + by_chroma**2 + by_hue**2 + rotation * by_chroma * by_hue)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [  # Sharma, Wu & Dalal (2005), Table 1: pairs 1, 7, 14, 17, 21 and 25
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 0, 0), (50, -1, 2), 2.3669),
        ((50, 2.4900, -0.0010), (50, -2.4900, 0.0011), 7.2195),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((50, 2.5, 0), (50, 3.1736, 0.5854), 1.0000),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ],
)
def test_the_distance_is_that_of_its_authors(first, second, expected):
    assert distance(first, second) == pytest.approx(expected, abs=6e-5)


def test_the_simulation_keeps_greys_and_confuses_what_it_should():
    for sight in SIMULATED:
        assert distance(seen("#808080", sight), seen("#808080", "everybody")) < 0.1
    apart = {sight: distance(seen("#a04000", sight), seen("#5a6a00", sight)) for sight in SIMULATED}
    assert apart["everybody"] > 30
    assert apart["deuteranopia"] < apart["everybody"] / 3


@pytest.mark.parametrize("sight", SIMULATED)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("group", ["verdicts", "arms"])
def test_colors_that_mean_something_are_told_apart(group, theme, sight):
    colors = palette(theme)
    verdicts = [kind.replace(" ", "-") for kind in KINDS]
    names = verdicts if group == "verdicts" else [f"arm-{place}" for place in range(len(ARMS))]
    assert len(names) >= 8
    looks = {name: seen(colors[name], sight) for name in names}
    pairs = itertools.combinations(names, 2)
    close = {pair: float(distance(looks[pair[0]], looks[pair[1]])) for pair in pairs}
    assert {pair: far for pair, far in close.items() if far < LEAST} == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_and_marks_stand_out_from_the_page(theme):
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for what figures draw (1.4.11)."""
    colors = palette(theme)

    def luminance(name):
        return float(TO_XYZ[1] @ linear(colors[name]))

    def contrast(name, ground):
        low, high = sorted((luminance(name), luminance(ground)))
        return (high + 0.05) / (low + 0.05)

    texts = [kind.replace(" ", "-") for kind in KINDS] + ["ink", "quiet", "link"]
    wanted = dict.fromkeys(texts, 4.5) | {f"arm-{place}": 3.0 for place in range(len(ARMS))}
    found = {(name, ground): contrast(name, ground) for name in wanted for ground in ("page", "card")}
    assert {pair: ratio for pair, ratio in found.items() if ratio < wanted[pair[0]]} == {}


def test_arms_have_the_same_colors_in_figures_and_on_pages():
    assert tuple(palette("light")[f"arm-{place}"] for place in range(len(ARMS))) == ARMS


def test_methods_own_figures_use_colors_that_pages_can_turn():
    """A color that stands for no variable would stay as it is at night."""
    used = {
        (path.parent.name, color)
        for path in METHODS.glob("*/figures.py")
        for color in re.findall(r"[\"'](#[0-9a-f]{6})[\"']", path.read_text("utf-8"))
    }
    assert used
    assert {(name, color) for name, color in used if color not in VARIABLES} == set()
