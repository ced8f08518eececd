"""A Finding in sentences: what a table shows, what the claims came to, what has not run yet."""

from __future__ import annotations

from collections.abc import Sequence

from reproduce.experiment.dataset_card import DatasetCard
from reproduce.experiment.schema import Experiment
from reproduce.report.counts import Tally, kind_of
from reproduce.report.numbers import decimals_of, metric_name, number, p_equals, with_interval, with_unit
from reproduce.report.tables import baseline_label
from reproduce.results.chance import ERRORS, another_test_set, rows_of_test
from reproduce.results.evaluate import ArmRow, Finding, TaskFinding, at_chance_level
from reproduce.results.judge import Verdict
from reproduce.results.match import higher_is_better
from reproduce.results.over_tasks import MANY
from reproduce.results.stats import SIGNIFICANCE, Difference, Estimate

MOST = 6  # claims of one outcome that a sentence spells out
# What is said of one claim, and of several; the first is what was claimed.
AT_PAPER_SCALE = {
    "reproduced": ("is reproduced", "are reproduced"),
    "partly": ("is partly reproduced", "are partly reproduced"),
    "not reproduced": ("is not reproduced", "are not reproduced"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
}
AT_REDUCED_SCALE = {
    "same direction": ("points {way}", "point {way}"),
    "opposite": ("points the other way", "point the other way"),
    "undecided": ("stays undecided", "stay undecided"),
}


REDUCED = {
    "same direction": "{count} point{s} {way}",
    "opposite": "{count} point{s} the other way",
    "undecided": "{count} stay{s} undecided",
    "reduced scale": "{count} {is_} of a value, which is not compared across scales",
}


def tally_sentence(one: Tally) -> str:
    """What claims of one origin came to, in one sentence: at reduced scale, which way they point."""
    whose, way = ("our own", "our way") if one.ours else ("the paper's", "the paper's way")
    alone = f"{whose[0].upper()}{whose[1:]} one claim"
    if not one.judged:
        return (
            f"Of {whose} {one.claims} claims none has been tested yet." if one.claims > 1 else f"{alone} is not tested."
        )
    parts = []
    for kinds, where in ((AT_PAPER_SCALE, ""), (REDUCED, "at reduced scale ")):
        said = []
        for kind in kinds:
            count = one.kinds.get(kind, 0)
            if count and kinds is AT_PAPER_SCALE:
                said.append(f"{count} {AT_PAPER_SCALE[kind][count > 1]}")
            elif count:
                words = {"count": count, "s": "s" if count == 1 else "", "is_": "is" if count == 1 else "are"}
                said.append(REDUCED[kind].format(**words, way=way))
        if said:
            parts.append(where + _joined(said))
    tested = f"{one.judged} {'were' if one.judged > 1 else 'was'} tested" if one.waiting else "all were tested"
    start = f"Of {whose} {one.claims} claims {tested}" if one.claims > 1 else f"{alone} was tested"
    return f"{start}: {'; '.join(parts)}."


def budget_sentence(columns: Sequence[Finding]) -> str:
    """How many of a method's gaps to the baselines of the matrix the seeds tell from none; "" without any."""
    tested = [
        row
        for finding in columns
        for task in finding.tasks.values()
        for row in task.tables[task.metrics[0]]
        if row.p_holm is not None
    ]
    if not tested:
        return ""
    gaps = f"{len(tested)} gaps to the baseline" if len(tested) > 1 else "one gap to the baseline"
    told = sum(row.significant for row in tested)
    return (
        f"Under one budget the seeds tell {told or 'none'} of its {gaps} from zero (p < {SIGNIFICANCE} after Holm's "
        "adjustment over all methods)."
    )


def _joined(texts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


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
    """What the verdicts of an experiment come to: of the papers' claims, then of ours, at paper scale, then reduced.

    At paper scale in the words of verdicts; at reduced scale nothing is confirmed or refuted: a gap points one way.
    Claims that were not run, and values that are not compared across scales, are left out; "" where none is left.
    """
    groups: dict[tuple[bool, bool], list[Verdict]] = {}
    for verdict in finding.verdicts:
        if kind_of(verdict) in (*AT_PAPER_SCALE, *AT_REDUCED_SCALE):
            groups.setdefault((verdict.claim.ours, verdict.word == "reduced scale"), []).append(verdict)
    return " ".join(_claims_sentence(finding, groups[key], *key) for key in sorted(groups))


def _claims_sentence(finding: Finding, verdicts: Sequence[Verdict], ours: bool, reduced: bool) -> str:
    """Two sentences on claims of one origin and scale: how many came out as claimed, and what became of the others."""
    metrics = {verdict.claim.metric for verdict in verdicts}
    where = f" on {metric_name(metrics.pop())}" if len(metrics) == 1 else ""
    scale = " at reduced scale" if reduced else ""
    outcomes = AT_REDUCED_SCALE if reduced else AT_PAPER_SCALE
    texts: dict[str, list[str]] = {kind: [] for kind in outcomes}
    for verdict in verdicts:
        texts[kind_of(verdict)].append(_claim_text(finding, verdict, with_metric=not where))
    way = "our way" if ours else "the paper's way"
    first, *others = (_counted(texts[kind], *(verb.format(way=way) for verb in outcomes[kind])) for kind in outcomes)
    whose = "our own" if ours else "the paper's"
    claims = f"{len(verdicts)} claims" if len(verdicts) > 1 else "one claim"
    others = [text for text in others if text]
    second = _joined(others)
    none = "none " + outcomes[next(iter(outcomes))][0].format(way=way)
    return f"Of {whose} {claims} judged{scale}{where}, {first or none}." + (f" {second}." if second else "")


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
    said = [f"{text}, {with_interval(verdict.ours, decimals_of([level.mean]), sign=bool(over))}"]
    return ", ".join(said + at_chance_level(claim, finding.tasks))


def _counted(texts: Sequence[str], one: str, several: str) -> str:
    if not texts:
        return ""
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


def correlation_sentence(task: TaskFinding) -> str:
    """Whether seeds go together, and what follows for differences; "" where nothing can be said."""
    metric = task.metrics[0]
    seeds = task.runs.scatter(metric)
    gaps = [row.difference for row in task.tables[metric] if row.difference is not None]
    if seeds.correlation is None or not gaps:
        return ""
    paired = sum(gap.paired for gap in gaps)
    how = "paired by seed" if paired == len(gaps) else f"paired by seed for {paired} of {len(gaps)} arms"
    sure = f"surely by {number(seeds.at_least, 2)}" if seeds.at_least > 0 else "which may be chance"
    return (
        f"By {metric_name(metric)}, two arms correlate over seeds by {number(seeds.correlation, 2)}, {sure}: "
        f"differences are {how if paired else 'of two means, not paired'}."
    )


def sampling_sentence(task: TaskFinding, card: DatasetCard) -> str:
    """How far another test set would move the errors of a task; "" where they are no shares of rows, or none is known.

    Of the baseline's mean, or of the best one.
    """
    metric = task.metrics[0]
    rows = rows_of_test(task.experiment.tasks[task.name], card)
    means = complete_means(task.tables[metric])
    if metric.removeprefix("test.") not in ERRORS or rows is None or not means:
        return ""
    shown = {row.arm: mean for row, mean in means}
    error = shown.get(task.experiment.baseline or "", best_of(means, metric)[1])
    moved = another_test_set(error, rows)
    about = "about " if card.table else ""  # folds differ by a row or so
    reached = with_unit(error, metric, decimals_of([error]))
    return (
        f"Test sampling: on {about}{rows:,} other test rows an error of {reached} may lie up to "
        f"±{number(moved, decimals_of([moved]))} away (95 %, binomial). Intervals are over seeds, and hold none of "
        "that; a gap moves by less, as far as two arms err on the same rows."
    )


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
    return " ".join((text, *pending_sentences(finding.experiment)))


def pending_sentences(experiment: Experiment) -> tuple[str, ...]:
    """Which arms cannot run yet, and why."""
    reasons: dict[str, list[str]] = {}
    for name, arm in experiment.arms.items():
        if arm.pending:
            reasons.setdefault(arm.pending, []).append(f"“{arm.label or name}”")
    return tuple(f"Not possible yet: {', '.join(names)} ({reason})." for reason, names in reasons.items())
