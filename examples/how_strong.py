"""How strong should lambda be?

`python examples/how_strong.py` measures on a model and a loop of one's own how strongly a penalty pulls beside the
task, and picks the strength at which it pulls three hundredths as hard. A grid begins there, and goes on by factors of
ten for as long as one of its ends is its best, by the error on validation data. The command `reproduce calibrate` finds
such a strength for an experiment of this suite.
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
MULTIPLES = (0.1, 1.0, 10.0)  # where the grid begins
VALIDATION = 300  # the last images of the training set: they choose


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
    for batch in batches(len(data.images) - VALIDATION, 100, steps):
        loss, penalty = F.cross_entropy(model(data.images[batch]), data.labels[batch]), handle.penalty()
        if len(ratios) < 20:
            ratios.append(gradient_ratio(penalty, loss, model))
        optimizer.zero_grad()
        (loss + penalty).backward()
        optimizer.step()
    handle.remove()
    held_out = data.images[-VALIDATION:], data.labels[-VALIDATION:]
    with torch.no_grad():
        chooses, tests = (
            100 * (model.eval()(images).argmax(1) != labels).float().mean().item()
            for images, labels in (held_out, (data.test_images, data.test_labels))
        )
        norm = model[:2](data.test_images).square().sum(1).mean()
    return {
        "ratio": median(ratios),
        "squared norm": float(norm),
        "validation error (%)": chooses,
        "test error (%)": tests,
    }


def strengths() -> list[dict[str, Any]]:
    """What each of four penalties needs to pull three hundredths as hard as the task."""
    return [
        {"penalty": name, f"strength at ratio {WANTED}": calibrated(name, **parameters)} for name, parameters in METHODS
    ]


def compare(strength: float) -> list[dict[str, Any]]:
    """No penalty, and multiples of one strength of L2 on activations: more of them while an end is the best."""
    found = {times: train(times * strength) for times in MULTIPLES}
    while (times := best(found)) in {min(found), max(found)}:
        beyond = 10 * times if times == max(found) else times / 10
        found[beyond] = train(beyond * strength)
    rows = {0.0: train(0.0)} | dict(sorted(found.items()))
    return [{"times": times, "strength": times * strength, **row} for times, row in rows.items()]


def best(found: dict[float, dict[str, float]]) -> float:
    """Of some multiples the one with the least error on validation data; of equals the first that was tried."""
    return min(found, key=lambda times: found[times]["validation error (%)"])


def conclusion(rows: list[dict[str, Any]]) -> str:
    chosen = min(rows[1:], key=lambda row: row["validation error (%)"])
    return (
        f"Validation chooses {chosen['times']:.3g} times the strength at ratio {WANTED}, {chosen['strength']:.2g}: "
        f"test error {chosen['test error (%)']:.1f} %; {rows[0]['test error (%)']:.1f} % without, of one seed."
    )


def draw(rows: list[dict[str, Any]]) -> Figure:
    """The penalised quantity and the error that chooses, over the ratio of gradients."""
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, color in zip(axes, ("squared norm", "validation error (%)"), ARMS[1:], strict=False):
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
    print(conclusion(rows))


if __name__ == "__main__":
    main(figure_path(__file__))
