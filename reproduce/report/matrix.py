"""The cross-method matrix: every method on the same tasks under one budget, its coefficient chosen by one rule.

A column is a task of the experiment files that bear the same name, ``matrix_*.toml``, in every method's folder. They
are merged into one experiment that has all their arms, so that differences, choices and Holm's adjustment are those
of any other table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from reproduce.errors import UserError
from reproduce.experiment.dataset_card import read_card
from reproduce.experiment.schema import Arm, Experiment, cells
from reproduce.report import figures, tables
from reproduce.report.provenance import protocol
from reproduce.report.sentences import SMALL
from reproduce.results.match import ArmRuns, TaskRuns, higher_is_better, match
from reproduce.results.record import Result
from reproduce.results.stats import CONFIDENCE

PREFIX = "matrix_"
OWN = {"arms", "deviations"}  # what the files of one column may differ in

CAPTION = (
    "Each arm minus the baseline, on test and validation, paired by seed, the best on the test set first: points are "
    "seeds, bars are means with their 95 % intervals, colours are methods; an arrow is the mean of an arm far beyond."
)

Experiments = Mapping[str, Experiment]


@dataclass(frozen=True)
class Column:
    """One task with the arms of every method; in ``methods`` an arm's method folder, the baseline's apart."""

    file: str
    task: TaskRuns
    table: pd.DataFrame
    metric: str
    methods: dict[str, str]

    @property
    def experiment(self) -> Experiment:
        return self.task.experiment

    @property
    def baseline(self) -> ArmRuns:
        return self.task.arms[self.experiment.baseline or ""]

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Of the task's own metric on the test set, by arm."""
        found = self.table[self.table["metric"] == self.metric].to_dict("records")
        return {str(row["arm"]): {str(key): value for key, value in row.items()} for row in found}


def columns(methods: Mapping[str, Experiments], results: Sequence[Result]) -> list[Column]:
    """The columns in the order of their files' names; none where no method has such a file.

    Args:
        methods: by name, all experiments of a method.

    Raises:
        UserError: files of one column that disagree in their task, budget, seeds or baseline.
    """
    files = sorted({file for experiments in methods.values() for file in experiments if file.startswith(PREFIX)})
    found = []
    for file in files:
        parts = {name: experiments[file] for name, experiments in methods.items() if file in experiments}
        merged, owners = _merged(file, parts)
        for task_name in merged.tasks:
            task = match(merged, task_name, results)
            table = tables.table_of(file, task)
            found.append(Column(file, task, table, str(table["metric"].iloc[0]), owners))
    return found


def _merged(file: str, parts: Experiments) -> tuple[Experiment, dict[str, str]]:
    """One experiment with the baseline and then every method's arms, and whose arm is whose."""
    frames = {name: _frame(f"{file}: methods/{name}", experiment) for name, experiment in parts.items()}
    (first, expected), *others = frames.items()
    for name, frame in others:
        wrong = [key for key in expected if frame[key] != expected[key]]
        if wrong:
            raise UserError(f"{file}: methods/{name} and methods/{first} differ in {', '.join(wrong)}: one for all")
    baseline = parts[first].baseline or ""
    arms: dict[str, Arm] = {baseline: parts[first].arms[baseline]}
    owners = {}
    for name, experiment in parts.items():
        for arm_name, arm in experiment.arms.items():
            if arm_name != baseline:
                arms[f"{name}.{arm_name}"] = arm
                owners[f"{name}.{arm_name}"] = name
    said = [text if name not in owners.values() else f"{name}: {text}" for name, text in _deviations(parts)]
    return parts[first].model_copy(update={"arms": arms, "deviations": tuple(said)}), owners


def _deviations(parts: Experiments) -> list[tuple[str, str]]:
    """What the files of one column say of themselves, by method; first those of methods that add no arm."""
    said = [(name, text) for name, experiment in parts.items() for text in experiment.deviations]
    return sorted(said, key=lambda pair: len(parts[pair[0]].arms) > 1)


def _frame(where: str, experiment: Experiment) -> dict[str, Any]:
    """What every file of a column must share."""
    if experiment.baseline is None:
        raise UserError(f"{where} names no baseline: a column of the matrix needs one")
    shared = experiment.model_dump(exclude=OWN)
    return {**shared, "the baseline's arm": experiment.arms[experiment.baseline].model_dump()}


def content(methods: Mapping[str, Experiments], results: Sequence[Result]) -> dict[str, Any] | None:
    """Everything that the page says; None where no method has a file of the matrix.

    Raises:
        UserError: as `columns`, or a dataset without a card.
    """
    found = columns(methods, results)
    if not found:
        return None
    rows = _rows(found)
    headings = pd.Index(["Arm", "Method", *(f"{c.task.task_name}: {tables.metric_text(c.metric)}" for c in found)])
    return {
        "columns": [_column(column) for column in found],
        "rows": rows,
        "overview": pd.DataFrame([row["text"] for row in rows], columns=headings, dtype=object),
        "runs": len({result.id for column in found for result in column.task.results}),
        "planned": sum(len(_cells(column)) for column in found),
        "arms": len({(column.methods[arm], column.task.arms[arm].label) for column in found for arm in column.methods}),
        "present": sorted({name for column in found for name in column.methods.values()}),
        "absent": _absent(methods, found),
        "confidence": f"{CONFIDENCE:.0%}".replace("%", " %"),
        "level": SMALL,
        "frames": [column.table for column in found],
    }


def _cells(column: Column) -> list[Any]:
    return [cell for cell in cells(column.experiment) if cell.task_name == column.task.task_name]


def _absent(methods: Mapping[str, Experiments], found: Sequence[Column]) -> list[str]:
    """Methods that lack a column, in words."""
    missing: dict[str, list[str]] = {}
    for file in dict.fromkeys(column.file for column in found):
        for name, experiments in methods.items():
            if file not in experiments:
                missing.setdefault(name, []).append(file)
    return [f"{name} has no {', '.join(files)}" for name, files in missing.items()]


def _column(column: Column) -> dict[str, Any]:
    experiment = column.experiment
    card = read_card(experiment.tasks[column.task.task_name].dataset)
    return {
        "key": f"{column.file}-{column.task.task_name}".replace("_", "-"),
        "name": column.task.task_name,
        "title": experiment.title,
        "question": experiment.question,
        "metric": tables.metric_text(column.metric),
        "gap": f"minus {column.baseline.label}",
        "finding": finding(column),
        "caveat": experiment.caveat,
        "notes": column.task.notes,
        "data": card,
        "frame": _frame_of(column),
        "figure": differences(column),
        "caption": CAPTION,
        "deviations": experiment.deviations,
        "protocol": protocol(experiment),
    }


def _frame_of(column: Column) -> pd.DataFrame:
    """The column as a table of its own, without the rule that is said once."""
    frame = tables.shown(column.table, column.task, column.metric)
    if "Note" in frame:
        arms = [column.task.arms[name] for name in column.rows]
        frame["Note"] = [_note(column, arm, note) for arm, note in zip(arms, frame["Note"], strict=True)]
    return frame


def _rows(found: Sequence[Column]) -> list[dict[str, Any]]:
    """One row for each arm: the arms of one method with the same label are one, whatever the column."""
    baselines = dict.fromkeys(column.baseline.label for column in found)
    keys = [("", label) for label in baselines]
    keys += sorted({(c.methods[arm], c.task.arms[arm].label): None for c in found for arm in c.methods}, key=_method)
    rows = []
    for method, label in keys:
        cells = []
        for column in found:
            owners = column.methods
            named = [a for a in column.task.arms.values() if (owners.get(a.name, ""), a.label) == (method, label)]
            cells.append(_cell(column, named[0]) if named else None)
        rows.append({"method": method, "label": label, "cells": cells, "text": [label, method, *_texts(cells)]})
    return rows


def _method(key: tuple[str, str]) -> str:
    return key[0]


def _cell(column: Column, arm: ArmRuns) -> dict[str, Any]:
    """What a cell shows, as texts."""
    row, rows = column.rows[arm.name], column.rows.values()
    decimals = tables.decimals_of([r["mean"] for r in rows] + [r["survivors_mean"] for r in rows])
    gap = tables.with_interval(row["difference"], row["difference_low"], row["difference_high"], decimals, sign=True)
    p = tables.p_text(row["p_holm"])
    ran = arm.chosen is not None
    survived = f"({tables.number(row['survivors_mean'], decimals)})"
    return {
        "ran": ran,
        "mean": survived if row["survivors_mean"] is not None else tables.number(row["mean"], decimals),
        "gap": "" if arm is column.baseline else gap,
        "p": "" if row["p_holm"] is None else f"p {p}" if p.startswith("<") else f"p = {p}",
        "told": row["p_holm"] is not None and row["p_holm"] < SMALL,
        "n": f"n = {row['n']}" + ("" if row["n"] == row["planned"] else f" of {row['planned']}") if ran else "",
        "chosen": chosen(arm),
        "note": _note(column, arm, row["note"]),
    }


def chosen(arm: ArmRuns) -> str:
    """The coefficient that counts, and whether its grid ends there: the best one may then lie outside."""
    parts = []
    for name, value in arm.chosen_grid.items():
        choices = arm.arm.grid[name]
        end = "lowest" if value == min(choices) else "highest" if value == max(choices) else ""
        parts.append(f"at {value:g}" + (f", {end} of {len(choices)}" if end and len(choices) > 1 else ""))
    return "; ".join(parts)


def _note(column: Column, arm: ArmRuns, note: str) -> str:
    """What is unusual: the rule by which coefficients are chosen is said once for the whole page."""
    usual = f"chosen: best mean validation {column.task.metric} of {len(arm.points)} points"
    return "; ".join(part for part in note.split("; ") if part != usual)


def _texts(cells: Sequence[dict[str, Any] | None]) -> list[str]:
    """The cells for a pipe table."""
    texts = []
    for cell in cells:
        if cell is None or not cell["ran"]:
            texts.append(cell["note"] if cell else tables.NOTHING)
        else:
            told = "**" if cell["told"] else ""
            texts.append(f"{cell['mean']}" + (f"; {told}{cell['gap']}{told}" if cell["gap"] else ""))
    return texts


def finding(column: Column) -> str:
    """Which arms the seeds tell from the baseline, how many intervals exclude zero, and whose mean is best."""
    baseline, rows = column.baseline, column.rows
    complete = [row for row in rows.values() if row["mean"] is not None]
    if not complete:
        return "Nothing has run yet."
    up = higher_is_better(column.metric)
    best = (max if up else min)(complete, key=lambda row: row["mean"])
    decimals = tables.decimals_of([row["mean"] for row in complete])
    name = tables.metric_name(column.metric)
    unit = tables.UNITS.get(column.metric.rpartition(".")[2], "")
    number = tables.number(best["mean"], decimals) + (f" {unit}" if unit else "")
    over = rows[baseline.name]["mean"]
    said = [f"“{best['label']}” has the {'highest' if up else 'lowest'} mean {name}, {number}"]
    if len(complete) == 1:
        said = [f"“{best['label']}” is alone so far, with a mean {name} of {number}"]
    elif best["arm"] != baseline.name and over is not None:
        said[0] += f"; “{baseline.label}” has {tables.number(over, decimals)}"
    tested = [row for row in complete if row["p_holm"] is not None]
    if tested:
        told = [row for row in tested if row["p_holm"] < SMALL]
        said.append(
            f"Of {len(tested)} arms the seeds tell {len(told) or 'not one'} from “{baseline.label}” after Holm's "
            f"adjustment (p < {SMALL})"
        )
        groups = {side: _names(told, sign) for side, sign in (("Below", -1), ("Above", 1))}
        said += [f"{side} it: {names}" for side, names in groups.items() if names]
        without_zero = sum(not row["difference_low"] <= 0 <= row["difference_high"] for row in tested)
        chance = (1 - CONFIDENCE) * len(tested)
        said.append(
            f"{without_zero} of the {len(tested)} intervals exclude zero, where chance alone gives {chance:.1f}"
        )
    elif len(complete) > 1:
        said.append("No arm shares two seeds with the baseline, so nothing is told apart")
    diverged = [row["label"] for row in rows.values() if row["diverged"]]
    if diverged:
        said.append(f"Seeds diverged: {', '.join(f'“{label}”' for label in diverged)}")
    return ". ".join(said) + "."


def _names(rows: Sequence[dict[str, Any]], sign: int) -> str:
    """Labels of those on one side, the farthest first."""
    side = sorted((row for row in rows if row["difference"] * sign > 0), key=lambda row: -abs(row["difference"]))
    return ", ".join(f"“{row['label']}”" for row in side)


def differences(column: Column) -> Figure | None:
    """A forest plot of the arms that ran, best first; arms of one method share a colour."""
    if column.task.metric is None:
        return None  # nothing has run
    arms, sign = column.task.arms, -1.0 if higher_is_better(column.metric) else 1.0
    gaps = {name: row["difference"] for name, row in column.rows.items()}
    ran = [arm for arm in arms.values() if arm is not column.baseline and arm.chosen is not None]
    ran.sort(key=lambda arm: (gaps[arm.name] is None, sign * (gaps[arm.name] or 0.0), arm.name))
    ordered = {arm.name: arm for arm in [column.baseline, *ran]}
    places = {name: place for place, name in enumerate(dict.fromkeys(column.methods.values()), start=1)}
    look = {column.baseline.name: 0} | {name: places[owner] for name, owner in column.methods.items()}
    return figures.draw("paired_differences", replace(column.task, arms=ordered), look)
