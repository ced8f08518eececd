"""One table per experiment and task, and its renderings: Markdown, CSV, terminal, and cells for HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from reproduce.judge import Verdict
from reproduce.report.match import ArmRuns, TaskRuns
from reproduce.spec import Claim
from reproduce.stats import Difference, holm, paired_difference

MINUS = "−"
NOTHING = "–"
COLUMNS = (
    "experiment",
    "task",
    "arm",
    "label",
    "metric",
    "paper",
    "mean",
    "low",
    "high",
    "n",
    "planned",
    "diverged",
    "survivors_mean",
    "values",
    "difference",
    "difference_low",
    "difference_high",
    "difference_n",
    "p_holm",
    "chosen",
    "note",
)
UNITS = {"error": "%", "accuracy": "%"}


def table_of(name: str, task: TaskRuns) -> pd.DataFrame:
    """One row per metric and arm, with the columns COLUMNS; what is unknown is None.

    ``difference`` is paired by seed against the experiment's baseline, ``p_holm`` its two-sided p after Holm's
    adjustment over the arms of that metric. An arm with a diverged seed has no mean, interval or difference:
    what its survivors reached is in ``survivors_mean``.
    """
    rows = []
    for metric in metrics_of(task):
        differences = {arm.name: _difference(task, arm, metric) for arm in task.arms.values()}
        adjusted = dict(
            zip(differences, holm([d.p_value if d else None for d in differences.values()]), strict=True)
        )
        for arm in task.arms.values():
            rows.append(_row(name, task, arm, metric, differences[arm.name], adjusted[arm.name]))
    return pd.DataFrame(rows, columns=pd.Index(COLUMNS), dtype=object)


def metrics_of(task: TaskRuns) -> list[str]:
    """Test, then validation of the task's own metric, then what else the claims name."""
    found: list[str] = []
    if task.metric is not None:
        for split in ("test", "validation"):
            metric = f"{split}.{task.metric}"
            if any(arm.values(metric) for arm in task.arms.values()):
                found.append(metric)
    claimed = [claim.metric for claim in task.experiment.claims if claim.task == task.task_name]
    return list(dict.fromkeys(found + claimed)) or ["test." + (task.metric or "metric")]


def published(task: TaskRuns, arm_name: str, metric: str) -> Claim | None:
    """The paper's own number for one arm, if an experiment file states it."""
    for claim in task.experiment.claims:
        if (claim.task, claim.arm, claim.metric) == (task.task_name, arm_name, metric) and claim.over is None:
            return claim
    return None


def shown(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows of one metric as text for people; columns in which nothing is known are left out."""
    rows = table[table["metric"] == metric].to_dict("records")
    decimals = decimals_of([r["mean"] for r in rows] + [r["survivors_mean"] for r in rows])
    known_difference = any(r["difference"] is not None for r in rows)
    texts = []
    for row in rows:
        text = {"Arm": row["label"]}
        text["Paper"] = paper_number(row["paper"], decimals)
        text["Ours"] = _mean(row, decimals)
        text["95 % interval"] = span(row["low"], row["high"], decimals)
        text["n"] = f"{row['n']}" if row["n"] == row["planned"] else f"{row['n']} of {row['planned']}"
        text["Seeds"] = "  ".join(number(value, decimals) for value in row["values"].values()) or NOTHING
        if known_difference:
            text["Difference"] = number(row["difference"], decimals, sign=True)
            text["its interval"] = span(row["difference_low"], row["difference_high"], decimals, sign=True)
            text["p (Holm)"] = p_text(row["p_holm"])
        text["Chosen"] = row["chosen"]
        text["Note"] = row["note"]
        texts.append(text)
    frame = pd.DataFrame(texts, dtype=object)
    empty = [c for c in ("Paper", "Chosen", "Note") if (frame[c].isin(["", NOTHING])).all()]
    return frame.drop(columns=empty)


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table; numbers to the right."""
    texts = {"Arm", "Chosen", "Note", "Claim", "Verdict", "Why", "Address"}
    cell = lambda value: str(value).replace("|", "\\|")  # noqa: E731
    lines = [
        "| " + " | ".join(map(cell, frame.columns)) + " |",
        "|" + "|".join(":---" if column in texts else "---:" for column in frame.columns) + "|",
    ]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def csv(tables: Sequence[pd.DataFrame]) -> str:
    """All tables as one CSV; seeds and values as `seed=value` joined by spaces."""
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=pd.Index(COLUMNS))
    whole["values"] = [
        " ".join(f"{seed}={value!r}" for seed, value in values.items()) for values in whole["values"]
    ]
    return whole.to_csv(index=False, lineterminator="\n")


def terminal(frame: pd.DataFrame, title: str) -> Table:
    """For a terminal of 100 columns: the seeds one by one are on the page, not here."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", pad_edge=False)
    for column in frame.columns.drop("Seeds", errors="ignore"):
        table.add_column(column, justify="left" if column in ("Arm", "Chosen", "Note") else "right")
    for row in frame.drop(columns="Seeds", errors="ignore").itertuples(index=False):
        table.add_row(*map(str, row))
    return table


def claims_table(verdicts: Sequence[tuple[str, TaskRuns, Verdict]]) -> pd.DataFrame:
    """What the paper says, what came out, and the verdict, one row per claim."""
    rows = []
    for experiment, task, verdict in verdicts:
        claim, ours = verdict.claim, verdict.ours
        decimals = decimals_of([claim.value, ours.mean if ours else None])
        interval = ours.interval if ours else None
        rows.append(
            {
                "Experiment": experiment,
                "Claim": statement(task, claim),
                "Paper": _published(claim, decimals),
                "Ours": number(ours.mean if ours else None, decimals, sign=claim.over is not None),
                "95 % interval": span(
                    interval.low if interval else None,
                    interval.high if interval else None,
                    decimals,
                    sign=claim.over is not None,
                ),
                "n": str(ours.n) if ours else NOTHING,
                "Verdict": verdict.text,
                "Why": verdict.reason,
                "Address": claim.source,
            }
        )
    return pd.DataFrame(rows, dtype=object)


def statement(task: TaskRuns, claim: Claim) -> str:
    """A claim in words: whose which metric, on which task."""
    arm = task.experiment.arms[claim.arm].label or claim.arm
    over = f" minus {task.experiment.arms[claim.over].label or claim.over}" if claim.over else ""
    place = f", {claim.task}" if len(task.experiment.tasks) > 1 else ""
    return f"{arm}{over}: {metric_text(claim.metric)}{place}"


def metric_text(metric: str) -> str:
    """`test.error` as "test error (%)"."""
    split, _, name = metric.partition(".")
    return f"{split} {name}" + (f" ({UNITS[name]})" if name in UNITS else "")


def number(value: float | None, decimals: int, sign: bool = False) -> str:
    """A number with a true minus sign; an en dash for nothing."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        raise ValueError(f"a table holds finite numbers; got {value}")
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def span(low: float | None, high: float | None, decimals: int, sign: bool = False) -> str:
    if low is None or high is None:
        return NOTHING
    return f"[{number(low, decimals, sign)}, {number(high, decimals, sign)}]"


def paper_number(value: float | None, decimals: int, sign: bool = False) -> str:
    """As many decimals as the paper prints, and no fewer than ours."""
    if value is None:
        return NOTHING
    return number(value, max(decimals, len(repr(float(value)).partition(".")[2].rstrip("0"))), sign)


def p_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def decimals_of(values: Sequence[float | None]) -> int:
    """Two decimals for errors and perplexities, more for numbers below one, fewer for thousands."""
    sizes = [abs(value) for value in values if value is not None]
    largest = max(sizes, default=1.0)
    return 4 if largest < 0.1 else 3 if largest < 1 else 2 if largest < 1000 else 1


def _published(claim: Claim, decimals: int) -> str:
    if claim.direction is not None:
        return claim.direction
    value = paper_number(claim.value, 0, sign=claim.over is not None)
    return f"{value} ± {paper_number(claim.tolerance, 0)}"


def _mean(row: dict[Any, Any], decimals: int) -> str:
    if row["survivors_mean"] is not None:
        return f"({number(row['survivors_mean'], decimals)})"
    return number(row["mean"], decimals)


def _difference(task: TaskRuns, arm: ArmRuns, metric: str) -> Difference | None:
    baseline = task.arms.get(task.experiment.baseline or "")
    if baseline is None or arm.name == baseline.name or arm.diverged or baseline.diverged:
        return None
    return paired_difference(arm.values(metric), baseline.values(metric))


def _row(
    name: str, task: TaskRuns, arm: ArmRuns, metric: str, difference: Difference | None, p_holm: float | None
) -> dict[str, Any]:
    estimate = arm.estimate(metric)
    whole = estimate if not arm.diverged else None
    interval = whole.interval if whole else None
    gap = difference.estimate if difference else None
    claim = published(task, arm.name, metric)
    return {
        "experiment": name,
        "task": task.task_name,
        "arm": arm.name,
        "label": arm.label,
        "metric": metric,
        "paper": claim.value if claim else None,
        "mean": whole.mean if whole else None,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "n": estimate.n if estimate else 0,
        "planned": max(len(arm.planned), len(arm.chosen.results) if arm.chosen else 0),
        "diverged": arm.diverged,
        "survivors_mean": estimate.mean if estimate and arm.diverged else None,
        "values": arm.values(metric),
        "difference": gap.mean if gap else None,
        "difference_low": gap.interval.low if gap and gap.interval else None,
        "difference_high": gap.interval.high if gap and gap.interval else None,
        "difference_n": gap.n if gap else None,
        "p_holm": p_holm,
        "chosen": ", ".join(f"{key} = {value}" for key, value in arm.chosen_grid.items()),
        "note": _note(arm),
    }


def _note(arm: ArmRuns) -> str:
    if arm.arm.pending:
        return f"not run: {arm.arm.pending}"
    if arm.chosen is None:
        return "not run"
    parts = []
    if arm.diverged:
        survivors = "; the mean is of the survivors" if arm.chosen.completed else ""
        parts.append(f"{arm.diverged} of {len(arm.chosen.results)} seeds diverged{survivors}")
    if arm.missing:
        parts.append(f"seed {', '.join(map(str, arm.missing))} not run")
    if arm.chosen_by:
        parts.append(f"chosen by {arm.chosen_by}")
    return "; ".join(parts)
