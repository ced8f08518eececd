"""My code has 100 units, and about 10 of them should be active: which limit, and which lambda?

`python examples/ten_of_a_hundred.py` finds the coefficient of an L1 penalty on the code by bisection over short runs,
then trains at it, and compares that soft limit with two hard ones: a code of 10 units, and the 10 largest of 100.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from showing import batches, digits, figure_path, print_table, save
from torch import Tensor, nn
from torch.nn import functional as F

from methods.sparse_autoencoder.method import dead_fraction, feature_density, fvu, l0, l1_code_penalty
from methods.sparse_autoencoder.search import FoundCoefficient, coefficient_for_active_units
from reproduce.report.style import ARMS, QUIET, WIDTH, legend

WANTED = 10
STEPS = 500


class Autoencoder(nn.Module):
    """64 pixels to a code and back; the decoder's rows have norm 1, or the penalty would be evaded by growing them."""

    def __init__(self, units: int, largest: int | None = None) -> None:
        super().__init__()
        self.encoder, self.largest = nn.Linear(64, units), largest
        self.decoder = nn.Parameter(torch.randn(units, 64) / 8)
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The code (n, units) and the reconstruction (n, 64)."""
        code = self.encoder(images - self.bias).relu()
        if self.largest is not None:
            kept = code.topk(self.largest, dim=1)
            code = torch.zeros_like(code).scatter(1, kept.indices, kept.values)
        return code, code @ F.normalize(self.decoder, dim=1) + self.bias


def train(model: Autoencoder, coefficient: float, steps: int) -> Autoencoder:
    """Squared error summed over pixels, plus the coefficient times the code's L1 norm; both means over the batch."""
    images = digits().images
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for batch in batches(len(images), 100, steps):
        code, output = model(images[batch])
        loss = (output - images[batch]).square().sum(1).mean()
        loss = loss + coefficient * l1_code_penalty(code)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def started(units: int, largest: int | None = None) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(units, largest)


def active_units(coefficient: float) -> float:
    """One short run: how many of 100 units are then active on average, on images that were not trained on."""
    model = train(started(100), coefficient, STEPS)
    with torch.no_grad():
        return float(l0(model(digits().test_images)[0]))


def search() -> FoundCoefficient:
    return coefficient_for_active_units(active_units, wanted=WANTED, low=0.01, high=1.0, tolerance=1.0)


@torch.no_grad()
def row_of(name: str, model: Autoencoder) -> dict[str, Any]:
    images = digits().test_images
    code, output = model(images)
    return {
        "limit": name,
        "active units": float(l0(code)),
        "variance unexplained (%)": 100 * float(fvu(images, output)),
        "never active (%)": 100 * float(dead_fraction(code)),
    }


def compare(coefficient: float) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A row for each limit, and how often each unit is active."""
    arms: dict[str, Callable[[], Autoencoder]] = {
        "none, 100 units": lambda: train(started(100), 0.0, STEPS),
        f"soft: L1 {coefficient:.3g}, 100 units": lambda: train(started(100), coefficient, STEPS),
        "the same, 3 times as long": lambda: train(started(100), coefficient, 3 * STEPS),
        "hard: 10 units": lambda: train(started(10), 0.0, STEPS),
        "hard: 10 largest of 100": lambda: train(started(100, largest=10), 0.0, STEPS),
    }
    rows, densities = [], {}
    for name, make in arms.items():
        model = make()
        rows.append(row_of(name, model))
        with torch.no_grad():
            densities[name] = feature_density(model(digits().test_images)[0])
    return rows, densities


def conclusion(found: FoundCoefficient, rows: list[dict[str, Any]]) -> str:
    _, soft, _, ten, largest = (row["variance unexplained (%)"] for row in rows)
    return (
        f"L1 at {found.coefficient:.3g} leaves {found.active:.1f} of 100 units active and {soft:.1f} % of the variance "
        f"unexplained; a code of 10 units leaves {ten:.1f} %, the 10 largest of 100 leave {largest:.1f} %."
    )


def draw(found: FoundCoefficient, densities: dict[str, Tensor]) -> Figure:
    """The search, and how often each unit of each code is active."""
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    left.plot(*zip(*sorted(found.runs), strict=True), color=ARMS[1], linewidth=1)
    for number, (coefficient, active) in enumerate(found.runs, 1):
        left.plot(coefficient, active, "o", color=ARMS[1], markersize=4)
        if number <= 3:
            left.annotate(f"run {number}", (coefficient, active), (5, 3), textcoords="offset points", color=QUIET)
    left.axhline(WANTED, color=QUIET, linestyle=":", linewidth=1)
    left.set_xscale("log")
    left.set_xlabel("coefficient")
    left.set_title("active units of 100, by run")
    for color, (name, density) in zip(ARMS, densities.items(), strict=False):
        if "same" in name:
            continue
        right.plot(range(1, len(density) + 1), 100 * density.sort(descending=True).values, color=color, label=name)
    right.set_xlabel("units, most active first")
    right.set_title("images on which a unit is active (%)")
    legend(figure, right)
    return figure


def main(path: Path) -> None:
    begin = time.perf_counter()
    found = search()
    seconds = time.perf_counter() - begin
    halvings = len(found.runs) - 2
    print_table([{"run": n, "coefficient": c, "active units": a} for n, (c, a) in enumerate(found.runs, 1)])
    print(f"\ncost: {len(found.runs)} runs of {STEPS} steps ({halvings} halvings), {seconds:.0f} s\n")
    rows, densities = compare(found.coefficient)
    print_table(rows)
    save(lambda: draw(found, densities), path)
    print(conclusion(found, rows))


if __name__ == "__main__":
    main(figure_path(__file__))
