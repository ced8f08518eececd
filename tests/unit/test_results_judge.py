"""Verdicts: each branch of the rule, with numbers chosen so that it is plain by hand."""

import pytest

from reproduce.experiment.schema import Arm, Claim, TaskSpec, cells
from reproduce.results.judge import WORDS, judge, rule
from reproduce.results.match import ResultIndex, match


def matched(experiment, results):
    return match(experiment, ResultIndex(results))["digits"]


@pytest.fixture
def verdict(make_experiment, make_result):
    """Judge one claim on given test errors by arm and seed; None marks a diverged seed."""

    def of(claim, errors, **changes):
        stand_ins = changes.pop("stand_ins", ())
        content = {"arms": {"vanilla": Arm(), "per": Arm(method="per", params={"strength": 0.1})}}
        experiment = make_experiment(**{**content, "claims": (claim,), **changes})
        results = []
        for cell in cells(experiment):
            values = errors.get(cell.arm_name, ())
            if cell.seed < len(values):
                error = values[cell.seed]
                results.append(make_result(cell, error or 1.0, diverged=error is None))
        return judge(claim, matched(experiment, results), stand_ins)

    return of


def value(published, tolerance):
    return Claim(task="digits", arm="per", metric="test.error", value=published, tolerance=tolerance, source="t")


def gap(published, tolerance):
    return value(published, tolerance).model_copy(update={"over": "vanilla"})


def direction(side):
    return Claim(task="digits", arm="per", over="vanilla", metric="test.error", direction=side, source="t")


NARROW = (6.99, 7.00, 7.01)  # interval about 7.00 +- 0.025
WIDE = (6.0, 7.0, 8.0)  # about 7.0 +- 2.5


@pytest.mark.parametrize(
    ("published", "tolerance", "errors", "word"),
    [
        (7.1, 0.2, NARROW, "reproduced"),
        (7.11, 0.1, NARROW, "partly"),  # the mean is 0.01 outside, the interval reaches in
        (7.2, 0.1, NARROW, "not reproduced"),
        (7.0, 0.2, WIDE, "inconclusive"),
        (20.0, 0.2, WIDE, "not reproduced"),
        (7.0, 0.2, (7.0,), "inconclusive"),
    ],
)
def test_a_value(verdict, published, tolerance, errors, word):
    assert verdict(value(published, tolerance), {"per": errors}).word == word


OVER = (7.5, 8.0, 8.5)


@pytest.mark.parametrize(
    ("published", "tolerance", "differences", "word"),
    [
        (-0.5, 0.2, (-0.49, -0.50, -0.51), "reproduced"),
        (-0.2, 0.1, (-0.49, -0.50, -0.51), "partly"),
        (0.5, 0.2, (-0.49, -0.50, -0.51), "not reproduced"),
        (-0.5, 0.2, (-0.02, 0.0, 0.02), "not reproduced"),
        (-0.5, 0.2, (-1.5, -0.5, 0.5), "inconclusive"),
        (0.0, 0.2, (-0.02, 0.0, 0.02), "reproduced"),  # a published gap of zero is judged like a value
        (-0.5, 0.2, (-0.5,), "inconclusive"),
    ],
)
def test_a_gap(verdict, published, tolerance, differences, word):
    errors = {"vanilla": OVER, "per": [o + d for o, d in zip(OVER, differences, strict=False)]}
    found = verdict(gap(published, tolerance), errors)
    assert found.word == word
    assert found.ours.n == len(differences)


@pytest.mark.parametrize(
    ("side", "differences", "word"),
    [
        ("lower", (-0.4, -0.5, -0.6), "reproduced"),
        ("higher", (-0.4, -0.5, -0.6), "not reproduced"),
        ("higher", (0.4, 0.5, 0.6), "reproduced"),
        ("lower", (-1.0, 0.0, 0.4), "inconclusive"),
        ("lower", (-1.0,), "inconclusive"),
    ],
)
def test_a_direction(verdict, side, differences, word):
    errors = {"vanilla": OVER, "per": [o + d for o, d in zip(OVER, differences, strict=False)]}
    assert verdict(direction(side), errors).word == word


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ((-0.4, -0.5, -0.6), "same direction"),
        ((0.4, 0.5, 0.6), "opposite"),
        ((-1.0, 0.0, 0.4), "undecided"),
        ((-1.0,), "undecided"),
    ],
)
@pytest.mark.parametrize("claim", [gap(-0.5, 0.2), direction("lower")])
def test_reduced_scale_has_a_direction_only(verdict, claim, differences, expected):
    errors = {"vanilla": OVER, "per": [o + d for o, d in zip(OVER, differences, strict=False)]}
    found = verdict(claim, errors, scale="reduced")
    assert (found.word, found.direction) == ("reduced scale", expected)
    assert found.text == f"reduced scale: {expected}"


def test_other_data_and_fewer_examples_are_reduced_scale(verdict):
    assert verdict(value(7.0, 0.2), {"per": NARROW}, stand_ins={"digits"}).word == "reduced scale"
    task = TaskSpec(kind="image_classification", dataset="digits", model="mlp", train_examples=500)
    found = verdict(value(7.0, 0.2), {"per": NARROW}, tasks={"digits": task})
    assert found.word == "reduced scale"
    assert "500" in found.reason


def test_a_diverged_seed_is_never_averaged_away(verdict):
    found = verdict(value(7.0, 0.2), {"per": (7.0, 7.01, None)})
    assert found.word == "inconclusive"
    assert found.ours is None
    assert "1 of 3 seeds diverged" in found.reason
    both = verdict(gap(-0.5, 0.2), {"vanilla": (7.5, None, 7.5), "per": (7.0, 7.0, 7.0)})
    assert both.word == "inconclusive"
    assert both.ours is None


def test_when_every_seed_diverges_a_value_is_not_reproduced(verdict):
    assert verdict(value(7.0, 0.2), {"per": (None, None, None)}).word == "not reproduced"
    assert verdict(value(7.0, 0.2), {"per": (None,)}).word == "inconclusive"


def test_not_run_says_why(verdict, make_experiment):
    assert verdict(value(7.0, 0.2), {}).reason == "per: no Results"
    experiment = make_experiment()
    pending = next(claim for claim in experiment.claims if claim.arm == "vcl")
    found = judge(pending, matched(experiment, []))
    assert found.word == "not run"
    assert "not built yet" in found.reason
    other = value(7.0, 0.2).model_copy(update={"metric": "test.perplexity"})
    assert "no test.perplexity" in verdict(other, {"per": NARROW}).reason


def test_seeds_still_to_run_are_named(verdict):
    found = verdict(value(7.0, 0.2), {"per": (7.0, 7.01)})
    assert found.word == "reproduced"
    assert "n = 2, still to run: seed 2" in found.reason


def test_arms_without_a_shared_seed_decide_nothing(make_experiment, make_result):
    experiment = make_experiment()
    first, *_, last = [cell for cell in cells(experiment) if cell.arm_name in ("vanilla", "batchnorm")]
    results = [make_result(first, 7.0), make_result(last, 6.0)]
    assert first.seed != last.seed
    claim = experiment.claims[-1]
    found = judge(claim, matched(experiment, results))
    assert (found.word, found.reason) == ("inconclusive", "the two arms share no seed")


def test_a_choice_on_the_test_set_is_said(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(cell, 7.0 + 0.1 * cell.seed) for cell in cells(experiment)]
    claim = next(claim for claim in experiment.claims if claim.arm == "per")
    assert "PER chosen on the test set" in judge(claim, matched(experiment, results)).reason


def test_the_rule_names_every_verdict():
    text = " ".join(rule().lower().split())
    assert all(word in text for word in WORDS)
