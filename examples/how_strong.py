"""How strong should lambda be?

`python examples/how_strong.py` measures on a model and a loop of one's own how strongly a penalty pulls beside the
task, picks the strength at which it pulls three hundredths as hard, and trains below, at and above it. The command
`reproduce calibrate` does the same for an experiment of this suite.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from showing import RATE, batches, digits, figure_path, print_table, save
from torch import nn
from torch.nn import functional as F

from reproduce import attach, gradient_ratio
from reproduce.report.style import ARMS, QUIET, WIDTH

WANTED = 0.03  # felt from the first step, and far from ruling it
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("activity_norm", {"kind": "l2"}),
    ("per", {}),
    ("orthogonal", {}),
    ("weight_norm_penalty", {}),
)
MULTIPLES = (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def calibrated(method: str, steps: int = 20, **parameters: Any) -> float:
    """The strength at which the penalty's gradient is `WANTED` times the task's, by the median of first steps."""
    model, data = network(), digits()
    handle = attach(method, model, strength=1.0, **parameters)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    ratios = []
    for batch in batches(len(data.images), 100, steps):
        loss = F.cross_entropy(model(data.images[batch]), data.labels[batch])
        ratios.append(gradient_ratio(handle.penalty(), loss, model))  # at strength 1; it is proportional to that
        optimizer.zero_grad()
        loss.backward()  # the task alone: the penalty is measured, and not yet trained with
        optimizer.step()
    handle.remove()
    return WANTED / median(ratios)


def train(strength: float, steps: int = 200) -> dict[str, float]:
    """Training with L2 on activations: the ratio at the first step, and what came out."""
    model, data = network(), digits()
    handle = attach("activity_norm", model, strength=strength, kind="l2")
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    ratios = []
    for batch in batches(len(data.images), 100, steps):
        loss, penalty = F.cross_entropy(model(data.images[batch]), data.labels[batch]), handle.penalty()
        if len(ratios) < 20:
            ratios.append(gradient_ratio(penalty, loss, model))
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
    handle.remove()
    with torch.no_grad():
        error = (model.eval()(data.test_images).argmax(1) != data.test_labels).float().mean()
        norm = model[:2](data.test_images).square().sum(1).mean()
    return {"ratio": median(ratios), "squared norm": float(norm), "test error (%)": 100 * float(error)}


def strengths() -> list[dict[str, Any]]:
    """What each of four penalties needs to pull three hundredths as hard as the task."""
    return [
        {"penalty": name, f"strength at ratio {WANTED}": calibrated(name, **parameters)} for name, parameters in METHODS
    ]


def compare(strength: float) -> list[dict[str, Any]]:
    """Multiples of one strength of L2 on activations."""
    return [{"times": times, "strength": times * strength, **train(times * strength)} for times in MULTIPLES]


def draw(rows: list[dict[str, Any]]) -> Figure:
    """The penalised quantity and the error over the ratio of gradients."""
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, color in zip(axes, ("squared norm", "test error (%)"), ARMS[1:], strict=False):
        axis.plot([row["ratio"] for row in rows[1:]], [row[name] for row in rows[1:]], "o-", color=color, markersize=4)
        axis.axhline(rows[0][name], color=QUIET, linestyle=":", linewidth=1)
        axis.annotate("no penalty", (0, rows[0][name]), (4, 3), ("axes fraction", "data"), "offset points", color=QUIET)
        axis.axvspan(0.01, 0.1, color=QUIET, alpha=0.15, linewidth=0)
        axis.set_xscale("log")
        axis.set_ylim(0, 1.15 * max(row[name] for row in rows))
        axis.set_xlabel("ratio of gradients (grey: some hundredths)")
        axis.set_title(name)
    return figure


def main(path: Path) -> None:
    found = strengths()
    print_table(found)
    print("\nL2 on activations at multiples of its strength:")
    rows = compare(found[0][f"strength at ratio {WANTED}"])
    print_table(rows)
    save(lambda: draw(rows), path)


if __name__ == "__main__":
    main(figure_path(__file__))
