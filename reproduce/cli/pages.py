"""From Results to the terminal and to pages: each experiment is evaluated once, whatever is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Experiment
from reproduce.report.drawings import complete
from reproduce.report.index import index_pages
from reproduce.report.kept import kept_folder
from reproduce.report.page import method_page
from reproduce.report.render import Page
from reproduce.results.columns import find_all
from reproduce.results.evaluate import MethodFindings
from reproduce.results.match import ResultIndex
from reproduce.results.record import Result


def write_pages(
    methods: Mapping[MethodFolder, Mapping[str, Experiment]],
    results: Iterable[Result],
    problems: Sequence[str],
    output: Path,
    hear: Callable[[MethodFindings], None] = lambda method: None,
    known: Mapping[str, Mapping[str, Experiment]] | None = None,
    processes: int = 1,
) -> list[Path]:
    """A page for each method, and the index and the matrix over them when there are several; returns the pages.

    Args:
        results: all Results known; those of other experiments are passed over.
        problems: one line for each Result file that could not be read.
        hear: is told of each method's findings, before anything is written.
        known: experiments of all methods, whose arms share the tables of the matrix; ``methods`` by default.
        processes: at most so many draw figures side by side.
    """
    everything = dict(known or {})
    for folder, experiments in methods.items():
        everything[folder.name] = {**everything.get(folder.name, {}), **experiments}
    evaluated, merged = find_all(methods, everything, ResultIndex(results))
    pages: list[Page] = []
    for method in evaluated:
        hear(method)
        pages.append(method_page(method, problems))
    if len(methods) > 1:
        pages += index_pages(evaluated, merged, problems)
    complete([drawing for page in pages for drawing in page.drawings], processes, kept_folder("figures"))
    written = [page.write(output) for page in pages]
    return [path for path in written if path.stem != "matrix"]
