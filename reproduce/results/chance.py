"""What chance alone gives: runs that learned nothing, the best of many arms that do not differ, another test set."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.metrics import place_of_metric
from reproduce.experiment.schema import TaskSpec

ERRORS = ("error", "classifier_error")  # shares of test rows, in percent
NEAR = 0.97  # of chance level: one class answered to all is a little better or worse than drawing among classes


def chance_level(metric: str, card: DatasetCard) -> float | None:
    """What answering at random comes to: (1 - 1 / classes) of errors in %, a vocabulary's size of a perplexity,
    and its logarithm of bits per character.

    None for other metrics, and where the card has no such number.
    """
    name = place_of_metric(metric).name
    if name in ERRORS and card.classes is not None:
        return 100 * (1 - 1 / card.classes)
    if card.words is not None and card.words.vocabulary is not None:
        vocabulary = float(card.words.vocabulary)
        return {"perplexity": vocabulary, "bits_per_character": math.log2(vocabulary)}.get(name)
    return None


def collapsed(values: dict[int, float], metric: str, card: DatasetCard) -> tuple[int, ...]:
    """The seeds that ended at chance level: they count as any other, and a reader must know."""
    level = chance_level(metric, card)
    return () if level is None else tuple(seed for seed, value in values.items() if value >= NEAR * level)


def rows_of_test(spec: TaskSpec, card: DatasetCard) -> int | None:
    """How many rows of the card's data a task is tested on; of a table by its folds, which differ by a row or so.

    None where rows are not what is counted.
    """
    if card.table is not None:
        if (rows := card.table.rows) is None:
            return None
        inside = rows / card.table.folds
        return round(rows - inside if spec.fold_convention == "swapped" else inside)
    return card.splits.get("test")


def another_test_set(error: float, rows: int) -> float:
    """How far another test set of so many rows may move an error in percent: half of Wilson's 95 % interval (1927),
    ``z / (1 + z^2/n) sqrt(p (1 - p) / n + z^2 / (4 n^2))``, p the error, n the rows.

    Seeds that are tested on the same rows share this; of their mean it is the most.

    Raises:
        ValueError: an error that is no percentage, or no rows.
    """
    if not 0 <= error <= 100 or rows < 1:
        raise ValueError(f"expected an error from 0 to 100 and 1 row or more, got {error} and {rows}")
    p, z = error / 100, float(special.ndtri(0.975))
    return 100 * z / (1 + z**2 / rows) * math.sqrt(p * (1 - p) / rows + z**2 / (4 * rows**2))


def expected_best(arms: int) -> float:
    """The mean of the largest of so many independent standard normal values, int x k phi(x) Phi(x)^(k - 1) dx."""
    x = np.linspace(-10, 10, 4001)
    density = arms * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * special.ndtr(x) ** (arms - 1)
    return float(np.trapezoid(x * density, x))
