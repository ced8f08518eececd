"""Many tasks at once: means over seeds and folds, the best, ranks, and the Dolan-Moré profile by its definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reproduce.experiment.cells import cells
from reproduce.experiment.schema import Arm, TaskSpec
from reproduce.report import style
from reproduce.report.over_tasks import MOST_RATIO, performance_profile, sentence, table
from reproduce.report.style import ArmColors
from reproduce.results.match import ResultIndex, match
from reproduce.results.over_tasks import MANY, OverTasks, over_tasks, profile

PLAIN = TaskSpec(kind="image_classification", dataset="digits", model="mlp")
ARMS = {"vanilla": Arm(label="Vanilla"), "batchnorm": Arm(method="batchnorm", label="BN")}


def found(means, metric="test.error"):
    """An OverTasks of these means, by problem and arm."""
    labels = {arm: arm.upper() for row in means.values() for arm in row}
    return OverTasks(metric, labels, means, {problem: (1, 1) for problem in means}, ())


@pytest.fixture
def matched(make_experiment):
    """Match Results of an experiment with these tasks."""

    def matched(tasks, results_of, axes=()):
        experiment = make_experiment(tasks=tasks, arms=ARMS, claims=(), axes=dict(axes))
        return match(experiment, ResultIndex(results_of(experiment)))

    return matched


def test_folds_of_a_dataset_are_one_row_and_seeds_are_averaged_first(matched, make_result):
    tasks = {f"digits_{n}": PLAIN.model_copy(update={"fold": n}) for n in range(4)}
    tasks |= {f"other_{n}": PLAIN.model_copy(update={"train_examples": n + 1}) for n in range(2)}
    axes = {f"digits_{n}": {"dataset": "digits", "fold": n} for n in range(4)}
    axes |= {f"other_{n}": {"dataset": "other", "train_examples": n + 1} for n in range(2)}
    value = {name: 10.0 * place for place, name in enumerate(tasks)}

    def results_of(experiment):
        kept = [c for c in cells(experiment) if (c.task_name, c.seed) != ("digits_0", 2)]
        return [make_result(c, value[c.task_name] + c.seed + (c.arm_name == "batchnorm")) for c in kept]

    whole = over_tasks(matched(tasks, results_of, axes))
    assert list(whole.means) == ["digits", "other_0", "other_1"]
    assert whole.means["digits"]["vanilla"] == pytest.approx(np.mean([0.5, 11, 21, 31]))
    assert whole.means["other_1"] == {"vanilla": pytest.approx(51), "batchnorm": pytest.approx(52)}
    assert whole.runs == {"digits": (22, 24), "other_0": (6, 6), "other_1": (6, 6)}
    assert [whole.best(problem) for problem in whole.means] == 3 * [{"vanilla"}]


def test_few_tasks_and_nothing_run_have_no_table(matched, make_results):
    tasks = {f"set_{n}": PLAIN.model_copy(update={"train_examples": n + 1}) for n in range(MANY)}
    assert over_tasks(matched(tasks, lambda experiment: [])) is None
    few = dict(list(tasks.items())[:-1])
    assert over_tasks(matched(few, make_results)) is None
    assert over_tasks(matched(tasks, make_results)).waiting == ()


def test_a_diverged_arm_is_last_and_never_best(matched, make_result):
    tasks = {f"set_{n}": PLAIN.model_copy(update={"train_examples": n + 1}) for n in range(MANY)}

    def results_of(experiment):
        bad = {("set_0", "batchnorm", 1)}
        return [
            make_result(c, 5.0, diverged=(c.task_name, c.arm_name, c.seed) in bad)
            for c in cells(experiment)
            if c.task_name != "set_5"
        ]

    whole = over_tasks(matched(tasks, results_of))
    assert whole.means["set_0"] == {"vanilla": 5.0, "batchnorm": math.inf}
    assert whole.best("set_0") == set()
    assert whole.waiting == ("set_5",)
    assert whole.mean_ranks() == {"vanilla": pytest.approx((1 + 4 * 1.5) / 5), "batchnorm": pytest.approx(1.6)}
    texts = table(whole).rows
    assert texts[0] == ("set_0", "5.00", "diverged", "5 of 6")
    assert texts[1] == ("set_1", "**5.00**", "**5.00**", "6")
    assert " 1 more task is not complete." in sentence(whole)


def test_problems_with_a_missing_arm_do_not_count():
    whole = found({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0, "y": None}, "c": {"x": 4.0, "y": 3.0}})
    assert list(whole.complete) == ["a", "c"]
    assert whole.best("b") == set()
    assert whole.mean_ranks() == {"x": 1.5, "y": 1.5}
    assert {len(shares) for _, shares in profile(whole).values()} == {2}


def test_where_more_is_better_the_most_is_best():
    whole = found({"a": {"x": 90.0, "y": 95.0, "z": math.inf}}, "test.accuracy")
    assert whole.best("a") == {"y"}
    assert whole.mean_ranks() == {"x": 2.0, "y": 1.0, "z": 3.0}
    assert performance_profile(whole, ArmColors({"x": 0, "y": 1, "z": 2})) is None
    with pytest.raises(ValueError, match=r"the less the better; got test\.accuracy"):
        profile(whole)


VALUES = st.one_of(st.floats(0, 100), st.just(math.inf), st.integers(0, 3).map(float))


@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=8), st.floats(1, 5))
def test_a_profile_counts_what_is_within_a_factor_of_the_best(rows, factor):
    whole = found({str(place): dict(zip("xyz", row, strict=True)) for place, row in enumerate(rows)})
    curves = profile(whole)
    for index, arm in enumerate("xyz"):
        ratios, shares = curves[arm]
        reached = max([share for ratio, share in zip(ratios, shares, strict=True) if ratio <= factor], default=0.0)
        within = sum(row[index] < math.inf and row[index] <= factor * min(row) for row in rows)
        assert abs(reached * len(rows) - within) < 1e-9 or any(
            math.isclose(row[index], factor * min(row), rel_tol=1e-12) for row in rows
        )


def test_a_profile_starts_with_the_share_of_best_and_is_drawn_to_its_end():
    whole = found({"a": {"x": 1.0, "y": 1.2}, "b": {"x": 2.0, "y": 1.0}, "c": {"x": 1.0, "y": 9.0}})
    assert profile(whole)["x"] == ([1.0, 1.0, 2.0], [1 / 3, 2 / 3, 1.0])
    (axis,) = performance_profile(whole, ArmColors({"x": 0, "y": 1})).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["X"][-1] == [MOST_RATIO, 1.0]
    assert drawn["Y"][-1] == [MOST_RATIO, pytest.approx(2 / 3)]  # nine times the best is beyond


def test_the_sentence_has_friedmans_p():
    generator = np.random.default_rng(0)
    means = generator.uniform(1, 2, (9, 3))
    rows = {f"set {place}": dict(zip("xyz", map(float, row), strict=True)) for place, row in enumerate(means)}
    p = stats.friedmanchisquare(*means.T).pvalue
    text = sentence(found(rows))
    assert p > 0.05
    assert f"does not tell the arms apart (p = {p:.3f})" in text
    better = {name: {**row, "y": 0.5} for name, row in rows.items()}
    text = sentence(found(better))
    assert "Over 9 tasks “Y” has the best mean rank by test error, 1.00 among 3 arms" in text
    assert "; Friedman's test over tasks tells the arms apart (p = " in text


def test_equal_ranks_share_the_sentence():
    text = sentence(found({"a": {"x": 1.0, "y": 2.0, "z": 3.0}, "b": {"x": 2.0, "y": 1.0, "z": 3.0}}))
    assert text == "Over 2 tasks “X” and “Y” share the best mean rank by test error, 1.50 among 3 arms."


def test_a_drawing_is_the_same_bytes_twice():
    whole = found({"a": {"x": 1.0, "y": 1.2}, "b": {"x": 2.0, "y": 1.0}})
    first, second = (style.svg(performance_profile(whole, ArmColors({"x": 0, "y": 1})), "p") for _ in range(2))
    assert first == second
