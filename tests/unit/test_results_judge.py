"""Verdicts: each branch of the rule, with numbers chosen so that it is plain by hand."""

import pytest

from reproduce.experiment.cells import cells
from reproduce.experiment.schema import Arm, Claim, TaskSpec
from reproduce.results.judge import LATER, WORDS, decide, judge, judge_experiment, rule
from reproduce.results.match import ResultIndex, match
from reproduce.results.scatter import Scatter, quantile
from reproduce.results.stats import Estimate, Interval


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
        (7.04, 0.01, NARROW, "partly"),  # the interval misses the band, but one more run may be 0.05 off
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
        (-0.05, 0.2, (-0.03, 0.0, 0.03), "inconclusive"),  # 0.07 off either way: both zero and -0.05
        (0.0, 0.2, (-0.02, 0.0, 0.02), "reproduced"),  # a published gap of zero is judged like a value
        (-0.5, 0.2, (-0.5,), "inconclusive"),
    ],
)
def test_a_gap(verdict, published, tolerance, differences, word):
    errors = {"vanilla": OVER, "per": [o + d for o, d in zip(OVER, differences, strict=False)]}
    found = verdict(gap(published, tolerance), errors)
    assert found.word == word
    assert found.ours.n == len(differences)


@pytest.mark.parametrize(("published", "word"), [(-0.2, "larger"), (-0.8, "smaller")])
def test_a_gap_on_the_published_side_says_how_its_size_differs(verdict, published, word):
    errors = {"vanilla": OVER, "per": [o + d for o, d in zip(OVER, (-0.49, -0.50, -0.51), strict=True)]}
    assert verdict(gap(published, 0.1), errors).reason == f"the published side, but {word}"


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


@pytest.mark.parametrize(
    ("claim", "expected"),
    [(direction("higher"), "opposite"), (gap(0.5, 0.2), "opposite"), (gap(0.0, 0.2), "undecided")],
)
def test_at_reduced_scale_a_gap_below_zero_is_not_one_above_nor_none(verdict, claim, expected):
    errors = {"vanilla": OVER, "per": [o + d for o, d in zip(OVER, (-0.4, -0.5, -0.6), strict=True)]}
    assert verdict(claim, errors, scale="reduced").direction == expected


def test_only_values_are_not_compared_across_scales(verdict):
    errors = {"vanilla": OVER, "per": NARROW}
    assert verdict(value(7.0, 0.2), errors, scale="reduced").reason.endswith("; a value is not compared across scales")
    assert verdict(gap(-0.5, 0.2), errors, scale="reduced").reason == "reduced experiment"


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
    assert verdict(value(7.0, 0.2), {"per": (None, None)}).word == "not reproduced"
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


def test_arms_of_one_seed_decide_nothing(make_experiment, make_result):
    experiment = make_experiment()
    first, *_, last = [cell for cell in cells(experiment) if cell.arm_name in ("vanilla", "batchnorm")]
    results = [make_result(first, 7.0), make_result(last, 6.0)]
    assert first.seed != last.seed
    claim = experiment.claims[-1]
    found = judge(claim, matched(experiment, results))
    assert (found.word, found.reason) == ("inconclusive", "one seed gives no interval")


def estimate(mean, error, run, degrees=60.0):
    reach = quantile(degrees, 0.975) * error
    return Estimate(mean, 3, None, Interval(mean - reach, mean + reach), Scatter(error**2, degrees), run**2)


@pytest.mark.parametrize(
    ("published", "paper_runs", "mean", "word"),
    [
        # Seeds with a deviation of 0.3 each, 30 of them: 0.077 to either side; a single gap of the paper's, 0.85.
        (-0.5, 1, 0.0, "not reproduced"),  # these seeds would tell 0.28 from zero
        (-0.35, 1, 0.0, "inconclusive"),  # excluded, but a lucky run of the paper's, and 0.23 would not be told
        (-0.35, 30, 0.0, "not reproduced"),  # thirty lucky runs are not foreseen
        (-0.35, 1, 0.2, "inconclusive"),  # on the other side, where the paper's one run may have been lucky
        (-0.35, 30, 0.2, "not reproduced"),
        (-0.12, 1, 0.0, "inconclusive"),  # the interval holds both
    ],
)
def test_no_gap_refutes_a_printed_one_where_luck_or_few_seeds_do_not_explain_it(published, paper_runs, mean, word):
    claim = gap(published, 0.3).model_copy(update={"paper_runs": paper_runs})
    assert decide(claim, estimate(mean, 0.0775, 0.4243))[0] == word


def test_later_looks_are_held_to_wider_intervals(make_experiment, make_result):
    more = estimate(-0.16, 0.07, 0.1)  # 2.3 standard errors
    claim = direction("lower")
    assert decide(claim, more)[0] == "reproduced"
    assert decide(claim, more, LATER)[0] == "inconclusive"
    arms = {"vanilla": Arm(), "per": Arm(method="per", params={"strength": 0.1})}
    levels = {"vanilla": (8.0, 8.4, 8.2, 8.5), "per": (7.85, 7.9, 7.6, 8.1)}  # 2.9 standard errors
    words = []
    for planned in ((0, 1, 2, 3), (0, 1)):
        experiment = make_experiment(arms=arms, claims=(claim,), seeds=planned)
        results = [make_result(cell, levels[cell.arm_name][cell.seed]) for cell in cells(experiment, (0, 1, 2, 3))]
        words.append(judge(claim, matched(experiment, results)).word)
    assert words == ["reproduced", "inconclusive"]


def test_p_values_of_a_table_are_adjusted_together_gaps_and_values_and_authors_apart(make_experiment, make_result):
    ours = direction("lower").model_copy(update={"source": "ours: a guess"})
    claims = (direction("lower"), gap(-0.5, 0.2), value(7.0, 0.2), ours)
    arms = {"vanilla": Arm(), "per": Arm(method="per", params={"strength": 0.1})}
    experiment = make_experiment(arms=arms, claims=claims)
    results = [make_result(cell, 7 + (cell.arm_name == "vanilla") + 0.1 * cell.seed) for cell in cells(experiment)]
    found = judge_experiment(experiment, match(experiment, ResultIndex(results)))
    papers, also, a_value, guess = found
    assert papers.p_value == also.p_value == guess.p_value
    assert papers.p_adjusted == also.p_adjusted == pytest.approx(2 * papers.p_value)
    assert guess.p_adjusted == guess.p_value
    assert a_value.p_adjusted == a_value.p_value
    assert a_value.p_value != papers.p_value


def test_a_choice_on_the_test_set_is_said(make_experiment, make_result):
    experiment = make_experiment()
    results = [make_result(cell, 7.0 + 0.1 * cell.seed) for cell in cells(experiment)]
    claim = next(claim for claim in experiment.claims if claim.arm == "per")
    assert "PER chosen on the test set" in judge(claim, matched(experiment, results)).reason


def test_the_rule_names_every_verdict():
    text = " ".join(rule().lower().split())
    assert all(word in text for word in WORDS)
