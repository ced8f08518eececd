"""The tables behind the pages as files: CSV, Parquet, LaTeX, BibTeX, and the page that explains them.

A CSV is the same to the byte on every machine. A Parquet names the version of pyarrow that wrote it: where one lies
that holds the same, it is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from reproduce.errors import UserError
from reproduce.report.citation import bibliography
from reproduce.report.csv_text import csv_text
from reproduce.report.data import APART, DataTable, data_tables
from reproduce.report.data_schema import Kind
from reproduce.report.kept import replace_bytes
from reproduce.report.latex import latex_tables
from reproduce.report.method_card import MethodCard
from reproduce.report.render import filled, write
from reproduce.results.evaluate import Finding, MethodFindings
from reproduce.results.record import Result

FOLDER = "data"
TYPES: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}


def write_data(
    methods: Sequence[MethodFindings], results: Sequence[Result], output: Path, address: Callable[[Result], str]
) -> None:
    """Write the folder ``data`` in ``output``.

    Raises:
        UserError: no permission to write, or a card without citation.
    """
    folder = output / FOLDER
    tables = data_tables(methods, results, address)
    for table in tables:
        write(folder / f"{table.name}.csv", csv_text(table.schema.columns, table.rows))
        write_parquet(table, folder / f"{table.name}.parquet")
    for method in methods:
        write(folder / f"{method.folder.name}.tex", latex_tables(method))
    cited = {method.folder.name: MethodCard(method.folder.path).citations for method in methods}
    write(folder / "references.bib", bibliography(cited))
    example = worked_example(methods)
    names = [method.folder.name for method in methods]
    content = {"tables": tables, "example": example, "names": names, "apart": APART, "counting": counting(tables)}
    write(folder / "README.md", filled("data.md.j2", content))
    write(folder / "index.html", filled("data.html.j2", content))


def counting(tables: Sequence[DataTable]) -> int:
    """How many runs count on the pages."""
    (runs,) = (table for table in tables if table.name == "runs")
    place = runs.schema.columns.index("counts")
    return sum(bool(row[place]) for row in runs.rows)


def arrow(table: DataTable) -> pa.Table:
    """The table with the types that its schema declares, and nothing else in its metadata."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.schema.fields)
    fields = [pa.field(field.name, TYPES[field.kind]) for field in table.schema.fields]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, fields, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def write_parquet(table: DataTable, path: Path) -> None:
    """Write a Parquet file, but where one lies that holds the same.

    Raises:
        UserError: no permission to write.
    """
    new = arrow(table)
    if not _holds(path, new):
        sink = pa.BufferOutputStream()
        parquet.write_table(new, sink, compression="zstd", compression_level=9, version="2.6", store_schema=False)
        try:
            replace_bytes(path, sink.getvalue().to_pybytes())
        except OSError as error:
            raise UserError(f"{path}: the table cannot be written ({error.strerror})") from error


def _holds(path: Path, table: pa.Table) -> bool:
    """Whether the file there has these columns and values; not-a-number is equal to itself here."""
    try:
        old = parquet.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException):
        return False
    return old.schema.equals(table.schema) and repr(old.to_pydict()) == repr(table.to_pydict())


@dataclass(frozen=True)
class WorkedExample:
    """What the page's example asks for: an experiment with one task, and that task's metric."""

    experiment: str
    metric: str


def worked_example(methods: Sequence[MethodFindings]) -> WorkedExample | None:
    """Of the experiments with one task and several arms that ran, the one that rests on most runs."""

    def arms(finding: Finding) -> int:
        return sum(arm.chosen is not None for task in finding.tasks.values() for arm in task.runs.arms.values())

    candidates = [
        (-finding.n_runs, f"{method.folder.name}/{finding.name}", finding.tasks)
        for method in methods
        for finding in method.findings
        if len(finding.tasks) == 1 and arms(finding) > 1
    ]
    if not candidates:
        return None
    _, name, tasks = min(candidates, key=lambda candidate: candidate[:2])
    (task,) = tasks.values()
    return WorkedExample(experiment=name, metric=task.metrics[0])
