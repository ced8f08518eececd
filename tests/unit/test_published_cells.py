"""Counts the numbers of papers that are claimed, and those of them that a run can decide.

A cell is one number that a source prints of one model: a claim at paper scale with a value, of an arm by itself.
Differences of two cells, directions, repeats at reduced scale and claims of our own are not counted. It can run if its
arm is not pending.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from reproduce.experiment.folder import all_methods
from reproduce.experiment.schema import Claim, Experiment

# What the sources print, row by row as they have it, typed a second time: validation and test perplexity.
INAN = {  # Table 1: VD-LSTM, + AL, + RE, + REAL
    "small": "92.6 87.3  86.3 82.9  89.9 85.1  86.3 82.7",
    "medium": "82.0 77.7  77.4 74.7  77.1 73.9  75.7 73.2",
    "large": "76.8 72.6  74.5 71.2  72.5 69.0  71.1 68.5",
}
INAN_ARMS = ("plain", "augmented", "tied", "tied_augmented")
PERPLEXITIES = {
    ("vanilla", "press_wolf_tying"): {  # Tables 5 and 6
        "large": "82.2 78.4",
        "large_tied": "77.7 74.3",
        "large_variational": "78.1 75.2",
        "large_variational_tied": "75.8 73.2",
        "rhn": "71.2 68.5",
        "rhn_tied": "68.1 66.0",
        "small": "120.7 114.5",
        "small_tied": "117.5 112.4",
        "small_projected": "116.0 111.7",
        "small_tied_projected": "104.9 100.9",
    },
    ("vanilla", "recurrent_highway"): {"untied": "71.3 68.3", "tied": "67.9 65.4"},
    ("vanilla", "inan_table1"): {
        f"{size}_{arm}": pair
        for size, row in INAN.items()
        for arm, pair in zip(INAN_ARMS, row.split("  "), strict=True)
    },
}
CHARACTERS = {  # README of nnRNN: bits per character, and accuracy in percent
    "glorot_150": "2.89 40.01",
    "glorot_300": "2.90 39.97",
    "orthogonal_150": "1.62 66.29",
    "orthogonal_300": "1.66 65.53",
}


def cells() -> Iterator[tuple[Experiment, Claim]]:
    for folder in all_methods().values():
        for experiment in folder.experiments().values():
            if experiment.scale == "paper":
                yield from (
                    (experiment, claim)
                    for claim in experiment.claims
                    if claim.value is not None and claim.over is None and not claim.ours
                )


def can_run(experiment: Experiment, claim: Claim) -> bool:
    return not experiment.arms[claim.arm].pending


def test_so_many_published_cells_are_claims_and_can_run() -> None:
    found = list(cells())
    assert len(found) >= 406
    assert sum(can_run(*cell) for cell in found) >= 368


def test_each_cell_is_claimed_once() -> None:
    """By experiment, task, arm, metric and address: a number that stands twice would count twice."""
    found = [(experiment.title, claim.task, claim.arm, claim.metric, claim.source) for experiment, claim in cells()]
    assert len(set(found)) == len(found)


def test_a_cell_that_cannot_run_says_why() -> None:
    for experiment, claim in cells():
        if not can_run(experiment, claim):
            assert len((experiment.arms[claim.arm].pending or "").split()) >= 4, (experiment.title, claim.arm)


def claimed(method: str, name: str) -> dict[tuple[str, str], float | None]:
    experiment = all_methods()[method].experiments()[name]
    return {(claim.arm, claim.metric): claim.value for one, claim in cells() if one.title == experiment.title}


@pytest.mark.parametrize(("method", "name"), PERPLEXITIES)
def test_perplexities_are_those_that_the_source_prints(method: str, name: str) -> None:
    wanted = {}
    for arm, printed in PERPLEXITIES[method, name].items():
        wanted[arm, "validation.perplexity"], wanted[arm, "test.perplexity"] = map(float, printed.split())
    assert claimed(method, name) == wanted


def test_characters_are_those_that_the_source_prints() -> None:
    wanted = {}
    for arm, printed in CHARACTERS.items():
        bits, accuracy = map(Decimal, printed.split())
        wanted[arm, "test.bits_per_character"], wanted[arm, "test.error"] = float(bits), float(100 - accuracy)
    assert claimed("orthogonal", "character_ptb") == wanted
