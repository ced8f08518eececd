"""What chance alone gives: runs that learned nothing, and the best of many arms that do not differ."""

from __future__ import annotations

import numpy as np
from scipy import special

from reproduce.experiment.dataset_card import DatasetCard

NEAR = 0.97  # of chance level: one class answered to all is a little better or worse than drawing among classes


def chance_level(metric: str, card: DatasetCard) -> float | None:
    """What answering at random comes to: (1 - 1 / classes) of errors in %, a vocabulary's size of a perplexity.

    None for other metrics, and where the card has no such number.
    """
    name = metric.rpartition(".")[2]
    if name in ("error", "classifier_error") and card.classes is not None:
        return 100 * (1 - 1 / card.classes)
    if name == "perplexity" and card.words is not None and card.words.vocabulary is not None:
        return float(card.words.vocabulary)
    return None


def collapsed(values: dict[int, float], metric: str, card: DatasetCard) -> tuple[int, ...]:
    """The seeds that ended at chance level: they count as any other, and a reader must know."""
    level = chance_level(metric, card)
    return () if level is None else tuple(seed for seed, value in values.items() if value >= NEAR * level)


def expected_best(arms: int) -> float:
    """The mean of the largest of so many independent standard normal values, int x k phi(x) Phi(x)^(k - 1) dx."""
    x = np.linspace(-10, 10, 4001)
    density = arms * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * special.ndtr(x) ** (arms - 1)
    return float(np.trapezoid(x * density, x))
