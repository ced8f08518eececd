"""One table per experiment and task, and its renderings: Markdown, CSV, terminal, and cells for HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from reproduce.experiment.schema import Claim
from reproduce.results.judge import Verdict
from reproduce.results.match import ArmRuns, TaskRuns
from reproduce.results.stats import Difference, holm, paired_difference

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
CLAIM_COLUMNS = ("Claim", "Claimed", "Ours", "n", "Verdict", "Why", "Address")
TEXTS = frozenset({"Task", "Arm", "Seeds", "Chosen", "Note", "Claim", "Verdict", "Why", "Address"})
UNITS = {"error": "%", "classifier_error": "%", "accuracy": "%"}
SHORT = {"l0": "L0", "fvu": "FVU", "ce": "CE"}  # words of a metric's name that are abbreviations


def table_of(name: str, task: TaskRuns) -> pd.DataFrame:
    """One row per metric and arm, with the columns COLUMNS; what is unknown is None.

    ``difference`` is paired by seed against the experiment's baseline, ``p_holm`` its two-sided p after Holm's
    adjustment over the arms of that metric. An arm with a diverged seed has no mean, interval or difference:
    what its survivors reached is in ``survivors_mean``.
    """
    rows = []
    for metric in dict.fromkeys([*metrics_of(task), *columns_of(task)]):
        differences = {arm.name: _difference(task, arm, metric) for arm in task.arms.values()}
        adjusted = dict(zip(differences, holm([d.p_value if d else None for d in differences.values()]), strict=True))
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


def columns_of(task: TaskRuns) -> list[str]:
    """What the experiment wants to see side by side, as far as this task measures it."""
    return [m for m in task.experiment.metrics if any(arm.values(m) for arm in task.arms.values())]


def published(task: TaskRuns, arm_name: str, metric: str) -> Claim | None:
    """The paper's own number for one arm, if an experiment file states it."""
    for claim in task.experiment.claims:
        if (claim.task, claim.arm, claim.metric) == (task.task_name, arm_name, metric) and claim.over is None:
            return claim
    return None


def shown(table: pd.DataFrame, task: TaskRuns, metric: str) -> pd.DataFrame:
    """The rows of one metric as text for people; columns in which nothing is known are left out."""
    rows = table[table["metric"] == metric].to_dict("records")
    decimals = decimals_of([r["mean"] for r in rows] + [r["survivors_mean"] for r in rows])
    gap = f"minus {baseline_label(task)}"
    texts = []
    for row in rows:
        text = {"Arm": row["label"]}
        text["Paper"] = paper_number(row["paper"], decimals)
        text["Ours"] = _mean(row, decimals)
        text["n"] = f"{row['n']}" if row["n"] == row["planned"] else f"{row['n']} of {row['planned']}"
        text[gap] = with_interval(row["difference"], row["difference_low"], row["difference_high"], decimals, sign=True)
        text["p (Holm)"] = p_text(row["p_holm"])
        text["Seeds"] = " ".join(number(value, decimals) for value in row["values"].values()) or NOTHING
        text["Chosen"] = row["chosen"]
        text["Note"] = row["note"]
        texts.append(text)
    frame = pd.DataFrame(texts, dtype=object)
    optional = ["Paper", gap, "p (Holm)", "Seeds", "Chosen", "Note"]
    return frame.drop(columns=[c for c in optional if frame[c].isin(["", NOTHING]).all()])


def side_by_side(table: pd.DataFrame, task: TaskRuns) -> pd.DataFrame | None:
    """One row per arm that ran and a column for each metric of `columns_of`: the mean and half its 95 % interval.
    Columns are of the test split unless they say otherwise.

    None where there are no such columns. An arm with a diverged seed has the mean of the others in brackets.
    """
    metrics = columns_of(task)
    ran = table[(table["n"] > 0) | (table["diverged"] > 0)]
    texts: dict[str, dict[str, str]] = {str(row["arm"]): {"Arm": str(row["label"])} for _, row in ran.iterrows()}
    for metric in metrics:
        rows = ran[ran["metric"] == metric].to_dict("records")
        decimals = decimals_of([r["mean"] for r in rows] + [r["survivors_mean"] for r in rows])
        for row in rows:
            text = _mean({**row, "low": None, "high": None}, decimals)
            if row["low"] is not None:
                text += f" ± {number((row['high'] - row['low']) / 2, decimals)}"
            texts[row["arm"]][metric_text(metric).removeprefix("test ")] = text
    return pd.DataFrame(list(texts.values()), dtype=object).fillna(NOTHING) if metrics else None


def baseline_label(task: TaskRuns) -> str:
    """What the arm is called that differences are taken against."""
    baseline = task.arms.get(task.experiment.baseline or "")
    return baseline.label if baseline else "baseline"


def markdown(frame: pd.DataFrame) -> str:
    """A pipe table; numbers to the right."""
    lines = [
        "| " + " | ".join(map(_pipe_safe, frame.columns)) + " |",
        "|" + "|".join(":---" if column in TEXTS else "---:" for column in frame.columns) + "|",
    ]
    lines += ["| " + " | ".join(map(_pipe_safe, row)) + " |" for row in frame.itertuples(index=False)]
    return "\n".join(lines)


def _pipe_safe(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def csv(tables: Sequence[pd.DataFrame]) -> str:
    """All tables as one CSV; seeds and values as `seed=value` joined by spaces."""
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=pd.Index(COLUMNS))
    whole["values"] = [" ".join(f"{seed}={value!r}" for seed, value in values.items()) for values in whole["values"]]
    return whole.to_csv(index=False, lineterminator="\n")


def terminal(frame: pd.DataFrame, title: str) -> Table:
    """For a terminal of 100 columns: seeds one by one and notes are on the page, not here."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    kept = frame.drop(columns=[c for c in ("Seeds", "Note", "Chosen") if c in frame])
    for column in kept.columns:
        table.add_column(column, justify="left" if column in TEXTS else "right", overflow="fold")
    for place, row in enumerate(kept.itertuples(index=False)):
        chosen = frame["Chosen"].iloc[place] if "Chosen" in frame else ""
        first, *rest = map(str, row)
        table.add_row(Text(f"{first} ({chosen})" if chosen else first), *rest)
    return table


def claims_table(verdicts: Sequence[tuple[TaskRuns, Verdict]]) -> pd.DataFrame:
    """What the paper says, what came out, and the verdict, one row per claim."""
    rows = []
    for task, verdict in verdicts:
        claim, ours = verdict.claim, verdict.ours
        arm = task.arms[claim.arm].estimate(claim.metric) if claim.arm in task.arms else None
        decimals = decimals_of([arm.mean if arm else claim.value])
        interval = ours.interval if ours else None
        low, high = (interval.low, interval.high) if interval else (None, None)
        rows.append(
            {
                "Claim": statement(task, claim),
                "Claimed": _published(claim),
                "Ours": with_interval(ours.mean if ours else None, low, high, decimals, sign=claim.over is not None),
                "n": str(ours.n) if ours else NOTHING,
                "Verdict": verdict.text,
                "Why": verdict.reason,
                "Address": claim.source,
            }
        )
    return pd.DataFrame(rows, columns=pd.Index(CLAIM_COLUMNS), dtype=object)


def statement(task: TaskRuns, claim: Claim) -> str:
    """A claim in words: whose which metric, on which task."""
    arm = task.experiment.arms[claim.arm].label or claim.arm
    over = f" minus {task.experiment.arms[claim.over].label or claim.over}" if claim.over else ""
    place = f", {claim.task}" if len(task.experiment.tasks) > 1 else ""
    return f"{arm}{over}: {metric_text(claim.metric)}{place}"


def metric_text(metric: str) -> str:
    """`test.error` as "test error (%)"."""
    split, _, name = metric.partition(".")
    words = [SHORT.get(word, word) for word in name.split("_")]
    return " ".join([split, *words]) + (f" ({UNITS[name]})" if name in UNITS else "")


def metric_name(metric: str) -> str:
    """`test.error` as "test error"."""
    return metric_text(metric).partition(" (")[0]


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


def with_interval(mean: float | None, low: float | None, high: float | None, decimals: int, sign: bool = False) -> str:
    """`7.21 [7.05, 7.37]`, or the mean alone where there is no interval."""
    text = number(mean, decimals, sign)
    if low is None or high is None:
        return text
    return f"{text} [{number(low, decimals, sign)}, {number(high, decimals, sign)}]"


def paper_number(value: float | None, decimals: int, sign: bool = False) -> str:
    """As many decimals as the paper prints, and no fewer than ours."""
    if value is None:
        return NOTHING
    return number(value, max(decimals, _decimals(value)), sign)


def p_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def decimals_of(values: Sequence[float | None]) -> int:
    """Two decimals for errors and perplexities, more for numbers below one, fewer for thousands."""
    sizes = [abs(value) for value in values if value is not None]
    largest = max(sizes, default=1.0)
    return 4 if largest < 0.1 else 3 if largest < 1 else 2 if largest < 1000 else 1


def _published(claim: Claim) -> str:
    if claim.direction is not None:
        return claim.direction
    decimals = max(1, *(_decimals(number) for number in (claim.value, claim.tolerance) if number is not None))
    value = paper_number(claim.value, decimals, sign=claim.over is not None)
    return f"{value} ± {paper_number(claim.tolerance, decimals)}"


def _decimals(value: float) -> int:
    return len(repr(float(value)).partition(".")[2].rstrip("0"))


def _mean(row: dict[Any, Any], decimals: int) -> str:
    if row["survivors_mean"] is not None:
        return f"({number(row['survivors_mean'], decimals)})"
    return with_interval(row["mean"], row["low"], row["high"], decimals)


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
        survivors = ": the mean in brackets is of the others" if arm.chosen.completed else ""
        parts.append(f"{arm.diverged} of {len(arm.chosen.results)} seeds diverged{survivors}")
    if arm.missing:
        parts.append(f"seed {', '.join(map(str, arm.missing))} not run")
    if arm.chosen_by:
        parts.append(f"chosen: {arm.chosen_by}")
    return "; ".join(parts)
