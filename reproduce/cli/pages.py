"""From Results to the terminal and to pages: each experiment is evaluated once, whatever is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reproduce.errors import UserError
from reproduce.experiment.cells import Cell
from reproduce.experiment.dataset_card import read_card
from reproduce.experiment.folder import MethodFolder
from reproduce.experiment.schema import Experiment
from reproduce.report.data_files import FOLDER, write_data
from reproduce.report.drawings import complete
from reproduce.report.evidence import Address, beside_pages
from reproduce.report.front import Front, front
from reproduce.report.index import index_pages
from reproduce.report.method_card import MethodCard
from reproduce.report.page import method_pages
from reproduce.report.processes import all_made
from reproduce.report.render import Page, write
from reproduce.report.waiting import Timing
from reproduce.results.cache import kept_folder
from reproduce.results.columns import find_all
from reproduce.results.evaluate import MethodFindings
from reproduce.results.match import ResultIndex
from reproduce.results.record import Result, device_kind
from reproduce.training.estimate import Estimates, Work, problem_of, way_of


def write_pages(
    methods: Mapping[MethodFolder, Mapping[str, Experiment]],
    results: Iterable[Result],
    problems: Sequence[str],
    output: Path,
    hear: Callable[[MethodFindings], None] = lambda method: None,
    known: Mapping[str, Mapping[str, Experiment]] | None = None,
    processes: int = 1,
    address: Address = beside_pages,
    broken: list[str] | None = None,
) -> list[Path]:
    """A page for each method; when there are several, over them the index, the matrix, a README and the data.

    Returns the pages.

    Args:
        results: all Results known; those of other experiments are passed over.
        problems: one line for each Result file that could not be read.
        hear: is told of each method's findings, before anything is written.
        known: experiments of all methods, whose arms share the tables of the matrix; ``methods`` by default.
        processes: at most so many make pages, or draw the figures of one, side by side.
        address: where a Result lies, relative to ``output``.
        broken: of several methods, those with a card that does not read get no page, and are told here; None: that is
            an error.

    Raises:
        UserError: a card that does not read.
    """
    results = list(results)
    methods, without = _with_cards(methods, broken)
    everything = {name: experiments for name, experiments in (known or {}).items() if name not in without}
    for folder, experiments in methods.items():
        everything[folder.name] = {**everything.get(folder.name, {}), **experiments}
    evaluated, merged = find_all(methods, everything, ResultIndex(results))
    timing = timing_of(results)
    for method in evaluated:
        hear(method)
    is_alone = len(methods) == 1

    def of_method(method: MethodFindings) -> Texts:
        pages = method_pages(method, problems, address, timing, alone=is_alone)
        return _texts(pages, processes if is_alone else 1)

    def over_methods() -> Texts:
        pages = index_pages(evaluated, merged, problems, f"{FOLDER}/")
        matrix = next((page.content["overview"] for page in pages if page.name == "matrix"), None)
        return _texts([*pages, front(evaluated, merged, matrix)])

    if is_alone:
        texts = of_method(evaluated[0])
    else:
        largest_first = sorted(evaluated, key=lambda method: -sum(finding.n_done for finding in method.findings))
        parts: list[Callable[[], Texts]] = [partial(of_method, method) for method in largest_first]
        made = all_made(
            [*parts, over_methods],
            processes,
            meanwhile=lambda: write_data(evaluated, results, output, address),
        )
        texts = {name: text for of_one in made for name, text in of_one.items()}
    for name, text in texts.items():
        write(output / name, text)
    names = [f"{method.folder.name}.html" for method in evaluated]
    return [output / name for name in (names if is_alone else [*names, "index.html"])]


Texts = dict[str, str]  # of files, by their names


def _texts(pages: Sequence[Page | Front], processes: int = 1) -> Texts:
    """Pages with their figures drawn, at most so many at once."""
    complete([drawing for page in pages for drawing in page.drawings], processes, kept_folder("figures"))
    return {name: text for page in pages for name, text in page.texts().items()}


def _with_cards(
    methods: Mapping[MethodFolder, Mapping[str, Experiment]], broken: list[str] | None
) -> tuple[dict[MethodFolder, Mapping[str, Experiment]], set[str]]:
    """The methods whose cards read, their own and those of their datasets; and the names of the others."""
    found, without = {}, set()
    for folder, experiments in methods.items():
        try:
            MethodCard(folder.path)
            for name in {name for one in experiments.values() for task in one.tasks.values() for name in task.datasets}:
                read_card(name)
        except UserError as error:
            if broken is None or len(methods) == 1:
                raise
            broken.append(str(error))
            without.add(folder.name)
        else:
            found[folder] = experiments
    if broken and not found:
        raise UserError(broken[0])
    return found, without


def timing_of(results: Sequence[Result]) -> Timing | None:
    """How long trainings take on the kind of device that most Results come from; None without Results."""
    if not results:
        return None
    device, _ = Counter(device_kind(result.environment.device) for result in results).most_common(1)[0]
    estimates = Estimates(results)
    newest = {result.config.method: result for result in sorted(results, key=lambda one: one.environment.finished)}

    def seconds(cell: Cell) -> float | None:
        """By the defaults that the method's newest Result knows."""
        if cell.method not in newest:
            return None
        defaults, recipe = newest[cell.method].defaults, cell.recipe
        way = way_of(cell.method, {**defaults, **_typed(cell.params, defaults)})
        work = Work(problem_of(cell.task, recipe), way, recipe.epochs, recipe.steps, recipe.evaluate_every)
        return estimates.seconds(work, device)

    return Timing(device, seconds)


def _typed(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """As a Run spells them: 1 is 1.0 where the method's own number has a fraction."""
    is_float = {name for name, value in defaults.items() if isinstance(value, float)}
    return {name: float(value) if name in is_float and type(value) is int else value for name, value in params.items()}
