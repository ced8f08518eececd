"""The two sentences of an experiment say what the verdicts say, no more and no less."""

import html
import io
import re

import pytest
from rich.console import Console
from scipy import stats

from reproduce.experiment.cells import cells
from reproduce.experiment.dataset_card import read_card
from reproduce.experiment.schema import Claim, TaskSpec
from reproduce.report.page import write_page
from reproduce.report.sentences import claims_sentences, sampling_sentence
from reproduce.report.terminal import terminal_summary
from reproduce.results.evaluate import evaluate
from reproduce.results.match import ResultIndex

LEVELS = {"vanilla": 7.2, "batchnorm": 6.9, "per": 7.2, "vcl": 7.0}


def claim(arm, over=None, metric="test.error", **value):
    return Claim(task="digits", arm=arm, over=over, metric=metric, source="text", **value or {"direction": "lower"})


@pytest.fixture
def judged(make_experiment, make_result):
    """A Finding of these claims: batchnorm is below vanilla by the same at each seed, per above or below by chance."""

    def make(*claims, scale="reduced", results=True, diverged=None, **changes):
        experiment = make_experiment(claims=claims, scale=scale, **changes)
        found = []
        for cell in cells(experiment) if results else []:
            scatter = (0.4, -0.3, 0.1)[cell.seed] if cell.arm_name == "per" else 0.01 * cell.seed
            level, failed = LEVELS[cell.arm_name] + scatter, cell.arm_name == diverged and cell.seed == 1
            found.append(make_result(cell, level, level + 1, diverged=failed))
        return evaluate("t", experiment, ResultIndex(found))

    return make


def test_directions_are_sorted_into_two_sentences(judged):
    text = claims_sentences(
        judged(claim("batchnorm", "vanilla"), claim("vanilla", "batchnorm"), claim("per", "vanilla"))
    )
    first, second = text.split(". ")
    assert first.startswith(
        "Of the paper's 3 claims judged at reduced scale on test error, "
        "1 points the paper's way (“BN” below “Vanilla”, −0.30 ["
    )
    assert second.startswith("1 points the other way (“Vanilla” below “BN”, +0.30 [")
    assert re.search(r" and 1 stays undecided \(“PER” below “Vanilla”, .0\.\d\d \[−.*\]\)\.$", second)


def test_the_numbers_are_those_that_were_judged(judged):
    finding = judged(claim("per", "vanilla"))
    (verdict,) = finding.verdicts
    interval = verdict.ours.interval
    numbers = [float(text.replace("−", "-")) for text in re.findall(r"[−+]?\d+\.\d+", claims_sentences(finding))]
    assert numbers == pytest.approx([verdict.ours.mean, interval.low, interval.high], abs=0.005)


def test_everything_or_nothing_holds(judged):
    assert claims_sentences(judged(claim("batchnorm", "vanilla"))).endswith("]).")
    text = claims_sentences(judged(claim("vanilla", "batchnorm")))
    assert text.startswith(
        "Of the paper's one claim judged at reduced scale on test error, none points the paper's way. 1 "
    )


def test_values_are_judged_at_the_scale_of_the_paper_only(judged):
    claims = (
        claim("batchnorm", value=6.9, tolerance=0.2),
        claim("batchnorm", "vanilla", value=-1.0, tolerance=0.2),
        claim("vanilla", value=9.0, tolerance=0.1),
    )
    first, second = claims_sentences(judged(*claims, scale="paper")).split(". ")
    assert "1 is reproduced (“BN”, 6.91 [" in first
    assert "1 is partly reproduced (“BN” minus “Vanilla”, −0.30" in second
    assert "1 is not reproduced (“Vanilla”, 7.21" in second
    text = claims_sentences(judged(*claims))
    assert text.startswith(
        "Of the paper's one claim judged at reduced scale on test error, 1 points the paper's way (“BN” "
    )


def test_what_was_not_run_is_not_counted(judged):
    assert claims_sentences(judged(claim("batchnorm", "vanilla"), results=False)) == ""
    assert claims_sentences(judged()) == ""
    text = claims_sentences(judged(claim("batchnorm", "vanilla"), claim("vcl", "vanilla")))
    assert text.startswith("Of the paper's one claim")
    assert "VCL" not in text


def test_a_diverged_arm_leaves_its_claim_open_and_without_a_number(judged):
    text = claims_sentences(judged(claim("batchnorm", "vanilla"), diverged="batchnorm"))
    assert text.endswith("1 stays undecided (“BN” below “Vanilla”).")


def test_two_metrics_and_two_tasks_are_named(judged):
    tasks = {name: TaskSpec(kind="image_classification", dataset=name, model="mlp") for name in ("digits", "mnist")}
    other = claim("batchnorm", "vanilla", "validation.error")
    assert "in test error" not in claims_sentences(judged(claim("batchnorm", "vanilla")))
    text = claims_sentences(judged(claim("batchnorm", "vanilla"), claim("per", "vanilla"), other, tasks=tasks))
    assert "“BN” below “Vanilla” in test error of digits, " in text
    assert "“BN” below “Vanilla” in validation error of digits, " in text
    assert "judged at reduced scale," in text


def test_a_long_list_is_cut_and_says_so(judged):
    text = claims_sentences(judged(*[claim("batchnorm", "vanilla")] * 9))
    assert text.count("“BN” below “Vanilla”") == 6
    assert "9 point the paper's way (" in text
    assert "; 3 more)" in text


def test_pages_and_the_terminal_carry_the_sentences(make_experiment, make_results, per_findings, tmp_path):
    experiment = make_experiment()
    method = per_findings({"t": experiment}, make_results(experiment))
    text = claims_sentences(method.findings[0])
    assert text.startswith("Of the paper's 3 claims judged on test error, 3 are reproduced (“Vanilla”, 7.")
    path = write_page(method, [], tmp_path)
    assert f'<p class="finding">{text}</p>' in html.unescape(re.sub("</?bdi>", "", path.read_text("utf-8")))
    assert f"\n{text}\n" in path.with_suffix(".md").read_text("utf-8")
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(terminal_summary(method.findings))
    assert text in console.export_text()


def test_our_own_claims_are_told_apart_and_reduced_experiments_neither_hold_nor_fail(judged):
    own = claim("batchnorm", "vanilla").model_copy(update={"source": "ours: a guess"})
    text = claims_sentences(judged(claim("vanilla", "batchnorm"), own))
    assert text.startswith(
        "Of the paper's one claim judged at reduced scale on test error, none points the paper's way"
    )
    assert "Of our own one claim judged at reduced scale on test error, 1 points our way (“BN” below" in text
    assert not re.search(r"\b(holds?|fails?|reproduced)\b", text)


def test_test_sampling_is_said_of_errors_and_of_nothing_else(judged):
    task = judged(claim("per", "vanilla")).tasks["digits"]
    card = read_card("digits")
    text = sampling_sentence(task, card)
    mean = task.row("test.error", "vanilla").mean.mean
    interval = stats.binomtest(round(mean * 4), 400).proportion_ci(method="wilson")
    half = 50 * (interval.high - interval.low)
    assert f"on 400 other test rows an error of {mean:.2f} % may" in text
    (moved,) = re.findall(r"±([\d.]+)", text)
    assert float(moved) == pytest.approx(half, abs=0.05)
    assert sampling_sentence(task, read_card("ptb")) == ""
    assert sampling_sentence(judged(results=False).tasks["digits"], card) == ""
