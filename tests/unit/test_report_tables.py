"""Tables: the right numbers in the right cells, nothing shown as complete that is not, four renderings."""

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from reproduce.experiment.cells import cells
from reproduce.experiment.schema import Arm, Claim
from reproduce.report import tables
from reproduce.report.numbers import metric_text, number
from reproduce.report.seed_plots import seed_plots
from reproduce.report.sentences import best_arm_sentence
from reproduce.results.evaluate import evaluate
from reproduce.results.match import ResultIndex
from reproduce.results.stats import difference, mean_estimate


def evaluated(experiment, results):
    return evaluate("table9", experiment, ResultIndex(results)).tasks["digits"]


def texts(table):
    """By the row's first text: its texts by heading."""
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


@pytest.fixture
def task(make_experiment, make_results):
    experiment = make_experiment()
    return evaluated(experiment, make_results(experiment))


@pytest.fixture
def diverged_task(make_experiment, make_result):
    experiment = make_experiment()
    results = [
        make_result(c, 7.0 + c.seed / 10, diverged=c.arm_name == "batchnorm" and c.seed == 1) for c in cells(experiment)
    ]
    return evaluated(experiment, results)


def test_a_row_holds_the_statistics_of_its_seeds(task):
    row = task.row("test.error", "per")
    values = task.runs.arms["per"].values("test.error")
    seeds = task.runs.scatter("test.error")
    gap = difference(values, task.runs.arms["vanilla"].values("test.error"), seeds)
    assert row.mean == mean_estimate(list(values.values()), seeds)
    assert row.difference == gap
    assert row.p_holm >= gap.p_value
    assert (row.n, row.planned, row.diverged, row.survivors) == (3, 3, 0, None)
    assert row.chosen == "strength = 0.001 (highest of 2)"


def test_test_and_validation_are_both_there(task):
    assert list(task.tables) == ["test.error", "validation.error"]


def test_the_paper_stands_beside_its_arm_only(task):
    assert task.row("test.error", "vanilla").paper == 7.21
    assert task.row("test.error", "vcl").paper == 7.0
    assert task.row("test.error", "per").paper is None
    assert task.row("validation.error", "vanilla").paper is None


def test_survivors_never_pass_for_a_mean(diverged_task):
    row = diverged_task.row("test.error", "batchnorm")
    assert (row.mean, row.difference, row.p_holm, row.significant) == (None, None, None, False)
    assert row.survivors.mean == pytest.approx(7.1)
    text = texts(tables.of_metric(diverged_task, "test.error"))["BN"]
    assert text["Ours"] == "(7.10)"
    assert text["n"] == "2 of 3"
    assert "1 of 3 seeds diverged" in text["Note"]
    assert "BN diverged" in best_arm_sentence(diverged_task)


def test_a_diverged_baseline_leaves_no_differences(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(c, 7.0, diverged=c.arm_name == "vanilla" and c.seed == 0) for c in cells(experiment)]
    assert {row.difference for row in evaluated(experiment, results).rows} == {None}


def test_nothing_run_gives_a_table_of_the_papers_numbers(make_experiment):
    task = evaluated(make_experiment(), [])
    table = tables.of_metric(task, "test.error")
    assert table.columns == ("Arm", "Paper", "Ours", "n", "Note")
    assert table.column("Paper") == ("7.21", "–", "–", "7.00")
    assert best_arm_sentence(task) == "Nothing has run yet."


def test_one_seed_shows_no_interval_and_no_nan(make_experiment, make_result):
    experiment = make_experiment(seeds=(0,))
    results = [make_result(c, 7.0 if c.arm_name == "per" else 8.0) for c in cells(experiment)]
    task = evaluated(experiment, results)
    text = tables.markdown(tables.of_metric(task, "test.error"))
    assert "7.00" in text
    assert "[" not in text
    assert "−1.00" in text
    assert "nan" not in (text + tables.comma_separated([("t", task)])).lower()
    assert "on one seed, which decides nothing" in best_arm_sentence(task)


def test_a_gap_that_is_the_same_at_every_seed_is_not_certain(make_experiment, make_result):
    experiment = make_experiment(seeds=(0, 1, 2))
    results = [make_result(c, (7.0 if c.arm_name == "per" else 8.0) + c.seed) for c in cells(experiment)]
    task = evaluated(experiment, results)
    assert task.row("test.error", "per").p_holm > 0.2  # a gap of one deviation between two means of three
    same = evaluated(experiment, [make_result(c, 7.0 if c.arm_name == "per" else 8.0) for c in cells(experiment)])
    assert same.row("test.error", "per").p_holm is None
    assert "1.00 below “Vanilla” on one seed, which decides nothing" in best_arm_sentence(same)
    assert same.row("test.error", "per").notes == (
        "3 seeds gave one and the same run, which counts once",
        "one run gives no interval",
        "chosen: best mean test error of 2 points (there is no validation: too good)",
    )


def test_a_gap_without_an_interval_says_why(make_experiment, make_result):
    """Every seed of the baseline ends alike, so that one run counts; the others scatter."""
    experiment = make_experiment(seeds=(0, 1, 2), scale="reduced")
    levels = [7.0 + (0.1 * c.seed if c.arm_name != "vanilla" else 0) for c in cells(experiment)]
    finding = evaluate("t", experiment, ResultIndex(list(map(make_result, cells(experiment), levels))))
    rows = {row.arm: row for row in finding.tasks["digits"].tables["test.error"]}
    assert rows["vanilla"].notes[1] == "one run gives no interval"
    assert rows["batchnorm"].difference.estimate.interval is None
    assert "the gap has no interval: one run counts of the baseline" in rows["batchnorm"].notes
    texts = tables.claim_texts(finding)
    lacking = [text for text in texts if text.n == "1"]
    assert lacking
    assert all(text.reason.endswith("; one run gives no interval") for text in lacking)
    assert not any("no interval" in text.reason for text in texts if text.n == "3")


def test_a_direction_that_holds_alone_and_not_among_its_table_says_so(make_experiment, make_result):
    """The interval of one gap excludes zero by a little, by far, or not; the other gap is of nothing."""
    claims = tuple(
        Claim(task="digits", arm=arm, over="vanilla", metric="test.error", direction="lower", source="text")
        for arm in ("batchnorm", "per")
    )
    experiment = make_experiment(claims=claims, seeds=(0, 1, 2), scale="reduced")
    scatter = {
        "vanilla": (7.0, 7.2, 7.1),
        "batchnorm": (6.86, 7.07, 6.96),
        "per": (7.0, 7.1, 7.2),
        "vcl": (7.1, 7, 7.2),
    }
    for shift, alone, among in ((0.0, True, False), (0.8, True, True), (-0.2, False, False)):
        results = [
            make_result(c, scatter[c.arm_name][c.seed] - (shift if c.arm_name == "batchnorm" else 0), 9.0)
            for c in cells(experiment)
        ]
        finding = evaluate("t", experiment, ResultIndex(results))
        verdict, text = finding.verdicts[0], tables.claim_texts(finding)[0]
        assert (verdict.direction == "same direction") is alone
        assert (verdict.p_adjusted < 0.05) is among
        assert ("of this gap alone" in text.reason) is (alone and not among)
        assert "of this gap alone" not in tables.claim_texts(finding)[1].reason


def test_csv_round_trips_the_numbers(task):
    text = tables.comma_separated([("table9", task), ("again", task)])
    back = list(csv.DictReader(io.StringIO(text)))
    ran = [row for row in task.rows if row.n]
    assert {row.arm for row in task.rows} - {row.arm for row in ran} == {"vcl"}
    assert [line["experiment"] for line in back] == ["table9"] * len(ran) + ["again"] * len(ran)
    for line, row in zip(back, ran, strict=False):
        assert (line["task"], line["arm"], line["metric"]) == ("digits", row.arm, row.metric)
        seeds = dict(pair.split("=") for pair in line["values"].split())
        assert {int(seed): float(value) for seed, value in seeds.items()} == row.values
        assert line["mean"] == ("" if row.mean is None else f"{row.mean.mean:.8g}")
        gap = row.difference.estimate.interval if row.difference else None
        assert line["difference_low"] == ("" if gap is None else f"{gap.low:.8g}")


def test_csv_keeps_an_arm_all_of_whose_seeds_diverged(make_experiment, make_result):
    experiment = make_experiment(arms={"vanilla": Arm(label="=1+1")}, claims=(), figures=())
    task = evaluated(experiment, [make_result(cell, 7.0, diverged=True) for cell in cells(experiment)])
    (line,) = csv.DictReader(io.StringIO(tables.comma_separated([("table9", task)])))
    assert (line["label"], line["n"], line["diverged"], line["mean"]) == ("'=1+1", "0", "3", "")


def test_markdown_has_as_many_cells_in_every_line(task):
    table = tables.of_metric(task, "test.error")
    table = replace(table, rows=(("a|b", *table.rows[0][1:]), *table.rows[1:]))
    lines = tables.markdown(table).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(table.columns) + 1}
    assert len(lines) == len(table.rows) + 2


def test_the_terminal_table_fits_100_columns(task):
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(tables.terminal(tables.of_metric(task, "test.error"), "digits"))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "PER (strength = 0.001" in text
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
    task = evaluated(experiment, results)
    assert list(task.tables) == ["test.error", "validation.error", "test.l0"]
    assert task.metrics == ("test.error", "validation.error")
    table = tables.side_by_side(task)
    assert table.columns == ("Arm", "L0", "validation error (%)")
    assert table.column("Arm") == ("Vanilla", "BN", "PER")
    interval = mean_estimate([10.0, 11.0, 12.0], task.runs.scatter("test.l0")).interval
    assert table.column("L0")[0] == f"11.00 ± {interval.half_width:.2f}"


def test_side_by_side_survivors_are_in_brackets(make_experiment, make_result):
    experiment = make_experiment(metrics=("test.error",))
    cases = cells(experiment)
    results = [make_result(c, 7.0, diverged=c.arm_name == "batchnorm" and c.seed == 1) for c in cases]
    task = evaluated(experiment, results)
    found = texts(tables.side_by_side(task))
    assert found["BN"]["error (%)"] == "(7.00)"
    assert found["Vanilla"]["error (%)"] == "7.00"


def test_an_arm_that_does_not_measure_a_metric_has_a_dash_there(make_experiment, make_results):
    experiment = make_experiment(metrics=("test.l0", "test.error"))
    results = beside(make_results(experiment), lambda method, seed: {"l0": 3.0} if method == "per" else {})
    task = evaluated(experiment, results)
    assert tables.side_by_side(task).column("L0") == ("–", "–", "3.00")


def test_without_further_metrics_there_is_no_table_of_them(task):
    assert tables.side_by_side(task) is None


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
    assert metric_text(metric) == text


def test_claims_are_stated_with_the_papers_decimals(make_experiment, make_results):
    experiment = make_experiment()
    claims = tables.claim_texts(evaluate("table9", experiment, ResultIndex(make_results(experiment))))
    found = texts(tables.claims_table(claims))
    assert found["Vanilla: test error (%)"]["Claimed"] == "7.21 ± 0.50"
    assert found["PER minus Vanilla: test error (%)"]["Claimed"] == "−0.5 ± 0.3"
    assert found["BN minus Vanilla: test error (%)"]["Claimed"] == "lower"
    assert found["VCL: test error (%)"]["Ours"] == "–"


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
    assert number(value, decimals, sign) == text


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="finite"):
        number(float("nan"), 2)


def test_the_finding_names_the_best_arm_and_how_sure(task):
    sentence = best_arm_sentence(task)
    assert sentence.startswith("“PER” has the lowest mean test error, 6.63 %, 0.61 below “Vanilla”")
    assert "3 paired seeds" in sentence


def test_the_finding_says_when_seeds_do_not_tell(make_experiment, make_result):
    experiment = make_experiment()
    noise = {"vanilla": (7.0, 7.2, 7.1), "batchnorm": (7.2, 6.9, 7.1), "per": (7.3, 7.3, 7.0)}
    results = [make_result(c, noise[c.arm_name][c.seed], 7.0) for c in cells(experiment)]
    task = evaluated(experiment, results)
    assert "do not tell it from “Vanilla”" in best_arm_sentence(task)


def test_seed_plots_put_smaller_values_to_the_left(task):
    drawn = seed_plots(task.tables["test.error"], ["red"] * 4)
    first = [float(plot.split('<circle cx="')[1].split('"')[0]) for plot in drawn[:3]]
    assert first[0] > first[1] > first[2]
    assert drawn[3].count("<circle") == 0
    assert drawn[3].count('class="paper"') == 1
