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
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from reproduce.errors import UserError
from reproduce.experiment.dataset_card import DatasetCard, read_card
from reproduce.experiment.schema import Experiment, cells
from reproduce.report import figures, matrix, style, tables
from reproduce.report import over_tasks as across
from reproduce.report.method_card import MethodCard, inline, to_html
from reproduce.report.provenance import protocol, provenance
from reproduce.report.seed_plots import strips
from reproduce.report.sentences import conclusion, finding
from reproduce.results.judge import DIRECTIONS, WORDS, Verdict, judge, rule
from reproduce.results.match import TaskRuns, match
from reproduce.results.record import Result

STYLES = {
    "reproduced": "green",
    "partly": "yellow",
    "not reproduced": "red",
    "inconclusive": "magenta",
    "reduced scale": "cyan",
    "not run": "bright_black",
}


@dataclass(frozen=True)
class Found:
    """Everything that a page says about one experiment."""

    name: str
    experiment: Experiment
    tasks: dict[str, TaskRuns]
    verdicts: tuple[tuple[TaskRuns, Verdict], ...]
    data: dict[str, DatasetCard]

    @property
    def results(self) -> list[Result]:
        return [result for task in self.tasks.values() for result in task.results]

    @property
    def superseded(self) -> list[Result]:
        return [result for task in self.tasks.values() for result in task.superseded]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims got which verdict, in the fixed order of words."""
        return counts([self])


def find(experiments: Mapping[str, Experiment], results: Sequence[Result]) -> list[Found]:
    """Match and judge every experiment.

    Raises:
        UserError: a task names a dataset without a card.
    """
    found = []
    for name, experiment in experiments.items():
        data = {task.dataset: read_card(task.dataset) for task in experiment.tasks.values()}
        stand_ins = frozenset(key for key, card in data.items() if not card.exact)
        tasks = {task_name: match(experiment, task_name, results) for task_name in experiment.tasks}
        verdicts = [(tasks[c.task], judge(c, tasks[c.task], stand_ins)) for c in experiment.claims]
        found.append(Found(name, experiment, tasks, tuple(verdicts), data))
    return found


def counts(found: Iterable[Found]) -> dict[str, int]:
    """How many claims got which verdict, in the fixed order of words."""
    counted = Counter(verdict.word for one in found for _, verdict in one.verdicts)
    return {word: counted[word] for word in WORDS if counted[word]}


def directions(found: Iterable[Found]) -> dict[str, int]:
    """Of the claims judged at reduced scale, how many point where the paper does."""
    counted = Counter(verdict.direction for one in found for _, verdict in one.verdicts)
    return {word: counted[word] for word in DIRECTIONS if counted[word]}


def write_page(
    method_name: str,
    method_folder: Path,
    experiments: Mapping[str, Experiment],
    results: Sequence[Result],
    problems: Sequence[str],
    output: Path,
) -> Path:
    """Write `<output>/<method_name>.html`, `.md` and `.csv`, and return the path of the first.

    Args:
        results: all Results known; those of other experiments are passed over.
        problems: one line for each Result file that could not be read.

    Raises:
        UserError: no usable card, an unknown figure or dataset, or no permission to write.
    """
    card = MethodCard(method_folder)
    found = sorted(find(experiments, results), key=lambda one: not one.results)  # what ran comes first
    look = style.looks([one.experiment for one in found])
    counted = [result for one in found for result in one.results]
    frames = {(one.name, name): tables.table_of(one.name, task) for one in found for name, task in one.tasks.items()}
    content = {
        "name": method_name,
        "card": card,
        "counts": counts(found),
        "directions": directions(found),
        "rule": rule(),
        "experiments": [_experiment(one, frames, look) for one in found],
        "drawings": _own_figures(method_name, method_folder, counted),
        "provenance": provenance(counted, [r for one in found for r in one.superseded], problems),
        "runs": len({result.id for result in counted}),
    }
    path = output / f"{method_name}.html"
    _write(path, _rendered("page.html.j2", content))
    _write(path.with_suffix(".md"), _rendered("page.md.j2", content))
    _write(path.with_suffix(".csv"), tables.csv(list(frames.values())))
    return path


def write_index(
    methods: Mapping[str, tuple[Path, Mapping[str, Experiment]]], results: Sequence[Result], output: Path
) -> Path:
    """Write `<output>/index.html` and `index.md`, and return the path of the first.

    Where the methods have files of the cross-method matrix, its page and `matrix.csv` too.

    Args:
        methods: by name, the folder and the experiments.

    Raises:
        UserError: no usable card, an unknown dataset, files of the matrix that disagree, or no permission to write.
    """
    rows: list[dict[str, Any]] = []
    for name, (folder, experiments) in methods.items():
        found = find(experiments, results)
        card = MethodCard(folder)
        rows.append(
            {
                "name": name,
                "title": card.title,
                "idea": card.sections["Idea"].split("\n\n")[0],
                "counts": counts(found),
                "directions": ", ".join(f"{count} {word}" for word, count in directions(found).items()),
                "claims": sum(len(one.verdicts) for one in found),
                "experiments": len(found),
                "runs": len({result.id for one in found for result in one.results}),
            }
        )
    path = output / "index.html"
    used = [word for word in WORDS if any(word in row["counts"] for row in rows)]
    crossed = matrix.content({name: experiments for name, (_, experiments) in methods.items()}, results)
    if crossed is not None:
        _write_matrix(crossed, output / "matrix.html")
    content = {"methods": rows, "used": used, "rule": rule(), "matrix": crossed}
    _write(path, _rendered("index.html.j2", content))
    _write(path.with_suffix(".md"), _rendered("index.md.j2", content))
    return path


def _write_matrix(content: Mapping[str, Any], path: Path) -> None:
    for column in content["columns"]:
        figure = column.pop("figure")
        column["drawing"] = _drawing(figure, column["key"], column["caption"]) if figure is not None else None
    _write(path, _rendered("matrix.html.j2", content))
    _write(path.with_suffix(".md"), _rendered("matrix.md.j2", content))
    _write(path.with_suffix(".csv"), tables.csv(content["frames"]))


def terminal_summary(
    experiments: Mapping[str, Experiment], results: Sequence[Result], problems: Sequence[str] = ()
) -> Group:
    """The same tables and verdicts for `rich.console.Console.print`, readable in 100 columns."""
    parts: list[RenderableType] = []
    for one in find(experiments, results):
        parts.append(Text(f"\n{one.name}: {one.experiment.title}", style="bold underline"))
        whole = across.across(one.tasks)
        if whole is not None:
            title = f"{tables.metric_text(whole.metric)}, mean; the best between asterisks"
            parts += [tables.terminal(across.frame(whole), title), Text(across.sentence(whole))]
        if one.experiment.caveat:
            parts.append(Text(one.experiment.caveat, style="bold"))
        if waiting := _waiting(one):
            parts.append(Text(waiting, style="dim"))
        for task_name, task in one.tasks.items():
            if not task.results or whole is not None:
                continue
            table = tables.table_of(one.name, task)
            for metric in tables.metrics_of(task):
                frame = tables.shown(table, task, metric)
                title = f"{task_name}: {tables.metric_text(metric)}, mean [95 % interval]"
                parts.append(tables.terminal(frame, title))
            beside = tables.side_by_side(table, task)
            if beside is not None:
                parts.append(tables.terminal(beside, f"{task_name}: test, mean ± half of the 95 % interval"))
            parts += [Text(f"  {arm}: {note}", style="dim") for arm, note in _notes(table)]
            parts.append(Text(finding(table, task)))
        if said := conclusion(one.verdicts):
            parts.append(Text(said))
        if one.verdicts:
            grid = Table.grid(padding=(0, 2))
            for _, row in tables.claims_table(one.verdicts).iterrows():
                word = str(row["Verdict"])
                style = STYLES[word.partition(":")[0]]
                grid.add_row(Text(word, style=style), Text(str(row["Claim"])), Text(str(row["Why"]), style="dim"))
            parts.append(grid)
    parts += [Text(f"unreadable: {problem}", style="red") for problem in problems]
    return Group(*parts)


def _notes(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Each arm's note once."""
    pairs = zip(table["label"], table["note"], strict=True)
    return [(label, note) for label, note in dict.fromkeys(pairs) if note]


def _experiment(one: Found, frames: Mapping[tuple[str, str], pd.DataFrame], look: style.Look) -> dict[str, Any]:
    tasks = []
    for task_name, task in one.tasks.items():
        if not task.results:
            continue
        table = frames[one.name, task_name]
        drawn = []
        for name in one.experiment.figures:
            figure = figures.draw(name, task, look)
            if figure is not None:
                caption = _first_line(figures.FIGURES[name])
                drawn.append(_drawing(figure, f"{one.name}-{task_name}-{name}", caption))
        metrics = tables.metrics_of(task)
        tasks.append(
            {
                "name": task_name,
                "task": task,
                "data": one.data[one.experiment.tasks[task_name].dataset],
                "finding": finding(table, task),
                "groups": [_group(table, task, metric, look) for metric in metrics],
                "frames": [(tables.metric_text(metric), tables.shown(table, task, metric)) for metric in metrics],
                "beside": tables.side_by_side(table, task),
                "figures": drawn,
            }
        )
    return {
        "name": one.name,
        "experiment": one.experiment,
        "tasks": tasks,
        "waiting": _waiting(one),
        "across": _across(one, look),
        "claims": tables.claims_table(one.verdicts),
        "conclusion": conclusion(one.verdicts),
        "counts": one.counts,
        "runs": len({result.id for result in one.results}),
        "planned": len(cells(one.experiment)),
        "protocol": protocol(one.experiment),
    }


def _waiting(one: Found) -> str:
    """What has not run at all, in a line instead of empty tables; "" when every task has begun."""
    names = [name for name, task in one.tasks.items() if not task.results]
    if not names:
        return ""
    planned = [cell for cell in cells(one.experiment) if cell.task_name in names]
    what = f"{len(planned)} run{'s' if len(planned) != 1 else ''} planned"
    if len(names) < len(one.tasks):
        listed = ", ".join(names) if len(names) < across.MANY else f"{len(names)} tasks"
        said = f"Nothing has run yet of {listed}: {what}."
    else:
        n_tasks = f"{len(names)} tasks, " if len(names) > 1 else ""
        arms = [f"“{arm.label or name}”" for name, arm in one.experiment.arms.items() if not arm.pending]
        said = f"Nothing has run yet. {n_tasks}{what}" + (f", with the arms {', '.join(arms)}." if arms else ".")
    reasons: dict[str, list[str]] = {}
    for name, arm in one.experiment.arms.items():
        if arm.pending:
            reasons.setdefault(arm.pending, []).append(f"“{arm.label or name}”")
    return said + "".join(f" Not possible yet: {', '.join(arms)} ({reason})." for reason, arms in reasons.items())


def _across(one: Found, look: style.Look) -> dict[str, Any] | None:
    """What a page says over many tasks at once, where there are many."""
    found = across.across(one.tasks)
    if found is None:
        return None
    figure = across.performance_profile(found, look)
    caption = _first_line(across.performance_profile)
    return {
        "metric": tables.metric_text(found.metric),
        "labels": list(found.labels.values()),
        "rows": across.rows(found),
        "frame": across.frame(found),
        "sentence": across.sentence(found),
        "figures": [] if figure is None else [_drawing(figure, f"{one.name}-profile", caption)],
    }


def _group(table: pd.DataFrame, task: TaskRuns, metric: str, look: style.Look) -> dict[str, Any]:
    """The rows of one metric as a page shows them: texts, a strip of seeds, and a colour."""
    records = table[table["metric"] == metric].to_dict("records")
    texts = tables.shown(table, task, metric).to_dict("records")
    shades = [style.variable(style.colour(look, str(record["arm"]))) for record in records]
    rows = [
        {**text, "strip": strip, "shade": shade, "ran": record["n"] > 0 or record["diverged"] > 0}
        for text, strip, shade, record in zip(texts, strips(records, shades), shades, records, strict=True)
    ]
    return {"metric": tables.metric_text(metric), "rows": rows, "gap": f"minus {tables.baseline_label(task)}"}


def _drawing(figure: Any, key: str, caption: str) -> dict[str, Any]:
    return {"svg": Markup(style.svg(figure, key, caption)), "caption": caption}


def _own_figures(name: str, folder: Path, results: list[Result]) -> list[dict[str, Any]]:
    """The figures that a method folder draws itself, from its `FIGURES`."""
    path = folder / "figures.py"
    if not path.exists():
        return []
    spec = importlib.util.spec_from_file_location(f"methods.{name}.figures", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "FIGURES"):
        raise UserError(f"{path}: defines no FIGURES")
    with matplotlib.rc_context(style.STYLE):
        return [_drawing(draw(results), f"{name}-{key}", _first_line(draw)) for key, draw in module.FIGURES.items()]


def _first_line(function: Callable[..., Any]) -> str:
    return (function.__doc__ or function.__name__.replace("_", " ")).strip().splitlines()[0]


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written ({error.strerror})") from error


def _rendered(template: str, content: Mapping[str, Any]) -> str:
    """A filled template without trailing spaces and without runs of empty lines."""
    lines = [line.rstrip() for line in _environment().get_template(template).render(content).splitlines()]
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
    environment.filters["slug"] = lambda text: "-".join(str(text).lower().split())
    return environment
