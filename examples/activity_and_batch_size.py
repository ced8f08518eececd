"""Is my activity regularizer divided by the batch size?

`python examples/activity_and_batch_size.py` compares the two readings that Keras has had with the functions here, in
numbers and in what they do to a network, and shows a mistake of Keras before 2.1.4: the input was charged, not the
output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from showing import RATE, batches, digits, figure_path, print_table, save
from torch import Tensor, nn
from torch.nn import functional as F

from methods.activity_norm.method import l2_activity
from reproduce.report.style import ARMS, QUIET, WIDTH

SIZES = (10, 30, 100, 300)
STRENGTH = 1e-3


def divided(activations: Tensor) -> Tensor:
    """tf.keras 2, and Keras from 3.14 on: the sum over everything, divided by the batch size."""
    return activations.square().sum() / len(activations)


def undivided(activations: Tensor) -> Tensor:
    """Keras 3.0 to 3.13, and `codings.abs().sum()` in the forum's loop: the sum over everything, the batch too."""
    return activations.square().sum()


READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2_activity": l2_activity,
    "Keras, divided": divided,
    "Keras, undivided": undivided,
}


def values() -> list[dict[str, Any]]:
    """Each reading of activations of three shapes and two batch sizes, all standard normal; of maps in two ways."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for name, shape in (
        ("(batch, units)", (50,)),
        ("(batch, time, units)", (8, 50)),
        ("(batch, channels, y, x)", (50, 4, 4)),
    ):
        for size in (10, 100):
            activations = torch.randn(size, *shape, generator=generator)
            keras = {reading: float(READINGS[reading](activations)) for reading in list(READINGS)[1:]}
            given = {name: activations}
            if len(shape) == 3:  # for l2_activity every axis but the last counts samples: x alone is then the units
                given = {f"{name}, flattened": activations.flatten(1), f"{name}, not flattened": activations}
            for label, ours in given.items():
                rows.append({"shape": label, "batch": size, "l2_activity": float(l2_activity(ours))} | keras)
    return rows


def input_instead_of_output() -> list[dict[str, Any]]:
    """What Keras before 2.1.4 charged, and what was meant."""
    layer, inputs = nn.Linear(4, 3), torch.ones(2, 4)
    charged = l2_activity(inputs)  # the layer's input: it has no gradient for this layer, whatever lambda is
    meant = l2_activity(layer(inputs))
    return [
        {"charged": name, "value": value.item(), "trains the layer": value.requires_grad}
        for name, value in (("the input (before 2.1.4)", charged), ("the output", meant))
    ]


def train(reading: Callable[[Tensor], Tensor], size: int, strength: float, steps: int = 150) -> float:
    """The mean over test images of the squared norm of 50 hidden activations, after so many steps."""
    torch.manual_seed(0)
    data = digits()
    hidden, output = nn.Sequential(nn.Linear(64, 50), nn.ReLU()), nn.Linear(50, 10)
    optimizer = torch.optim.Adam([*hidden.parameters(), *output.parameters()], lr=3 * RATE)
    for batch in batches(len(data.images), size, steps):
        activations = hidden(data.images[batch])
        loss = F.cross_entropy(output(activations), data.labels[batch]) + strength * reading(activations)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float(l2_activity(hidden(data.test_images)))


def compare() -> list[dict[str, Any]]:
    """A row for each batch size: the squared norm of the activations without a penalty, and with each reading."""
    return [
        {"batch": size, "none": train(l2_activity, size, 0.0)}
        | {name: train(reading, size, STRENGTH) for name, reading in READINGS.items()}
        for size in SIZES
    ]


def conclusion(rows: list[dict[str, Any]]) -> str:
    first, last = rows[0], rows[-1]
    change = {name: f"{first[name]:.3g} to {last[name]:.3g}" for name in ("l2_activity", "Keras, undivided")}
    return (
        f"From batches of {first['batch']} to {last['batch']}, one lambda brings the squared norm from "
        f"{change['l2_activity']} with l2_activity, which is divided, and from {change['Keras, undivided']} undivided."
    )


def draw(rows: list[dict[str, Any]]) -> Figure:
    """What one lambda does at four batch sizes, under both readings."""
    figure = Figure(figsize=(0.6 * WIDTH, 2.8), layout="constrained")
    axis = figure.subplots()
    styles = {"none": (QUIET, ":"), "l2_activity": (ARMS[1], "-"), "Keras, undivided": (ARMS[2], "-")}
    for name, (color, dash) in styles.items():
        label = "l2_activity; Keras, divided" if name == "l2_activity" else name
        axis.plot(SIZES, [row[name] for row in rows], dash, color=color, marker="o", markersize=4, label=label)
    axis.set_xscale("log")
    axis.set_xticks(SIZES, [str(size) for size in SIZES])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("batch size")
    axis.set_title(f"squared norm of the activations at strength {STRENGTH}")
    axis.legend()
    return figure


def main(path: Path) -> None:
    torch.manual_seed(0)
    print_table(values())
    print(f"\nSquared norm of the activations after training at strength {STRENGTH}:")
    rows = compare()
    print_table(rows)
    print()
    print_table(input_instead_of_output())
    save(lambda: draw(rows), path)
    print(conclusion(rows))


if __name__ == "__main__":
    main(figure_path(__file__))
