"""A Finding in sentences: what a table shows, what the claims came to, what has not run yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from reproduce.report.numbers import decimals_of, metric_name, number, p_equals, with_interval, with_unit
from reproduce.report.tables import baseline_label
from reproduce.results.evaluate import ArmRow, Finding, TaskFinding
from reproduce.results.judge import Verdict
from reproduce.results.match import higher_is_better
from reproduce.results.over_tasks import MANY
from reproduce.results.stats import SIGNIFICANCE, Difference, Estimate

MOST = 6  # claims of one outcome that a sentence spells out
Outcome = Literal["holds", "half", "fails", "open"]
OUTCOMES: dict[Outcome, tuple[str, str]] = {  # of one claim, and of several
    "holds": ("holds", "hold"),
    "half": ("holds by its sign alone", "hold by their sign alone"),
    "fails": ("fails", "fail"),
    "open": ("stays open at these seeds", "stay open at these seeds"),
}


def best_arm_sentence(task: TaskFinding) -> str:
    """Which arm is best on the first metric, how far from the baseline, and whether the seeds decide it."""
    metric = task.metrics[0]
    rows = task.tables[metric]
    means = complete_means(rows)
    diverged = [row.label for row in rows if row.diverged]
    if not means:
        return _with_diverged("No arm has a complete mean", diverged) if diverged else "Nothing has run yet."
    best, mean = best_of(means, metric)
    decimals = decimals_of(mean for _, mean in means)
    name = metric_name(metric)
    baseline = f"“{baseline_label(task)}”"
    if len(means) == 1:
        return _with_diverged(f"“{best.label}” is alone so far: its mean {name} is {number(mean, decimals)}", diverged)
    text = f"“{best.label}” has the {extreme(metric)} mean {name}, {with_unit(mean, metric, decimals)}"
    if best.arm == task.experiment.baseline:
        significant = sum(row.significant for row, _ in means)
        others = (
            f"the seeds tell {significant} of the {len(means) - 1} other arms from it "
            f"(p < {SIGNIFICANCE}, Holm's adjustment)"
        )
        return _with_diverged(f"{text}, and is the baseline; {others}", diverged)
    if best.difference is None:
        return _with_diverged(text, diverged)
    gap = best.difference.estimate.mean
    text += f", {number(abs(gap), decimals)} {'above' if gap > 0 else 'below'} {baseline}"
    return _with_diverged(f"{text} {_sureness(best, best.difference, baseline)}", diverged)


def complete_means(rows: Sequence[ArmRow]) -> list[tuple[ArmRow, float]]:
    """The rows that have a mean over all their seeds, with that mean."""
    return [(row, row.mean.mean) for row in rows if row.mean is not None]


def best_of(means: Sequence[tuple[ArmRow, float]], metric: str) -> tuple[ArmRow, float]:
    return (max if higher_is_better(metric) else min)(means, key=lambda pair: pair[1])


def extreme(metric: str) -> str:
    """What the best mean is called."""
    return "highest" if higher_is_better(metric) else "lowest"


def claims_sentences(finding: Finding) -> str:
    """Two sentences from the verdicts of an experiment: which claims hold, and which fail or stay open.

    At reduced scale a claim holds or fails by its direction. Claims that were not run, and values that are not
    compared across scales, are left out; "" where none is left.
    """
    judged = [(verdict, outcome) for verdict in finding.verdicts if (outcome := _outcome(verdict))]
    if not judged:
        return ""
    metrics = {verdict.claim.metric for verdict, _ in judged}
    where = f" on {metric_name(metrics.pop())}" if len(metrics) == 1 else ""
    texts: dict[Outcome, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for verdict, outcome in judged:
        texts[outcome].append(_claim_text(finding, verdict, with_metric=not where))
    counted = {outcome: _counted(texts[outcome], *verbs) for outcome, verbs in OUTCOMES.items()}
    claims = f"the {len(judged)} claims" if len(judged) > 1 else "the one claim"
    others = [counted[outcome] for outcome in ("half", "fails", "open") if texts[outcome]]
    second = (
        " and ".join(filter(None, (", ".join(others[:-1]), *others[-1:]))) or "no claim fails and no claim stays open"
    )
    return f"Of {claims} judged{where}, {counted['holds']}. {second[0].upper()}{second[1:]}."


def _outcome(verdict: Verdict) -> Outcome | None:
    by_direction: dict[str | None, Outcome] = {"same direction": "holds", "opposite": "fails", "undecided": "open"}
    by_word: dict[str, Outcome] = {
        "reproduced": "holds",
        "partly": "half",
        "not reproduced": "fails",
        "inconclusive": "open",
    }
    return by_direction.get(verdict.direction) if verdict.word == "reduced scale" else by_word.get(verdict.word)


def _claim_text(finding: Finding, verdict: Verdict, with_metric: bool) -> str:
    """One claim as it was stated, and the number of ours that it was judged by."""
    arms, claim = finding.experiment.arms, verdict.claim
    text = f"“{arms[claim.arm].label or claim.arm}”"
    over = f"“{arms[claim.over].label or claim.over}”" if claim.over else ""
    if claim.direction is not None:
        text += f" {'below' if claim.direction == 'lower' else 'above'} {over}"
    elif over:
        text += f" minus {over}"
    text += f" in {metric_name(claim.metric)}" if with_metric else ""
    text += f" of {claim.task}" if len(finding.experiment.tasks) > 1 else ""
    if verdict.ours is None:
        return text
    row = finding.tasks[claim.task].row(claim.metric, claim.arm)
    level: Estimate = row.estimate if row and row.estimate else verdict.ours
    return f"{text}, {with_interval(verdict.ours, decimals_of([level.mean]), sign=bool(over))}"


def _counted(texts: Sequence[str], one: str, several: str) -> str:
    if not texts:
        return f"no claim {one}"
    more = f"; {len(texts) - MOST} more" if len(texts) > MOST else ""
    return f"{len(texts)} {one if len(texts) == 1 else several} ({'; '.join(texts[:MOST])}{more})"


def _sureness(row: ArmRow, difference: Difference, baseline: str) -> str:
    n = difference.estimate.n
    if row.p_holm is None and n > 1:
        return "with seeds that do not scatter, which a test cannot weigh"
    if row.p_holm is None:
        return "on one seed, which decides nothing"
    evidence = f"{p_equals(row.p_holm)} after Holm's adjustment, {n} {'paired ' if difference.paired else ''}seeds"
    if row.significant:
        return f"({evidence})"
    return f"({evidence}): these seeds do not tell it from {baseline}"


def _with_diverged(text: str, diverged: list[str]) -> str:
    return text + "." + (f" Seeds of {', '.join(diverged)} diverged." if diverged else "")


def waiting_sentence(finding: Finding) -> str:
    """What has not run at all, in a line instead of empty tables; "" when every task has begun."""
    waiting = [task for task in finding.tasks.values() if not task.runs.results]
    if not waiting:
        return ""
    arms = finding.experiment.arms
    n_planned = sum(task.runs.planned for task in waiting)
    planned = f"{n_planned} run{'s' if n_planned != 1 else ''} planned"
    if len(waiting) < len(finding.tasks):
        listed = ", ".join(task.name for task in waiting) if len(waiting) < MANY else f"{len(waiting)} tasks"
        text = f"Nothing has run yet of {listed}: {planned}."
    else:
        n_tasks = f"{len(waiting)} tasks, " if len(waiting) > 1 else ""
        able = [f"“{arm.label or name}”" for name, arm in arms.items() if not arm.pending]
        text = f"Nothing has run yet. {n_tasks}{planned}" + (f", with the arms {', '.join(able)}." if able else ".")
    reasons: dict[str, list[str]] = {}
    for name, arm in arms.items():
        if arm.pending:
            reasons.setdefault(arm.pending, []).append(f"“{arm.label or name}”")
    return text + "".join(f" Not possible yet: {', '.join(names)} ({reason})." for reason, names in reasons.items())
