"""The page of a method: what was asked, what was found, how sure. HTML, Markdown and CSV from one content."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.console import Group
from rich.text import Text

from reproduce.judge import WORDS, Verdict, judge, rule
from reproduce.records import Result
from reproduce.report import figures, tables
from reproduce.report.card import Card, inline, to_html
from reproduce.report.match import TaskRuns, match
from reproduce.report.provenance import provenance
from reproduce.spec import Experiment, SpecError

Judged = tuple[str, TaskRuns, Verdict]


@dataclass(frozen=True)
class Found:
    """Everything that a page says about one experiment."""

    name: str
    experiment: Experiment
    tasks: dict[str, TaskRuns]
    verdicts: tuple[Judged, ...]

    @property
    def results(self) -> list[Result]:
        return [result for task in self.tasks.values() for result in task.results]

    @property
    def superseded(self) -> list[Result]:
        return [result for task in self.tasks.values() for result in task.superseded]


def find(experiments: Mapping[str, Experiment], results: Sequence[Result], stand_ins: Iterable[str] = ()) -> list[Found]:
    """Match and judge every experiment."""
    found = []
    for name, experiment in experiments.items():
        tasks = {task_name: match(experiment, task_name, results) for task_name in experiment.tasks}
        verdicts = [
            (name, tasks[claim.task], judge(claim, tasks[claim.task], frozenset(stand_ins)))
            for claim in experiment.claims
        ]
        found.append(Found(name, experiment, tasks, tuple(verdicts)))
    return found


def write_page(
    method_name: str,
    method_folder: Path,
    experiments: Mapping[str, Experiment],
    results: Sequence[Result],
    problems: Sequence[str],
    output: Path,
    stand_ins: Iterable[str] = (),
) -> Path:
    """Write `<output>/<method_name>.html`, `.md` and `.csv`, and return the path of the first.

    Args:
        results: all Results known; those of other experiments are passed over.
        problems: one line for each Result file that could not be read.
        stand_ins: names of dataset cards that are not exactly the data of the papers.

    Raises:
        SpecError: no usable card, an unknown figure, or no permission to write.
    """
    card = Card(method_folder)
    found = find(experiments, results, stand_ins)
    look = figures.looks([one.experiment for one in found])
    content = {
        "name": method_name,
        "card": card,
        "counts": counts(found),
        "claims": [judged for one in found for judged in one.verdicts],
        "rule": rule(),
        "experiments": [_experiment(one, look) for one in found],
        "drawings": _own_figures(method_name, method_folder, [r for one in found for r in one.results]),
        "provenance": provenance(
            [r for one in found for r in one.results], [r for one in found for r in one.superseded], problems
        ),
    }
    html = _environment().get_template("page.html.j2").render(content)
    markdown = _environment().get_template("page.md.j2").render(content)
    frames = [tables.table_of(one.name, task) for one in found for task in one.tasks.values()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        path = output / f"{method_name}.html"
        path.write_text(_tidy(html), "utf-8")
        path.with_suffix(".md").write_text(_tidy(markdown), "utf-8")
        path.with_suffix(".csv").write_text(tables.csv(frames), "utf-8")
    except OSError as error:
        raise SpecError(f"{error.filename}: the page cannot be written ({error.strerror})") from error
    return path


def write_index(
    methods: Mapping[str, tuple[Path, Mapping[str, Experiment]]],
    results: Sequence[Result],
    output: Path,
    stand_ins: Iterable[str] = (),
) -> Path:
    """Write `<output>/index.html` and `index.md`, one line per method: folder and experiments by name.

    Raises:
        SpecError: no usable card, or no permission to write.
    """
    rows = []
    for name, (folder, experiments) in methods.items():
        found = find(experiments, results, stand_ins)
        card = Card(folder)
        rows.append(
            {
                "name": name,
                "title": card.title,
                "idea": card.sections["Idea"].split("\n\n")[0],
                "counts": counts(found),
                "claims": sum(len(one.verdicts) for one in found),
                "runs": len({result.id for one in found for result in one.results}),
            }
        )
    content = {"methods": rows, "words": WORDS, "rule": rule()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        path = output / "index.html"
        path.write_text(_tidy(_environment().get_template("index.html.j2").render(content)), "utf-8")
        path.with_suffix(".md").write_text(
            _tidy(_environment().get_template("index.md.j2").render(content)), "utf-8"
        )
    except OSError as error:
        raise SpecError(f"{error.filename}: the page cannot be written ({error.strerror})") from error
    return path


def terminal_summary(
    experiments: Mapping[str, Experiment],
    results: Sequence[Result],
    problems: Sequence[str] = (),
    stand_ins: Iterable[str] = (),
) -> Group:
    """The same tables and verdicts for `rich.console.Console.print`, at most 100 columns wide."""
    parts: list[Any] = []
    for one in find(experiments, results, stand_ins):
        for task_name, task in one.tasks.items():
            table = tables.table_of(one.name, task)
            for metric in dict.fromkeys(table["metric"]):
                frame = tables.shown(table, metric)
                title = f"{one.experiment.title} · {task_name} · {tables.metric_text(metric)}"
                parts += [tables.terminal(frame, title), Text("")]
        for _, task, verdict in one.verdicts:
            line = Text(f"{verdict.text:<28}", style="bold")
            line.append(f"{tables.statement(task, verdict.claim)} ({verdict.reason})", style="not bold")
            parts.append(line)
        parts.append(Text(""))
    parts += [Text(f"unreadable: {problem}", style="red") for problem in problems]
    return Group(*parts)


def counts(found: Iterable[Found]) -> dict[str, int]:
    """How many claims got which verdict, in the fixed order of words."""
    counted = Counter(verdict.word for one in found for *_, verdict in one.verdicts)
    return {word: counted[word] for word in WORDS if counted[word]}


def _experiment(one: Found, look: figures.Look) -> dict[str, Any]:
    tasks = []
    for task_name, task in one.tasks.items():
        table = tables.table_of(one.name, task)
        drawn = []
        for name in one.experiment.figures:
            figure = figures.draw(name, task, look)
            if figure is not None:
                caption = _first_line(figures.FIGURES[name])
                key = f"{one.name}-{task_name}-{name}"
                drawn.append({"svg": Markup(figures.svg(figure, key, caption)), "caption": caption})
        metrics = list(dict.fromkeys(table["metric"]))
        tasks.append(
            {
                "name": task_name,
                "task": task,
                "tables": [(tables.metric_text(metric), tables.shown(table, metric)) for metric in metrics],
                "figures": drawn,
            }
        )
    return {"name": one.name, "experiment": one.experiment, "tasks": tasks, "verdicts": one.verdicts}


def _own_figures(name: str, folder: Path, results: list[Result]) -> list[dict[str, Any]]:
    """The figures that a method folder draws itself."""
    path = folder / "figures.py"
    if not path.exists():
        return []
    spec = importlib.util.spec_from_file_location(f"methods.{name}.figures", path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own: dict[str, Callable[[list[Result]], Figure]] = module.FIGURES
    drawings = []
    with matplotlib.rc_context(figures.STYLE):
        for key, draw in own.items():
            caption = _first_line(draw)
            drawings.append({"svg": Markup(figures.svg(draw(results), f"{name}-{key}", caption)), "caption": caption})
    return drawings


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or function.__name__.replace("_", " ")).strip().splitlines()[0]


def _tidy(text: str) -> str:
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for index, line in enumerate(lines) if line or (index and lines[index - 1])]
    return "\n".join(kept).strip() + "\n"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = lambda text: Markup(to_html(text))
    environment.filters["inline"] = lambda text: Markup(inline(text))
    environment.filters["pipes"] = tables.markdown
    environment.filters["records"] = lambda frame: frame.to_dict("records")
    environment.globals["claims_table"] = tables.claims_table
    environment.globals["isinstance_frame"] = lambda value: isinstance(value, pd.DataFrame)
    return environment
