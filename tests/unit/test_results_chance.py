"""Chance level from cards, the best of many that do not differ against draws, and what another test set would move."""

import numpy as np
import pytest
from scipy import stats

from reproduce.experiment.dataset_card import read_card
from reproduce.experiment.folder import ROOT
from reproduce.experiment.schema import TaskSpec
from reproduce.results.chance import another_test_set, chance_level, collapsed, expected_best, rows_of_test
from reproduce.results.store import read_results


def test_chance_level_is_that_of_the_card():
    assert chance_level("test.error", read_card("mnist")) == pytest.approx(90)
    assert chance_level("test.classifier_error", read_card("mnist")) == pytest.approx(90)
    assert chance_level("test.perplexity", read_card("ptb")) == 10000
    assert chance_level("test.bits_per_character", read_card("ptb_characters")) == pytest.approx(np.log2(50))
    assert chance_level("test.loss", read_card("mnist")) is None
    assert chance_level("test.error", read_card("ptb")) is None


def test_one_class_answered_to_all_has_collapsed():
    assert collapsed({0: 89.72, 1: 90.95, 2: 70.0, 3: 2.0}, "test.error", read_card("mnist")) == (0, 1)
    assert collapsed({0: 9900.0, 1: 700.0}, "test.perplexity", read_card("ptb")) == (0,)


@pytest.mark.parametrize("arms", [1, 2, 19])
def test_the_best_of_many_equals_draws(arms):
    drawn = np.random.default_rng(0).standard_normal((40000, arms)).max(axis=1).mean()
    assert expected_best(arms) == pytest.approx(drawn, abs=0.02)


@pytest.mark.parametrize(("wrong", "rows"), [(0, 360), (1, 250), (41, 360), (125, 797), (1554, 10000), (250, 250)])
def test_another_test_set_moves_an_error_by_half_of_wilsons_interval(wrong, rows):
    interval = stats.binomtest(wrong, rows).proportion_ci(method="wilson")
    expected = 100 * (interval.high - interval.low) / 2
    assert another_test_set(100 * wrong / rows, rows) == pytest.approx(expected, rel=1e-9)


def test_it_is_where_other_test_sets_lie():
    """Of 20,000 networks that err with the same chance on each row, 95 % lie no further off."""
    drawn = 100 * np.random.default_rng(0).binomial(360, 0.12, 20_000) / 360
    assert np.mean(abs(drawn - 12) <= another_test_set(12.0, 360)) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("error", "rows"), [(-0.1, 10), (100.1, 10), (float("nan"), 10), (5.0, 0)])
def test_no_error_and_no_rows_are_refused(error, rows):
    with pytest.raises(ValueError, match="expected an error from 0 to 100 and 1 row or more, got"):
        another_test_set(error, rows)


@pytest.mark.parametrize("pattern", ["uci_statlog_image-mlp-*", "uci_yeast-mlp-*", "fashion_mnist-mlp-*"])
def test_rows_are_what_the_errors_of_results_are_counted_in(pattern):
    """An error is so many rows of all: 100 k / n for a whole k. The folds of a table differ by one row."""
    paths = sorted((ROOT / "reports" / "evidence").glob(f"{pattern}.json"))[:5]
    results, _ = read_results(paths)
    assert len(results) == 5
    for result in results:
        task = result.config.task
        rows = rows_of_test(TaskSpec(**task.model_dump()), read_card(task.dataset))
        wrong = [result.final.test["error"] * n / 100 for n in (rows - 1, rows, rows + 1)]
        assert any(k == pytest.approx(round(k), abs=1e-6) for k in wrong)


def test_rows_of_the_other_side_of_a_fold_and_of_words():
    card = read_card("uci_yeast")
    spec = TaskSpec(kind="table_classification", dataset="uci_yeast", model="mlp", fold=0, fold_convention="swapped")
    assert rows_of_test(spec, card) == card.table.rows - card.table.rows // card.table.folds
    assert rows_of_test(spec, read_card("ptb")) is None
