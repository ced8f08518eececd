"""The index: one computed sentence, one table of every method, sums that add up, and what arms cost."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from reproduce.experiment.cells import cells
from reproduce.experiment.folder import ROOT
from reproduce.experiment.schema import Arm
from reproduce.report.answer import answer, claims_answer, columns_answer, differing
from reproduce.report.cost import cost, pushed_apart, time_ratio
from reproduce.report.counts import KINDS, Tally
from reproduce.report.index import index_pages, write_index
from reproduce.report.overview import WIDTH, overview
from reproduce.report.reach import in_reach, reach
from reproduce.results.columns import columns
from reproduce.results.match import ResultIndex
from reproduce.results.stats import Estimate, Interval

# Test error by seed. The seeds tell BN from the baseline for the better, and QAct for the worse, by far.
LEVELS = {
    ("vanilla", "vanilla"): (7.0, 7.2, 7.1),
    ("batchnorm", "bn"): (6.0, 6.2, 6.1),
    ("per", "exact"): (6.95, 7.25, 7.05),
    ("per", "sliced"): (7.05, 7.15, 7.2),
    ("quantile_activation", "uniform"): (27.0, 27.3, 27.1),
}
ARMS = {
    "vanilla": {},
    "batchnorm": {"bn": Arm(method="batchnorm", label="BN")},
    "per": {
        "exact": Arm(method="per", label="PER"),
        "sliced": Arm(method="per", label="PER, <sliced>", params={"mode": "sliced"}),
    },
    "quantile_activation": {"uniform": Arm(method="quantile_activation", label="QAct")},
    "vcl": {"vcl": Arm(method="vcl", label="VCL", pending="no Site to act on")},
}
STEPS = {"bn": 0.002, "exact": 0.0015, "sliced": 0.004, "uniform": 0.01}  # seconds; the baseline takes 0.001


@pytest.fixture
def files(make_experiment):
    """A column to which five methods belong."""
    found = {}
    for method, arms in ARMS.items():
        arms = {"vanilla": Arm(label="none"), **arms}
        found[method] = {"matrix_images": make_experiment(arms=arms, claims=(), scale="reduced", figures=("seeds",))}
    return found


@pytest.fixture
def results(files, make_result):
    found = {}
    for method, experiments in files.items():
        for cell in cells(experiments["matrix_images"]):
            owner = "vanilla" if cell.arm_name == "vanilla" else method
            if (owner, cell.arm_name) in LEVELS:
                level = LEVELS[owner, cell.arm_name][cell.seed]
                result = make_result(cell, level, level)
                found[result.id] = timed(result, STEPS.get(cell.arm_name, 0.001))
    return list(found.values())


def timed(result, seconds, **environment):
    """The same Result with steps of so many seconds, but for the first evaluation, which is slow."""
    epochs = [epoch.model_copy(update={"seconds_per_step": seconds}) for epoch in result.epochs]
    epochs[0] = epochs[0].model_copy(update={"seconds_per_step": 100 * seconds})
    changed = result.environment.model_copy(update=environment)
    return result.model_copy(update={"epochs": tuple(epochs), "environment": changed})


@pytest.fixture
def column(files, results):
    return columns(files, ResultIndex(results))[0]


@pytest.fixture
def methods(files, results, per_findings):
    return [per_findings(experiments, results, name) for name, experiments in files.items()]


def tallied(**kinds):
    return Tally(False, {kind.replace("_", " "): count for kind, count in kinds.items()})


@pytest.mark.parametrize(
    ("tally", "said"),
    [
        (tallied(), ""),
        (tallied(not_run=1), "The one published claim is not tested yet."),
        (tallied(not_run=7), "None of 7 published claims tested yet."),
        (tallied(reproduced=1), "1 of 1 published claim tested: 1 reproduced."),
        (
            tallied(reproduced=3, same_direction=1, opposite=2, undecided=11, reduced_scale=4, not_run=250),
            "21 of 271 published claims tested: 3 reproduced, 18 at reduced scale (1 the same way, 2 the opposite way, "
            "11 undecided, 4 values that are not compared).",
        ),
        (
            tallied(partly=1, not_reproduced=2, inconclusive=1, reduced_scale=1),
            "5 of 5 published claims tested: 1 partly, 2 not reproduced, 1 inconclusive, 1 at reduced scale (1 value "
            "that is not compared).",
        ),
    ],
)
def test_the_sentence_on_claims_has_every_count_and_its_grammar(tally, said):
    assert claims_answer(tally) == said


def test_no_kind_of_verdict_is_lost_from_the_sentence():
    tally = Tally(False, {kind: 10 + place for place, kind in enumerate(KINDS)})
    numbers = [int(number) for number in re.findall(r"\d+", claims_answer(tally))]
    reduced = sum(tally.kinds[kind] for kind in ("same direction", "opposite", "undecided", "reduced scale"))
    kept = [count for kind, count in tally.kinds.items() if kind != "not run"]
    assert sorted(numbers) == sorted([tally.judged, tally.claims, reduced, *kept])


def test_the_sentence_on_columns_counts_both_sides_after_the_adjustment(column):
    assert differing(column) == (1, 1, 4)
    words = replace(column, task=replace(column.task, runs=replace(column.task.runs, task_name="words")))
    sides = "(1 better: BN; 1 worse: QAct)"
    assert columns_answer([column]) == f"Under one budget, 2 of 4 arms on digits {sides} differ from “none”."
    assert columns_answer([column, words]) == (
        f"Under one budget, 2 of 4 arms on digits {sides} and 2 of 4 on words {sides} differ from “none”."
    )
    assert columns_answer([]) == ""


def test_one_arm_differs_and_none_differ(files, results):
    kept = {name: files[name] for name in ("vanilla", "per")}
    assert columns_answer(columns(kept, ResultIndex(results))) == (
        "Under one budget, 0 of 2 arms on digits differ from “none”."
    )
    kept = {name: files[name] for name in ("vanilla", "batchnorm")}
    assert columns_answer(columns(kept, ResultIndex(results))) == (
        "Under one budget, 1 of 1 arm on digits (1 better: BN) differs from “none”."
    )
    assert columns_answer(columns(kept, ResultIndex([]))) == ""


def test_a_caveat_is_part_of_the_answer(files, results, methods):
    warned = {
        name: {"matrix_images": experiments["matrix_images"].model_copy(update={"caveat": "After one epoch."})}
        for name, experiments in files.items()
    }
    assert answer(methods, columns(warned, ResultIndex(results))).endswith("On digits: After one epoch.")


def test_better_is_on_the_left_whatever_the_metric(column):
    def marks(one):
        titles = {name: name for name in ARMS}
        table = overview(titles, {name: tallied() for name in ARMS}, [one])
        return {mark.label: mark for row in table.rows for mark in row.cells[0]}, table

    lower, table = marks(column)
    assert "better" in lower["BN"].picture
    assert center(lower["BN"].picture) < WIDTH / 2
    assert (table.columns[0].left[0], table.columns[0].right[0]) == ("−", "+")
    tables = {metric.replace("error", "accuracy"): rows for metric, rows in column.task.tables.items()}
    turned = replace(column, task=replace(column.task, tables=tables, metrics=tuple(tables)))
    higher, table = marks(turned)
    assert "worse" in higher["BN"].picture
    assert center(higher["BN"].picture) > WIDTH / 2
    assert (table.columns[0].left[0], table.columns[0].right[0]) == ("+", "−")


def center(picture):
    return float(re.search(r'cx="([\d.]+)"', picture)[1])


def test_a_mark_says_its_numbers_and_an_arm_far_beyond_is_an_arrow(column):
    table = overview({name: name for name in ARMS}, {name: tallied() for name in ARMS}, [column])
    marks = {mark.label: mark for row in table.rows for mark in row.cells[0]}
    assert (marks["BN"].text, marks["BN"].significant, marks["PER"].significant) == ("−1.00", True, False)
    assert re.search(r"<title>BN, digits: −1\.00 \[−1\.\d\d, −0\.\d\d\], p .+ after Holm", marks["BN"].picture)
    assert "PER, &lt;sliced&gt;" in marks["PER, <sliced>"].picture
    assert "<circle" not in marks["QAct"].picture
    assert "<circle" in marks["PER"].picture
    assert marks["QAct"].text == "+20.03"
    assert (marks["VCL"].text, marks["VCL"].picture) == ("not run", "")
    assert [row.baseline for row in table.rows if row.name == "vanilla"] == [
        (("7.10 %", "vanilla.evidence.html#matrix_images-digits-vanilla"),)
    ]
    assert table.columns[0].differing == "2 of 4 differ"


def test_rows_have_a_place_under_each_way_to_sort(column):
    tallies = {name: tallied() for name in ARMS} | {"vcl": tallied(reproduced=1), "per": tallied(undecided=2)}
    table = overview({name: name for name in ARMS}, tallies, [column])
    by = {
        sort: [row.name for row in sorted(table.rows, key=lambda row: row.places[place])]
        for place, sort in enumerate(table.sorts)
    }
    assert by["name"] == sorted(ARMS) == [row.name for row in table.rows]
    assert by["published claims"][:2] == ["per", "vcl"]  # two judged, then one
    assert by["digits"] == ["batchnorm", "per", "vanilla", "quantile_activation", "vcl"]  # the baseline at zero
    assert [sorted(row.places[place] for row in table.rows) for place in range(3)] == [list(range(5))] * 3
    assert table.rules.count("order: var(--by-") == 3


def test_an_axis_leaves_out_what_lies_far_beyond():
    def estimate(low, high):
        return Estimate((low + high) / 2, 3, 0.1, Interval(low, high))

    near = [estimate(-1, 0.5), estimate(0.2, 1.2), estimate(-0.1, 0.2)]
    assert reach([*near, estimate(9, 11)]) == pytest.approx(1.2)
    assert reach([*near, estimate(-11, -9), estimate(30, 31)]) == pytest.approx(11)  # two of five are not exceptions
    assert reach([*near * 2, estimate(-11, -9), estimate(30, 31)]) == pytest.approx(1.2)
    assert reach([*near, estimate(0.4, 4.0)]) == pytest.approx(4.0)  # its middle is within twice the reach
    assert reach([*near, estimate(0.4, 8.0)]) == pytest.approx(1.2)
    assert (reach([]), reach([Estimate(2.0, 1, None, None)])) == (0.0, 2.0)
    assert len(in_reach([*near, estimate(9, 11)])) == 3


def test_a_ratio_of_times_is_of_medians_on_one_kind_of_device(files, results, column):
    runs = column.task.runs.arms
    assert time_ratio(runs["batchnorm.bn"], column.baseline) == pytest.approx(2.0)
    other = [
        timed(result, 0.5, device="cuda (NVIDIA H100)") if result.config.method == "batchnorm" else result
        for result in results
    ]
    moved = columns(files, ResultIndex(other))[0]
    assert time_ratio(moved.task.runs.arms["batchnorm.bn"], moved.baseline) is None
    assert "BN" not in [point.label for point in cost([moved]).panels[0].points]


def test_cost_stands_beside_gain_in_figure_text_and_table(column, results, files):
    found = cost([column])
    (panel,) = found.panels
    assert [(row.label, row.ratio) for row in panel.rows] == [
        ("PER", "1.50 ×"),
        ("BN", "2.00 ×"),
        ("PER, <sliced>", "4.00 ×"),
        ("QAct", "10.00 ×"),
    ]
    bn = next(point for point in panel.points if point.label == "BN")
    assert (bn.gain.mean, bn.gain.interval.low > 0) == (pytest.approx(1.0), True)
    assert "4 arms take 1.50 to 10.00 times none's time per step" in found.drawing.description
    assert "BN +1.00 [" in found.drawing.description
    assert "PER" not in found.drawing.description.partition("Told")[2]
    axis = found.drawing.draw().axes[0]
    names = [text.get_text() for text in axis.texts]
    assert names == ["QAct (−20.03)", "BN"]
    low, high = axis.get_ylim()
    assert -5 < low < 0 < 1 < high < 5
    assert "it is not recorded whether" in found.note
    known = [timed(result, 0.001, runs_on_device=1) for result in results]
    assert cost(columns(files, ResultIndex(known))).note == "Each of these runs had its device for itself."
    shared = [timed(result, 0.001, runs_on_device=4) for result in results]
    assert "shared their device, with up to 4 at once" in cost(columns(files, ResultIndex(shared))).note
    assert cost(columns(files, ResultIndex([]))) is None


def test_names_do_not_touch_and_stay_inside():
    assert pushed_apart([1.0, 5.0], 1.0, 9.0) == [1.0, 5.0]
    assert pushed_apart([1.0, 1.1, 1.2], 1.0, 9.0) == [1.0, 2.0, 3.0]
    assert pushed_apart([1.0, 8.0, 8.5, 8.6], 1.0, 9.0) == [1.0, 7.0, 8.0, 9.0]
    assert pushed_apart([], 1.0, 9.0) == []


class Page(HTMLParser):
    """Elements that are open, links, and what would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.wrong = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.links.append(dict(attrs)["href"])
        if tag not in ("meta", "input", "circle", "path", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("circle", "path") and self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_holds_together_and_has_every_method(methods, column, tmp_path):
    index = write_index(methods, [column], tmp_path)
    page, text = index.read_text("utf-8"), index.with_suffix(".md").read_text("utf-8")
    parsed = Page()
    parsed.feed(page)
    assert (parsed.open, parsed.wrong) == ([], [])
    assert {f"{name}.html" for name in ARMS} | {"matrix.html#matrix-images-digits", "matrix.csv"} <= set(parsed.links)
    for piece in (
        "Newest Result",
        "2026-01-01",
        "digits: 3 an arm, 3 of “",
        "sealed Result",
        "Pull activations toward",
    ):
        assert piece in page
        assert piece in text
    assert "<bdi>PER, &lt;sliced&gt;</bdi>" in page
    assert "| [Projected Error Function Regularization](per.md) | – | PER: −0.02 [" in text
    assert "PER, &lt;sliced>: +0.03 [" in text
    assert "**−1.00 [" in text
    assert not re.search(r"\bnan\b|None\b|Undefined", page.partition("</style>")[2] + text)


def test_data_behind_the_pages_are_linked_where_there_are_some(methods, column, tmp_path):
    for data, expected in (("", False), ("data/", True)):
        index = index_pages(methods, [column], data=data)[-1].write(tmp_path)
        assert ('<a href="data/index.html">' in index.read_text("utf-8")) is expected
        assert ("](data/README.md)" in index.with_suffix(".md").read_text("utf-8")) is expected


def test_the_index_counts_verdicts_per_method(make_experiment, make_results, per_findings, tmp_path):
    experiment = make_experiment()
    methods = [per_findings({"t": experiment}, make_results(experiment)), per_findings({}, [], "other")]
    path = write_index(methods, [], tmp_path)
    parsed = Page()
    parsed.feed(path.read_text("utf-8"))
    assert (parsed.open, parsed.wrong) == ([], [])
    assert {"per.html", "other.html"} <= set(parsed.links)
    text = path.with_suffix(".md").read_text("utf-8")
    assert "3 of 4 published claims tested: 3 reproduced." in text
    claimed = text.partition("## The papers' claims")[2].splitlines()
    assert "| [Projected Error Function Regularization](per.md) | 12 | 3 | 3 | 1 |" in claimed
    assert "| All | 12 | 3 | 3 | 1 |" in claimed
    assert not [line for line in claimed if line.startswith("|") and "other.md" in line]  # it claims nothing


def test_the_counts_of_the_index_add_up_and_ours_stand_apart(make_experiment, make_results, per_findings, tmp_path):
    paper = make_experiment(scale="reduced")
    own = tuple(claim.model_copy(update={"source": "ours"}) for claim in paper.claims[2:])
    both = paper.model_copy(update={"claims": (*paper.claims, *own)})
    methods = [
        per_findings({"t": both}, make_results(both)),
        per_findings({"t": make_experiment()}, make_results(both), "b"),
    ]
    page = (
        write_index(methods, [], tmp_path, [f"{ROOT}/reports/evidence/x.json: broken"]).with_suffix(".md").read_text()
    )
    papers, ours = page.partition("## The papers' claims")[2].split("## Our own claims")
    for part, claims in ((papers, 8), (ours, 2)):
        rows = [
            [int(cell.replace("–", "0")) for cell in line.strip("| ").split(" | ")[1:]]
            for line in part.splitlines()
            if line.startswith(("| [", "| All"))
        ]
        sums = [sum(column) for column in zip(*rows[:-1], strict=True)]
        assert rows[-1][1:] == sums[1:]
        assert rows[-1][0] == 12  # runs are counted once
        judged, *kinds = rows[-1][1:]
        assert sum(kinds) == claims
        waiting = kinds[-1] if " not run |" in part else 0
        assert judged == claims - waiting
    assert "reduced scale: same direction" in papers
    assert "**Cannot be read, and counts nowhere:** reports/evidence/x.json: broken" in page
    table = index_pages(methods, [])[-1].content["overview"]
    summed = {kind: sum(row.tally.kinds.get(kind, 0) for row in table.rows) for kind in KINDS}
    assert table.total.kinds == {kind: count for kind, count in summed.items() if count}
    stated = [claim for method in methods for finding in method.findings for claim in finding.experiment.claims]
    assert table.total.claims == sum(not claim.ours for claim in stated)
