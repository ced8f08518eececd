"""Figures of pages: each drawn once, and kept by a hash of all that it shows and of the code that draws it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from reproduce.report import style
from reproduce.report.kept import code, keep, key_of, read_kept, remove_oldest
from reproduce.report.processes import all_made
from reproduce.report.said import ends_described, ends_table, line_ends
from reproduce.results.cache import files_digest
from reproduce.results.evaluate import TaskFinding
from reproduce.results.record import Result

END = "</svg>"
UNDRAWN = '<p class="undrawn">'  # what a text begins with that stands for a figure


class Drawing:
    """A figure inside a page. Empty where there is nothing to draw."""

    def __init__(
        self, caption: str, shows: Sequence[Any], draw: Callable[[], Figure | None], description: str = ""
    ) -> None:
        """What is drawn follows from ``shows``, which JSON can spell, and from the code of this package alone.

        Args:
            description: what it shows, in numbers; by default where its lines end, as they are drawn.
        """
        self.caption = caption
        self.description = description
        self.key = key_of([code(), caption, description, *shows])
        self.draw = draw
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The figure, and what stands behind it."""
        if self._text is None:
            self._text = self.drawn()
        return self._text

    @text.setter
    def text(self, text: str) -> None:
        self._text = text

    @property
    def svg(self) -> Markup:
        """The figure alone."""
        figure, end, _ = self.text.partition(END)
        return Markup(figure + end)  # the sentence in its place, where it could not be drawn

    @property
    def table(self) -> Markup:
        """Its numbers, to be opened; nothing where it has no lines."""
        return Markup(self.text.partition(END)[2])

    def drawn(self) -> str:
        """The text; of a figure that its code cannot draw, a sentence in its place: the page has all the rest."""
        try:
            with style.look():
                figure = self.draw()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            return f"{UNDRAWN}{escape(self.caption)} This figure could not be drawn ({escape(reason)}).</p>"
        if figure is None:
            return ""
        ends = line_ends(figure)
        description = self.description or ends_described(ends) or self.caption
        return style.svg(figure, description) + ends_table(ends)


def complete(drawings: Iterable[Drawing], processes: int = 1, kept: Path | None = None) -> None:
    """Give each drawing its figure: as it is kept, else drawn, and kept from then on.

    Args:
        processes: at most so many draw side by side.
        kept: a folder; without one, nothing is kept.
    """
    missing = []
    for drawing in drawings:
        text = read_kept(kept / drawing.key) if kept is not None else None
        if text is None:
            missing.append(drawing)
        else:
            drawing.text = text
    for drawing, text in zip(missing, all_made([drawing.drawn for drawing in missing], processes), strict=True):
        drawing.text = text
        if text.startswith(UNDRAWN):
            print(f"not drawn: {Markup(text).striptags()}", file=sys.stderr)
        elif kept is not None:
            keep(kept / drawing.key, text)
    if kept is not None and missing:
        remove_oldest(kept)


# What keys are made of.


def finding_digest(task: TaskFinding, colors: style.ArmColors) -> list[Any]:
    """All that a figure of an experiment can show: the experiment, its Results, what was found in them, the colors."""
    arms = {
        arm.name: [_point(arm.chosen) if arm.chosen else None, *map(_point, arm.points)]
        for arm in task.runs.arms.values()
    }
    rows = [
        [row.arm, row.metric, row.paper, repr(row.values), repr(row.estimate), repr(row.difference), row.p_holm]
        for row in task.rows
    ]
    places = {arm: place for arm, place in colors.places.items() if arm in arms}
    return [task.experiment.model_dump_json(), task.name, task.metrics, task.beside, list(arms), arms, rows, places]


def _point(point: Any) -> list[Any]:
    return [repr(point.params), {str(seed): result_digest(result) for seed, result in point.results.items()}]


_digests: dict[int, tuple[Result, str]] = {}  # with the Result, so that nothing else gets its place in memory


def result_digest(result: Result) -> str:
    """A hash of a Result's content, whatever its seal says."""
    known = _digests.get(id(result))
    if known is None:
        known = _digests[id(result)] = result, hashlib.sha256(result.model_dump_json().encode()).hexdigest()
    return known[1]


def own_figures_digest(folder: Path, results: Sequence[Result]) -> list[Any]:
    """All that a figure of a method can show: what lies in its folder, and its Results in their order."""
    return [files_digest(folder), [result_digest(result) for result in results]]
