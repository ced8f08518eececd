"""Seeds that a claim needs against simulated verdicts, and what `--until-decided` adds."""

import numpy as np
import pytest

from reproduce.experiment.cells import cells
from reproduce.experiment.schema import Arm, Claim
from reproduce.results.evaluate import evaluate
from reproduce.results.judge import decide
from reproduce.results.looks import next_look
from reproduce.results.match import ResultIndex
from reproduce.results.power import MOST, seeds_needed, seeds_text
from reproduce.results.scatter import Scatter
from reproduce.results.stats import Estimate, Interval


def claim(over="vanilla", arm="per", **statement):
    return Claim(task="digits", arm=arm, over=over, metric="test.error", source="t", **statement)


def known(run, mean=0.0, degrees=1e6, n=3):
    """An estimate from seeds whose scatter is known."""
    reach = 1.96 * (run / n) ** 0.5
    return Estimate(mean, n, None, Interval(mean - reach, mean + reach), Scatter(run / n, degrees), run)


@pytest.mark.parametrize(
    ("stated", "deviation"),
    [
        (claim(value=-0.49, tolerance=0.3), 0.3),
        (claim(value=-0.23, tolerance=0.3), 0.15),
        (claim(value=-0.8, tolerance=1.0), 0.9),
        (claim(value=7.0, tolerance=0.3, over=None), 0.5),
    ],
)
def test_it_is_the_smallest_number_with_the_power(stated, deviation):
    run = deviation**2 * (2 if stated.over else 1)
    needed = seeds_needed(stated, known(run))
    assert 4 <= needed <= 60
    generator = np.random.default_rng(0)

    def power(n):
        means = stated.value + (run / n) ** 0.5 * generator.standard_normal(4000)
        return np.mean([decide(stated, known(run, mean, n=n))[0] == "reproduced" for mean in means])

    assert power(needed) > 0.78
    assert power(needed - 1) < 0.82


def test_a_direction_needs_what_the_gap_that_is_seen_needs():
    lower = claim(direction="lower")
    assert seeds_needed(lower, known(2.0, mean=-1.0)) == pytest.approx((1.96 + 0.84) ** 2 * 2, abs=1.5)
    assert seeds_needed(lower, known(2.0, mean=1.0)) is None
    assert seeds_needed(lower, known(2.0, mean=-1e-3)) is None  # more than MOST
    assert seeds_needed(lower, Estimate(1.0, 1, None, None)) is None
    assert seeds_needed(lower, None) is None


@pytest.fixture
def finding(make_experiment, make_result):
    """PER lies .3 below vanilla with seeds that scatter by about .4; VCL-like ``far`` is told apart at once."""

    def of(claims, scale="reduced", seeds=3, **changes):
        arms = {
            "vanilla": Arm(),
            "per": Arm(method="per", grid={"strength": (1e-3, 1e-2)}),
            "far": Arm(method="per", params={"strength": 0.5}),
        }
        experiment = make_experiment(arms=arms, claims=claims, scale=scale, **changes)
        level = {"vanilla": 8.0, "per": 7.7, "far": 3.0}
        away = {"vanilla": (0.4, -0.5, 0.1, -0.3, 0.4, -0.1), "per": (-0.4, 0.5, -0.1, 0.3, 0.2, -0.5)}
        results = []
        for cell in cells(experiment, tuple(range(seeds))):
            error = level[cell.arm_name] + away.get(cell.arm_name, away["per"][::-1])[cell.seed]
            results.append(make_result(cell, error, 1.0 if cell.params.get("strength") == 1e-2 else 2.0))
        return evaluate("t", experiment, ResultIndex(results))

    return of


def test_undecided_claims_say_how_many_seeds_they_need(finding):
    found = finding((claim(value=-0.49, tolerance=0.3), claim(arm="far", direction="lower")))
    near, far = found.verdicts
    assert near.direction == "undecided"
    assert seeds_text(near).startswith("to tell a gap of this size takes ")
    assert seeds_text(far) == ""
    paper = finding((claim(value=-0.49, tolerance=0.3),), scale="paper").verdicts[0]
    assert paper.word == "inconclusive"
    assert seeds_text(paper).startswith("to tell it takes ")
    tiny = finding((claim(value=-1e-4, tolerance=0.3),), scale="paper").verdicts[0]
    assert seeds_text(tiny) == f"more than {MOST} seeds needed"


def test_a_look_doubles_the_seeds_of_the_arms_of_open_claims_at_the_points_that_count(finding):
    look = next_look(finding((claim(value=-0.6, tolerance=0.5), claim(arm="far", direction="lower")), scale="paper"))
    assert look.claims == 1
    assert {cell.arm_name for cell in look.cells} == {"vanilla", "per"}
    assert {cell.seed for cell in look.cells} == {0, 1, 2, 3, 4, 5}
    assert {cell.params["strength"] for cell in look.cells if cell.arm_name == "per"} == {1e-2}
    assert len(look.cells) == 12
    assert look.hopeless == ()


def test_a_look_starts_from_the_planned_seeds_and_adds_the_smallest_others(finding):
    look = next_look(finding((claim(value=-0.6, tolerance=0.5),), scale="paper", seeds=6), most=8)
    assert {cell.seed for cell in look.cells} == set(range(8))


def test_claims_that_need_more_than_may_be_added_are_left(finding):
    found = finding((claim(value=-0.01, tolerance=0.3),), scale="paper")
    look = next_look(found)
    assert (look.cells, look.claims) == ((), 0)
    assert look.hopeless == (found.experiment.claims[0],)
    assert next_look(finding((claim(value=-0.6, tolerance=0.5),), scale="paper", seeds=6), most=6).cells == ()
