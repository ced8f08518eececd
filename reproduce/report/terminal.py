"""The tables, sentences and verdicts of a page for a terminal, of 80 columns and more, or fewer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from reproduce.report import over_tasks, tables
from reproduce.report.counts import NOT_RUN, judged_text
from reproduce.report.fitted import Prose, wrapped
from reproduce.report.numbers import NOTHING, metric_text, p_equals, p_text
from reproduce.report.sentences import best_arm_sentence, claims_sentences, waiting_sentence
from reproduce.results.evaluate import Finding, TaskFinding
from reproduce.results.judge import Verdict

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
VERDICT_WIDTH = max(len(word) for kind in STYLES for word in (kind, "reduced scale:"))
MOST_NOT_RUN = 3  # claims of an experiment that are listed one by one
WIDE = 130  # columns from which on a claim, what came out and why stand beside each other


def terminal_summary(findings: Iterable[Finding], problems: Sequence[str] = ()) -> Group:
    """For `rich.console.Console.print`."""
    findings = list(findings)
    parts: list[RenderableType] = [part for finding in findings for part in _experiment(finding)]
    if judged := judged_text(findings):
        parts += [Text(), Prose(judged)]
    parts += [Prose(f"unreadable: {problem}", "red") for problem in problems]
    return Group(*parts)


def _experiment(finding: Finding) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(), Prose(f"{finding.name}: {finding.experiment.title}", "bold underline")]
    if over := finding.over_tasks:
        title = f"{metric_text(over.metric)}, mean; the best between asterisks"
        parts += [tables.terminal(over_tasks.table(over), title), Prose(over_tasks.sentence(over))]
    if finding.experiment.caveat:
        parts.append(Prose(finding.experiment.caveat, "bold"))
    if waiting := waiting_sentence(finding):
        parts.append(Prose(waiting, "dim"))
    for task in finding.tasks.values():
        if task.runs.results and over is None:
            parts += _task(task)
    if conclusion := claims_sentences(finding):
        parts.append(Prose(conclusion))
    if finding.verdicts:
        parts += [Text(), Claims(_claims(finding))]
    return parts


def _claims(finding: Finding) -> list[_Claim]:
    """Of many that were not run, how many there are; the page lists them."""
    every = [_Claim.of(text, one) for text, one in zip(tables.claim_texts(finding), finding.verdicts, strict=True)]
    ran = [claim for claim in every if claim.verdict != NOT_RUN]
    waiting = len(every) - len(ran)
    if waiting <= MOST_NOT_RUN:
        return every
    return [*ran, _Claim(NOT_RUN, STYLES[NOT_RUN], f"{waiting} claims; the page lists them", "", "")]


def _task(task: TaskFinding) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for metric in task.metrics:
        title = f"{task.name}: {metric_text(metric)}, mean [95 % interval]"
        parts.append(tables.terminal(tables.of_metric(task, metric), title))
    beside = tables.side_by_side(task)
    if beside is not None:
        parts.append(tables.terminal(beside, f"{task.name}: test, mean ± half of the 95 % interval"))
    parts += [Prose(line, "dim", indent=2) for line in notes_by_arm({row.label: row.notes for row in task.rows})]
    return [*parts, Prose(best_arm_sentence(task))]


def notes_by_arm(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each arm with notes; what is said of all arms, of two or more, is one line before them."""
    every = dict.fromkeys(note for of_arm in notes.values() for note in of_arm)
    shared = [note for note in every if len(notes) > 1 and all(note in of_arm for of_arm in notes.values())]
    lines = [f"all arms: {'; '.join(shared)}"] if shared else []
    for arm, of_arm in notes.items():
        if own := [note for note in of_arm if note not in shared]:
            lines.append(f"{arm}: {'; '.join(own)}")
    return lines


@dataclass(frozen=True)
class _Claim:
    """A claim in texts, and how its verdict looks."""

    verdict: str
    style: str
    claim: str
    outcome: str  # ours, and how sure it is; "" where nothing ran
    reason: str

    @classmethod
    def of(cls, text: tables.ClaimText, verdict: Verdict) -> _Claim:
        ours = "" if text.ours == NOTHING else f"{text.ours}, n = {text.n}"
        p_value = "" if verdict.p_value is None else p_equals(verdict.p_value)
        adjusted = "" if verdict.p_adjusted is None else f"adjusted {p_text(verdict.p_adjusted)}"
        return cls(
            verdict=text.verdict,
            style=STYLES[text.kind],
            claim=f"{text.claim}; claimed: {text.claimed}",
            outcome=", ".join(filter(None, (ours, p_value, adjusted))),
            reason=text.reason,
        )


@dataclass(frozen=True)
class Claims:
    """Each claim beside its verdict: what was claimed, what came out with its p values, and why it is judged so."""

    claims: Sequence[_Claim]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if options.max_width < 3 * VERDICT_WIDTH:
            for claim in self.claims:
                yield Prose(claim.verdict, claim.style)
                yield from (Prose(text, indent=2) for text in (claim.claim, claim.outcome) if text)
                yield Prose(claim.reason, "dim", indent=2)
            return
        grid = Table.grid(padding=(0, 2))
        rest = options.max_width - VERDICT_WIDTH - 2
        wide = options.max_width >= WIDE
        for claim in self.claims:
            verdict = Text("\n".join(wrapped(claim.verdict, VERDICT_WIDTH)), claim.style)
            texts = [(claim.claim, ""), (claim.outcome, ""), (claim.reason, "dim")]
            if wide:
                grid.add_row(verdict, *(_lines([text], rest // 3 - 2) for text in texts))
            else:
                grid.add_row(verdict, _lines(texts, rest))
        yield grid


def _lines(texts: Sequence[tuple[str, str]], width: int) -> Text:
    """One below the other, each in its style."""
    return Text("\n").join(Text("\n".join(wrapped(text, width)), style) for text, style in texts if text)
