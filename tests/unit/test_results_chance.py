"""Chance level from cards, and the best of many that do not differ against draws."""

import numpy as np
import pytest

from reproduce.experiment.dataset_card import read_card
from reproduce.results.chance import chance_level, collapsed, expected_best


def test_chance_level_is_that_of_the_card():
    assert chance_level("test.error", read_card("mnist")) == pytest.approx(90)
    assert chance_level("test.classifier_error", read_card("mnist")) == pytest.approx(90)
    assert chance_level("test.perplexity", read_card("ptb")) == 10000
    assert chance_level("test.loss", read_card("mnist")) is None
    assert chance_level("test.error", read_card("ptb")) is None


def test_one_class_answered_to_all_has_collapsed():
    assert collapsed({0: 89.72, 1: 90.95, 2: 70.0, 3: 2.0}, "test.error", read_card("mnist")) == (0, 1)
    assert collapsed({0: 9900.0, 1: 700.0}, "test.perplexity", read_card("ptb")) == (0,)


@pytest.mark.parametrize("arms", [1, 2, 19])
def test_the_best_of_many_equals_draws(arms):
    drawn = np.random.default_rng(0).standard_normal((40000, arms)).max(axis=1).mean()
    assert expected_best(arms) == pytest.approx(drawn, abs=0.02)
