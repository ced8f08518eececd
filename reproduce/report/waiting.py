"""What has not run yet, in one table: how much it is, how long it may take, and the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reproduce.experiment.cells import Cell, cells
from reproduce.experiment.schema import Experiment
from reproduce.report import repeat
from reproduce.report.numbers import NOTHING
from reproduce.report.sentences import pending_sentences
from reproduce.report.tables import TextTable
from reproduce.results.evaluate import Finding

UNKNOWN = "unknown"
SHORTEST = 0.1  # hours: below it nobody plans


@dataclass(frozen=True)
class Timing:
    """How long trainings take on one kind of device, by what was measured there."""

    device: str
    seconds: Callable[[Cell], float | None]  # None: nothing like it was measured


@dataclass(frozen=True)
class WaitingRow:
    """One experiment without Results."""

    name: str
    title: str
    source: str
    size: str
    runs: str
    hours: str
    pending: tuple[str, ...]
    command: str


def waiting_rows(method: str, findings: Sequence[Finding], timing: Timing | None) -> tuple[WaitingRow, ...]:
    """A row for each experiment of which nothing has run."""
    return tuple(
        WaitingRow(
            name=finding.name,
            title=finding.experiment.title,
            source=finding.experiment.source,
            size=_size(finding.experiment),
            runs=str(finding.n_planned) if finding.n_planned else NOTHING,
            hours=_hours(finding, timing),
            pending=pending_sentences(finding.experiment),
            command=repeat.of_experiment(method, finding) if finding.n_planned else "",
        )
        for finding in findings
        if not finding.ran
    )


def _size(experiment: Experiment) -> str:
    """Arms x tasks x seeds, of the arms that can run."""
    able = [arm for arm in experiment.arms.values() if not arm.pending]
    if not able:
        return NOTHING
    counts = ((len(able), "arm"), (len(experiment.tasks), "task"), (len(experiment.seeds), "seed"))
    text = " × ".join(f"{count} {noun}{'s' if count != 1 else ''}" for count, noun in counts)
    most = max((len(arm.points()) for arm in able), default=1)
    return text + (f", grids of up to {most}" if most > 1 else "")


def _hours(finding: Finding, timing: Timing | None) -> str:
    if not finding.n_planned:
        return NOTHING
    found = [] if timing is None else [timing.seconds(cell) for cell in cells(finding.experiment)]
    known = [seconds for seconds in found if seconds is not None]
    if timing is None or not known:
        return UNKNOWN
    share = finding.n_planned / len(found)  # where further seeds choose, only the chosen point is trained on the others
    hours = share * sum(known) / 3600
    unknown = round(share * (len(found) - len(known)))
    text = f"about {hours:.1f}" if hours >= SHORTEST else f"less than {SHORTEST}"
    rest = f"; {unknown} {'run' if unknown == 1 else 'runs'} of unknown length" if unknown else ""
    return f"{text} on one worker, {timing.device}{rest}"


def waiting_table(rows: Sequence[WaitingRow]) -> TextTable:
    """The same as texts."""
    columns = ("Experiment", "Arms × tasks × seeds", "Runs", "Hours", "Command", "Note")
    return TextTable(
        columns,
        tuple(
            (row.title, row.size, row.runs, row.hours, f"`{row.command}`" if row.command else NOTHING, note)
            for row in rows
            for note in (" ".join(row.pending),)
        ),
    )
