"""The tables, sentences and verdicts of a page for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reproduce.report import over_tasks, tables
from reproduce.report.counts import judged_text
from reproduce.report.numbers import metric_text
from reproduce.report.sentences import best_arm_sentence, claims_sentences, waiting_sentence
from reproduce.results.evaluate import Finding, TaskFinding

STYLES = {
    "reproduced": "green",
    "partly": "yellow",
    "not reproduced": "red",
    "inconclusive": "magenta",
    "same direction": "cyan",
    "opposite": "bright_red",
    "undecided": "bright_magenta",
    "reduced scale": "blue",
    "not run": "bright_black",
}


def terminal_summary(findings: Iterable[Finding], problems: Sequence[str] = ()) -> Group:
    """For `rich.console.Console.print`."""
    findings = list(findings)
    parts: list[RenderableType] = [part for finding in findings for part in _experiment(finding)]
    if judged := judged_text(findings):
        parts.append(Text(f"\n{judged}"))
    parts += [Text(f"unreadable: {problem}", style="red") for problem in problems]
    return Group(*parts)


def _experiment(finding: Finding) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(f"\n{finding.name}: {finding.experiment.title}", style="bold underline")]
    if over := finding.over_tasks:
        title = f"{metric_text(over.metric)}, mean; the best between asterisks"
        parts += [tables.terminal(over_tasks.table(over), title), Text(over_tasks.sentence(over))]
    if finding.experiment.caveat:
        parts.append(Text(finding.experiment.caveat, style="bold"))
    if waiting := waiting_sentence(finding):
        parts.append(Text(waiting, style="dim"))
    for task in finding.tasks.values():
        if task.runs.results and over is None:
            parts += _task(task)
    if conclusion := claims_sentences(finding):
        parts.append(Text(conclusion))
    if finding.verdicts:
        grid = Table.grid(padding=(0, 2))
        for claim in tables.claim_texts(finding):
            verdict = Text(claim.verdict, style=STYLES[claim.kind])
            grid.add_row(verdict, Text(claim.claim), Text(claim.reason, style="dim"))
        parts.append(grid)
    return parts


def _task(task: TaskFinding) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for metric in task.metrics:
        title = f"{task.name}: {metric_text(metric)}, mean [95 % interval]"
        parts.append(tables.terminal(tables.of_metric(task, metric), title))
    beside = tables.side_by_side(task)
    if beside is not None:
        parts.append(tables.terminal(beside, f"{task.name}: test, mean ± half of the 95 % interval"))
    notes = dict.fromkeys((row.label, "; ".join(row.notes)) for row in task.rows)
    parts += [Text(f"  {arm}: {note}", style="dim") for arm, note in notes if note]
    return [*parts, Text(best_arm_sentence(task))]
