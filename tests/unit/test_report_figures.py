"""Figures: what they draw, that they are the same bytes every time, and that they follow the page's colours."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from reproduce.report import figures
from reproduce.report.match import match
from reproduce.spec import SpecError, cells


@pytest.fixture
def task(make_experiment, make_results):
    experiment = make_experiment()
    return match(experiment, "digits", make_results(experiment))


@pytest.fixture
def look(task):
    return figures.looks([task.experiment])


def test_seeds_shows_every_seed_and_the_paper(task, look):
    panel = figures.draw("seeds", task, look).axes[0]
    drawn = {tuple(np.asarray(line.get_xdata(), dtype=float)) for line in panel.lines}
    for arm in ("vanilla", "batchnorm", "per"):
        assert tuple(task.arms[arm].values("test.error").values()) in drawn
        assert (task.arms[arm].estimate("test.error").mean,) in drawn
    assert {(7.21,), (7.0,)} <= drawn
    assert [label.get_text() for label in panel.get_yticklabels()] == ["Vanilla", "BN", "PER", "VCL"]


def test_learning_curves_draw_the_mean_of_seeds(task, look):
    figure = figures.draw("learning_curves", task, look)
    panel = figure.axes[0]
    assert panel.get_ylabel() == "validation error (%)"
    means = {line.get_label(): line.get_ydata() for line in panel.lines if not line.get_label().startswith("_")}
    runs = task.arms["vanilla"].chosen.results.values()
    expected = np.mean([[e.validation["error"] for e in run.epochs] for run in runs], axis=0)
    assert np.asarray(means["Vanilla"]) == pytest.approx(expected)


def test_a_diverged_seed_gets_a_cross(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(c, 7.0, diverged=c.arm_name == "per" and c.seed == 2) for c in cells(experiment)]
    task = match(experiment, "digits", results)
    panel = figures.draw("learning_curves", task, figures.looks([experiment])).axes[1]
    (cross,) = [line for line in panel.lines if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == 7  # the last finite loss


def test_a_point_that_does_not_count_is_not_drawn(task, look):
    panel = figures.draw("learning_curves", task, look).axes[1]
    assert not [line for line in panel.lines if line.get_marker() == "x"]


def test_site_statistics_has_a_panel_for_each_site(task, look):
    figure = figures.draw("site_statistics", task, look)
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["layers.0.pre", "layers.0.post", "layers.1.pre", "layers.1.post"]


def test_unit_quantiles_shows_the_last_input_of_an_activation(task, look):
    figure = figures.draw("unit_quantiles", task, look)
    assert [axis.get_title(loc="left") for axis in figure.axes] == [
        f"{label}: layers.1.pre" for label in ("Vanilla", "BN", "PER")
    ]
    record = next(iter(task.arms["vanilla"].chosen.results.values())).epochs[0]
    drawn = sorted(line.get_ydata()[0] for line in figure.axes[0].lines)
    assert tuple(drawn) == tuple(record.sites["layers.1.pre"].unit_quantiles[i] for i in (0, 2, 4))


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_is_the_same_bytes_and_follows_the_page(task, look, name):
    first = figures.svg(figures.draw(name, task, look), name, "a & b")
    second = figures.svg(figures.draw(name, task, look), name, "a & b")
    assert first == second
    root = ElementTree.fromstring(first)
    assert root.attrib["aria-label"] == "a & b"
    assert "width" not in root.attrib
    assert "var(--ink, " in first
    assert "<metadata" not in first
    assert "DejaVu" not in first
    plain = re.sub(r"var\([^)]*\)", "", first)
    assert not re.findall(r"#[0-9a-f]{6}\b", plain)  # nothing keeps a colour that dark mode cannot change


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_nothing_run_draws_nothing(make_experiment, look, name):
    assert figures.draw(name, match(make_experiment(), "digits", []), look) is None


def test_an_unknown_figure_is_named(task, look):
    with pytest.raises(SpecError, match=r"unknown figure 'pie'.*there are seeds"):
        figures.draw("pie", task, look)


def test_arms_keep_their_colour_across_experiments(make_experiment):
    first = make_experiment()
    second = make_experiment(arms=dict(reversed(first.arms.items())))
    both = figures.looks([first, second])
    assert both == figures.looks([first])
    assert len({figures.colour(both, arm) for arm in both}) == len(both)
