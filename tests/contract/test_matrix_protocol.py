"""The matrix's columns: what their recipes say is what the committed tuning of vanilla chose, on seeds that no column
judges."""

from __future__ import annotations

import pytest

from reproduce.experiment.files import COLUMN, read_columns
from reproduce.experiment.folder import ROOT, find_method
from reproduce.results.match import ResultIndex, match
from reproduce.results.store import read_results

COLUMNS = read_columns()
TUNED = {
    name: tuning
    for name, tuning in ((name, f"tuning_{name.removeprefix(COLUMN)}") for name in COLUMNS)
    if tuning in find_method("vanilla").experiments()
}


@pytest.fixture(scope="module")
def evidence() -> ResultIndex:
    results, _ = read_results((ROOT / "reports" / "evidence").glob("*-vanilla-*.json"))
    return ResultIndex(results)


@pytest.mark.parametrize("name", TUNED)
def test_the_recipe_is_the_one_that_was_chosen_for_vanilla(name: str, evidence: ResultIndex) -> None:
    column, tuning = COLUMNS[name], find_method("vanilla").experiments()[TUNED[name]]
    assert column.tasks == tuning.tasks
    assert set(tuning.seeds) == set(column.choosing_seeds)
    (task,) = match(tuning, evidence).values()
    if any(arm.missing for arm in task.arms.values()):  # then nothing of the column has run either
        (waiting,) = match(column, evidence).values()
        assert waiting.results == []
        return
    arm, beyond = task.arms["vanilla"], task.arms.get("beyond")
    assert all({*tuning.seeds} <= point.completed.keys() for point in arm.points)
    assert arm.chosen is not None
    assert not arm.chosen_on_test
    assert column.recipe == tuning.recipe_of(tuning.arms[arm.name], arm.chosen.params)
    ends = {choice: arm.end_of_grid(choice) for choice in arm.chosen_grid}
    if arm.chosen_grid["recipe.weight_decay"] == 0:
        del ends["recipe.weight_decay"]  # nothing lies below
    if beyond is not None:  # higher rates, at which not every run trains
        assert any(len(point.completed) < len(tuning.seeds) for point in beyond.points)
        del ends["recipe.learning_rate"]
    assert not any(ends.values()), f"a better one may lie beyond: {ends}"


@pytest.mark.parametrize("name", TUNED)
def test_no_number_that_was_seen_is_judged(name: str) -> None:
    column = COLUMNS[name]
    assert len(column.baseline_seeds) > 2 * len(column.seeds)  # all arms lean on it
    assert not {*column.seen_seeds} & {*column.baseline_seeds, *column.choosing_seeds}
