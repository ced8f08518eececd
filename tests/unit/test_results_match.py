"""Which Results count: equal configs, newest versions, one dataset, and the point that a grid chooses."""

import pytest

from reproduce.experiment.cells import cells
from reproduce.experiment.recipe import Recipe, StepRate
from reproduce.experiment.schema import Arm, Experiment
from reproduce.results.match import ResultIndex, cells_to_train, match


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


def test_a_metric_at_an_epoch_is_read_from_the_curve(make_experiment, make_result):
    """The final number is of the epoch that counts; a metric with @ is of the epoch that it names."""
    experiment = make_experiment()
    (cell, *_) = cells(experiment)
    result = make_result(cell, 7.0)
    curve = [result.epochs[-1].model_copy(update={"epoch": n, "test": {"error": 10.0 - n}}) for n in (2, 4, 6)]
    arm = matched(experiment, [result.model_copy(update={"epochs": curve})]).arms[cell.arm_name]
    assert arm.values("test.error") == {0: 7.0}
    assert [arm.values(f"test.error@{n}") for n in (2, 4, 6)] == [{0: 8.0}, {0: 6.0}, {0: 4.0}]
    assert arm.values("test.error@5") == arm.values("test.loss@4") == {}


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


@pytest.fixture
def choosing(make_experiment):
    """PER chooses among three strengths on seeds 8 and 9; it is judged on 1 and 2, vanilla on 1 to 4; 0 was seen."""
    return make_experiment(
        arms={"vanilla": Arm(), "per": Arm(method="per", grid={"strength": (0.1, 0.2, 0.3)})},
        seeds=(1, 2),
        choosing_seeds=(8, 9),
        baseline_seeds=(1, 2, 3, 4),
        seen_seeds=(0,),
        claims=(),
    )


def results_of(make_result, cells_, best_when_judged=0.1):
    """Strength 0.3 is best on validation where it is chosen; another one where it is judged."""
    best = {True: 0.3, False: best_when_judged}
    return [
        make_result(cell, 7.0, 5.0 if cell.params.get("strength") == best[cell.seed > 7] else 6.0 + cell.seed / 10)
        for cell in cells_
    ]


def test_a_grid_is_chosen_on_seeds_that_are_not_judged(choosing, make_result):
    everything = cells(choosing)
    assert len(everything) == 3 * 2 + 3 * 2 + 4 + 2
    seen = cells(choosing, (0,))
    task = matched(choosing, results_of(make_result, [*everything, *seen]))
    per = task.arms["per"]
    assert per.chosen_grid == {"strength": 0.3}
    assert sorted(per.values("test.error")) == [1, 2]
    assert per.chosen_by.endswith("of 3 points, on seeds 8, 9, which are not judged")
    assert sorted(task.arms["vanilla"].values("test.error")) == [1, 2, 3, 4]
    assert (per.missing, task.arms["vanilla"].missing) == ((), ())
    assert task.planned == 3 * 2 + 2 + 4 + 2


def test_points_that_were_not_chosen_tell_how_seeds_scatter(choosing, make_result):
    few = [cell for cell in cells(choosing) if cell.seed in (8, 9)]
    task = matched(choosing, results_of(make_result, few))
    assert task.arms["per"].chosen is None  # nothing has run that counts
    assert sum(len(point.results) for point in task.arms["per"].points) == 6
    assert task.scatter("validation.error").prior.available == 3  # vanilla's, and two points whose seeds differ


def test_what_is_trained_waits_for_the_choice(choosing, make_result):
    first = cells_to_train(choosing, ResultIndex())
    assert {(cell.arm_name, cell.seed) for cell in first} == {
        *(("vanilla", seed) for seed in (1, 2, 3, 4, 8, 9)),
        ("per", 8),
        ("per", 9),
    }
    assert first[0].seed == 8  # what chooses comes first
    chosen = results_of(make_result, [cell for cell in first if cell.arm_name == "per"])
    some = cells_to_train(choosing, ResultIndex(chosen[:-1]))
    assert some == first
    then = cells_to_train(choosing, ResultIndex(chosen))
    judged = [cell for cell in then if cell.arm_name == "per" and cell.seed < 8]
    assert [(cell.params["strength"], cell.seed) for cell in judged] == [(0.3, 1), (0.3, 2)]
    assert len(then) == 6 + 6 + 2


@pytest.mark.parametrize(("validation", "preferred"), [(4.9, True), (5.1, False)])
def test_a_grids_zero_is_the_baseline(choosing, make_result, validation, preferred):
    """Whether it would have been chosen is told by the seeds that chose, which the baseline's means are without."""
    everything = [cell for cell in cells(choosing) if cell.arm_name == "per"]
    vanilla = [
        make_result(cell, 7.0, validation if cell.seed in (8, 9) else 0.0)
        for cell in cells(choosing)
        if cell.arm_name == "vanilla"
    ]
    task = matched(choosing, [*results_of(make_result, everything), *vanilla])
    assert task.arms["per"].chosen_grid == {"strength": 0.3}  # at 5.0
    assert task.arms["per"].baseline_chosen is preferred
    assert task.arms["vanilla"].baseline_chosen is False
    without = matched(choosing, [*results_of(make_result, everything), *vanilla[2:]])  # one seed of those that choose
    assert without.arms["per"].baseline_chosen is False


def test_a_recipe_is_chosen_like_a_coefficient(make_experiment, make_result):
    grid = {"learning_rate": (0.1, 0.2), "weight_decay": (0.0, 1e-4)}
    experiment = make_experiment(arms={"vanilla": Arm(recipe_grid=grid)}, claims=())
    asked = cells(experiment)
    assert len({(cell.recipe.learning_rate, cell.recipe.weight_decay) for cell in asked}) == 4
    assert {cell.seed for cell in asked} == {0, 1, 2}
    assert all(cell.params == {} for cell in asked)
    results = [
        make_result(cell, 7.0, 5.0 if (cell.recipe.learning_rate, cell.recipe.weight_decay) == (0.2, 1e-4) else 6.0)
        for cell in asked
    ]
    arm = matched(experiment, results).arms["vanilla"]
    assert arm.chosen_grid == {"recipe.learning_rate": 0.2, "recipe.weight_decay": 1e-4}
    assert len(arm.chosen.results) == 3
    assert arm.end_of_grid("recipe.learning_rate") == "highest of 2"
    with pytest.raises(ValueError, match="valid number, found 'fast'"):
        make_experiment(arms={"vanilla": Arm(recipe_grid={"learning_rate": ("fast",)})}, claims=())


def test_seeds_that_only_one_point_has_do_not_choose_it(make_experiment, make_result):
    """Another experiment may have run more seeds of it; the choice is among points on the seeds that all were given."""
    grid = {"strength": (0.1, 0.2)}
    experiment = make_experiment(arms={"per": Arm(method="per", grid=grid)}, baseline=None, seeds=(1, 2), claims=())
    validation = {0.1: 6.0, 0.2: 5.0}
    results = [make_result(cell, 7.0, validation[cell.params["strength"]]) for cell in cells(experiment)]
    more = [cell for cell in cells(experiment, (3, 4, 5)) if cell.params["strength"] == 0.1]
    task = matched(experiment, [*results, *(make_result(cell, 7.0, 1.0) for cell in more)])
    assert task.arms["per"].chosen_grid == {"strength": 0.2}
    assert (task.done, task.planned) == (4, 4)


def test_runs_from_another_start_are_another_arms(make_experiment, make_result):
    arms = {"vanilla": Arm(), "started": Arm(start="variance_preserving_init")}
    experiment = make_experiment(arms=arms, baseline="vanilla", claims=())
    results = [make_result(cell, 7.0 if cell.start is None else 6.0) for cell in cells(experiment)]
    task = matched(experiment, results)
    assert set(task.arms["vanilla"].values("test.error").values()) == {7.0}
    assert set(task.arms["started"].values("test.error").values()) == {6.0}
    assert len({result.id for result in results}) == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"choosing_seeds": (2, 3)}, "2, 3: judged seeds are"),
        ({"seen_seeds": (4,)}, "4: judged seeds are"),
        ({"baseline_seeds": (1, 3)}, "expected a baseline, and all of seeds among its own"),
        ({"baseline": None}, "expected a baseline"),
        ({"arms": {"per": Arm(method="per")}, "baseline": None, "baseline_seeds": ()}, "no arm has a grid"),
    ],
)
def test_seeds_that_cannot_be_are_said(choosing, changes, said):
    with pytest.raises(ValueError, match=f"(?s){said}"):
        Experiment.model_validate({**dict(choosing), **changes})
