"""What a table shows, in one sentence, and what the claims came to, in two; computed from tables and verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from reproduce.experiment.schema import Claim
from reproduce.report.tables import UNITS, baseline_label, decimals_of, metric_name, number, p_text, with_interval
from reproduce.results.judge import Verdict
from reproduce.results.match import TaskRuns, higher_is_better

SMALL = 0.05
MOST = 6  # claims of one outcome that a sentence spells out
Outcome = Literal["holds", "half", "fails", "open"]
OUTCOMES: dict[Outcome, tuple[str, str]] = {  # said of one claim, and of several
    "holds": ("holds", "hold"),
    "half": ("holds by its sign alone", "hold by their sign alone"),
    "fails": ("fails", "fail"),
    "open": ("stays open at these seeds", "stay open at these seeds"),
}


def finding(table: pd.DataFrame, task: TaskRuns) -> str:
    """Which arm is best on the first metric, how far from the baseline, and whether the seeds decide it."""
    metric = str(table["metric"].iloc[0])
    rows: list[dict[Any, Any]] = table[table["metric"] == metric].to_dict("records")
    complete = [row for row in rows if row["mean"] is not None]
    diverged = [row["label"] for row in rows if row["diverged"]]
    if not complete:
        return _sentence("No arm has a complete mean", diverged) if diverged else "Nothing has run yet."
    up = higher_is_better(metric)
    best = (max if up else min)(complete, key=lambda row: row["mean"])
    decimals = decimals_of([row["mean"] for row in complete])
    name = metric_name(metric)
    baseline = f"“{baseline_label(task)}”"
    unit = UNITS.get(metric.rpartition(".")[2], "")
    reached = number(best["mean"], decimals) + (f" {unit}" if unit else "")
    said = f"“{best['label']}” has the {'highest' if up else 'lowest'} mean {name}, {reached}"
    if len(complete) == 1:
        return _sentence(
            f"“{best['label']}” is alone so far: its mean {name} is {number(best['mean'], decimals)}", diverged
        )
    if best["arm"] == task.experiment.baseline:
        told = sum(row["p_holm"] is not None and row["p_holm"] < SMALL for row in complete)
        others = f"the seeds tell {told} of the {len(complete) - 1} other arms from it (p < {SMALL}, Holm's adjustment)"
        return _sentence(f"{said}, and is the baseline; {others}", diverged)
    if best["difference"] is None:
        return _sentence(said, diverged)
    side = "above" if best["difference"] > 0 else "below"
    said += f", {number(abs(best['difference']), decimals)} {side} {baseline}"
    return _sentence(f"{said} {_sureness(best, baseline)}", diverged)


def conclusion(verdicts: Sequence[tuple[TaskRuns, Verdict]]) -> str:
    """Two sentences from the verdicts of an experiment: which claims hold, and which fail or stay open.

    At reduced scale a claim holds or fails by its direction. Claims that were not run, and values that are not
    compared across scales, are left out; "" where none is left.
    """
    judged = [(task, verdict, outcome) for task, verdict in verdicts if (outcome := _outcome(verdict))]
    if not judged:
        return ""
    metrics = {verdict.claim.metric for _, verdict, _ in judged}
    where = f" on {metric_name(metrics.pop())}" if len(metrics) == 1 else ""
    told: dict[Outcome, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for task, verdict, outcome in judged:
        told[outcome].append(_told(task, verdict.claim, verdict, with_metric=not where))
    counted = {outcome: _counted(told[outcome], *verbs) for outcome, verbs in OUTCOMES.items()}
    claims = f"the {len(judged)} claims" if len(judged) > 1 else "the one claim"
    others = [counted[outcome] for outcome in ("half", "fails", "open") if told[outcome]]
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


def _told(task: TaskRuns, claim: Claim, verdict: Verdict, with_metric: bool) -> str:
    """One claim as it was stated, and the number of ours that it was judged by."""
    arms = task.experiment.arms
    text = f"“{arms[claim.arm].label or claim.arm}”"
    over = f"“{arms[claim.over].label or claim.over}”" if claim.over else ""
    if claim.direction is not None:
        text += f" {'below' if claim.direction == 'lower' else 'above'} {over}"
    elif over:
        text += f" minus {over}"
    text += f" in {metric_name(claim.metric)}" if with_metric else ""
    text += f" of {claim.task}" if len(task.experiment.tasks) > 1 else ""
    ours = verdict.ours
    if ours is None:
        return text
    level = task.arms[claim.arm].estimate(claim.metric)
    decimals = decimals_of([level.mean if level else ours.mean])
    low, high = (ours.interval.low, ours.interval.high) if ours.interval else (None, None)
    return f"{text}, {with_interval(ours.mean, low, high, decimals, sign=bool(over))}"


def _counted(told: Sequence[str], one: str, several: str) -> str:
    if not told:
        return f"no claim {one}"
    more = f"; {len(told) - MOST} more" if len(told) > MOST else ""
    return f"{len(told)} {one if len(told) == 1 else several} ({'; '.join(told[:MOST])}{more})"


def _sureness(row: dict[Any, Any], baseline: str) -> str:
    if row["p_holm"] is None and row["difference_n"] > 1:
        return f"at each of {row['difference_n']} seeds: equal differences are nothing that a test can weigh"
    if row["p_holm"] is None:
        return "on one seed, which decides nothing"
    p = p_text(row["p_holm"])
    evidence = f"p {p}" if p.startswith("<") else f"p = {p}"
    evidence += f" after Holm's adjustment, {row['difference_n']} paired seeds"
    if row["p_holm"] < SMALL:
        return f"({evidence})"
    return f"({evidence}): these seeds do not tell it from {baseline}"


def _sentence(text: str, diverged: list[str]) -> str:
    return text + "." + (f" Seeds of {', '.join(diverged)} diverged." if diverged else "")
