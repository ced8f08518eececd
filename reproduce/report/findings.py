"""What a table shows, in one sentence, computed from the table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from reproduce.report.match import TaskRuns, higher_is_better
from reproduce.report.tables import UNITS, baseline_label, decimals_of, number, p_text

SMALL = 0.05


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
    name = metric.replace(".", " ")
    baseline = baseline_label(task)
    unit = UNITS.get(metric.rpartition(".")[2], "")
    reached = number(best["mean"], decimals) + (f" {unit}" if unit else "")
    said = f"{best['label']} has the {'highest' if up else 'lowest'} mean {name}, {reached}"
    if len(complete) == 1:
        return _sentence(
            f"{best['label']} is alone so far: its mean {name} is {number(best['mean'], decimals)}", diverged
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


def _sureness(row: dict[Any, Any], baseline: str) -> str:
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
