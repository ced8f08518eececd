"""I want |W^T W - I| on my Dense and Conv layers, and the version from the forum fails.

`python examples/orthogonal_kernels.py` shows three mistakes that are easily made, trains with the right form on a
network that also has a grouped and a depthwise convolution, and draws the Gram matrices.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from showing import RATE, batches, digits, figure_path, print_table, save
from torch import Tensor, nn
from torch.nn import functional as F

from methods.orthogonal.method import as_matrix, gram_matrix, kernels, soft_orthogonality
from reproduce.report.style import ARMS, WIDTH


def identity_of_the_wrong_shape(weight: Tensor) -> Tensor:
    """Mistake 1: the identity has the shape of W. It must have that of W^T W, one row for each unit."""
    return (gram_matrix(as_matrix(weight)) - torch.eye(*as_matrix(weight).shape)).abs().sum()


def number_instead_of_a_tensor(weight: Tensor) -> float:
    """Mistake 2: a number leaves the graph. It shows in the loss, and trains nothing."""
    return soft_orthogonality(weight, norm="l1").item()


def double_loop(weight: Tensor) -> Tensor:
    """Mistake 3: the right value, one pair of filters at a time."""
    rows = weight.flatten(1)
    total = torch.zeros(())
    for i in range(len(rows)):
        for j in range(len(rows)):
            total = total + (rows[i] @ rows[j] - float(i == j)).abs()
    return total


def show_mistakes() -> list[dict[str, Any]]:
    """What each does to a Conv layer's kernel, beside the right form."""
    weight = nn.Conv2d(16, 64, 3).weight

    def milliseconds(form: Any) -> float:
        begin = time.perf_counter()
        form(weight)
        return 1000 * (time.perf_counter() - begin)

    def right(weight: Tensor) -> Tensor:
        return soft_orthogonality(weight, norm="l1")  # the sum of |W^T W - I|, one row of W for each filter

    rows: list[dict[str, Any]] = []
    for name, form in (
        ("identity of W's shape", identity_of_the_wrong_shape),
        ("a number", number_instead_of_a_tensor),
        ("a double loop", double_loop),
        ("soft_orthogonality", right),
    ):
        try:
            value = form(weight)
        except RuntimeError as error:
            rows.append({"form": name, "outcome": str(error).partition(" at ")[0]})
            continue
        trains = isinstance(value, Tensor) and value.requires_grad
        outcome = "has a gradient" if trains else "no gradient: trains nothing"
        rows.append(
            {"form": name, "outcome": outcome, "value": torch.as_tensor(value).item(), "ms": milliseconds(form)}
        )
    return rows


def network() -> nn.Sequential:
    """Dense and convolutional layers, one of them grouped and one depthwise."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def penalty(model: nn.Module) -> Tensor:
    """The sum over all kernels; `kernels` gives each group of a convolution, and each gate of an LSTM, by itself."""
    # "smaller": of rows and columns the side that can be orthonormal at all.
    return torch.stack([soft_orthogonality(weight, "smaller") for _, weight in kernels(model)]).sum()


def train(strength: float, steps: int = 160) -> tuple[nn.Sequential, float]:
    """A network trained on digits, and its test error in percent."""
    torch.manual_seed(0)
    model, data = network(), digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=2 * RATE)
    for batch in batches(len(data.images), 100, steps):
        loss = F.cross_entropy(model(data.images[batch]), data.labels[batch]) + strength * penalty(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        error = (model(data.test_images).argmax(1) != data.test_labels).float().mean()
    return model, 100 * float(error)


@torch.no_grad()
def deviations(model: nn.Module) -> dict[str, float]:
    """For each layer the mean over its kernels of the Frobenius norm of W^T W - I, on the side that can be I."""
    found: dict[str, list[float]] = {}
    for name, weight in kernels(model):
        layer = name.partition("[")[0].removesuffix(".weight")
        found.setdefault(layer, []).append(float(soft_orthogonality(weight, "smaller", "frobenius")))
    return {layer: sum(values) / len(values) for layer, values in found.items()}


@torch.no_grad()
def rows_or_columns() -> list[dict[str, Any]]:
    """Orthonormal rows or columns of a wide and of a tall kernel: how near each side can come."""
    found = []
    for shape in ((8, 24), (24, 8)):
        weight = nn.init.orthogonal_(torch.empty(shape))  # the nearest that there is
        rows, columns = (float(soft_orthogonality(weight, side)) for side in ("rows", "columns"))
        found.append({"kernel (out, in)": str(shape), "least of rows": rows, "least of columns": columns})
    return found


def compare() -> tuple[list[dict[str, Any]], nn.Sequential, nn.Sequential]:
    """Before and after, layer by layer, and both networks."""
    (free, free_error), (held, held_error) = train(0.0), train(0.1)
    before, after = deviations(free), deviations(held)
    rows: list[dict[str, Any]] = [
        {
            "layer": f"{layer}: {type(free.get_submodule(layer)).__name__}",
            "without": before[layer],
            "with": after[layer],
        }
        for layer in before
    ]
    rows.append({"layer": "test error (%)", "without": free_error, "with": held_error})
    return rows, free, held


def conclusion(rows: list[dict[str, Any]]) -> str:
    *layers, error = rows
    before, after = (sum(row[name] for row in layers) / len(layers) for name in ("without", "with"))
    return (
        f"With the penalty the Gram matrices lie {after:.2g} from I on average, without it {before:.2g}; the test "
        f"error is {error['with']:.1f} % in place of {error['without']:.1f} %, of one seed."
    )


def draw(free: nn.Sequential, held: nn.Sequential) -> Figure:
    """Inner products of the filters of two layers."""
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained")
    axes = figure.subplots(1, 4)
    for row, (layer, label) in zip((axes[:2], axes[2:]), ((1, "Conv2d(1, 16)"), (8, "Linear(256, 32)")), strict=True):
        for axis, model, name in zip(row, (free, held), ("without", "with penalty"), strict=True):
            weight = model[layer].weight.detach()
            smaller = as_matrix(weight) if weight[0].numel() >= len(weight) else as_matrix(weight).T
            image = axis.imshow(gram_matrix(smaller).numpy(), cmap="RdBu_r", vmin=-1.5, vmax=1.5)
            axis.set_title(f"{label}\n{name}")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_color(ARMS[0])
    figure.colorbar(image, ax=axes, label="inner product", shrink=0.75, aspect=14)
    return figure


def main(path: Path) -> None:
    torch.manual_seed(0)
    print_table(show_mistakes())
    print("\nSquared Frobenius norm of the Gram matrix minus I, at best:")
    print_table(rows_or_columns())
    print("\nFrobenius norm of the Gram matrix minus I, trained without and with the penalty:")
    rows, free, held = compare()
    print_table(rows)
    save(lambda: draw(free, held), path)
    print(conclusion(rows))


if __name__ == "__main__":
    main(figure_path(__file__))
