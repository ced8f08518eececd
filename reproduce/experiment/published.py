"""The numbers of a paper's table, each written once; the claims follow from them. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from string import Formatter
from typing import Annotated

from pydantic import Field, model_validator

from reproduce.errors import Misplaced, none_of
from reproduce.experiment.schema import Claim, Experiment, MetricName
from reproduce.experiment.toml import Strict

Text = Annotated[str, Field(min_length=1)]
Tolerance = Annotated[float, Field(gt=0)]
PLACEHOLDERS = ("task", "metric", "row", "arm", "over")


class Row(Strict):
    """One row of the table: what the paper reports of each arm on one task by one metric."""

    task: str = Field(description="A task of this file.")
    metric: MetricName = Field(description="Split and metric: `test.error`.")
    cells: dict[str, float] = Field(min_length=1, description="By arm: the number that the paper prints.")
    tolerance: Tolerance = Field(description="Of each cell, set before the runs.")
    gap_tolerance: Tolerance | None = Field(default=None, description="Of differences between two cells.")
    row: str = Field(default="", description="What the paper calls this row, where its task alone does not say it.")


class Published(Strict):
    """A table of the paper: every cell claims its number, and every pair in ``compare`` the difference of its cells.

    ``source`` is the address of a cell, with ``{arm}``, ``{task}``, ``{metric}`` and ``{row}`` for what the paper calls
    them: their entry in ``names``, else the arm's label and our own names. A difference has "{arm} minus {over}" where
    a cell has ``{arm}``, or ``gap_source``.
    """

    source: Text = Field(description="The address of a cell; may hold `{arm}`, `{task}`, `{metric}` and `{row}`.")
    gap_source: Text | None = Field(
        default=None,
        description="The address of a difference; may hold `{over}` too. Left out: `source`, with "
        "`{arm} minus {over}` for `{arm}`.",
    )
    names: dict[str, Text] = Field(
        default={}, description="What the paper calls a task, a metric or an arm, by our name for it."
    )
    compare: tuple[tuple[str, str], ...] = Field(
        default=(), description="Pairs of arms: the first minus the second, in rows that have both."
    )
    rows: tuple[Row, ...] = Field(min_length=1, description="The rows of the table.")

    @model_validator(mode="after")
    def _placeholders_exist(self) -> Published:
        for key, template in (("source", self.source), ("gap_source", self.gap_source or "")):
            try:
                fields = [field for field in Formatter().parse(template) if field[1] is not None]
            except ValueError as error:
                raise Misplaced((key,), f"{template!r}: {error}") from error
            for _, name, form, conversion in fields:
                if name not in PLACEHOLDERS or form or conversion:
                    wrong = f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
                    raise Misplaced((key,), f"{{{wrong}}} is none of {', '.join(PLACEHOLDERS)}")
        return self

    @model_validator(mode="after")
    def _each_cell_stands_once(self) -> Published:
        seen: set[tuple[str, str, str]] = set()
        for index, row in enumerate(self.rows):
            for arm in row.cells:
                cell = row.task, row.metric, arm
                if cell in seen:
                    raise Misplaced(("rows", index), f"{arm} has a number for {row.task}, {row.metric} already")
                seen.add(cell)
        for index, (arm, over) in enumerate(self.compare):
            if arm == over:
                raise Misplaced(("compare", index), f"{arm!r} is compared with itself")
        return self

    def claims(self, experiment: Experiment) -> tuple[Claim, ...]:
        """Row by row: first its cells, then its differences.

        Raises:
            Misplaced: a name that the experiment does not have, or a pair that shares no row.
        """
        self._check_names(experiment)
        return tuple(claim for index, row in enumerate(self.rows) for claim in self._of_row(index, row, experiment))

    def _of_row(self, index: int, row: Row, experiment: Experiment) -> Iterator[Claim]:
        names = {arm: self.names.get(arm, experiment.arms[arm].label or arm) for arm in row.cells}
        address = {
            "task": self.names.get(row.task, row.task),
            "metric": self.names.get(row.metric, row.metric),
            "row": row.row,
        }
        for arm, value in row.cells.items():
            source = self.source.format(arm=names[arm], over="", **address)
            if not source:
                raise Misplaced(("source",), f"{self.source!r} is no address of {arm} in row {index + 1}")
            yield Claim(task=row.task, arm=arm, metric=row.metric, value=value, tolerance=row.tolerance, source=source)
        template = self.gap_source or self.source.replace("{arm}", "{arm} minus {over}")
        for arm, over in self.compare:
            if arm not in row.cells or over not in row.cells:
                continue
            if row.gap_tolerance is None:
                raise Misplaced(("rows", index, "gap_tolerance"), f"missing key: {arm} is compared with {over}")
            yield Claim(
                task=row.task,
                arm=arm,
                over=over,
                metric=row.metric,
                value=difference(row.cells[arm], row.cells[over]),
                tolerance=row.gap_tolerance,
                source=template.format(arm=names[arm], over=names[over], **address),
            )

    def _check_names(self, experiment: Experiment) -> None:
        for index, row in enumerate(self.rows):
            if row.task not in experiment.tasks:
                raise Misplaced(("rows", index, "task"), none_of(row.task, "the tasks", experiment.tasks))
            for arm in row.cells:
                if arm not in experiment.arms:
                    raise Misplaced(("rows", index, "cells", arm), none_of(arm, "the arms", experiment.arms))
        for index, (arm, over) in enumerate(self.compare):
            if not any(arm in row.cells and over in row.cells for row in self.rows):
                raise Misplaced(("compare", index), f"no row has both {arm!r} and {over!r}")
        used = {name for row in self.rows for name in (row.task, row.metric, *row.cells)}
        for name in self.names:
            if name not in used:
                raise Misplaced(("names", name), "no row has a task, metric or arm of this name")


def difference(value: float, over: float) -> float:
    """One printed number minus another, to their decimals: 114.5 - 122.0 is -7.5, where floats may give -7.4999."""
    return float(Decimal(repr(value)) - Decimal(repr(over)))
