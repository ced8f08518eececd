"""What a figure shows in words and numbers: for readers who do not see it, and as a table behind it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduce.report.numbers import MINUS, NOTHING, metric_text, number, with_power
from reproduce.report.tables import decimals_of_rows
from reproduce.results.evaluate import TaskFinding

MOST = 6  # panels, and lines of one panel, that a description spells out

Ends = Mapping[str, Mapping[str, float]]  # by panel, where each of its lines ends


def line_ends(figure: Figure) -> Ends:
    """Where the lines end that a legend could name, panel by panel."""
    found: dict[str, dict[str, float]] = {}
    for axes in figure.axes:
        for line in axes.lines:
            label, values = str(line.get_label()).replace(r"\$", "$"), np.asarray(line.get_ydata(), dtype=float)
            values = values[np.isfinite(values)]
            if not label.startswith("_") and len(values):
                found.setdefault(_name(axes), {})[label] = float(values[-1])
    return found


def _name(axes: Axes) -> str:
    """What a panel is of: its own label, as those have that share the labels of others, else what stands around it."""
    own = str(axes.get_label())
    if own and not own.startswith("_"):
        return own
    return ", ".join(filter(None, (axes.get_title("left"), axes.get_ylabel())))


def ends_described(ends: Ends) -> str:
    """In one sentence a panel; "" where there are no lines."""
    sentences = [_panel_described(name, lines) for name, lines in ends.items()]
    more = f" {len(sentences) - MOST} more panels." if len(sentences) > MOST else ""
    return " ".join(sentences[:MOST]) + more


def _panel_described(name: str, lines: Mapping[str, float]) -> str:
    ordered = sorted(lines.items(), key=lambda pair: pair[1])
    if len(ordered) <= MOST:
        said = ", ".join(f"{label} {short(value)}" for label, value in ordered)
    else:
        (low, least), (high, most) = ordered[0], ordered[-1]
        said = f"{len(ordered)} lines, from {low} {short(least)} to {high} {short(most)}"
    return f"{name or 'Lines'}, at the end: {said}."


def short(value: float) -> str:
    """Three digits, or all before the point."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return with_power(value, 3)
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}").replace("-", MINUS)


def ends_table(ends: Ends) -> str:
    """A row for each line and a column for each panel, to be opened; "" where there are no lines."""
    names = list(dict.fromkeys(name for lines in ends.values() for name in lines))
    if not names:
        return ""
    head = "".join(f'<th scope="col">{html.escape(panel) or "Value"}</th>' for panel in ends)
    rows = "".join(
        f'<tr><th scope="row"><bdi>{html.escape(name)}</bdi></th>'
        + "".join(f"<td>{short(lines[name]) if name in lines else NOTHING}</td>" for lines in ends.values())
        + "</tr>"
        for name in names
    )
    return (
        "<details><summary>Where its lines end, as a table</summary>"
        '<div class="wide" role="group" aria-label="Table" tabindex="0"><table class="ends">'
        f'<caption class="unseen">Where the lines end</caption><thead><tr><th scope="col">Line</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def seeds_described(task: TaskFinding) -> str:
    """The lowest and the highest mean under each metric that is drawn."""
    sentences = []
    for metric in task.metrics:
        means = [(row.label, row.mean.mean) for row in task.tables[metric] if row.mean is not None]
        decimals = decimals_of_rows(task.tables[metric])
        sentences += [_between(metric_text(metric), means, "mean", decimals)]
    return " ".join(filter(None, sentences))


def differences_described(task: TaskFinding) -> str:
    """The gaps to the baseline that reach farthest to either side, under each metric that is drawn."""
    if task.baseline is None:
        return ""
    sentences = []
    for metric in task.metrics:
        decimals = decimals_of_rows(task.tables[metric])
        gaps = [(row.label, row.difference.estimate.mean) for row in task.tables[metric] if row.difference is not None]
        sentences += [_between(f"{metric_text(metric)}, minus {task.baseline.label}", gaps, "gap", decimals, sign=True)]
    return " ".join(filter(None, sentences))


def _between(what: str, values: Sequence[tuple[str, float]], kind: str, decimals: int, sign: bool = False) -> str:
    if not values:
        return ""
    low, high = (choose(values, key=lambda pair: pair[1]) for choose in (min, max))
    least, most = (f"{number(value, decimals, sign)} ({label})" for label, value in (low, high))
    if len(values) == 1:
        return f"{what}: one {kind}, {least}."
    return f"{what}: {len(values)} {kind}s, from {least} to {most}."
