"""From Results to the terminal and to pages: each experiment is evaluated once, whatever is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Experiment
from reproduce.report.data_files import write_data
from reproduce.report.drawings import complete
from reproduce.report.front import front
from reproduce.report.index import index_pages
from reproduce.report.kept import kept_folder
from reproduce.report.page import method_page
from reproduce.report.render import Page
from reproduce.results.columns import find_all
from reproduce.results.evaluate import MethodFindings
from reproduce.results.match import ResultIndex
from reproduce.results.record import Result


def published_address(result: Result) -> str:
    """Where a published Result lies, from the folder of the pages."""
    return f"evidence/{result.config.folder}.json"


def write_pages(
    methods: Mapping[MethodFolder, Mapping[str, Experiment]],
    results: Iterable[Result],
    problems: Sequence[str],
    output: Path,
    hear: Callable[[MethodFindings], None] = lambda method: None,
    known: Mapping[str, Mapping[str, Experiment]] | None = None,
    processes: int = 1,
    address: Callable[[Result], str] = published_address,
) -> list[Path]:
    """A page for each method; when there are several, over them the index, the matrix, a README and the data.

    Returns the pages.

    Args:
        results: all Results known; those of other experiments are passed over.
        problems: one line for each Result file that could not be read.
        hear: is told of each method's findings, before anything is written.
        known: experiments of all methods, whose arms share the tables of the matrix; ``methods`` by default.
        processes: at most so many draw figures side by side.
        address: of a Result's file, from ``output``.
    """
    results = list(results)
    everything = dict(known or {})
    for folder, experiments in methods.items():
        everything[folder.name] = {**everything.get(folder.name, {}), **experiments}
    evaluated, merged = find_all(methods, everything, ResultIndex(results))
    pages: list[Page] = []
    for method in evaluated:
        hear(method)
        pages.append(method_page(method, problems))
    beside = None
    if len(methods) > 1:
        pages += index_pages(evaluated, merged, problems)
        matrix = next((page.content["overview"] for page in pages if page.name == "matrix"), None)
        beside = front(evaluated, merged, matrix)
    drawings = [drawing for page in (*pages, beside) if page is not None for drawing in page.drawings]
    complete(drawings, processes, kept_folder("figures"))
    written = [page.write(output) for page in pages]
    if beside is not None:
        beside.write(output)
        write_data(evaluated, results, output, address)
    return [path for path in written if path.stem != "matrix"]
