"""From Claims and Results to verdicts, by one rule that stands in `rule.md`, which pages show."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from reproduce.experiment.schema import Claim, Experiment
from reproduce.results.match import ArmRuns, TaskRuns
from reproduce.results.scatter import quantile, two_sided_p
from reproduce.results.stats import CONFIDENCE, Estimate, Interval, holm

RULE = Path(__file__).parent / "rule.md"
LATER = 0.99  # confidence of verdicts that seeds beyond the planned ones were added for
TOLD = 2 / 3  # of a printed gap: what the seeds must be able to tell from zero before "no gap" refutes it

Word = Literal["reproduced", "partly", "not reproduced", "inconclusive", "reduced scale", "not run"]
Direction = Literal["same direction", "opposite", "undecided"]
WORDS: tuple[Word, ...] = (
    "reproduced",
    "partly",
    "not reproduced",
    "inconclusive",
    "reduced scale",
    "not run",
)
DIRECTIONS: tuple[Direction, ...] = ("same direction", "opposite", "undecided")


@dataclass(frozen=True)
class Verdict:
    """What came out of one Claim, with the numbers it rests on and the reason in words."""

    claim: Claim
    word: Word
    reason: str
    direction: Direction | None = None  # at reduced scale only
    ours: Estimate | None = None  # of the arm, or of the gap between two
    p_value: float | None = None  # of a gap: that there is none; of a value: that the paper's is one more run like ours
    p_adjusted: float | None = None  # by Holm, over the claims of the same kind and author on this table

    @property
    def text(self) -> str:
        return f"{self.word}: {self.direction}" if self.direction else self.word


def judge(claim: Claim, task: TaskRuns, stand_ins: Collection[str] = ()) -> Verdict:
    """Judge one Claim by the rule of `rule.md`.

    Args:
        stand_ins: datasets that are not the paper's own data.
    """
    arms = [task.arms.get(name) for name in filter(None, (claim.arm, claim.over))]
    reason = next((text for arm in arms if (text := _not_run(arm, claim))), "")
    if reason:
        return Verdict(claim, "not run", reason)
    arm, over = task.arms[claim.arm], task.arms[claim.over] if claim.over else None
    smaller = _reduced(task, claim, stand_ins)
    gap = task.difference(arm, over, claim.metric) if over else None
    ours = (gap.estimate if gap else None) if over else task.estimate(arm, claim.metric)
    problem = _divergence([a for a in arms if a is not None])
    if problem:
        ours = None  # a mean over survivors is not the arm's
    p_value = None if ours is None else gap.p_value if gap else _p_of_one_more_run(claim, ours)
    caveats = _caveats([a for a in arms if a is not None], ours)
    extended = any(len(a.values(claim.metric)) > len(a.planned) for a in arms if a is not None)
    confidence = LATER if extended else CONFIDENCE
    if smaller:
        direction = _direction(claim, ours, confidence) if over else None
        extra = "" if over else "; a value is not compared across scales"
        reason = _join(smaller + extra, problem, caveats)
        return Verdict(claim, "reduced scale", reason, direction, ours, p_value if over else None)
    if problem:
        all_diverged = over is None and not arm.values(claim.metric) and arm.diverged > 1
        return Verdict(claim, "not reproduced" if all_diverged else "inconclusive", problem, None, ours)
    if ours is None:
        return Verdict(claim, "inconclusive", "no seed of both arms")
    if ours.interval is None:
        alone = "one seed gives no interval" if ours.n == 1 else "equal at every seed: nothing tells how seeds scatter"
        return Verdict(claim, "inconclusive", alone, None, ours)
    word, reason = decide(claim, ours, confidence)
    return Verdict(claim, word, _join(reason, caveats), None, ours, p_value)


def judge_experiment(
    experiment: Experiment, tasks: Mapping[str, TaskRuns], stand_ins: Collection[str] = ()
) -> list[Verdict]:
    """One Verdict per Claim, in the file's order; p values adjusted over the table.

    A family are the claims of one table (task) that ask the same, of a gap or of a value; the paper's and ours apart.
    """
    verdicts = [judge(claim, tasks[claim.task], stand_ins) for claim in experiment.claims]
    families: dict[tuple[str, bool, bool], list[int]] = {}
    for place, claim in enumerate(experiment.claims):
        families.setdefault((claim.task, claim.over is None, claim.ours), []).append(place)
    for places in families.values():
        for place, adjusted in zip(places, holm([verdicts[place].p_value for place in places]), strict=True):
            verdicts[place] = replace(verdicts[place], p_adjusted=adjusted)
    return verdicts


def rule() -> str:
    """The rule in Markdown."""
    return RULE.read_text("utf-8").strip()


def _not_run(arm: ArmRuns | None, claim: Claim) -> str:
    if arm is None:
        return f"the arm is not planned on task {claim.task}"
    if arm.arm.pending:
        return f"{arm.label}: {arm.arm.pending}"
    if arm.chosen is None:
        return f"{arm.label}: no Results"
    if arm.chosen.completed and not arm.values(claim.metric):
        return f"{arm.label}: its Results have no {claim.metric}"
    return ""


def _reduced(task: TaskRuns, claim: Claim, stand_ins: Collection[str]) -> str:
    if task.experiment.scale != "paper":
        return f"{task.experiment.scale} experiment"
    spec = task.experiment.tasks[claim.task]
    if spec.dataset in stand_ins:
        return f"{spec.dataset} stands in for the paper's data"
    if spec.train_examples is not None:
        return f"the first {spec.train_examples} training examples"
    return ""


def _divergence(arms: list[ArmRuns]) -> str:
    sentences = [
        f"{arm.label}: {arm.diverged} of {len(arm.chosen.results)} seeds diverged"
        for arm in arms
        if arm.chosen and arm.diverged
    ]
    return "; ".join(sentences)


def _caveats(arms: list[ArmRuns], ours: Estimate | None) -> str:
    """What a reader must know beside a verdict: seeds still to run, and a choice made on the test set."""
    missing = sorted({seed for arm in arms for seed in arm.missing})
    on_test = [arm.label for arm in arms if arm.chosen_on_test]
    return _join(
        f"n = {ours.n}, still to run: seed {', '.join(map(str, missing))}" if missing and ours else "",
        f"{' and '.join(on_test)} chosen on the test set" if on_test else "",
    )


def _direction(claim: Claim, ours: Estimate | None, confidence: float) -> Direction:
    published = _side(claim)
    interval = ours.within(confidence) if ours else None
    if ours is None or interval is None or interval.contains(0.0) or published == 0:
        return "undecided"
    return "same direction" if (ours.mean > 0) == (published > 0) else "opposite"


def _side(claim: Claim) -> float:
    """The sign of the published gap."""
    if claim.direction is not None:
        return 1.0 if claim.direction == "higher" else -1.0
    return claim.value or 0.0


def decide(claim: Claim, ours: Estimate, confidence: float = CONFIDENCE) -> tuple[Word, str]:
    """The verdict on a claim from an estimate of its value or gap, and why.

    Raises:
        ValueError: a claim that states nothing, or an estimate without an interval.
    """
    interval = ours.within(confidence)
    if interval is None:
        raise ValueError("an estimate without an interval decides nothing")
    if claim.direction is not None:
        if interval.contains(0.0):
            return "inconclusive", "the interval includes zero"
        if (ours.mean > 0) == (claim.direction == "higher"):
            return "reproduced", f"the interval lies on the {claim.direction} side"
        return "not reproduced", "the interval lies on the other side of zero"
    if claim.value is None or claim.tolerance is None:
        raise ValueError(f"a claim states a value with its tolerance, or a direction; got {claim}")
    if claim.over is not None and claim.value != 0:
        return _decide_gap(claim.value, claim.tolerance, claim.paper_runs, ours, interval, confidence)
    return _decide_value(claim.value, claim.tolerance, claim.paper_runs, ours, interval, confidence)


def _decide_value(
    value: float, tolerance: float, paper_runs: int, ours: Estimate, interval: Interval, confidence: float
) -> tuple[Word, str]:
    low, high = value - tolerance, value + tolerance
    if not interval.meets(low, high):
        if _foreseen(value, paper_runs, ours, confidence):
            return "partly", f"outside the tolerance, though {_runs_like_ours(paper_runs)} may give the paper's number"
        return "not reproduced", "the interval misses the tolerance, and no run like ours would give the paper's number"
    if interval.half_width > tolerance:
        return "inconclusive", "the interval is wider than the tolerance"
    if low <= ours.mean <= high:
        return "reproduced", "the mean is within the tolerance"
    return "partly", "the mean is outside the tolerance, the interval is not"


def _decide_gap(
    value: float, tolerance: float, paper_runs: int, ours: Estimate, interval: Interval, confidence: float
) -> tuple[Word, str]:
    published_side = (ours.mean > 0) == (value > 0)
    if published_side and not interval.contains(0.0):
        if abs(ours.mean - value) <= tolerance:
            return "reproduced", "the published side, and the size within the tolerance"
        return "partly", "the published side, but " + ("larger" if abs(ours.mean) > abs(value) else "smaller")
    where = "includes zero" if interval.contains(0.0) else "lies on the other side of zero"
    if interval.contains(value):
        return "inconclusive", "the interval includes both zero and the published gap"
    if not _foreseen(value, paper_runs, ours, confidence):
        return "not reproduced", f"the interval {where}, and no runs like ours would give the published gap"
    if told_apart(TOLD * abs(value), ours, confidence):
        return "not reproduced", f"the interval {where}, and these seeds would tell two thirds of the published gap"
    return "inconclusive", f"the interval {where}, but the published gap may be luck of {_runs_like_ours(paper_runs)}"


def _foreseen(value: float, paper_runs: int, ours: Estimate, confidence: float) -> bool:
    foreseen = ours.foresees(paper_runs, confidence)
    return foreseen is not None and foreseen.contains(value)


def told_apart(gap: float, ours: Estimate, confidence: float = CONFIDENCE) -> bool:
    """Whether a test at these seeds has a power of ``confidence`` to tell such a gap from zero."""
    if ours.error is None:
        return False
    quantiles = quantile(ours.error.degrees, (1 + confidence) / 2) + quantile(ours.error.degrees, confidence)
    return quantiles * math.sqrt(ours.error.variance) <= gap


def _runs_like_ours(paper_runs: int) -> str:
    return "one run" if paper_runs == 1 else f"{paper_runs} runs"


def _p_of_one_more_run(claim: Claim, ours: Estimate) -> float | None:
    """p of the paper's number being the mean of so many runs like ours; None where nothing is known of the spread."""
    if claim.value is None or ours.error is None or ours.run is None:
        return None
    spread = math.sqrt(ours.run / claim.paper_runs + ours.error.variance)
    return two_sided_p((claim.value - ours.mean) / spread, ours.error.degrees)


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
