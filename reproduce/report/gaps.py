"""The figure of the front page: every arm's gap to the baseline, column by column, light and dark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduce.report.answer import differing
from reproduce.report.drawings import Drawing, finding_digest
from reproduce.report.numbers import metric_text, number, with_unit
from reproduce.report.reach import in_reach
from reproduce.report.style import ARMS, INK, QUIET, VARIABLES, WIDTH, ArmColors, plain
from reproduce.results.columns import Column
from reproduce.results.evaluate import ArmRow
from reproduce.results.match import higher_is_better
from reproduce.results.stats import Estimate

CSS = Path(__file__).parent / "templates" / "style.css"
ROW = 0.185  # inches
BETTER, WORSE = ARMS[1], ARMS[2]
FONT = 'system-ui,"Segoe UI",Helvetica,Arial,sans-serif'

Arm = tuple[str, str]  # method and label


def gaps_drawing(columns: Sequence[Column]) -> Drawing:
    """A panel a column; every arm of every method in it has a row, in the order of the methods' names."""
    colors = ArmColors({arm: 0 for column in columns for arm in column.rows})
    shows = [finding_digest(column.task, colors) for column in columns]
    return Drawing("Gaps to the baseline", shows, lambda: _figure(columns), described(columns))


def heading(column: Column) -> str:
    """What a column measures, on what; with an asterisk where its file has a caveat."""
    return f"{column.task.name}{'*' if column.experiment.caveat else ''}: {metric_text(column.metric)}"


def described(columns: Sequence[Column]) -> str:
    """The figure in words: how many arms each column tells from its baseline, and between which ends gaps lie."""
    return " ".join(filter(None, map(_column_described, columns)))


def _column_described(column: Column) -> str:
    gaps = [(gap.mean, row.label) for row in column.rows.values() if (gap := _gap(row)) is not None]
    better, worse, tested = differing(column)
    if not gaps:
        return ""
    (least, low), (most, high) = min(gaps), max(gaps)
    ends = [with_unit(end, column.metric, 2) for end in (least, most)]
    return (
        f"{column.task.name}, {metric_text(column.metric)} minus {column.baseline.label}: {tested} arms, {better} told "
        f"better and {worse} told worse; gaps from {ends[0]} ({low}) to {ends[1]} ({high})."
    )


def alone(svg: str, dark: bool) -> str:
    """A page's figure as a file of its own: with a font, and in the page's colors by night where it is dark."""
    css = CSS.read_text("utf-8")
    night = re.search(r"prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", css, re.S)
    values = dict(re.findall(r"(--[\w-]+): (#\w+);", night[1])) if night and dark else {}
    used = {variable: values[variable] for variable in VARIABLES.values() if variable in values}
    rules = "".join(f"{name}:{value};" for name, value in sorted(used.items()))
    sized = re.sub(r'viewBox="0 0 (\S+) (\S+)"', r'width="\1" height="\2" \g<0>', svg, count=1)
    return sized.replace("<style>", f"<style>svg{{{rules}font-family:{FONT}}}", 1) + "\n"


def _figure(columns: Sequence[Column]) -> Figure | None:
    arms = _arms(columns)
    if not arms:
        return None
    figure = Figure(figsize=(WIDTH + 1.2, 0.62 + ROW * len(arms)), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axis, column in zip(axes, columns, strict=True):
        _panel(axis, column, arms)
    axes[0].set_yticks(range(len(arms)), [plain(name) for name in _names(arms)], size=7)
    return figure


def _arms(columns: Sequence[Column]) -> list[Arm]:
    """Those that have a gap in any column, each once."""
    found = [
        (method, column.rows[arm].label)
        for column in columns
        for arm, method in column.methods.items()
        if _gap(column.rows[arm]) is not None
    ]
    return sorted(dict.fromkeys(found))


def _names(arms: Sequence[Arm]) -> list[str]:
    """Their labels, with the method where two share one."""
    shared = Counter(label for _, label in arms)
    return [label if shared[label] == 1 else f"{method}: {label}" for method, label in arms]


def _gap(row: ArmRow) -> Estimate | None:
    return row.difference.estimate if row.difference is not None else None


def _panel(axis: Axes, column: Column, arms: Sequence[Arm]) -> None:
    rows = {(method, column.rows[arm].label): column.rows[arm] for arm, method in column.methods.items()}
    gaps = {arm: gap for arm, row in rows.items() if (gap := _gap(row)) is not None}
    sign = 1.0 if higher_is_better(column.metric) else -1.0
    axis.axvline(0, color=QUIET, lw=0.8)
    for place, arm in enumerate(arms):
        if arm in gaps:
            _mark(axis, place, gaps[arm], rows[arm].significant, sign)
    shown = [end for ends in in_reach(gaps.values()) for end in ends]
    low, high = min([0.0, *shown]), max([0.0, *shown])
    margin = 0.06 * (high - low) or 1.0
    axis.set_xlim(*(low - margin, high + margin)[:: 1 if sign < 0 else -1])  # the better side is the left one
    for place, arm in enumerate(arms):
        if arm in gaps and not low <= gaps[arm].mean <= high:
            _beyond(axis, place, gaps[arm].mean, sign, rows[arm].significant)
    axis.set_title(f"{heading(column)}\nminus {plain(column.baseline.label)}", size=8)
    axis.set_xlabel("← better", loc="left", size=7, color=QUIET)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x")
    axis.set_ylim(len(arms) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _mark(axis: Axes, place: int, gap: Estimate, told: bool, sign: float) -> None:
    """A bar for the interval and a point for the mean: filled and in color where the seeds tell it from zero."""
    color = QUIET if not told else BETTER if sign * gap.mean > 0 else WORSE
    if gap.interval is not None:
        axis.plot([gap.interval.low, gap.interval.high], [place, place], "-", color=color, lw=1.9 if told else 1.1)
    if told:
        axis.plot(gap.mean, place, "o", color=color, ms=4.6)
    else:
        axis.plot(gap.mean, place, "|", color=INK, ms=6, mew=1.4)


def _beyond(axis: Axes, place: int, mean: float, sign: float, told: bool) -> None:
    """An arrow to a mean that the panel does not reach."""
    text = number(mean, 1, sign=True)
    left = sign * mean > 0
    x, words = (0.01, f"← {text}") if left else (0.99, f"{text} →")
    align = "left" if left else "right"
    color = QUIET if not told else BETTER if left else WORSE
    weight = "bold" if told else "normal"
    across = axis.get_yaxis_transform()
    axis.text(x, place, words, transform=across, ha=align, va="center", color=color, weight=weight, size=7)
