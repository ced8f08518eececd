"""What an experiment over many tasks found, as a table, a sentence, and a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from matplotlib.figure import Figure

from reproduce.report.numbers import decimals_of, metric_name, number, p_equals
from reproduce.report.style import WIDTH, ArmColors, legend, look, plain
from reproduce.report.tables import TextTable
from reproduce.results.match import higher_is_better
from reproduce.results.over_tasks import OverTasks, profile
from reproduce.results.stats import SIGNIFICANCE

MOST_RATIO = 3.0  # a profile shows no more
PROFILE_CAPTION = (
    "Share of the tasks on which an arm's mean is at most so many times the best one's (Dolan & Moré 2002)."
)


@dataclass(frozen=True)
class ProblemCell:
    """One arm's mean on one problem, as text."""

    text: str
    best: bool


@dataclass(frozen=True)
class ProblemRow:
    """One problem, or a summary of all: a cell per arm, and the runs that it rests on."""

    name: str
    cells: tuple[ProblemCell, ...]
    runs: str


def rows(over: OverTasks) -> list[ProblemRow]:
    """A row per problem; below, of the complete problems, how often an arm is best and its mean rank."""
    decimals = decimals_of([v for row in over.means.values() for v in row.values() if v is not None and v < math.inf])
    found = []
    for problem, row in over.means.items():
        best = over.best(problem)
        cells = tuple(ProblemCell(_text(value, decimals), arm in best) for arm, value in row.items())
        done, planned = over.runs[problem]
        found.append(ProblemRow(problem, cells, f"{done}" if done == planned else f"{done} of {planned}"))
    complete = over.complete
    if ranks := over.mean_ranks():
        wins = [str(sum(arm in over.best(problem) for problem in complete)) for arm in over.labels]
        for name, texts in (("best on", wins), ("mean rank", [number(rank, 2) for rank in ranks.values()])):
            cells = tuple(ProblemCell(text, best=False) for text in texts)
            found.append(ProblemRow(name, cells, f"on {len(complete)} tasks"))
    return found


def _text(value: float | None, decimals: int) -> str:
    return "diverged" if value == math.inf else number(value, decimals)


def table(over: OverTasks) -> TextTable:
    """The same as texts, the best between asterisks."""
    texts = []
    for row in rows(over):
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        texts.append((row.name, *cells, row.runs))
    return TextTable(("Task", *over.labels.values(), "Runs"), tuple(texts))


def sentence(over: OverTasks) -> str:
    """Which arm has the best mean rank, and whether the tasks tell the arms apart (Friedman's test)."""
    ranks, complete = over.mean_ranks(), over.complete
    if len(ranks) < 2:
        return "No task has two arms to compare yet."
    least = min(ranks.values())
    names = [f"“{over.labels[arm]}”" for arm, rank in ranks.items() if math.isclose(rank, least)]
    text = (
        f"Over {len(complete)} tasks {' and '.join(names)} {'has' if len(names) == 1 else 'share'} the best mean rank "
        f"by {metric_name(over.metric)}, {number(least, 2)} among {len(ranks)} arms"
    )
    p = over.friedman_p()
    if p is not None:
        verdict = "tells the arms apart" if p < SIGNIFICANCE else "does not tell the arms apart"
        text += f"; Friedman's test over tasks {verdict} ({p_equals(p)})"
    left_out = len(over.means) + len(over.waiting) - len(complete)
    more = f"{left_out} more task{'s are' if left_out > 1 else ' is'} not complete"
    return f"{text}." + (f" {more}." if left_out else "")


def performance_profile(over: OverTasks, colors: ArmColors) -> Figure | None:
    """Draw what `PROFILE_CAPTION` says; None where there is nothing to compare, or more is better."""
    if len(over.labels) < 2 or not over.complete or higher_is_better(over.metric):
        return None
    curves = profile(over)
    farthest = max((r for ratios, _ in curves.values() for r in ratios if math.isfinite(r)), default=1.0)
    end = min(MOST_RATIO, max(1.05, 1 + 1.05 * (farthest - 1)))
    with look():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axis = figure.subplots()
        for arm, (ratios, shares) in curves.items():
            inside = [(ratio, share) for ratio, share in zip(ratios, shares, strict=True) if ratio <= end]
            x = [1.0, *(ratio for ratio, _ in inside), end]
            y = [0.0, *(share for _, share in inside), inside[-1][1] if inside else 0.0]
            label = plain(over.labels[arm])
            axis.step(x, y, where="post", lw=1.6, ls=colors.dash(arm), color=colors.color(arm), label=label)
        axis.set(xlabel=f"{metric_name(over.metric)} / best", ylabel="share of tasks", ylim=(0, 1.03), xlim=(1, end))
        axis.grid(axis="y")
        legend(figure, axis)
    return figure
