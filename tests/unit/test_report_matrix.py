"""The matrix: one column from many methods' files, adjusted as one, chosen by one rule, and honest about gaps."""

import csv
import io
import re
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex

from reproduce.errors import UserError
from reproduce.experiment.cells import cells
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm
from reproduce.report import matrix
from reproduce.report.index import write_index
from reproduce.results.columns import columns
from reproduce.results.match import ResultIndex
from reproduce.results.stats import difference, holm

# Test error of every arm, by seed; what is not here has not run.
LEVELS = {
    ("vanilla", "vanilla"): (7.0, 7.2, 7.1),
    ("batchnorm", "bn"): (6.5, 6.71, 6.6),
    ("per", "exact"): (6.9, 7.35, 6.95),
}


def arms_of(method):
    """The baseline, and what this method brings."""
    own = {
        "vanilla": {},
        "batchnorm": {"bn": Arm(method="batchnorm", label="BN")},
        "per": {
            "exact": Arm(method="per", label="PER", grid={"strength": (1e-4, 1e-3, 1e-2)}),
            "slow": Arm(method="per", label="PER, sliced", params={"mode": "sliced"}, grid={"strength": (1e-3,)}),
        },
        "vcl": {"vcl": Arm(method="vcl", label="VCL", pending="no Site to act on")},
    }
    return {"vanilla": Arm(label="none"), **own[method]}


@pytest.fixture
def files(make_experiment):
    """Two columns; the second lacks a method."""

    def made(method, **changes):
        return make_experiment(arms=arms_of(method), claims=(), scale="reduced", figures=("seeds",), **changes)

    methods = {
        name: {"matrix_images": made(name), "matrix_words": made(name, title="Words"), "quick": made(name)}
        for name in ("vanilla", "batchnorm", "per", "vcl")
    }
    del methods["batchnorm"]["matrix_words"]
    return methods


def results_of(files, make_result, skip=()):
    """Column `matrix_images` as in LEVELS; the middle coefficient is best on validation, the highest on test."""
    found = {}
    for method, experiments in files.items():
        for cell in cells(experiments["matrix_images"]):
            owner = "vanilla" if cell.arm_name == "vanilla" else method
            if (owner, cell.arm_name) not in LEVELS or (cell.arm_name, cell.seed) in skip:
                continue
            test = LEVELS[owner, cell.arm_name][cell.seed]
            away = {1e-4: 1.0, 1e-3: 0.0, 1e-2: 0.5}.get(cell.params.get("strength"), 0.0)
            result = make_result(cell, test - away, test + away)
            found[result.id] = result
    return list(found.values())


def columns_of(files, results):
    return columns(files, ResultIndex(results))


def methods_of(files, results, per_findings):
    return [per_findings(experiments, results, name) for name, experiments in files.items()]


def matrix_of(files, results):
    return matrix.matrix(files, columns_of(files, results))


@pytest.fixture
def results(files, make_result):
    return results_of(files, make_result)


@pytest.fixture
def column(files, results):
    return columns_of(files, results)[0]


def values_of(*key):
    return dict(enumerate(LEVELS[key]))


def test_what_each_file_says_of_itself_is_kept_and_the_baselines_folder_speaks_for_all(files):
    said = {"batchnorm": "Full-rate biases.", "vanilla": "Grids are a decade wide."}
    for name in files:
        if "matrix_images" in files[name]:
            told = {"deviations": (said[name],) if name in said else ()}
            files[name]["matrix_images"] = files[name]["matrix_images"].model_copy(update=told)
    found = columns_of(files, [])[0]
    assert found.experiment.deviations == ("Grids are a decade wide.", "batchnorm: Full-rate biases.")


def test_a_column_has_the_baseline_once_and_every_methods_arms(column):
    assert list(column.task.runs.arms) == ["vanilla", "batchnorm.bn", "per.exact", "per.slow", "vcl.vcl"]
    assert column.methods == {
        "batchnorm.bn": "batchnorm",
        "per.exact": "per",
        "per.slow": "per",
        "vcl.vcl": "vcl",
    }
    assert column.metric == "test.error"
    assert column.file == "matrix_images"


def test_an_arm_is_looked_up_on_the_page_of_its_method_and_the_baseline_on_its_own(files, results, column):
    assert column.place("per.exact") == ("per", "exact")
    assert column.place("vanilla") == ("vanilla", "vanilla")
    without = {name: files[name] for name in ("per", "batchnorm")}
    assert columns_of(without, results)[0].place("vanilla") == ("per", "vanilla")
    cells = {row.label: row.cells[0] for row in matrix_of(files, results).rows}
    assert cells["PER"].evidence == "per.evidence.html#matrix_images-digits-exact"
    assert cells["none"].evidence == "vanilla.evidence.html#matrix_images-digits-vanilla"
    assert cells["VCL"].evidence == ""


def test_p_values_are_adjusted_over_the_arms_of_all_methods(column):
    """Two comparisons stand in two files: one file alone would adjust over one."""
    over = values_of("vanilla", "vanilla")
    seeds = column.task.runs.scatter("test.error")
    apart = [difference(values_of(*key), over, seeds).p_value for key in (("batchnorm", "bn"), ("per", "exact"))]
    expected = holm(apart)
    rows = column.rows
    assert [rows["batchnorm.bn"].p_holm, rows["per.exact"].p_holm] == pytest.approx(expected)
    assert rows["batchnorm.bn"].p_holm == pytest.approx(2 * min(apart))


def test_the_coefficient_is_chosen_on_validation(column):
    """On test, 1e-4 is the best by far."""
    assert column.rows["per.exact"].mean.mean == pytest.approx(sum(LEVELS["per", "exact"]) / 3)
    assert matrix.chosen(column.task.runs.arms["per.exact"]) == "at 0.001"


@pytest.mark.parametrize(("best", "said"), [(1e-4, "at 0.0001, lowest of 3"), (1e-2, "at 0.01, highest of 3")])
def test_a_choice_at_the_end_of_its_grid_is_marked(files, make_result, best, said):
    results = [
        make_result(cell, 7.0, 6.0 if cell.params.get("strength") == best else 6.5)
        for cell in cells(files["per"]["matrix_images"])
    ]
    column = columns_of(files, results)[0]
    assert matrix.chosen(column.task.runs.arms["per.exact"]) == said
    assert matrix.chosen(column.task.runs.arms["per.slow"]) == "at 0.001"  # a grid of one has no ends


def test_rows_are_arms_and_say_why_a_cell_is_empty(files, results):
    content = matrix_of(files, results)
    rows = {(row.method, row.label): row.cells for row in content.rows}
    assert list(rows) == [
        ("", "none"),
        ("batchnorm", "BN"),
        ("per", "PER"),
        ("per", "PER, sliced"),
        ("vcl", "VCL"),
    ]
    bn, bn_on_words = rows["batchnorm", "BN"]
    assert (bn.mean, bn.n, bn.chosen, bn.note) == ("6.60", "n = 3", "", "")
    assert bn.gap.startswith("−0.50 [")
    assert bn_on_words is None
    assert rows["", "none"][0].gap == ""
    sliced, vcl = rows["per", "PER, sliced"][0], rows["vcl", "VCL"][0]
    assert (sliced.ran, sliced.note) == (False, "not run")
    assert (vcl.ran, vcl.note) == (False, "not run: no Site to act on")
    assert content.absent == ("matrix_words is without batchnorm",)


def test_runs_are_counted_once_and_planned_ones_too(files, results):
    content = matrix_of(files, results)
    assert content.planned == 3 * (1 + 1 + 3 + 1) + 3 * (1 + 3 + 1)
    # The two columns have one task in this test, so their Results are the same ones: done in both, as planned in both.
    assert len(results) == 3 * (1 + 1 + 3)
    assert content.runs == len(results) + 3 * (1 + 3)
    assert (content.arms, content.present) == (4, ("batchnorm", "per", "vcl"))


def test_a_rule_that_is_the_same_for_all_is_not_repeated_but_an_exception_is_said(files, make_result):
    content = matrix_of(files, results_of(files, make_result, skip={("exact", 2)}))
    cell = next(row.cells[0] for row in content.rows if row.label == "PER")
    assert cell.note == "seed 2 not run"
    assert cell.n == "n = 2 of 3"


def test_the_seeds_that_chose_are_not_repeated_in_every_cell(files, make_result):
    chosen = {
        name: {"matrix_images": of["matrix_images"].model_copy(update={"choosing_seeds": (7, 8)})}
        for name, of in files.items()
    }
    results = [
        make_result(cell, 7.0 + 0.1 * (cell.seed % 3), 6.5 - cell.params.get("strength", 0))
        for of in chosen.values()
        for cell in cells(of["matrix_images"])
        if cell.arm_name != "vcl"
    ]
    content = matrix_of(chosen, list({result.id: result for result in results}.values()))
    arm = columns_of(chosen, results)[0].task.runs.arms["per.exact"]
    assert "on seeds 7, 8, which are not judged" in arm.chosen_by
    notes = [cell.note for row in content.rows for cell in row.cells if cell is not None and cell.ran]
    assert len(notes) == 4
    assert not any("chosen:" in note for note in notes)


def test_a_diverged_seed_leaves_no_difference_and_is_named(files, results, make_result):
    broken = [cell for cell in cells(files["batchnorm"]["matrix_images"]) if cell.arm_name == "bn" and cell.seed == 1]
    (gone,) = [make_result(cell, 6.7, 6.7, diverged=True) for cell in broken]
    results = [gone if result.id == gone.id else result for result in results]
    content = matrix_of(files, results)
    cell = next(row.cells[0] for row in content.rows if row.label == "BN")
    assert (cell.mean, cell.gap, cell.significant) == ("(6.55)", "–", False)
    assert "1 of 3 seeds diverged" in cell.note
    assert content.columns[0].sentence.endswith("Seeds diverged: “BN”.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0, 1)}, "differ in seeds"),
        ({"recipe": Recipe(epochs=9, batch_size=32, learning_rate=0.1)}, "differ in recipe"),
        ({"scale": "paper"}, "differ in scale"),
        ({"baseline": None}, "names no baseline"),
    ],
)
def test_files_that_do_not_agree_are_refused_in_one_line(files, change, message):
    files["per"]["matrix_words"] = files["per"]["matrix_words"].model_copy(update=change)
    with pytest.raises(UserError, match=message) as caught:
        columns_of(files, [])
    assert "matrix_words" in str(caught.value)
    assert "methods/per" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_baseline_is_refused(files):
    other = files["per"]["matrix_words"]
    arms = {**other.arms, "vanilla": Arm(label="none", model_options={"depth": 3})}
    files["per"]["matrix_words"] = other.model_copy(update={"arms": arms})
    with pytest.raises(UserError, match="differ in the baseline's arm"):
        columns_of(files, [])


def test_the_sentence_counts_what_the_seeds_tell_apart(column):
    """BN lies .5 below at every seed; PER .1 and .15 below, and .15 above."""
    assert matrix.sentence(column) == (
        "“BN” has the lowest mean test error, 6.60 %; “none” has 7.10. Of 2 arms the seeds tell 1 from “none” after "
        "Holm's adjustment (p < 0.05). Below it: “BN”. 1 of the 2 intervals exclude zero, where chance alone gives 0.1."
        " The best mean of so many arms that do not differ lies 0.0282 off by chance alone."
    )


def test_the_sentence_says_when_nothing_is_told_apart_and_when_nothing_ran(files, make_result):
    few = [make_result(cell, 7.0 + cell.seed) for cell in cells(files["batchnorm"]["matrix_images"])]
    column = columns_of(files, few)[0]
    assert "the seeds tell not one from “none”" in matrix.sentence(column)
    one_seed = [result for result in few if result.config.seed == 0]
    assert matrix.sentence(columns_of(files, one_seed)[0]).endswith("so nothing is told apart.")
    alone = [result for result in few if result.config.method == "vanilla"]
    assert matrix.sentence(columns_of(files, alone)[0]) == ("“none” is alone so far, with a mean test error of 8.00 %.")
    assert matrix.sentence(columns_of(files, [])[0]) == "Nothing has run yet."
    assert matrix.differences(columns_of(files, [])[0]) is None


def test_the_forest_has_the_best_first_in_the_color_of_its_method(column):
    panel = matrix.differences(column).draw().axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["BN", "PER"]
    drawn = [line for line in panel.lines if len(line.get_xdata()) == 3]
    expected = [7.0 - 6.5, 7.2 - 6.71, 7.1 - 6.6]
    assert [-float(x) for x in drawn[0].get_xdata()] == pytest.approx(expected)
    assert to_hex(drawn[0].get_color()) != to_hex(drawn[1].get_color())


def test_higher_is_better_turns_the_order(column):
    rows = {"batchnorm.bn": (6.5 + 6.71 + 6.6) / 3 - 7.1, "per.exact": (6.9 + 7.35 + 6.95) / 3 - 7.1}
    metrics = {metric: metric.replace("error", "accuracy") for metric in column.task.metrics}
    tables = {metrics[metric]: table for metric, table in column.task.tables.items()}
    turned = replace(column, task=replace(column.task, tables=tables, metrics=tuple(metrics.values())))
    assert turned.metric == "test.accuracy"
    assert {name: turned.rows[name].difference.estimate.mean for name in rows} == pytest.approx(rows, abs=1e-9)
    labels = [label.get_text() for label in matrix.differences(turned).draw().axes[0].get_yticklabels()]
    assert labels == ["PER", "BN"]
    assert matrix.sentence(turned).startswith("“none” has the highest mean test accuracy")


def test_the_pages_are_written_and_linked(files, results, per_findings, tmp_path):
    index = write_index(methods_of(files, results, per_findings), columns_of(files, results), tmp_path)
    assert '<a href="matrix.html">' in index.read_text("utf-8")
    assert "[The cross-method matrix](matrix.md): 4 arms of 3 methods" in (tmp_path / "index.md").read_text("utf-8")
    page, text = (tmp_path / "matrix.html").read_text("utf-8"), (tmp_path / "matrix.md").read_text("utf-8")
    for piece in ("27 of 33 planned runs", "matrix_words is without batchnorm", "not run: no Site to act on", "6.60"):
        assert piece in page
        assert piece in text
    assert '<a href="per.html">per</a>' in page
    assert page.count("<figure>") == 2
    assert not re.search(r"\bnan\b|None\b|Undefined", page + text)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "matrix.csv").read_text("utf-8"))))
    assert {row["experiment"] for row in rows} == {"matrix_images", "matrix_words"}
    assert {row["arm"] for row in rows} >= {"vanilla", "per.exact"}
    assert "vcl.vcl" not in {row["arm"] for row in rows}  # it has not run


def test_the_same_results_give_the_same_bytes_in_any_order(files, results, per_findings, tmp_path):
    for folder, order in (("a", results), ("b", results[::-1])):
        write_index(methods_of(files, order, per_findings), columns_of(files, order), tmp_path / folder)
    for suffix in ("html", "md", "csv"):
        assert (tmp_path / f"a/matrix.{suffix}").read_bytes() == (tmp_path / f"b/matrix.{suffix}").read_bytes()


def test_without_files_of_the_matrix_there_is_no_page_and_no_link(files, per_findings, tmp_path):
    quick = {name: {"quick": files[name]["quick"]} for name in files}
    index = write_index(methods_of(quick, [], per_findings), columns_of(quick, []), tmp_path)
    assert not (tmp_path / "matrix.html").exists()
    assert "matrix.html" not in index.read_text("utf-8") + (tmp_path / "index.md").read_text("utf-8")
