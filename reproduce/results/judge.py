"""From Claims and Results to verdicts, by one rule that stands in `rule.md`, which pages show."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reproduce.experiment.schema import Claim, Experiment
from reproduce.results.match import ArmRuns, TaskRuns
from reproduce.results.stats import Estimate, Interval, paired_difference

RULE = Path(__file__).parent / "rule.md"

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
    ours: Estimate | None = None  # of the arm, or of the paired difference

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
    difference = paired_difference(arm.values(claim.metric), over.values(claim.metric)) if over else None
    ours = (difference.estimate if difference else None) if over else arm.estimate(claim.metric)
    problem = _divergence([a for a in arms if a is not None])
    if problem:
        ours = None  # a mean over survivors is not the arm's
    if smaller:
        direction = _direction(claim, ours) if over else None
        extra = "" if over else "; a value is not compared across scales"
        return Verdict(claim, "reduced scale", _join(smaller + extra, problem), direction, ours)
    if problem:
        all_diverged = over is None and not arm.values(claim.metric) and arm.diverged > 1
        return Verdict(claim, "not reproduced" if all_diverged else "inconclusive", problem, None, ours)
    if ours is None:
        return Verdict(claim, "inconclusive", "the two arms share no seed")
    if ours.interval is None:
        return Verdict(claim, "inconclusive", "one seed gives no interval", None, ours)
    word, reason = _decide(claim, ours.mean, ours.interval)
    return Verdict(claim, word, _join(reason, _caveats([a for a in arms if a is not None], ours)), None, ours)


def judge_experiment(
    experiment: Experiment, tasks: Mapping[str, TaskRuns], stand_ins: Collection[str] = ()
) -> list[Verdict]:
    """One Verdict per Claim, in the file's order."""
    return [judge(claim, tasks[claim.task], stand_ins) for claim in experiment.claims]


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


def _caveats(arms: list[ArmRuns], ours: Estimate) -> str:
    """What a reader must know beside a verdict: seeds still to run, and a choice made on the test set."""
    missing = sorted({seed for arm in arms for seed in arm.missing})
    on_test = [arm.label for arm in arms if arm.chosen_on_test]
    return _join(
        f"n = {ours.n}, still to run: seed {', '.join(map(str, missing))}" if missing else "",
        f"{' and '.join(on_test)} chosen on the test set" if on_test else "",
    )


def _direction(claim: Claim, ours: Estimate | None) -> Direction:
    published = _side(claim)
    if ours is None or ours.interval is None or ours.interval.contains(0.0) or published == 0:
        return "undecided"
    return "same direction" if (ours.mean > 0) == (published > 0) else "opposite"


def _side(claim: Claim) -> float:
    """The sign of the published gap."""
    if claim.direction is not None:
        return 1.0 if claim.direction == "higher" else -1.0
    return claim.value or 0.0


def _decide(claim: Claim, mean: float, interval: Interval) -> tuple[Word, str]:
    if claim.direction is not None:
        if interval.contains(0.0):
            return "inconclusive", "the interval includes zero"
        if (mean > 0) == (claim.direction == "higher"):
            return "reproduced", f"the interval lies on the {claim.direction} side"
        return "not reproduced", "the interval lies on the other side of zero"
    if claim.value is None or claim.tolerance is None:
        raise ValueError(f"a claim states a value with its tolerance, or a direction; got {claim}")
    low, high = claim.value - claim.tolerance, claim.value + claim.tolerance
    if claim.over is not None and claim.value != 0:
        return _decide_gap(claim.value, low, high, mean, interval)
    if not interval.meets(low, high):
        return "not reproduced", "the interval misses the published value and its tolerance"
    if interval.half_width > claim.tolerance:
        return "inconclusive", "the interval is wider than the tolerance"
    if low <= mean <= high:
        return "reproduced", "the mean is within the tolerance"
    return "partly", "the mean is outside the tolerance, the interval is not"


def _decide_gap(value: float, low: float, high: float, mean: float, interval: Interval) -> tuple[Word, str]:
    if not interval.contains(0.0):
        if (mean > 0) != (value > 0):
            return "not reproduced", "the interval lies on the other side of zero"
        if low <= mean <= high:
            return "reproduced", "the published side, and the size within the tolerance"
        return "partly", "the published side, but " + ("larger" if abs(mean) > abs(value) else "smaller")
    if not interval.meets(low, high):
        return "not reproduced", "the interval includes zero and misses the published gap"
    return "inconclusive", "the interval includes both zero and a gap like the published one"


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
