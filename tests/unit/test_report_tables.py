"""Tables: the right numbers in the right cells, nothing shown as complete that is not, four renderings."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from reproduce.experiment.schema import cells
from reproduce.report import tables
from reproduce.report.seed_plots import strips
from reproduce.report.sentences import finding
from reproduce.results.judge import judge
from reproduce.results.match import match
from reproduce.results.stats import mean_estimate, paired_difference


@pytest.fixture
def task(make_experiment, make_results):
    experiment = make_experiment()
    return match(experiment, "digits", make_results(experiment))


@pytest.fixture
def diverged_task(make_experiment, make_result):
    experiment = make_experiment()
    results = [
        make_result(c, 7.0 + c.seed / 10, diverged=c.arm_name == "batchnorm" and c.seed == 1) for c in cells(experiment)
    ]
    return match(experiment, "digits", results)


def row_of(table, arm, metric="test.error"):
    return table[(table["arm"] == arm) & (table["metric"] == metric)].iloc[0]


def test_a_row_holds_the_statistics_of_its_seeds(task):
    row = row_of(tables.table_of("table9", task), "per")
    values = task.arms["per"].values("test.error")
    estimate = mean_estimate(list(values.values()))
    difference = paired_difference(values, task.arms["vanilla"].values("test.error"))
    assert (row["mean"], row["low"], row["high"]) == (estimate.mean, estimate.interval.low, estimate.interval.high)
    assert row["difference"] == difference.estimate.mean
    assert row["p_holm"] >= difference.p_value
    assert (row["n"], row["planned"], row["diverged"]) == (3, 3, 0)
    assert row["chosen"] == "strength = 0.001"


def test_test_and_validation_are_both_there(task):
    assert list(dict.fromkeys(tables.table_of("table9", task)["metric"])) == ["test.error", "validation.error"]


def test_the_paper_stands_beside_its_arm_only(task):
    table = tables.table_of("table9", task)
    assert row_of(table, "vanilla")["paper"] == 7.21
    assert row_of(table, "vcl")["paper"] == 7.0
    assert row_of(table, "per")["paper"] is None
    assert row_of(table, "vanilla", "validation.error")["paper"] is None


def test_survivors_never_pass_for_a_mean(diverged_task):
    table = tables.table_of("table9", diverged_task)
    row = row_of(table, "batchnorm")
    assert (row["mean"], row["low"], row["difference"], row["p_holm"]) == (None, None, None, None)
    assert row["survivors_mean"] == pytest.approx(7.1)
    text = tables.shown(table, diverged_task, "test.error").set_index("Arm").loc["BN"]
    assert text["Ours"] == "(7.10)"
    assert text["n"] == "2 of 3"
    assert "1 of 3 seeds diverged" in text["Note"]
    assert "BN diverged" in finding(table, diverged_task)


def test_a_diverged_baseline_leaves_no_differences(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(c, 7.0, diverged=c.arm_name == "vanilla" and c.seed == 0) for c in cells(experiment)]
    table = tables.table_of("t", match(experiment, "digits", results))
    assert table["difference"].isna().all()


def test_nothing_run_gives_a_table_of_the_papers_numbers(make_experiment):
    task = match(make_experiment(), "digits", [])
    table = tables.table_of("table9", task)
    frame = tables.shown(table, task, "test.error")
    assert list(frame.columns) == ["Arm", "Paper", "Ours", "n", "Note"]
    assert list(frame["Paper"]) == ["7.21", "–", "–", "7.00"]
    assert finding(table, task) == "Nothing has run yet."


def test_one_seed_shows_no_interval_and_no_nan(make_experiment, make_result):
    experiment = make_experiment(seeds=(0,))
    results = [make_result(c, 7.0 if c.arm_name == "per" else 8.0) for c in cells(experiment)]
    task = match(experiment, "digits", results)
    table = tables.table_of("t", task)
    text = tables.markdown(tables.shown(table, task, "test.error"))
    assert "7.00" in text
    assert "[" not in text
    assert "−1.00" in text
    assert "nan" not in (text + tables.csv([table])).lower()
    assert "on one seed, which decides nothing" in finding(table, task)


def test_a_gap_that_is_the_same_at_every_seed_gets_no_p(make_experiment, make_result):
    experiment = make_experiment(seeds=(0, 1, 2))
    results = [make_result(c, (7.0 if c.arm_name == "per" else 8.0) + c.seed) for c in cells(experiment)]
    task = match(experiment, "digits", results)
    table = tables.table_of("t", task)
    assert table.set_index("arm").loc["per", "p_holm"] is None
    assert "1.00 below “Vanilla” at each of 3 seeds: equal differences are nothing that a test" in finding(table, task)


def test_csv_round_trips_the_numbers(task):
    table = tables.table_of("table9", task)
    back = pd.read_csv(io.StringIO(tables.csv([table, table])))
    assert len(back) == 2 * len(table)
    assert back["mean"].iloc[0] == table["mean"].iloc[0]
    seeds = dict(pair.split("=") for pair in back["values"].iloc[0].split())
    assert {int(seed): float(value) for seed, value in seeds.items()} == table["values"].iloc[0]
    assert isinstance(table["values"].iloc[0], dict)  # writing changes nothing


def test_markdown_has_as_many_cells_in_every_line(task):
    frame = tables.shown(tables.table_of("table9", task), task, "test.error")
    frame.loc[0, "Arm"] = "a|b"
    lines = tables.markdown(frame).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(frame.columns) + 1}
    assert len(lines) == len(frame) + 2


def test_the_terminal_table_fits_100_columns(task):
    console = Console(width=100, file=io.StringIO(), record=True)
    frame = tables.shown(tables.table_of("table9", task), task, "test.error")
    console.print(tables.terminal(frame, "digits"))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "PER (strength = 0.001)" in text
    assert "−0.61" in text


def beside(results, values):
    """The Results with further test metrics, by method and seed."""
    found = []
    for result in results:
        final = result.final and result.final.model_copy(
            update={"test": {**result.final.test, **values(result.config.method, result.config.seed)}}
        )
        found.append(result.model_copy(update={"final": final}))
    return found


def test_further_metrics_stand_side_by_side(make_experiment, make_results):
    experiment = make_experiment(metrics=("test.l0", "validation.error", "test.nowhere"))
    results = beside(make_results(experiment), lambda method, seed: {"l0": 10.0 + seed})
    task = match(experiment, "digits", results)
    table = tables.table_of("t", task)
    assert list(dict.fromkeys(table["metric"])) == ["test.error", "validation.error", "test.l0"]
    assert tables.metrics_of(task) == ["test.error", "validation.error"]
    frame = tables.side_by_side(table, task)
    assert list(frame.columns) == ["Arm", "L0", "validation error (%)"]
    assert list(frame["Arm"]) == ["Vanilla", "BN", "PER"]
    reach = stats.t.ppf(0.975, 2) / math.sqrt(3)  # of 10, 11 and 12
    assert frame["L0"].iloc[0] == f"11.00 ± {reach:.2f}"


def test_side_by_side_survivors_are_in_brackets(make_experiment, make_result):
    experiment = make_experiment(metrics=("test.error",))
    cases = cells(experiment)
    results = [make_result(c, 7.0, diverged=c.arm_name == "batchnorm" and c.seed == 1) for c in cases]
    task = match(experiment, "digits", results)
    frame = tables.side_by_side(tables.table_of("t", task), task).set_index("Arm")
    assert frame.loc["BN", "error (%)"] == "(7.00)"
    assert frame.loc["Vanilla", "error (%)"] == "7.00 ± 0.00"


def test_an_arm_that_does_not_measure_a_metric_has_a_dash_there(make_experiment, make_results):
    experiment = make_experiment(metrics=("test.l0", "test.error"))
    results = beside(make_results(experiment), lambda method, seed: {"l0": 3.0} if method == "per" else {})
    task = match(experiment, "digits", results)
    frame = tables.side_by_side(tables.table_of("t", task), task).set_index("Arm")
    assert list(frame["L0"]) == ["–", "–", "3.00 ± 0.00"]


def test_without_further_metrics_there_is_no_table_of_them(task):
    assert tables.side_by_side(tables.table_of("t", task), task) is None


def test_a_metric_without_a_split_is_refused(make_experiment):
    with pytest.raises(ValueError, match=r"'l0': expected 'test.NAME' or 'validation.NAME'"):
        make_experiment(metrics=("l0",))


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        ("test.error", "test error (%)"),
        ("test.l0", "test L0"),
        ("test.ce_loss_score", "test CE loss score"),
        ("validation.fvu", "validation FVU"),
    ],
)
def test_metrics_for_people(metric, text):
    assert tables.metric_text(metric) == text


def test_claims_are_stated_with_the_papers_decimals(task):
    verdicts = [(task, judge(claim, task)) for claim in task.experiment.claims]
    frame = tables.claims_table(verdicts).set_index("Claim")
    assert frame.loc["Vanilla: test error (%)", "Claimed"] == "7.21 ± 0.50"
    assert frame.loc["PER minus Vanilla: test error (%)", "Claimed"] == "−0.5 ± 0.3"
    assert frame.loc["BN minus Vanilla: test error (%)", "Claimed"] == "lower"
    assert frame.loc["VCL: test error (%)", "Ours"] == "–"


@pytest.mark.parametrize(
    ("value", "decimals", "sign", "text"),
    [
        (7.214, 2, False, "7.21"),
        (-0.5, 2, True, "−0.50"),
        (0.5, 1, True, "+0.5"),
        (-0.001, 2, True, "0.00"),
        (None, 2, False, "–"),
    ],
)
def test_numbers_for_people(value, decimals, sign, text):
    assert tables.number(value, decimals, sign) == text


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite"):
        tables.number(float("nan"), 2)


def test_the_finding_names_the_best_arm_and_how_sure(task):
    said = finding(tables.table_of("table9", task), task)
    assert said.startswith("“PER” has the lowest mean test error, 6.63 %, 0.61 below “Vanilla”")
    assert "3 paired seeds" in said


def test_the_finding_says_when_seeds_do_not_tell(make_experiment, make_result):
    experiment = make_experiment()
    noise = {"vanilla": (7.0, 7.2, 7.1), "batchnorm": (7.2, 6.9, 7.1), "per": (7.3, 7.3, 7.0)}
    results = [make_result(c, noise[c.arm_name][c.seed], 7.0) for c in cells(experiment)]
    task = match(experiment, "digits", results)
    assert "do not tell it from “Vanilla”" in finding(tables.table_of("t", task), task)


def test_strips_put_smaller_values_to_the_left(task):
    rows = tables.table_of("table9", task).to_dict("records")[:4]
    drawn = strips(rows, ["red"] * 4)
    first = [float(strip.split('<circle cx="')[1].split('"')[0]) for strip in drawn[:3]]
    assert first[0] > first[1] > first[2]
    assert drawn[3].count("<circle") == 0
    assert drawn[3].count('class="paper"') == 1
