"""From Results to the terminal and to pages: each experiment is evaluated once, whatever is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Experiment
from reproduce.report.index import write_index
from reproduce.report.page import write_page
from reproduce.report.terminal import terminal_summary
from reproduce.results.columns import find_all
from reproduce.results.match import ResultIndex
from reproduce.results.record import Result


def write_pages(
    methods: Mapping[MethodFolder, Mapping[str, Experiment]],
    results: Iterable[Result],
    problems: Sequence[str],
    output: Path,
    console: Console | None = None,
    known: Mapping[str, Mapping[str, Experiment]] | None = None,
) -> list[Path]:
    """A page for each method, and the index and the matrix over them when there are several; returns the pages.

    Args:
        results: all Results known; those of other experiments are passed over.
        problems: one line for each Result file that could not be read.
        console: where a summary is printed, if anywhere.
        known: experiments of all methods, whose arms share the tables of the matrix; ``methods`` by default.
    """
    everything = dict(known or {})
    for folder, experiments in methods.items():
        everything[folder.name] = {**everything.get(folder.name, {}), **experiments}
    evaluated, merged = find_all(methods, everything, ResultIndex(results))
    pages: list[Path] = []
    for method in evaluated:
        if console is not None and method.findings:
            console.print(terminal_summary(method.findings))
        pages.append(write_page(method, problems, output))
    if len(methods) > 1:
        pages.append(write_index(evaluated, merged, output))
    return pages
