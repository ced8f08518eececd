"""By how much: our numbers with their intervals beside the paper's, row by row, one axis for what has one unit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from markupsafe import Markup, escape

from reproduce.report import evidence
from reproduce.report.counts import kind_of
from reproduce.report.numbers import MINUS, decimals_of, metric_text, paper_number, with_interval
from reproduce.report.said import short
from reproduce.report.tables import baseline_label
from reproduce.results.evaluate import Finding, MethodFindings, TaskFinding, at_chance_level
from reproduce.results.stats import Estimate

MOST = 10  # rows in front; all stand in the tables of claims
WIDTH, HEIGHT, MARGIN = 150, 18, 7  # CSS pixels; the page's style repeats them
CHARACTER = 6.0  # CSS pixels of a digit on an axis, at most
STEPS = (5, 2, 1, 0.5, 0.2)  # of a power of ten


@dataclass(frozen=True)
class Entry:
    """One number of ours, and what a paper says of it."""

    panel: str
    arm: str
    over: str  # "" of a value
    task: str  # "" where there is one alone
    ours: Estimate
    decimals: int
    gap: bool
    paper: float | None = None
    direction: str = ""  # the side on which a claim without a number puts the gap
    kind: str = ""  # what came out of a claim
    evidence: str = ""
    experiment: str = ""  # its title
    doubt: str = ""  # arms that learned nothing

    @property
    def subject(self) -> str:
        return f"{self.arm}, {self.task}" if self.task else self.arm

    @property
    def label(self) -> str:
        return f"{self.subject} {MINUS} {self.over}" if self.over else self.subject

    @property
    def ends(self) -> tuple[float, ...]:
        """All that its row must show."""
        interval = self.ours.interval
        within = (interval.low, interval.high) if interval else ()
        return (self.ours.mean, *within, *((self.paper,) if self.paper is not None else ()))

    @property
    def said(self) -> str:
        """The paper's side in words; "" where no paper says anything."""
        if self.paper is not None:
            return f"paper {paper_number(self.paper, 0, sign=self.gap)}"
        return f"claimed: {self.direction}" if self.direction else ""


@dataclass(frozen=True)
class ForestRow:
    """One row: what it is, the picture, and the same in numbers."""

    label: str
    kind: str
    ours: str
    paper: str
    said: str
    plot: Markup
    evidence: str
    doubt: str


@dataclass(frozen=True)
class ForestPanel:
    """Rows that share an axis."""

    title: str
    rows: tuple[ForestRow, ...]
    axis: Markup


@dataclass(frozen=True)
class Forest:
    """The figure, and what of it is elsewhere."""

    what: str
    panels: tuple[ForestPanel, ...]
    more: int

    @property
    def has_paper(self) -> bool:
        return any("paper-number" in row.plot for panel in self.panels for row in panel.rows)

    @property
    def has_side(self) -> bool:
        return any("side" in row.plot for panel in self.panels for row in panel.rows)


def forest(method: MethodFindings, others: Sequence[Finding], columns: Sequence[Finding]) -> Forest | None:
    """Of the papers' claims that were judged; where there are none, of ours; where there are none, of the matrix.

    Args:
        others: the experiments that are no columns of the matrix.
    """
    for what, ours in (("The papers' claims", False), ("Our own claims", True)):
        entries = [list(_claims(method.folder.name, finding, ours)) for finding in (*others, *columns)]
        if any(entries):
            return _forest(what, entries)
    gaps = [list(_gaps(method.folder.name, finding)) for finding in columns]
    return _forest("Its row of the matrix, under one budget", gaps) if any(gaps) else None


def _claims(method: str, finding: Finding, ours: bool) -> Iterator[Entry]:
    for verdict in finding.verdicts:
        claim = verdict.claim
        if claim.ours != ours or verdict.ours is None:
            continue
        task, arms = finding.tasks[claim.task], finding.experiment.arms
        row = task.row(claim.metric, claim.arm)
        yield Entry(
            panel=_panel(finding, task, claim.metric),
            arm=arms[claim.arm].label or claim.arm,
            over=(arms[claim.over].label or claim.over) if claim.over else "",
            task=claim.task if len(finding.experiment.tasks) > 1 else "",
            ours=verdict.ours,
            decimals=decimals_of([row.estimate.mean if row and row.estimate else claim.value]),
            gap=claim.over is not None,
            paper=None if ours else claim.value,
            direction=claim.direction or "",
            kind=kind_of(verdict),
            evidence=evidence.link(method, finding, task, claim.arm),
            experiment=finding.experiment.title,
            doubt="; ".join(at_chance_level(claim, finding.tasks)),
        )


def _gaps(method: str, finding: Finding) -> Iterator[Entry]:
    """The arms of a column minus its baseline."""
    for task in finding.tasks.values():
        metric = task.metrics[0]
        for row in task.tables[metric]:
            if row.difference is None:
                continue
            yield Entry(
                panel=_panel(finding, task, metric),
                arm=row.label,
                over=baseline_label(task),
                task="",
                ours=row.difference.estimate,
                decimals=decimals_of([row.mean.mean if row.mean else None]),
                gap=True,
                evidence=evidence.link(method, finding, task, row.arm),
                experiment=finding.experiment.title,
            )


def _panel(finding: Finding, task: TaskFinding, metric: str) -> str:
    """The data by their whole title: half of one may name another dataset."""
    data = finding.datasets[finding.experiment.tasks[task.name].dataset].title
    return f"{data}; {metric_text(metric)}"


def _forest(what: str, entries: Sequence[Sequence[Entry]]) -> Forest:
    """Rows of each experiment in turn until the figure is full; panels in the order of the experiments."""
    in_turn = [entry for several in zip_longest(*entries) for entry in several if entry is not None]
    shown = {id(entry) for entry in in_turn[:MOST]}
    panels = []
    for of_one in entries:
        groups: dict[tuple[str, bool], list[Entry]] = {}
        for entry in of_one:
            if id(entry) in shown:
                groups.setdefault((entry.panel, entry.gap), []).append(entry)
        panels += [(group[0].experiment, _one_panel(title, group)) for (title, _), group in groups.items()]
    return Forest(what, _told_apart(panels), len(in_turn) - len(shown))


def _told_apart(panels: Sequence[tuple[str, ForestPanel]]) -> tuple[ForestPanel, ...]:
    """Panels of several experiments that would bear one heading, as two parts of a text, bear theirs too."""
    titles = Counter(panel.title for _, panel in panels)
    return tuple(
        replace(panel, title=f"{experiment} ({panel.title})") if titles[panel.title] > 1 else panel
        for experiment, panel in panels
    )


def _one_panel(title: str, entries: Sequence[Entry]) -> ForestPanel:
    is_gap = entries[0].gap
    ends = [end for entry in entries for end in entry.ends] + ([0.0] if is_gap else [])
    low, high = min(ends), max(ends)
    if low == high:
        low, high = low - 1, high + 1
    scale = (WIDTH - 2 * MARGIN) / (high - low)

    def place(value: float) -> float:
        return round(MARGIN + (value - low) * scale, 1)

    overs = {entry.over for entry in entries}
    shared = overs.pop() if len(overs) == 1 else ""  # said once
    rows = tuple(
        ForestRow(
            label=entry.subject if shared else entry.label,
            kind=entry.kind,
            ours=with_interval(entry.ours, entry.decimals, sign=is_gap),
            paper=entry.said if entry.paper is not None else "",
            said=entry.said,
            plot=_plot(entry, place),
            evidence=entry.evidence,
            doubt=entry.doubt,
        )
        for entry in entries
    )
    what = f", minus {shared}" if shared else ", differences" if is_gap else ""
    return ForestPanel(title + what, rows, _axis(low, high, place))


def _plot(entry: Entry, place: Callable[[float], float]) -> Markup:
    middle = HEIGHT / 2
    parts = []
    if entry.gap:
        zero = place(0.0)
        if entry.direction:
            left, right = (0.0, zero) if entry.direction == "lower" else (zero, float(WIDTH))
            parts.append(f'<rect x="{left:g}" width="{right - left:g}" height="{HEIGHT}" class="side"/>')
        parts.append(f'<path d="M{zero:g} 0v{HEIGHT}" class="zero"/>')
    if entry.ours.interval is not None:
        low, high = place(entry.ours.interval.low), place(entry.ours.interval.high)
        parts.append(f'<path d="M{low:g} {middle:g}H{high:g}" class="reach"/>')
    parts.append(f'<circle cx="{place(entry.ours.mean):g}" cy="{middle:g}" r="3.5"/>')
    if entry.paper is not None:
        x = place(entry.paper)
        parts.append(f'<path d="M{x:g} {middle - 6:g}l6 6-6 6-6-6z" class="paper-number"/>')
    title = "; ".join(filter(None, (f"ours {with_interval(entry.ours, entry.decimals, sign=entry.gap)}", entry.said)))
    return Markup(
        f'<svg role="img" viewBox="0 0 {WIDTH} {HEIGHT}"><title>{escape(entry.label)}: {escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _axis(low: float, high: float, place: Callable[[float], float]) -> Markup:
    """Ticks with their numbers; hidden from who does not see the figure, since each row says its own."""
    parts = [f'<path d="M0 .5H{WIDTH}" class="zero"/>']
    end = -math.inf  # of the number before
    for tick in ticks(low, high):
        x, text = place(tick), short(tick)
        anchor, before = (
            ("start", 0.0) if x < 2 * MARGIN else ("end", 1.0) if x > WIDTH - 2 * MARGIN else ("middle", 0.5)
        )
        parts.append(f'<path d="M{x:g} 0v4" class="zero"/>')
        begin = x - before * CHARACTER * len(text)
        if begin > end + CHARACTER / 2:
            parts.append(f'<text x="{x:g}" y="14" text-anchor="{anchor}">{text}</text>')
            end = begin + CHARACTER * len(text)
    return Markup(f'<svg aria-hidden="true" viewBox="0 0 {WIDTH} 16">{"".join(parts)}</svg>')


def ticks(low: float, high: float) -> list[float]:
    """Three round numbers or a few more between both ends, as few as can be."""
    magnitude = 10.0 ** math.floor(math.log10(high - low))
    found: list[float] = []
    for factor in STEPS:
        step = factor * magnitude
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found = [round(place * step, 12) + 0.0 for place in range(first, last + 1)]
        if len(found) > 2:
            break
    return found
