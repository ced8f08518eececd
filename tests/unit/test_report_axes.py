"""Axes of lines: what is left to an arrow, which ticks there are, and that names do not overlap."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from reproduce.experiment.cells import cells
from reproduce.report import axes, figures, fronts, style
from reproduce.report.numbers import with_power
from reproduce.results.evaluate import evaluate
from reproduce.results.match import ResultIndex

numbers = st.floats(1e-9, 1e9)


@pytest.mark.parametrize(
    ("extents", "far"),
    [
        ({"a": (1, 2), "b": (1, 3), "c": (2, 3), "d": (40, 50)}, ["d"]),
        ({"a": (1, 2), "b": (1, 3), "c": (2, 3), "d": (2, 4)}, []),  # within their span again
        ({"a": (1, 2), "b": (1, 3), "d": (40, 50)}, []),  # one of three is no outlier
        ({"a": (1, 1), "b": (1, 1), "c": (1, 1), "d": (5, 5)}, []),  # nothing to measure by
        ({"a": (0.1, 1), "b": (0.2, 2), "c": (0.1, 1), "d": (1e-7, 1e-6)}, ["d"]),  # by ratios
        ({"a": (-1, 1), "b": (-2, 1), "c": (0, 1), "d": (-90, 1), "e": (80, 90)}, []),  # two of five: too many
        ({**{str(i): (0, i + 1) for i in range(6)}, "d": (-99, 1), "e": (80, 90)}, ["d", "e"]),  # none hides the other
    ],
)
def test_a_line_far_beyond_the_others_is_left_out(extents, far):
    assert axes.far_ones(extents) == far


def test_diverged_lines_may_all_be_far():
    extents = {"a": (0.1, 2), "b": (0.2, 2), "c": (0.2, 1e9), "d": (0.1, 1e12)}
    assert axes.far_ones(extents, frozenset("cd")) == ["d", "c"]


def test_an_axis_ends_at_what_is_near_and_an_arrow_says_the_rest():
    axis = Figure().subplots()
    axes.set_reach(axis, [(1.0, 2.0), (1.5, 3.0)], seeds=[0.9, 3.2, 30.0], slack=0.25, far=[(77.0, "#000000")])
    low, high = axis.get_ylim()
    assert low < 0.9 and 3.2 < high < 4  # noqa: PT018
    assert [text.get_text() for text in axis.texts] == ["↑ 77"]


@given(low=numbers, ratio=st.floats(6.1, 1e9))
def test_log_ticks_are_few_and_inside(low, ratio):
    ticks = axes.log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= axes.TICKS
    assert all(low <= tick <= low * ratio for tick in ticks)
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.30000000000000004, "0.3"), (1e-6, "10⁻⁶"), (-2.5e-5, "−2.5·10⁻⁵"), (50_000, "50,000"), (-3, "−3")],
)
def test_ticks_are_written_as_people_write(value, text):
    assert axes.tick_text(value) == text


def test_powers_round_up_to_the_next():
    assert (with_power(9.999e-7, 3), with_power(4.016e-06, 3)) == ("10⁻⁶", "4.02·10⁻⁶")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 0.15)), min_size=1, max_size=6))
def test_names_do_not_overlap_and_stay_inside(boxes):
    wanted, heights = zip(*boxes, strict=True)
    places = axes.spread(wanted, heights, 0.0, 1.0)
    order = sorted(range(len(boxes)), key=lambda box: places[box])
    for below, above in itertools.pairwise(order):
        assert places[above] - places[below] >= (heights[above] + heights[below]) / 2 - 1e-9
    assert min(place - height / 2 for place, height in zip(places, heights, strict=True)) >= -1e-9
    assert max(place + height / 2 for place, height in zip(places, heights, strict=True)) <= 1 + 1e-9
    assert sorted(range(len(boxes)), key=lambda box: (wanted[box], box)) == sorted(
        range(len(boxes)), key=lambda box: (places[box], box)
    ) or len(set(wanted)) < len(wanted)


def test_names_that_have_room_stand_where_lines_end():
    assert axes.spread([0.9, 0.1, 0.5], [0.1] * 3, 0.0, 1.0) == pytest.approx([0.9, 0.1, 0.5])
    assert axes.spread([0.5, 0.5], [0.1, 0.3], 0.0, 1.0) == pytest.approx([0.4, 0.6])


def overlapping(axis):
    """Pairs of neighbouring tick labels of an axis that touch."""
    boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_visible() and label.get_text()]
    inside = [box for box in boxes if box.width]
    return [pair for pair in itertools.pairwise(inside) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("spread", [1.0, 1e-6, 3e4])
@pytest.mark.parametrize("name", ["learning_curves", "site_statistics", "unit_quantiles"])
def test_tick_labels_do_not_overlap(make_experiment, make_results, name, spread):
    experiment = make_experiment()
    results = [
        result.model_copy(
            update={
                "epochs": tuple(
                    record.model_copy(
                        update={
                            "step": record.step * 5_000,
                            "train_loss": record.train_loss * spread ** (record.epoch / 7),
                            "sites": {
                                site: one.model_copy(update={"mean_square": spread ** (record.epoch / 7)})
                                for site, one in record.sites.items()
                            },
                        }
                    )
                    for record in result.epochs
                )
            }
        )
        for result in make_results(experiment)
    ]
    task = evaluate("t", experiment, ResultIndex(results)).tasks["digits"]
    with style.look():
        figure = figures.draw(name, task, style.arm_colors([experiment]))
        figure.draw_without_rendering()
        for panel in (axis for axis in figure.axes if axis.axison):
            assert not overlapping(panel.xaxis)
            assert not overlapping(panel.yaxis)
            assert len(panel.get_yticks()) <= 2 * axes.TICKS


def many_arms(make_experiment, make_result, **changes):
    """The higher its strength, the better an arm of PER."""
    arms = {"vanilla": {}, "batchnorm": {"method": "batchnorm"}}
    arms |= {f"per_{place}": {"method": "per", "params": {"strength": place / 10}} for place in range(1, 12)}
    experiment = make_experiment(arms=arms, **changes)
    levels = {name: 7.0 + 0.01 * name.startswith("v") - 0.1 * place for place, name in enumerate(arms)}
    results = [make_result(cell, levels[cell.arm_name] + 0.01 * cell.seed) for cell in cells(experiment)]
    return evaluate("t", experiment, ResultIndex(results)).tasks["digits"]


def test_in_front_are_the_baseline_the_best_by_validation_and_the_papers_claims(make_experiment, make_result):
    one = {"task": "digits", "over": "vanilla", "metric": "test.error", "direction": "lower"}
    claims = ({**one, "arm": "per_9", "source": "ours"}, {**one, "arm": "per_7", "source": "Table 1"})
    task = many_arms(make_experiment, make_result, claims=claims)
    assert fronts.front(task) == ["vanilla", "per_11", "per_7", "per_9", "batchnorm", "per_1"]


def test_arms_behind_are_grey_and_in_the_table(make_experiment, make_result):
    task = many_arms(make_experiment, make_result, claims=())
    colors = style.arm_colors([task.experiment])
    figure = figures.draw("learning_curves", task, colors)
    strong = {line.get_label(): line.get_color() for line in figure.axes[0].lines if line.get_label()[0] != "_"}
    assert len(strong) == 13
    in_front = {task.runs.arms[name].label for name in fronts.front(task)}
    assert {label for label, color in strong.items() if color != style.QUIET} == in_front
    named = {text.get_text() for axis in figure.axes if not axis.axison for text in axis.texts}
    assert named == in_front
    drawing = figures.drawing("learning_curves", task, colors)
    assert "In grey: 7 more arms" in drawing.caption
    assert all(f"<bdi>{label}</bdi>" in drawing.table for label in strong)


def test_arms_of_one_experiment_have_hues_of_their_own(make_experiment):
    first = make_experiment(arms={"vanilla": {}, **{f"a{i}": {} for i in range(4)}}, claims=())
    second = make_experiment(arms={"vanilla": {}, **{f"b{i}": {} for i in range(7)}}, claims=())
    colors = style.arm_colors([first, second])
    assert colors.places["vanilla"] == 0
    for experiment in (first, second):
        assert len({colors.color(arm) for arm in experiment.arms}) == len(experiment.arms)
    looks = {(colors.color(arm), colors.dash(arm)) for arm in colors.places}
    assert len(looks) == len(colors.places) == 12
