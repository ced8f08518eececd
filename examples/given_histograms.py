"""Two ReLU outputs whose histograms over an epoch follow two given laws, beside a squared error: how?

`python examples/given_histograms.py` trains two outputs to guess how much ink two quarters of a digit hold, from the
upper left quarter, while one shall have a given histogram and the other a given density. It compares no penalty, the
Wasserstein distance and the divergence to both, small batches without and with a memory, and the usual advice of L2
after batch normalization; and shows what "per unit" and "per channel" mean for a map.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import expon, wasserstein_distance
from showing import batches, digits, figure_path, print_table, save
from torch import Tensor, nn
from torch.distributions import Gamma, Normal

from methods.activity_prior.method import Histogram, Law, Laws, Memory, prior_loss
from reproduce.report.style import ARMS, QUIET, WIDTH

BINS = Histogram([0.0, 0.5, 1.0, 1.5, 2.0], [1.0, 4.0, 1.0, 4.0])  # two humps
DENSITY = Gamma(torch.tensor(2.0), torch.tensor(2.0))  # mean 1; any distribution of torch with an icdf or a cdf
LAWS = Laws([BINS, DENSITY])  # one for each output; made once, it keeps its quantiles from step to step
DRAWN = 100_000


class Arm(NamedTuple):
    """Batch size, and the penalty of a batch's outputs (n, 2)."""

    name: str
    batch: int
    penalty: Callable[[Tensor], Tensor] | None = None
    batchnorm: bool = False


class Network(nn.Module):
    """The upper left quarter of a digit to two outputs behind a ReLU."""

    def __init__(self, batchnorm: bool) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 2))
        nn.init.ones_(self.hidden[2].bias)  # alive from the start: a unit that is 0 on all samples has no gradient
        self.norm = nn.BatchNorm1d(2) if batchnorm else nn.Identity()

    def forward(self, quarter: Tensor) -> Tensor:
        return self.norm(self.hidden(quarter).relu())


def by_rank(quantity: Tensor, law: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Numbers whose order is that of a quantity, and whose distribution is a law with this quantile function."""
    level = (quantity.argsort().argsort().double() + 0.5) / len(quantity)
    return torch.from_numpy(law(level.numpy())).float()


def data() -> tuple[Tensor, Tensor]:
    """Quarters (n, 16), and targets (n, 2) that have both laws: the ink of two other quarters, as ranks."""
    images = digits().images.view(-1, 8, 8)
    ink = images[:, 4:, :4].sum((1, 2)), images[:, 4:, 4:].sum((1, 2))
    humps = by_rank(ink[0], lambda level: np.interp(level, np.array([0, 1, 5, 6, 10]) / 10, BINS.edges))
    gamma = by_rank(ink[1], lambda level: np.quantile(samples_of_density(), level))
    return images[:, :4, :4].flatten(1), torch.stack([humps, gamma], 1)


def samples_of_density() -> np.ndarray:
    """A sum of two exponentials with mean 1/2 is Gamma(2, 2)."""
    return expon.rvs(scale=0.5, size=(DRAWN, 2), random_state=0).sum(1)


def arms() -> list[Arm]:
    memory = Memory(capacity=64, units=2)
    return [
        Arm("squared error alone, batch 256", 256),
        Arm("Wasserstein, batch 256", 256, lambda outputs: 30 * prior_loss(outputs, LAWS, distance="wasserstein2")),
        Arm("KL to both, batch 256", 256, lambda outputs: 2 * prior_loss(outputs, LAWS, distance="kl")),
        Arm("Wasserstein, batch 8", 8, lambda outputs: 30 * prior_loss(outputs, LAWS, distance="wasserstein2")),
        Arm(
            "Wasserstein, batch 8, memory 64",
            8,
            lambda outputs: 30 * prior_loss(outputs, LAWS, distance="wasserstein2", memory=memory),
        ),
        Arm("L2 after batchnorm, batch 256", 256, lambda outputs: outputs.square().mean(), batchnorm=True),
    ]


def train(arm: Arm, steps: int = 500) -> tuple[Tensor, float]:
    """The outputs over one epoch (n, 2), and their mean squared error."""
    torch.manual_seed(0)
    model, (quarters, targets) = Network(arm.batchnorm), data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in batches(len(quarters), arm.batch, steps):
        outputs = model(quarters[batch])
        loss = (outputs - targets[batch]).square().mean()
        if arm.penalty is not None:
            loss = loss + arm.penalty(outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    with torch.no_grad():
        outputs = model.eval()(quarters)
        return outputs, float((outputs - targets).square().mean())


def distances(outputs: Tensor) -> list[float]:
    """The Wasserstein distance of each output's histogram to its law."""
    level = (np.arange(DRAWN) + 0.5) / DRAWN
    laws = np.interp(level, np.array([0, 1, 5, 6, 10]) / 10, BINS.edges), samples_of_density()
    return [float(wasserstein_distance(column, law)) for column, law in zip(outputs.T.numpy(), laws, strict=True)]


def compare() -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """A row for each arm, and the outputs of each."""
    rows, outputs = [], {}
    for arm in arms():
        outputs[arm.name], error = train(arm)
        first, second = distances(outputs[arm.name])
        rows.append({"penalty": arm.name, "to histogram": first, "to density": second, "squared error": error})
    return rows, outputs


def conclusion(rows: list[dict[str, Any]]) -> str:
    found = {row["penalty"]: row for row in rows}
    alone, held = found["squared error alone, batch 256"], found["Wasserstein, batch 256"]
    return (
        f"The Wasserstein penalty brings the histograms from {alone['to histogram']:.2f} and {alone['to density']:.2f} "
        f"to {held['to histogram']:.2f} and {held['to density']:.2f} from their laws, and the squared error from "
        f"{alone['squared error']:.2f} to {held['squared error']:.2f}."
    )


def units_and_channels() -> list[dict[str, Any]]:
    """What one law for each unit, and for each channel, means for a map (samples, 3 channels, 4, 4)."""
    maps = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    laws: list[Law] = [Normal(0.0, 1.0), Normal(0.0, 2.0), Normal(1.0, 1.0)]
    per_channel = maps.movedim(1, -1)  # (64, 4, 4, 3): all axes but the last count samples
    per_unit = maps.flatten(1)  # (64, 48): each location of each channel by itself
    return [
        {"per": name, "histograms": given.shape[-1], "samples of each": given[..., 0].numel(), "loss": loss.item()}
        for name, given, loss in (
            ("channel", per_channel, prior_loss(per_channel, laws)),
            ("unit", per_unit, prior_loss(per_unit, [law for law in laws for _ in range(16)])),
        )
    ]


def draw(outputs: dict[str, Tensor]) -> Figure:
    """Histograms of both outputs for four arms, over the laws that were asked for."""
    chosen = [name for name in outputs if "batch 256" in name]
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(2, len(chosen), sharex="row", sharey="row")
    fine = torch.linspace(0.01, 3.5, 200)
    shares = np.array(BINS.counts) / sum(BINS.counts) / np.diff(BINS.edges)
    for column, (name, color) in enumerate(zip(chosen, ARMS, strict=False)):
        for row, high in ((0, 2.5), (1, 3.5)):
            axis = axes[row, column]
            counted = outputs[name][:, row].clamp(-0.5, high).numpy()
            axis.hist(counted, np.linspace(-0.5, high, 31), density=True, color=color, alpha=0.75)
            axis.set_yticks([])
        axes[0, column].stairs(shares, BINS.edges, color=QUIET, linewidth=1.4)
        axes[1, column].plot(fine, DENSITY.log_prob(fine).exp(), color=QUIET, linewidth=1.4)
        axes[0, column].set_title(name.removesuffix(", batch 256"))
        axes[1, column].set_xlabel("output")
    axes[0, 0].set_ylabel("first: a histogram")
    axes[1, 0].set_ylabel("second: a density")
    return figure


def main(path: Path) -> None:
    rows, outputs = compare()
    print("Wasserstein distance of each output's histogram over an epoch to the law that it was given:")
    print_table(rows)
    print("\nA map (64, 3, 4, 4) with a law for each:")
    print_table(units_and_channels())
    save(lambda: draw(outputs), path)
    print(conclusion(rows))


if __name__ == "__main__":
    main(figure_path(__file__))
