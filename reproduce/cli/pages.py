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
from reproduce.results.columns import columns
from reproduce.results.evaluate import MethodFindings, evaluate
from reproduce.results.match import ResultIndex
from reproduce.results.record import Result


def write_pages(
    methods: Mapping[MethodFolder, Mapping[str, Experiment]],
    results: Iterable[Result],
    problems: Sequence[str],
    output: Path,
    console: Console | None = None,
) -> list[Path]:
    """A page for each method, and the index and the matrix over them when there are several; returns the pages.

    Args:
        results: all Results known; those of other experiments are passed over.
        problems: one line for each Result file that could not be read.
        console: where a summary is printed, if anywhere.
    """
    indexed = ResultIndex(results)
    evaluated: list[MethodFindings] = []
    pages: list[Path] = []
    for folder, experiments in methods.items():
        findings = tuple(evaluate(name, experiment, indexed) for name, experiment in experiments.items())
        evaluated.append(MethodFindings(folder, findings))
        if console is not None and findings:
            console.print(terminal_summary(findings))
        pages.append(write_page(evaluated[-1], problems, output))
    if len(methods) > 1:
        merged = columns({folder.name: experiments for folder, experiments in methods.items()}, indexed)
        pages.append(write_index(evaluated, merged, output))
    return pages
