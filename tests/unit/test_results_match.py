"""Which Results count: equal configs, newest versions, one dataset, and the point that a grid chooses."""

import pytest

from reproduce.experiment.schema import Arm, Recipe, StepRate, cells
from reproduce.results.match import ResultIndex, match


def matched(experiment, results):
    return match(experiment, ResultIndex(results))["digits"]


def test_every_cell_finds_its_result(make_experiment, make_results):
    experiment = make_experiment()
    results = make_results(experiment)
    task = matched(experiment, reversed(results))
    assert sorted(r.id for r in task.results) == sorted(r.id for r in results)
    assert list(task.arms["vanilla"].values("test.error")) == [0, 1, 2]
    assert task.arms["vcl"].chosen is None
    assert (task.superseded, task.notes) == ((), ())


def test_defaults_and_spelling_do_not_matter(make_experiment, make_result):
    recipe = Recipe(epochs=8, batch_size=32, learning_rate=1, schedule=StepRate(kind="step", milestones=(3, 5)))
    arms = {"per": Arm(method="per", params={"strength": 1, "mode": "exact"})}
    experiment = make_experiment(arms=arms, recipe=recipe, baseline=None, claims=())
    (cell, *_) = cells(experiment)
    bare = cell.model_copy(update={"params": {"strength": 1.0}})
    assert matched(experiment, [make_result(bare, 7.0)]).arms["per"].values("test.error") == {0: 7.0}
    other = cell.model_copy(update={"params": {"strength": 1.0, "mode": "sliced"}})
    assert matched(experiment, [make_result(other, 7.0)]).arms["per"].chosen is None


def test_a_true_is_not_a_one(make_experiment, make_result):
    experiment = make_experiment(arms={"a": Arm(params={"flag": 1})}, baseline=None, claims=())
    cell = cells(experiment)[0].model_copy(update={"params": {"flag": True}})
    assert matched(experiment, [make_result(cell, 7.0)]).results == []


@pytest.mark.parametrize("change", [{"learning_rate": 0.2}, {"epochs": 9}, {"selection": "best_validation"}])
def test_another_recipe_is_another_run(make_experiment, make_result, change):
    experiment = make_experiment()
    (cell, *_) = cells(experiment)
    cell = cell.model_copy(update={"recipe": cell.recipe.model_copy(update=change)})
    assert matched(experiment, [make_result(cell, 7.0)]).results == []


def test_seeds_beyond_the_planned_count(make_experiment, make_result):
    experiment = make_experiment()
    (cell,) = (c for c in cells(experiment, seeds=(17,)) if c.arm_name == "vanilla")
    arm = matched(experiment, [make_result(cell, 7.0)]).arms["vanilla"]
    assert arm.values("test.error") == {17: 7.0}
    assert arm.missing == (0, 1, 2)


@pytest.mark.parametrize(
    ("older", "newer", "said"),
    [
        ({"method_version": 1}, {"method_version": 2}, "Only version 2 of vanilla"),
        ({"loop_version": 1}, {"loop_version": 2}, "Only runs of loop version 2"),
        (
            {"dataset_checksum": "a" * 64, "finished": "2026-01-01"},
            {"dataset_checksum": "b" * 64, "finished": "2026-01-02"},
            "data bbbbbbbbbbbb counts",
        ),
    ],
)
def test_only_the_newest_counts_and_the_rest_is_superseded(make_experiment, make_result, older, newer, said):
    experiment = make_experiment()
    first, second = [cell for cell in cells(experiment) if cell.arm_name == "vanilla"][:2]
    results = [make_result(first, 9.0, **older), make_result(first, 7.0, **newer), make_result(second, 9.0, **older)]
    task = matched(experiment, results)
    assert task.arms["vanilla"].values("test.error") == {0: 7.0}
    assert len(task.superseded) == 2
    assert len(task.notes) == 1
    assert said in task.notes[0]


def test_a_grid_is_chosen_by_validation_and_not_by_test(make_experiment, make_result):
    experiment = make_experiment()
    results = []
    for cell in cells(experiment):
        better = cell.params.get("strength") == 1e-3
        results.append(make_result(cell, 9.0 if better else 5.0, 4.0 if better else 6.0))
    arm = matched(experiment, results).arms["per"]
    assert arm.chosen_grid == {"strength": 1e-3}
    assert "validation" in arm.chosen_by
    assert not arm.chosen_on_test


def test_without_validation_the_test_metric_chooses_and_says_so(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(c, 5.0 if c.params.get("strength") == 1e-4 else 6.0) for c in cells(experiment)]
    arm = matched(experiment, results).arms["per"]
    assert arm.chosen_grid == {"strength": 1e-4}
    assert arm.chosen_on_test
    assert "test" in arm.chosen_by


def test_a_point_with_a_diverged_seed_loses_to_a_complete_one(make_experiment, make_result):
    experiment = make_experiment()
    results = []
    for cell in cells(experiment):
        risky = cell.params.get("strength") == 1e-3
        results.append(
            make_result(cell, 1.0 if risky else 7.0, 1.0 if risky else 7.0, diverged=risky and cell.seed == 1)
        )
    arm = matched(experiment, results).arms["per"]
    assert arm.chosen_grid == {"strength": 1e-4}
    assert arm.diverged == 0


def test_where_every_point_diverges_that_is_what_is_shown(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(cell, 7.0, diverged=cell.arm_name == "per") for cell in cells(experiment)]
    arm = matched(experiment, results).arms["per"]
    assert (arm.diverged, arm.values("test.error")) == (3, {})
    assert "every point diverged" in arm.chosen_by
