"""Figures: what they draw, that they are the same bytes every time, and that they follow the page's colors."""

import re
import warnings
import xml.etree.ElementTree as ElementTree
from typing import get_args

import numpy as np
import pytest
from matplotlib.figure import Figure

from reproduce.errors import UserError
from reproduce.experiment.cells import cells
from reproduce.experiment.schema import FigureName
from reproduce.report import figures, style
from reproduce.results.evaluate import evaluate
from reproduce.results.match import ResultIndex
from reproduce.results.record import KernelSpectrum


def evaluated(experiment, results):
    return evaluate("table9", experiment, ResultIndex(results)).tasks["digits"]


@pytest.fixture
def task(make_experiment, make_results):
    experiment = make_experiment()
    return evaluated(experiment, make_results(experiment))


@pytest.fixture
def full(make_experiment, make_results):
    """A task whose Results have something for every figure."""
    experiment = make_experiment()
    names = [f"layers.{layer}.{role}" for layer in range(4) for role in ("pre", "post")]
    return evaluated(experiment, with_kernels(with_new_statistics(with_sites(make_results(experiment), names))))


@pytest.fixture
def colors(task):
    return style.arm_colors([task.experiment])


def test_seeds_shows_every_seed_and_the_paper(task, colors):
    panel = figures.draw("seeds", task, colors).axes[0]
    drawn = {tuple(np.asarray(line.get_xdata(), dtype=float)) for line in panel.lines}
    for arm in ("vanilla", "batchnorm", "per"):
        assert tuple(task.runs.arms[arm].values("test.error").values()) in drawn
        assert (task.runs.arms[arm].mean("test.error"),) in drawn
    assert {(7.21,), (7.0,)} <= drawn
    assert [label.get_text() for label in panel.get_yticklabels()] == ["Vanilla", "BN", "PER", "VCL"]


def test_learning_curves_draw_the_mean_of_seeds(task, colors):
    figure = figures.draw("learning_curves", task, colors)
    panel = figure.axes[0]
    assert panel.get_ylabel() == "validation error (%)"
    means = {line.get_label(): line.get_ydata() for line in panel.lines if not line.get_label().startswith("_")}
    runs = task.runs.arms["vanilla"].chosen.results.values()
    expected = np.mean([[e.validation["error"] for e in run.epochs] for run in runs], axis=0)
    assert np.asarray(means["Vanilla"]) == pytest.approx(expected)


def test_a_single_evaluation_is_a_point_beside_curves_and_no_curve_by_itself(make_experiment, make_results):
    experiment = make_experiment()
    results = make_results(experiment)
    short = [r.model_copy(update={"epochs": r.epochs[-1:]}) for r in results]
    colors = style.arm_colors([experiment])
    mixed = [s if r.config.method == "batchnorm" else r for r, s in zip(results, short, strict=True)]
    panel = figures.draw("learning_curves", evaluated(experiment, mixed), colors).axes[0]
    markers = {line.get_label(): line.get_marker() for line in panel.lines if line.get_label() in ("BN", "PER")}
    assert markers == {"BN": "o", "PER": "None"}
    assert figures.draw("learning_curves", evaluated(experiment, short), colors) is None


def test_a_diverged_seed_gets_a_cross(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(c, 7.0, diverged=c.arm_name == "per" and c.seed == 2) for c in cells(experiment)]
    task = evaluated(experiment, results)
    panel = figures.draw("learning_curves", task, style.arm_colors([experiment])).axes[1]
    (cross,) = [line for line in panel.lines if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == 7  # the last finite loss


def test_a_point_that_does_not_count_is_not_drawn(task, colors):
    panel = figures.draw("learning_curves", task, colors).axes[1]
    assert not [line for line in panel.lines if line.get_marker() == "x"]


def test_paired_differences_are_taken_seed_by_seed(task, colors):
    panel = figures.draw("paired_differences", task, colors).axes[0]
    values, over = (task.runs.arms[arm].values("test.error") for arm in ("per", "vanilla"))
    pairs = [values[seed] - over[seed] for seed in (0, 1, 2)]
    row = {line.get_marker(): line.get_xdata() for line in panel.lines if set(line.get_ydata()) == {1}}
    assert row["o"] == pytest.approx(pairs)
    assert row["|"] == pytest.approx([np.mean(pairs)])
    interval = task.row("test.error", "per").difference.estimate.interval
    assert row["None"] == pytest.approx([interval.low, interval.high])
    assert [label.get_text() for label in panel.get_yticklabels()] == ["BN", "PER", "VCL"]
    assert [text.get_text() for text in panel.texts] == ["not run"]
    assert panel.get_xlabel() == "test error (%), minus Vanilla"
    assert any(tuple(line.get_xdata()) == (0, 0) for line in panel.lines)


@pytest.mark.parametrize(("far", "said"), [(60.0, ["+60.00 →"]), (-60.0, ["← −60.00"]), (0.5, [])])
def test_one_arm_far_beyond_the_others_is_an_arrow(make_experiment, make_result, far, said):
    """BN differs by up to half a point; PER by 60, or by 0.5, within twice the reach of its interval."""
    experiment = make_experiment()
    away = {
        "vanilla": lambda seed: 0.0,
        "batchnorm": lambda seed: (
            0.25 * seed - 0.25
        ),  # by the seed, or from the mean of a baseline that does not scatter
        "per": lambda seed: far + 0.1 * seed - 0.1,
    }
    results = [make_result(c, 70.0 + away[c.arm_name](c.seed)) for c in cells(experiment) if c.arm_name in away]
    task = evaluated(experiment, results)
    panel = figures.draw("paired_differences", task, style.arm_colors([experiment])).axes[0]
    assert [text.get_text() for text in panel.texts if text.get_text() != "not run"] == said
    low, high = panel.get_xlim()
    assert (low <= far <= high) == (not said)
    assert low < 0 < 0.25 < high


@pytest.mark.parametrize(
    ("arm", "said"), [("per", ["seeds of PER diverged"]), ("vanilla", 2 * ["seeds of Vanilla diverged"])]
)
def test_a_paired_difference_has_no_mean_over_survivors(make_experiment, make_result, arm, said):
    experiment = make_experiment()
    results = [make_result(c, 7.0 + c.seed, diverged=c.arm_name == arm and c.seed == 2) for c in cells(experiment)]
    task = evaluated(experiment, results)
    panel = figures.draw("paired_differences", task, style.arm_colors([experiment])).axes[0]
    assert [text.get_text() for text in panel.texts] == [*said, "not run"]
    assert sum(line.get_marker() == "|" for line in panel.lines) == 2 - len(said)


def test_no_baseline_leaves_no_paired_difference(make_experiment, make_results, colors):
    experiment = make_experiment(baseline=None)
    task = evaluated(experiment, make_results(experiment))
    assert figures.draw("paired_differences", task, colors) is None


def with_sites(results, names, **changes):
    """The same Results with these Sites in every record, in the order in which sealed files keep them."""
    found = []
    for result in results:
        one = next(iter(result.epochs[0].sites.values()))
        sites = {name: one.model_copy(update={"mean_square": 1.0 + place}) for place, name in enumerate(sorted(names))}
        config = result.config.model_copy(update={"params": {**result.config.params, **changes}})
        epochs = tuple(record.model_copy(update={"sites": sites}) for record in result.epochs)
        found.append(result.model_copy(update={"epochs": epochs, "config": config}))
    return found


def panels_of(figure):
    """The panels that show something: names stand in one of their own."""
    return [axis for axis in figure.axes if axis.axison]


def test_site_statistics_shows_three_numbers_for_each_layer_and_arm(task, colors):
    panels = panels_of(figures.draw("site_statistics", task, colors))
    assert [axis.get_title(loc="left") for axis in panels[:2]] == ["layers.0.post", "layers.1.post"]
    assert [axis.get_ylabel() for axis in panels[::2]] == ["mean square", "norm dispersion", "effective rank"]
    runs = list(task.runs.arms["per"].chosen.results.values())
    for axis, name in zip(panels[::2], ("mean_square", "norm_dispersion", "effective_rank"), strict=True):
        table = np.array([[getattr(e.sites["layers.0.post"], name) for e in run.epochs] for run in runs])
        means = {line.get_label(): line.get_ydata() for line in axis.lines if not line.get_label().startswith("_")}
        assert list(means) == ["Vanilla", "BN", "PER"]
        assert means["PER"] == pytest.approx(table.mean(0))
        bars = [tuple(line.get_ydata()) for line in axis.lines if len(set(line.get_xdata())) < len(line.get_xdata())]
        assert bars[-1] == (table[:, -1].min(), table[:, -1].max())


def test_site_statistics_goes_from_first_to_last_layer(make_experiment, make_results):
    experiment = make_experiment(arms={"vanilla": {}, "batchnorm": {"method": "batchnorm"}}, claims=())
    names = [f"layers.{layer}.{role}" for layer in range(11) for role in ("pre", "post")]
    results = with_sites(make_results(experiment), names)
    figure = figures.draw("site_statistics", evaluated(experiment, results), style.arm_colors([experiment]))
    assert [axis.get_title(loc="left") for axis in figure.axes[:4]] == [f"layers.{n}.post" for n in (0, 3, 7, 10)]


def test_sites_stand_in_the_order_that_a_result_keeps(make_experiment, make_results):
    """Older Results keep none: names alone then say what comes first."""
    experiment = make_experiment(arms={"per": {"method": "per", "params": {"sites": "post"}}}, baseline=None, claims=())
    names = ["z.post", "a.post", "m.post"]
    results = with_sites(make_results(experiment), names)
    kept = [result.model_copy(update={"site_order": tuple(names)}) for result in results]
    for found, expected in ((results, sorted(names)), (kept, names)):
        figure = figures.draw("site_statistics", evaluated(experiment, found), style.arm_colors([experiment]))
        assert [axis.get_title(loc="left") for axis in figure.axes[:3]] == expected


def test_site_statistics_shows_the_role_that_methods_act_on(make_experiment, make_results):
    experiment = make_experiment(arms={"per": {"method": "per", "params": {"sites": "pre"}}}, baseline=None, claims=())
    results = with_sites(make_results(experiment), ["pre", "blocks.0.pre_1", "blocks.0.post_1", "blocks.0.pre_2"])
    figure = figures.draw("site_statistics", evaluated(experiment, results), style.arm_colors([experiment]))
    assert [axis.get_title(loc="left") for axis in figure.axes[:3]] == ["blocks.0.pre_1", "blocks.0.pre_2", "pre"]


def with_new_statistics(results, **changes):
    """Results as they are sealed today: with what older ones do not hold."""
    values = {"sample_variance": 0.5, "distance_to_normal": 0.25, **changes}
    return [
        result.model_copy(
            update={
                "epochs": tuple(
                    record.model_copy(
                        update={"sites": {name: s.model_copy(update=values) for name, s in record.sites.items()}}
                    )
                    for record in result.epochs
                )
            }
        )
        for result in results
    ]


def test_unit_quantiles_shows_a_band_for_each_method_at_each_layer(task, colors):
    figure = figures.draw("unit_quantiles", task, colors)
    assert [axis.get_title(loc="left") for axis in figure.axes[:3]] == ["Vanilla", "BN", "PER"]
    assert [axis.get_label() for axis in figure.axes[:4]] == [
        "layers.0.pre, Vanilla", "layers.0.pre, BN", "layers.0.pre, PER", "layers.1.pre, Vanilla",
    ]  # fmt: skip
    record = next(iter(task.runs.arms["vanilla"].chosen.results.values())).epochs[0]
    drawn = sorted(line.get_ydata()[0] for line in figure.axes[3].lines)
    assert tuple(drawn) == tuple(record.sites["layers.1.pre"].unit_quantiles[i] for i in (0, 2, 4))
    assert len({axis.get_ylim() for axis in figure.axes[:3]}) == 1  # side by side, on one scale


def test_panels_of_a_unit_keep_one_scale_where_one_arm_is_far_beyond(make_experiment, make_results):
    experiment = make_experiment()

    def scaled(result):
        factor = 50 if result.config.method == "per" else 1
        (quantiles,) = {site.unit_quantiles for site in (result.epochs[0].sites["layers.1.pre"],)}
        return with_new_statistics([result], unit_quantiles=tuple(factor * value for value in quantiles))[0]

    task = evaluated(experiment, [scaled(result) for result in make_results(experiment)])
    vanilla, batchnorm, per = figures.draw("unit_quantiles", task, style.arm_colors([experiment])).axes[3:6]
    assert vanilla.get_ylim() == batchnorm.get_ylim() == per.get_ylim()
    assert max(map(abs, vanilla.get_ylim())) < 10
    assert [len(axis.texts) for axis in (vanilla, batchnorm, per)] == [0, 0, 1]


def test_mean_and_variance_of_a_unit_stand_beside_its_quantiles_where_its_histogram_was_kept(
    make_experiment, make_results
):
    values = np.random.default_rng(0).normal(2.0, 3.0, 10_000)
    counts, edges = np.histogram(values, 24)
    experiment = make_experiment()
    kept = {"unit_range": (edges[0], edges[-1]), "unit_histogram": tuple(map(int, counts))}
    task = evaluated(experiment, with_new_statistics(make_results(experiment), **kept))
    figure = figures.draw("unit_quantiles", task, style.arm_colors([experiment]))
    titles = [axis.get_title(loc="left") for axis in figure.axes[:5]]
    assert titles == ["Vanilla", "BN", "PER", "mean", "variance"]
    for axis, expected in zip(figure.axes[3:5], (values.mean(), values.var()), strict=True):
        assert [line.get_label() for line in axis.lines] == ["Vanilla", "BN", "PER"]
        assert axis.lines[0].get_ydata() == pytest.approx(expected, rel=0.02)
    assert "variance" in figures.drawing("unit_quantiles", task, style.arm_colors([experiment])).caption
    without = evaluated(experiment, make_results(experiment))
    assert "variance" not in figures.drawing("unit_quantiles", without, style.arm_colors([experiment])).caption


def test_the_distance_to_a_normal_law_is_drawn_where_it_was_recorded(make_experiment, make_results):
    experiment = make_experiment()
    colors = style.arm_colors([experiment])
    results = make_results(experiment)
    assert figures.draw("distance_to_normal", evaluated(experiment, results), colors) is None
    figure = figures.draw("distance_to_normal", evaluated(experiment, with_new_statistics(results)), colors)
    panels = panels_of(figure)
    assert [axis.get_title(loc="left") for axis in panels] == ["layers.0.post", "layers.1.post"]
    assert {value for axis in panels for line in axis.lines[:1] for value in line.get_ydata()} == {0.25}


def test_variance_by_layer_shows_the_end_of_training_of_deep_networks(make_experiment, make_results):
    experiment = make_experiment()
    colors = style.arm_colors([experiment])
    names = [f"layers.{layer}.{role}" for layer in range(5) for role in ("pre", "post")]
    results = with_sites(make_results(experiment), names)
    (panel,) = panels_of(figures.draw("variance_by_layer", evaluated(experiment, results), colors))
    line = next(line for line in panel.lines if line.get_label() == "Vanilla")
    site = results[0].epochs[-1].sites
    expected = [site[f"layers.{layer}.pre"].mean_square - site["layers.0.pre"].mean ** 2 for layer in range(5)]
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5]
    assert line.get_ydata() == pytest.approx(expected)
    today = evaluated(experiment, with_new_statistics(results))
    share = panels_of(figures.draw("variance_by_layer", today, colors))[1]
    line = next(line for line in share.lines if line.get_label() == "Vanilla")
    assert line.get_ydata() == pytest.approx([0.5 / site[f"layers.{layer}.pre"].mean_square for layer in range(5)])
    shallow = with_sites(make_results(experiment), names[:6])
    assert figures.draw("variance_by_layer", evaluated(experiment, shallow), colors) is None


def with_kernels(results):
    """Two kernels, of which the singular values of the second come nearer to 1 with the last evaluation."""

    def kernels(second):
        spectra = {"b.weight": (2.0, 1.0), "a.weight": second}
        return tuple(KernelSpectrum(name=name, singular_values=values) for name, values in spectra.items())

    first, last = kernels((3.0, 2.0, 0.5)), kernels((1.5, 1.0, 0.0))
    return [
        result.model_copy(
            update={
                "epochs": tuple(
                    record.model_copy(update={"kernels": last if record is result.epochs[-1] else first})
                    for record in result.epochs
                )
            }
        )
        for result in results
    ]


def test_spectra_of_kernels_are_those_at_the_end_and_their_deviation_goes_over_training(make_experiment, make_results):
    experiment = make_experiment()
    colors = style.arm_colors([experiment])
    task = evaluated(experiment, with_kernels(make_results(experiment)))
    panels = panels_of(figures.draw("kernel_spectra", task, colors))
    assert [axis.get_title(loc="left") for axis in panels] == ["b", "a"]  # in the order of the model
    line = next(line for line in panels[1].lines if line.get_label() == "Vanilla")
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0, 0.5, 1], [1.5, 1, 0])
    deviation = panels_of(figures.draw("kernel_deviation", task, colors))[1]
    line = next(line for line in deviation.lines if line.get_label() == "Vanilla")
    assert set(line.get_ydata()[:-1]) <= {8.0}
    assert line.get_ydata()[-1] == 1.25
    assert figures.draw("kernel_spectra", evaluated(experiment, make_results(experiment)), colors) is None


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_every_figure_is_the_same_bytes_and_follows_the_page(full, colors, name):
    first = style.svg(figures.draw(name, full, colors), "a & b")
    second = style.svg(figures.draw(name, full, colors), "a & b")
    assert first == second
    root = ElementTree.fromstring(first)
    assert root.attrib["aria-label"] == "a & b"
    assert "width" not in root.attrib
    assert "var(--ink, " in first
    assert "<metadata" not in first
    assert "DejaVu" not in first
    plain = re.sub(r"var\([^)]*\)", "", first)
    assert not re.findall(r"#[0-9a-f]{6}\b", plain)  # nothing keeps a color that dark mode cannot change


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_nothing_run_draws_nothing(make_experiment, colors, name):
    assert figures.draw(name, evaluated(make_experiment(), []), colors) is None


def test_coordinates_are_short_and_what_is_written_is_not():
    figure = Figure()
    axis = figure.subplots()
    axis.plot([0.123456, 0.654321], [1 / 3, 2 / 3])
    axis.set_title("0.0001234")
    drawn = style.svg(figure, "seed 0.0001234")
    assert "0.0001234</text>" in drawn
    assert 'aria-label="seed 0.0001234"' in drawn
    assert not re.findall(r"\d\.\d{3}", re.sub(r'aria-label="[^"]*"|>[^<]*<', "><", drawn))


def test_only_what_leaves_its_axes_is_clipped_and_to_all_of_them():
    figure = Figure(figsize=(2, 1))
    axis = figure.add_axes((0.25, 0.25, 0.5, 0.5), xlim=(0, 1), ylim=(0, 1))
    axis.plot([0.1, 0.9], [0.2, 0.8])
    axis.plot([0, 1], [0.5, 3])
    axis.plot([5], [5], "o")
    root = ElementTree.fromstring(style.svg(figure, "x"))
    (rectangle,) = [element for element in root.iter() if element.tag.endswith("rect")]
    assert {name: float(rectangle.attrib[name]) for name in ("x", "y", "width", "height")} == {
        "x": 36,
        "y": 18,
        "width": 72,
        "height": 36,
    }
    assert len([element for element in root.iter() if "clip-path" in element.attrib]) == 1


def test_the_names_that_a_file_may_give_are_those_of_the_figures():
    assert set(get_args(FigureName)) == set(figures.FIGURES)


def test_an_unknown_figure_is_named(task, colors):
    with pytest.raises(UserError, match=r"unknown figure 'pie'.*there are seeds"):
        figures.draw("pie", task, colors)


def test_arms_keep_their_color_across_experiments(make_experiment):
    first = make_experiment()
    second = make_experiment(arms=dict(reversed(first.arms.items())))
    both = style.arm_colors([first, second])
    assert both == style.arm_colors([first])
    assert len({both.color(arm) for arm in first.arms}) == len(first.arms)


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_any_label_can_be_drawn(name, make_experiment, make_results):
    labels = (r"$\frac{1$ and $\bad$", "$5 <b>", "正規化 🎲", "التطبيع الدفعي " + "x" * 200)
    experiment = make_experiment()
    arms = {
        arm: given.model_copy(update={"label": label})
        for (arm, given), label in zip(experiment.arms.items(), labels, strict=True)
    }
    changed = experiment.model_copy(update={"arms": arms})
    names = [f"layers.{layer}.{role}" for layer in range(4) for role in ("pre", "post")]
    results = with_kernels(with_new_statistics(with_sites(make_results(changed), names)))
    task = evaluate("t", changed, ResultIndex(results)).tasks["digits"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = figures.drawing(name, task, style.arm_colors([changed]), "c")
        texts = [
            element.text or "" for element in ElementTree.fromstring(one.svg).iter() if element.tag.endswith("text")
        ]
    assert any("正規化 🎲" in text for text in texts)
    assert "x" * 100 not in "".join(texts)
    assert "<b>" not in one.svg + one.table


def test_a_figure_says_what_it_shows_in_numbers(task, colors):
    def said(name):
        return ElementTree.fromstring(figures.drawing(name, task, colors).svg).attrib["aria-label"]

    assert said("seeds").startswith("test error (%): 3 means, from 6.63 (PER) to 7.25 (Vanilla). validation error")
    assert said("paired_differences").startswith(
        "test error (%), minus Vanilla: 2 gaps, from −0.61 (PER) to −0.29 (BN)."
    )
    assert re.match(
        r"validation error \(%\), at the end: PER 7\.\d+, BN 7\.\d+, Vanilla 8\.\d+\. train", said("learning_curves")
    )
    assert "mean square, layers.1.post, at the end: " in said("site_statistics")
    table = figures.drawing("learning_curves", task, colors).table
    assert '<th scope="row"><bdi>PER</bdi></th><td>' in table
    assert figures.drawing("seeds", task, colors).table == ""  # its numbers are the table above it
