"""Weights are small, what they add up to is huge and saturates my sigmoid: kernel or activity penalty?

`python examples/saturated_sigmoid.py` trains one sigmoid layer on pixels from 0 to 255, without a penalty, with one on
the kernel, on what enters the sigmoid and on what leaves it, then on pixels from 0 to 1, and last without a penalty
for longer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from showing import RATE, batches, digits, figure_path, print_table, save
from torch import Tensor, nn
from torch.nn import functional as F

from methods.activity_norm.method import l2_activity
from methods.weight_norm_penalty.method import kernel_l2
from reproduce.report.style import ARMS, WIDTH

STEPS = 500
SATURATED = 4.0  # beyond it a sigmoid lies within 0.018 of 0 or 1, and its slope is below 0.018


class Arm(NamedTuple):
    """What is penalised, how strongly, what the pixels are multiplied by, and how long it trains."""

    name: str
    kind: str = ""
    strength: float = 0.0
    scale: float = 255.0
    steps: int = STEPS


ARMS_OF_TABLE = (
    Arm("none"),
    Arm("kernel L2, 0.01", "kernel", 1e-2),
    Arm("kernel L2, 0.1", "kernel", 1e-1),
    Arm("activity L2 before the sigmoid", "before", 1e-4),
    Arm("activity L2 after the sigmoid", "after", 1e-2),
    Arm("none, pixels from 0 to 1", scale=1.0),
    Arm("none, 3 times as long", steps=3 * STEPS),
    Arm("none, pixels from 0 to 1, 3 times as long", scale=1.0, steps=3 * STEPS),
)


class Network(nn.Module):
    """64 pixels, 64 sigmoids, 10 classes."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.hidden, self.output = nn.Linear(64, 64), nn.Linear(64, 10)
        nn.init.normal_(self.hidden.weight, std=0.05 if scale > 1 else 0.3)  # small weights where inputs are large

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and what enters and leaves the sigmoid."""
        before = self.hidden(pixels)
        after = before.sigmoid()
        return self.output(after), before, after


def penalty(arm: Arm, model: Network, before: Tensor, after: Tensor) -> Tensor:
    match arm.kind:
        case "kernel":
            return arm.strength * kernel_l2(model.hidden.weight)
        case "before":
            return arm.strength * l2_activity(before)
        case "after":
            return arm.strength * l2_activity(after)
    return before.new_zeros(())


def train(arm: Arm) -> tuple[Network, Tensor]:
    """The trained network, and what enters its sigmoids on the test set."""
    torch.manual_seed(0)
    model, data = Network(arm.scale), digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for batch in batches(len(data.images), 50, arm.steps):
        logits, before, after = model(arm.scale * data.images[batch])
        loss = F.cross_entropy(logits, data.labels[batch]) + penalty(arm, model, before, after)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return model, model(arm.scale * data.test_images)[1]


@torch.no_grad()
def row_of(arm: Arm, model: Network) -> dict[str, Any]:
    data = digits()
    logits, before, after = model(arm.scale * data.test_images)
    return {
        "penalty": arm.name,
        "mean |weight|": float(model.hidden.weight.abs().mean()),
        "mean |input of the sigmoid|": float(before.abs().mean()),
        "saturated (%)": 100 * float((before.abs() > SATURATED).float().mean()),
        "mean slope": float((after * (1 - after)).mean()),
        "test error (%)": 100 * float((logits.argmax(1) != data.test_labels).float().mean()),
    }


def compare() -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A row for each arm, and what enters the sigmoids of each."""
    rows, entering = [], {}
    for arm in ARMS_OF_TABLE:
        model, entering[arm.name] = train(arm)
        rows.append(row_of(arm, model))
    return rows, entering


def conclusion(rows: list[dict[str, Any]]) -> str:
    found = {row["penalty"]: row for row in rows}
    none, charged = found["none"], found["activity L2 before the sigmoid"]
    return (
        f"The activity penalty before the sigmoid leaves {charged['saturated (%)']:.0f} % of the units saturated in "
        f"place of {none['saturated (%)']:.0f} %, at a test error of {charged['test error (%)']:.1f} % in place of "
        f"{none['test error (%)']:.1f} %, of one seed."
    )


def draw(entering: dict[str, Tensor]) -> Figure:
    """Histograms of what enters the sigmoids after so many steps, with the saturated ends shaded."""
    entering = {arm.name: entering[arm.name] for arm in ARMS_OF_TABLE if arm.steps == STEPS}
    figure = Figure(figsize=(WIDTH, 0.95 * len(entering)), layout="constrained")
    axes = figure.subplots(len(entering), sharex=True)
    edges = torch.linspace(-40, 40, 81)
    for axis, (name, values), color in zip(axes, entering.items(), ARMS, strict=False):
        axis.hist(values.flatten().clamp(-40, 40).numpy(), edges.numpy(), density=True, color=color)
        for low, high in ((-40, -SATURATED), (SATURATED, 40)):
            axis.axvspan(low, high, color=ARMS[0], alpha=0.08, linewidth=0, zorder=0)
        axis.set_title(name)
        axis.set_yticks([])
    axes[-1].set_xlabel("what enters the sigmoid (grey: saturated; beyond 40 in the last bins)")
    axes[-1].set_xlim(-40, 40)
    return figure


def main(path: Path) -> None:
    rows, entering = compare()
    print_table(rows)
    save(lambda: draw(entering), path)
    print(conclusion(rows))


if __name__ == "__main__":
    main(figure_path(__file__))
