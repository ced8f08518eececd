"""Tables of a Finding and their renderings: Markdown, CSV, terminal, and cells for HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reproduce.experiment.schema import Claim, Experiment
from reproduce.report.counts import kind_of, only_alone
from reproduce.report.csv_text import computed, csv_text
from reproduce.report.fitted import Fitted
from reproduce.report.numbers import (
    NOTHING,
    decimals_of,
    metric_text,
    number,
    p_text,
    paper_number,
    printed_decimals,
    with_interval,
)
from reproduce.results.evaluate import ArmRow, Finding, TaskFinding, no_interval
from reproduce.results.judge import Verdict
from reproduce.results.power import seeds_text

CSV_COLUMNS = (
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
TO_THE_LEFT = frozenset(
    {"Task", "Arm", "Method", "Seeds", "Chosen", "Note", "Claim", "Published claims", "Verdict", "Why", "Address"}
) | {"Parameters", "Use", "Device", "Finished", "Result", "Experiment", "Command", "What it does", "Claims judged"}
ADJUSTED = "p, adjusted"


@dataclass(frozen=True)
class TextTable:
    """A table as people read it: headings, and rows of as many texts."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, heading: str) -> tuple[str, ...]:
        place = self.columns.index(heading)
        return tuple(row[place] for row in self.rows)

    def without(self, headings: Iterable[str]) -> TextTable:
        left_out = set(headings)
        kept = [place for place, heading in enumerate(self.columns) if heading not in left_out]
        rows = tuple(tuple(row[place] for place in kept) for row in self.rows)
        return TextTable(tuple(self.columns[place] for place in kept), rows)


@dataclass(frozen=True)
class RowText:
    """One arm under one metric, as texts; what is unknown is an en dash, or empty."""

    arm: str
    paper: str
    ours: str
    n: str
    difference: str
    p_value: str
    seeds: str
    chosen: str
    note: str


@dataclass(frozen=True)
class ClaimText:
    """One claim as texts: what the paper says, what came out, and the verdict."""

    claim: str
    claimed: str
    ours: str
    n: str
    p_value: str  # adjusted over the table's claims
    kind: str  # the word; at reduced scale the direction, where there is one
    verdict: str  # the word, and at reduced scale the direction
    reason: str
    address: str
    by_us: bool
    task: str
    arm: str


def row_texts(rows: Sequence[ArmRow]) -> list[RowText]:
    """The rows of one metric, with as many decimals as suit them together."""
    decimals = decimals_of_rows(rows)
    return [
        RowText(
            arm=row.label,
            paper=paper_number(row.paper, decimals),
            ours=mean_text(row, decimals),
            n=f"{row.n}" if row.n == row.planned else f"{row.n} of {row.planned}",
            difference=difference_text(row, decimals),
            p_value=p_text(row.p_holm),
            seeds=" ".join(number(value, decimals) for value in row.values.values()) or NOTHING,
            chosen=row.chosen,
            note="; ".join(row.notes),
        )
        for row in rows
    ]


def decimals_of_rows(rows: Iterable[ArmRow]) -> int:
    return decimals_of(row.estimate.mean if row.estimate else None for row in rows)


def mean_text(row: ArmRow, decimals: int) -> str:
    """The mean with its interval; in brackets, and without one, where it is of survivors."""
    if row.survivors is not None:
        return f"({number(row.survivors.mean, decimals)})"
    return with_interval(row.mean, decimals)


def difference_text(row: ArmRow, decimals: int) -> str:
    return with_interval(row.difference.estimate if row.difference else None, decimals, sign=True)


def of_metric(task: TaskFinding, metric: str) -> TextTable:
    """The rows of one metric; columns in which nothing is known are left out."""
    texts = row_texts(task.tables[metric])
    columns = {
        "Arm": [text.arm for text in texts],
        "Paper": [text.paper for text in texts],
        "Ours": [text.ours for text in texts],
        "n": [text.n for text in texts],
        difference_heading(task): [text.difference for text in texts],
        "p (Holm)": [text.p_value for text in texts],
        "Seeds": [text.seeds for text in texts],
        "Chosen": [text.chosen for text in texts],
        "Note": [text.note for text in texts],
    }
    known = {
        heading: column
        for heading, column in columns.items()
        if heading in ("Arm", "Ours", "n") or not set(column) <= {"", NOTHING}
    }
    return TextTable(tuple(known), tuple(zip(*known.values(), strict=True)))


def side_by_side(task: TaskFinding) -> TextTable | None:
    """One row per arm that ran and a column for each metric of `task.beside`: the mean and half its 95 % interval.
    Columns are of the test split unless they say otherwise.

    None where there are no such columns. An arm with a diverged seed has the mean of the others in brackets.
    """
    if not task.beside:
        return None
    ran = [name for name in task.runs.arms if any(row.ran for row in task.rows if row.arm == name)]
    columns = [[task.runs.arms[name].label for name in ran]]
    for metric in task.beside:
        rows = [row for row in task.tables[metric] if row.ran]
        decimals = decimals_of_rows(rows)
        texts = {row.arm: _mean_and_half_width(row, decimals) for row in rows}
        columns.append([texts.get(name, NOTHING) for name in ran])
    headings = ("Arm", *(metric_text(metric).removeprefix("test ") for metric in task.beside))
    return TextTable(headings, tuple(zip(*columns, strict=True)))


def _mean_and_half_width(row: ArmRow, decimals: int) -> str:
    if row.survivors is not None or row.mean is None or row.mean.interval is None:
        return mean_text(row, decimals)
    return f"{number(row.mean.mean, decimals)} ± {number(row.mean.interval.half_width, decimals)}"


def baseline_label(task: TaskFinding) -> str:
    """What the arm is called that differences are taken against."""
    return task.baseline.label if task.baseline else "baseline"


def difference_heading(task: TaskFinding) -> str:
    return f"minus {baseline_label(task)}"


def markdown(table: TextTable) -> str:
    """A pipe table; numbers to the right."""
    lines = [
        "| " + " | ".join(map(pipe_safe, table.columns)) + " |",
        "|" + "|".join(":---" if column in TO_THE_LEFT else "---:" for column in table.columns) + "|",
    ]
    lines += ["| " + " | ".join(map(pipe_safe, row)) + " |" for row in table.rows]
    return "\n".join(lines)


def pipe_safe(value: str) -> str:
    return value.replace("|", "\\|").replace("\n", " ")


def comma_separated(tasks: Iterable[tuple[str, TaskFinding]]) -> str:
    """The rows that ran, of all tasks, each with its experiment's name, as CSV; seeds and values as `seed=value`.

    An arm all of whose seeds diverged ran: its row has no mean.
    """
    return csv_text(
        CSV_COLUMNS, (_csv_row(name, task.name, row) for name, task in tasks for row in task.rows if row.ran)
    )


def _csv_row(experiment: str, task: str, row: ArmRow) -> tuple[str | int | float | None, ...]:
    """The columns of CSV_COLUMNS."""
    mean = row.mean.interval if row.mean else None
    gap = row.difference.estimate if row.difference else None
    return (
        experiment,
        task,
        row.arm,
        row.label,
        row.metric,
        row.paper,
        computed(row.mean.mean if row.mean else None),
        computed(mean.low if mean else None),
        computed(mean.high if mean else None),
        row.n,
        row.planned,
        row.diverged,
        computed(row.survivors.mean if row.survivors else None),
        " ".join(f"{seed}={value!r}" for seed, value in row.values.items()),
        computed(gap.mean if gap else None),
        computed(gap.interval.low if gap and gap.interval else None),
        computed(gap.interval.high if gap and gap.interval else None),
        gap.n if gap else None,
        computed(row.p_holm),
        row.chosen,
        "; ".join(row.notes),
    )


def terminal(table: TextTable, title: str) -> Fitted:
    """For a terminal: seeds one by one and notes are on the page, not here."""
    kept = table.without(("Seeds", "Note", "Chosen"))
    chosen = table.column("Chosen") if "Chosen" in table.columns else ("",) * len(table.rows)
    rows = [
        (f"{first} ({choice})" if choice else first, *others)
        for (first, *others), choice in zip(kept.rows, chosen, strict=True)
    ]
    return Fitted(title, kept.columns, rows, TO_THE_LEFT)


def claim_texts(finding: Finding) -> list[ClaimText]:
    """What the paper says, what came out, and the verdict, for each claim."""
    texts = []
    for verdict in finding.verdicts:
        claim, ours = verdict.claim, verdict.ours
        row = finding.tasks[claim.task].row(claim.metric, claim.arm)
        decimals = decimals_of([row.estimate.mean if row and row.estimate else claim.value])
        texts.append(
            ClaimText(
                claim=statement(finding.experiment, claim),
                claimed=_claimed(claim),
                ours=with_interval(ours, decimals, sign=claim.over is not None),
                n=str(ours.n) if ours else NOTHING,
                p_value=p_text(verdict.p_adjusted),
                kind=kind_of(verdict),
                verdict=verdict.text,
                reason="; ".join(filter(None, (verdict.reason, _outlook(verdict)))),
                address=claim.source,
                by_us=claim.ours,
                task=claim.task,
                arm=claim.arm,
            )
        )
    return texts


def _outlook(verdict: Verdict) -> str:
    """How far a verdict reaches, and what may come of an undecided claim."""
    alone = "of this gap alone: after adjustment over its table, chance is not ruled out" if only_alone(verdict) else ""
    zero = "the tolerance holds zero" if verdict.word == "inconclusive" and verdict.claim.holds_zero else ""
    lacking = no_interval(verdict.ours) if verdict.word == "reduced scale" else ""  # elsewhere the verdict says it
    return "; ".join(filter(None, (alone, zero, lacking, seeds_text(verdict))))


def claims_table(texts: Iterable[ClaimText]) -> TextTable:
    """The same as a table."""
    columns = ("Claim", "Claimed", "Ours", "n", ADJUSTED, "Verdict", "Why", "Address")
    rows = tuple(
        (text.claim, text.claimed, text.ours, text.n, text.p_value, text.verdict, text.reason, text.address)
        for text in texts
    )
    table = TextTable(columns, rows)
    return table.without([ADJUSTED]) if set(table.column(ADJUSTED)) <= {NOTHING} else table


def statement(experiment: Experiment, claim: Claim) -> str:
    """A claim in words: which arm's which metric, on which task."""
    arm = experiment.arms[claim.arm].label or claim.arm
    over = f" minus {experiment.arms[claim.over].label or claim.over}" if claim.over else ""
    place = f", {claim.task}" if len(experiment.tasks) > 1 else ""
    return f"{arm}{over}: {metric_text(claim.metric)}{place}"


def _claimed(claim: Claim) -> str:
    if claim.direction is not None:
        return claim.direction
    decimals = max(1, *(printed_decimals(number) for number in (claim.value, claim.tolerance) if number is not None))
    value = paper_number(claim.value, decimals, sign=claim.over is not None)
    return f"{value} ± {paper_number(claim.tolerance, decimals)}"
