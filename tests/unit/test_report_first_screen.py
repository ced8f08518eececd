"""The first screen answers from what was computed: does it hold, by how much, can it be trusted."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest

from reproduce.cli.pages import timing_of
from reproduce.experiment.cells import cells
from reproduce.experiment.folder import METHODS, MethodFolder
from reproduce.experiment.recipe import Recipe
from reproduce.experiment.schema import Arm, Claim
from reproduce.report.counts import tallies
from reproduce.report.first_screen import first_sentence
from reproduce.report.forest import CHARACTER, MARGIN, MOST, WIDTH, _axis, forest, ticks
from reproduce.report.latex import latex_tables
from reproduce.report.page import write_page
from reproduce.report.provenance import deviations
from reproduce.report.sentences import budget_sentence, claims_sentences, correlation_sentence, tally_sentence
from reproduce.report.trust import trust
from reproduce.report.waiting import Timing, waiting_rows
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex


def claim(**changes):
    return Claim(
        **{"task": "digits", "arm": "per", "metric": "test.error", "source": "Table 1", "direction": "lower"} | changes
    )


@pytest.fixture
def found(make_experiment, make_results, card_folder):
    """The findings of one experiment under the method per, run or not."""

    def make(results=True, **changes):
        experiment = make_experiment(**changes)
        index = ResultIndex(make_results(experiment) if results else [])
        return MethodFindings(MethodFolder("per", card_folder), (evaluate("t", experiment, index),))

    return make


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Pull it down. Then stop.", "Pull it down."),
        ("Of $x. Y$ and J. K. Rowling et al. Said 0.5. More.", "Of $x. Y$ and J. K. Rowling et al. Said 0.5."),
        ("Two\nlines of one sentence\n\nAnother paragraph.", "Two lines of one sentence"),
    ],
)
def test_the_idea_is_one_sentence(text, sentence):
    assert first_sentence(text) == sentence


@pytest.mark.parametrize("path", sorted(METHODS.glob("*/card.md")), ids=lambda path: path.parent.name)
def test_every_card_begins_with_one_line(path):
    idea = path.read_text("utf-8").partition("## Idea")[2].strip()
    assert first_sentence(idea) == " ".join(idea.split("\n\n")[0].split())
    assert len(first_sentence(idea)) < 150


def test_a_reduced_experiment_points_and_neither_holds_nor_fails(found):
    claims = (
        claim(over="vanilla"),
        claim(arm="vanilla", over="batchnorm"),
        claim(arm="vcl", over="vanilla"),
        claim(source="ours", over="vanilla"),
        claim(value=6.0, tolerance=0.1, direction=None),
    )
    (papers, ours) = tallies(found(scale="reduced", claims=claims).findings)
    text = tally_sentence(papers)
    assert text == (
        "Of the paper's 4 claims 3 were tested: at reduced scale 1 points the paper's way, 1 points the other way and "
        "1 is of a value, which is not compared across scales."
    )
    assert tally_sentence(ours) == "Our own one claim was tested: at reduced scale 1 points our way."
    assert not re.search(r"\b(holds?|fails?|reproduced)\b", text + tally_sentence(ours))
    (full,) = tallies(found(claims=claims[:1]).findings)
    assert tally_sentence(full) == "The paper's one claim was tested: 1 is reproduced."


def test_the_forest_has_the_papers_number_as_a_diamond_and_one_axis_for_one_unit(found):
    claims = (
        claim(over="vanilla", direction=None, value=-0.5, tolerance=0.3),
        claim(arm="batchnorm", over="vanilla"),
        claim(direction=None, value=6.9, tolerance=0.3),
        claim(metric="validation.error", over="vanilla"),
        claim(source="ours", over="batchnorm"),
    )
    method = found(claims=claims)
    one = forest(method, method.findings, ())
    assert (one.what, one.more) == ("The papers' claims", 0)
    assert [(panel.title, len(panel.rows)) for panel in one.panels] == [
        ("scikit-learn digits, 8x8; test error (%), minus Vanilla", 2),
        ("scikit-learn digits, 8x8; test error (%)", 1),
        ("scikit-learn digits, 8x8; validation error (%), minus Vanilla", 1),
    ]
    gap, side = one.panels[0].rows
    (value,) = one.panels[1].rows
    assert ["paper-number" in row.plot for row in (gap, side, value)] == [True, False, True]
    assert ['class="side"' in row.plot for row in (gap, side, value)] == [False, True, False]
    assert ['class="zero"' in row.plot for row in (gap, side, value)] == [True, True, False]
    assert (gap.label, gap.said, gap.kind, value.said) == ("PER", "paper −0.5", "reproduced", "paper 6.9")
    assert gap.ours in gap.plot
    assert gap.evidence == "per.evidence.html#t-digits-per"
    estimate = method.findings[0].verdicts[0].ours
    zero, low, high, mean, paper = (
        float(re.search(pattern, gap.plot).group(1))
        for pattern in (r"M([\d.]+) 0v", r"M([\d.]+) 9H", r'9H([\d.]+)"', r'cx="([\d.]+)"', r"M([\d.]+) 3l6")
    )
    assert max(zero, low, high, mean, paper) <= WIDTH
    scale = (zero - mean) / -estimate.mean
    for place, number in ((low, estimate.interval.low), (high, estimate.interval.high), (paper, -0.5)):
        assert place == pytest.approx(zero + number * scale, abs=0.5)


@pytest.mark.parametrize(("low", "high"), [(105.45, 119.44), (-0.2, 0.02), (0.0, 1.0), (99998.0, 100012.0)])
def test_numbers_of_an_axis_lie_beside_each_other(low: float, high: float) -> None:
    axis = _axis(low, high, lambda value: MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN))
    found = re.findall(r'<text x="([\d.]+)" y="14" text-anchor="(\w+)">([^<]+)<', axis)
    assert len(found) >= 2
    end = 0.0
    for x, anchor, text in found:
        begin = float(x) - {"start": 0, "middle": 0.5, "end": 1}[anchor] * CHARACTER * len(text)
        assert begin >= end - 1e-9
        end = begin + CHARACTER * len(text)


def test_arms_that_learned_nothing_are_named_wherever_their_gap_stands(found, monkeypatch):
    monkeypatch.setattr("reproduce.results.evaluate.collapsed", lambda values, *_: tuple(values)[:2])
    method = found(claims=(claim(over="vanilla"),), scale="reduced")
    doubt = "PER: 2 of 3 seeds at chance level; Vanilla: 2 of 3 seeds at chance level"
    assert forest(method, method.findings, ()).panels[0].rows[0].doubt == doubt
    assert doubt.replace("; ", ", ") in claims_sentences(method.findings[0])
    assert doubt in latex_tables(method)


def test_panels_of_two_experiments_on_one_dataset_are_told_apart(found):
    claims = (claim(over="vanilla"), claim(direction=None, value=6.9, tolerance=0.3))
    (first,) = found(claims=claims).findings
    second = replace(first, experiment=first.experiment.model_copy(update={"title": "A tenth"}))
    third = replace(first, verdicts=first.verdicts[1:])
    panels = forest(found(claims=claims), (first, second, third), ()).panels
    own, value = first.experiment.title, "scikit-learn digits, 8x8; test error (%)"
    assert [panel.title for panel in panels] == [
        f"{own} ({value}, minus Vanilla)",
        f"{own} ({value})",
        f"A tenth ({value}, minus Vanilla)",
        f"A tenth ({value})",
        f"{own} ({value})",
    ]


def test_without_claims_of_papers_ours_are_drawn_and_without_any_the_matrix(found):
    method = found(claims=(claim(source="ours", over="vanilla"),))
    assert forest(method, method.findings, ()).what == "Our own claims"
    method = found(claims=())
    assert forest(method, method.findings, ()) is None
    one = forest(method, (), method.findings)
    assert one.what == "Its row of the matrix, under one budget"
    assert [row.label for panel in one.panels for row in panel.rows] == ["BN", "PER"]
    method = found(results=False)
    assert forest(method, method.findings, ()) is None


def test_gaps_under_one_budget_are_counted(found):
    finding = found().findings[0]
    told = [row.significant for row in finding.tasks["digits"].tables["test.error"] if row.p_holm is not None]
    assert budget_sentence([finding]).startswith(
        f"Under one budget the seeds tell {sum(told)} of its {len(told)} gaps to the baseline from zero"
    )
    assert sum(told) == 2
    assert budget_sentence(found(results=False).findings) == ""


def test_a_long_forest_is_cut_and_says_so(found):
    method = found(claims=tuple(claim(over="vanilla") for _ in range(MOST + 3)))
    one = forest(method, method.findings, ())
    assert sum(len(panel.rows) for panel in one.panels) == MOST
    assert one.more == 3


@pytest.mark.parametrize(("low", "high"), [(-9.92, 5.78), (110.2, 118.7), (-0.29, 0.03), (0, 1e-6), (-2e5, 3e6)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 6
    assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-9


def test_trust_is_said_in_short_lines(found):
    finding = found().findings[0]
    lines = dict(trust([finding], []))
    assert lines["Scale"] == "1 of 1 paper-scale experiments ran"
    assert lines["Seeds"] == "3 an arm"
    assert lines["Data"] == "exact"
    assert lines["Coefficients"] == "chosen on validation, by the seeds that are judged"
    assert lines["Failures"] == "1 run diverged, none at chance level"
    assert lines["Files"] == "all readable, none superseded"
    assert lines["Devices"] == "cpu"
    assert dict(trust([finding], ["a: broken"]))["Files"] == "1 unreadable, none superseded"
    chosen = make_recipe(selection="best_test")
    assert "too good" in dict(trust([found(recipe=chosen).findings[0]], []))["Epoch"]
    further = found(choosing_seeds=(7,)).findings[0]
    assert dict(trust([further], []))["Coefficients"] == "chosen on further seeds"


def test_an_experiment_of_which_the_baseline_alone_ran_did_not_run(make_experiment, make_results):
    experiment = make_experiment()
    of_baseline = [result for result in make_results(experiment) if result.config.method == "vanilla"]
    finding = evaluate("t", experiment, ResultIndex(of_baseline))
    assert finding.ran
    assert dict(trust([finding], []))["Scale"] == "0 of 1 paper-scale experiments ran"


def make_recipe(**changes):
    return Recipe(**{"epochs": 8, "batch_size": 32, "learning_rate": 0.1} | changes)


def test_what_waits_is_one_table_with_hours_where_they_are_known(make_experiment, found):
    (waiting,) = waiting_rows("per", found(results=False).findings, None)
    assert (waiting.size, waiting.runs, waiting.hours) == (
        "3 arms × 1 task × 3 seeds, grids of up to 2",
        "12",
        "unknown",
    )
    arms = {name: arm.model_copy(update={"pending": "x"}) for name, arm in make_experiment().arms.items()}
    (impossible,) = waiting_rows("per", found(results=False, arms=arms).findings, None)
    assert (impossible.size, impossible.runs, impossible.hours, impossible.command) == ("–", "–", "–", "")
    assert waiting.command == "reproduce run per --only t"
    assert waiting.pending == ("Not possible yet: “VCL” (the method is not built yet).",)
    assert waiting_rows("per", found().findings, None) == ()
    hour = Timing("cpu", lambda cell: None if cell.method == "per" else 3600.0)
    (waiting,) = waiting_rows("per", found(results=False).findings, hour)
    assert waiting.hours == "about 6.0 on one worker, cpu; 6 runs of unknown length"


def test_hours_are_of_what_will_be_trained(found):
    """Where further seeds choose, the others are trained at one point of a grid only: 4 of 6 runs of PER here."""
    arms = {"per": Arm(method="per", grid={"strength": (0.1, 0.2)})}
    changes = {"arms": arms, "baseline": None, "seeds": (1, 2), "choosing_seeds": (8,), "claims": ()}
    (waiting,) = waiting_rows("per", found(results=False, **changes).findings, Timing("cpu", lambda cell: 3600.0))
    assert (waiting.runs, waiting.hours) == ("4", "about 4.0 on one worker, cpu")


def test_all_entries_of_a_card_are_ready_to_copy(found, tmp_path):
    method = found()
    card = method.folder.path / "card.md"
    before = card.read_text("utf-8")
    second = "@article{other2021,\n  author = {A},\n  title = {B_z_*},\n  year = {2021},\n  doi = {10.1234/b}\n}"
    try:
        card.write_text(f"{before}\n```bibtex\n{second}\n```\n", "utf-8")
        path = write_page(method, [], tmp_path)
    finally:
        card.write_text(before, "utf-8")
    page = html.unescape(path.read_text("utf-8"))
    assert f'<summary>1 more</summary><pre tabindex="0">{second}</pre>' in page
    assert second in path.with_suffix(".md").read_text("utf-8")


def test_hours_come_from_the_step_times_of_results(make_experiment, make_results):
    experiment = make_experiment()
    timing = timing_of(make_results(experiment))
    longer = make_experiment(recipe=make_recipe(epochs=80))
    assert timing.device == "cpu"
    for cell, long in zip(cells(experiment), cells(longer), strict=True):
        once = timing.seconds(cell)
        assert once == pytest.approx(12.5, rel=0.01)  # what a Result says that its training took
        assert timing.seconds(long) == pytest.approx(10 * once, rel=0.01)
    unlike = make_experiment(recipe=make_recipe(batch_size=64))
    assert {timing.seconds(cell) for cell in cells(unlike)} == {None}
    assert timing_of([]) is None


def test_a_deviation_is_said_once(make_experiment, make_results):
    index = ResultIndex(make_results(make_experiment()))
    one = evaluate("a", make_experiment(title="One", deviations=("Shared.", "Own.")), index)
    other = evaluate("b", make_experiment(title="Other", deviations=("Shared.",)), index)
    parts = deviations([one, other])
    assert [(part.experiments, part.texts) for part in parts] == [
        ((("a", "One"), ("b", "Other")), ("Shared.",)),
        ((("a", "One"),), ("Own.",)),
    ]


def test_the_page_has_the_answers_before_all_else_and_says_each_deviation_once(found, tmp_path):
    method = found(deviations=("A strange deviation.",))
    path = write_page(method, [], tmp_path)
    page = html.unescape(path.read_text("utf-8"))
    places = [page.index(text) for text in ("Does it hold?", "By how much?", "Can I trust it?", "Repeat it", "Cite it")]
    assert places == sorted(places)
    assert places[-1] < page.index('id="verdicts"') < page.index("The paper's experiments")
    assert page.count("A strange deviation.") == 1
    cited = re.search(r'<pre tabindex="0">(@inproceedings\{nobody2020,.*?)</pre>', page, re.S)
    assert cited is not None
    assert "title = {A <title>}" in cited[1]
    assert '<pre tabindex="0">reproduce run per --scale paper</pre>' in page  # this folder is not of the repository
    markdown = path.with_suffix(".md").read_text("utf-8")
    assert "\n- PER: " in markdown
    assert markdown.count("A strange deviation.") == 1


def test_correlation_is_said_where_pairing_is_considered(found, make_experiment, make_result):
    def task(scatter):
        experiment = make_experiment(seeds=tuple(range(8)))
        results = [make_result(cell, 7 + scatter(cell), 7.0) for cell in cells(experiment)]
        return evaluate("t", experiment, ResultIndex(results)).tasks["digits"]

    def alone(cell):
        return float(np.random.default_rng([cell.seed, *cell.arm_name.encode(), *str(cell.params).encode()]).normal())

    together = correlation_sentence(task(lambda cell: cell.seed + 0.8 * alone(cell)))
    assert re.search(r"correlate over seeds by 0\.\d\d, surely by 0\.\d\d: differences are paired", together)
    apart = correlation_sentence(task(alone))
    assert apart.endswith("which may be chance: differences are of two means, not paired.")
    empty = found(results=False).findings[0].tasks["digits"]
    assert correlation_sentence(empty) == ""


def test_data_that_are_not_the_papers_are_named_whole(found, monkeypatch):
    """Before a comma or a colon there may stand the name of another dataset."""
    method = found()
    (finding,) = method.findings
    title = "CIFAR-10 images after JPEG quality 75 (4:2:0): not CIFAR-10"
    renamed = {key: card.model_copy(update={"title": title}) for key, card in finding.datasets.items()}
    method = replace(method, findings=(replace(finding, datasets=renamed),))
    assert all(panel.title.startswith(f"{title}; ") for panel in forest(method, method.findings, ()).panels)
