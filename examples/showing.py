"""What the programs of docs/cookbook.md share: digits, batches, a printed table, and a figure in the suite's style."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from reproduce.report.style import look

FIGURES = Path(__file__).parents[1] / "runs" / "examples"  # where figures go, if nothing else is said; git ignores it
TRAIN = 1200
RATE = 1e-3  # of Adam


class Digits(NamedTuple):
    """Real 8x8 images (n, 64) with pixels from 0 to 1, and their labels; the last 597 are the test set."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@cache
def digits() -> Digits:
    """The digits that come with scikit-learn."""
    data = load_digits()
    images, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    return Digits(images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:])


def batches(count: int, size: int, steps: int, seed: int = 0) -> Iterator[Tensor]:
    """So many batches of indices below ``count``, in a new order for every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(count, generator=generator)[: count - count % size].split(size):
            if steps == 0:
                return
            steps -= 1
            yield batch


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """One line a row; numbers with three digits."""
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format, na_rep=""))


def save(draw: Callable[[], Figure], path: Path) -> None:
    """Draw in the suite's style, and write the figure where it was asked for."""
    with look(), matplotlib.rc_context({"figure.facecolor": "white"}):
        draw().savefig(path, dpi=150)
    print(f"figure: {path}")


def figure_path(program: str) -> Path:
    """The command line of a program: ``--figure PATH``, else a file in runs/examples; refused before training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--figure", type=Path, help="where the figure goes (PNG, SVG or PDF), else into runs/examples")
    path: Path | None = parser.parse_args().figure
    if path is None:
        FIGURES.mkdir(parents=True, exist_ok=True)
        return FIGURES / f"{Path(program).stem}.png"
    if path.suffix not in {".png", ".svg", ".pdf"}:
        parser.error(f"--figure {path}: a figure is a .png, .svg or .pdf, found {path.suffix or 'no ending'}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        parser.error(f"--figure {path}: {path.parent} is no folder that can be written to: make it, or name another")
    return path
