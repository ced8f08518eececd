"""Where the numbers of a page come from: runs, code, machines, data, and what was left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from reproduce.experiment.folder import WORKING_FOLDER
from reproduce.experiment.schema import Experiment
from reproduce.results.evaluate import Finding
from reproduce.results.record import Result, device_kind


@dataclass(frozen=True)
class DeviationsPart:
    """What the same experiments say of how they differ from their source."""

    experiments: tuple[tuple[str, str], ...]  # names and titles
    texts: tuple[str, ...]
    ran: bool


PACKAGES = ("torch", "torchvision", "numpy", "datasets")


def unreadable(problems: Iterable[str]) -> tuple[str, ...]:
    """A line for each Result file that cannot be read, which it begins with: in a checkout as a path inside it."""
    return tuple(problem.removeprefix(f"{WORKING_FOLDER.resolve()}{os.sep}") for problem in problems)


def deviations(findings: Sequence[Finding]) -> tuple[DeviationsPart, ...]:
    """Each deviation once, with the experiments that it is of; those of experiments that ran first."""
    by_text: dict[str, list[Finding]] = {}
    for finding in findings:
        for text in dict.fromkeys(finding.experiment.deviations):
            by_text.setdefault(text, []).append(finding)
    groups: dict[tuple[str, ...], list[str]] = {}
    for text, of_text in by_text.items():
        groups.setdefault(tuple(finding.name for finding in of_text), []).append(text)
    known = {finding.name: finding for finding in findings}
    return tuple(
        DeviationsPart(
            tuple((name, known[name].experiment.title) for name in names),
            tuple(texts),
            any(known[name].results for name in names),
        )
        for names, texts in groups.items()
    )


def protocol(experiment: Experiment) -> list[tuple[str, str]]:
    """What was trained and how, by name: what differs from the recipe's neutral settings, and each arm."""
    settings = _tasks({name: task.model_dump(exclude_none=True) for name, task in experiment.tasks.items()})
    recipe = experiment.recipe
    changed = {
        name: value
        for name, value in recipe.model_dump(exclude_none=True).items()
        if name == "selection" or getattr(recipe, name) != type(recipe).model_fields[name].default
    }
    settings.append(("recipe", _settings(changed)))
    kinds = {
        "seeds": experiment.seeds,
        "seeds of the baseline": experiment.baseline_seeds,
        "seeds that choose": experiment.choosing_seeds,
        "seeds seen before, which do not count": experiment.seen_seeds,
    }
    settings += [(name, ", ".join(map(str, seeds))) for name, seeds in kinds.items() if seeds]
    for name, arm in experiment.arms.items():
        settings.append(
            (
                f"arm {name}",
                _settings({"method": arm.method, **arm.model_dump(exclude_defaults=True, exclude={"label"})}),
            )
        )
    return settings


def _tasks(tasks: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Each task's settings; what all have in common stands once."""
    first = next(iter(tasks.values()))
    shared = {key: value for key, value in first.items() if all(task.get(key) == value for task in tasks.values())}
    if len(tasks) == 1 or not shared:
        return [(f"task {name}", _settings(task)) for name, task in tasks.items()]
    own = [f"{name}: {_settings({k: v for k, v in task.items() if k not in shared})}" for name, task in tasks.items()]
    return [(f"all {len(tasks)} tasks", _settings(shared)), ("task by task", "; ".join(own))]


def _settings(values: dict[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        if isinstance(value, dict):
            inner = _settings(value)
            parts += [f"{key} ({inner})"] if inner else []
        elif isinstance(value, (list, tuple)):
            parts.append(f"{key} {{{', '.join(map(str, value))}}}")
        else:
            parts.append(f"{key} {value}")
    return ", ".join(parts)


def provenance(
    results: Iterable[Result], superseded: Iterable[Result], problems: Sequence[str]
) -> dict[str, list[str]]:
    """What to say, by heading: each a list of sentences or values."""
    runs = {result.id: result for result in results}
    ordered = [runs[key] for key in sorted(runs)]
    environments = [result.environment for result in ordered]
    old = {result.id for result in superseded} - set(runs)
    lines = {
        "Runs": [_runs(ordered)],
        "Code": counted(
            f"commit {e.commit[:12]}" + (", with uncommitted changes" if e.dirty else "") for e in environments
        ),
        "Versions": counted(_version(result) for result in ordered),
        "Device": counted(f"{e.device}, {e.precision}, {e.threads} threads" for e in environments),
        "Software": counted(_software(result) for result in ordered),
        "Data": counted(f"{r.config.task.dataset}, checksum {r.config.dataset_checksum[:12]}" for r in ordered),
        "Selection": counted(f"{r.final.selection.replace('_', ' ')}" + _warning(r) for r in ordered if r.final),
        "Time": [_time(ordered)],
        "Superseded": [f"{len(old)} Results of older versions or other data are not shown."] if old else [],
        "Unreadable": [f"{len(problems)} Result files could not be read and count nowhere.", *problems]
        if problems
        else [],
    }
    return {heading: values for heading, values in lines.items() if values}


def _runs(results: Sequence[Result]) -> str:
    diverged = sum(result.status == "diverged" for result in results)
    resumed = sum(result.environment.resumed > 0 for result in results)
    text = f"{len(results)} {'run' if len(results) == 1 else 'runs'}"
    text += f", {diverged} of them diverged" if diverged else ", none diverged" if results else ""
    return text + (f", {resumed} went on from a checkpoint" if resumed else "")


def _version(result: Result) -> str:
    return f"{result.config.method} version {result.config.method_version}, loop version {result.config.loop_version}"


def _software(result: Result) -> str:
    packages = result.environment.packages
    named = [f"{name} {packages[name]}" for name in PACKAGES if packages.get(name)]
    return ", ".join([f"Python {result.environment.python}", *named, result.environment.platform])


def _warning(result: Result) -> str:
    if result.final is not None and result.final.selection == "best_test":
        return " epoch: chosen on the test set, as the paper did, and so too good"
    return " epoch"


def _time(results: Sequence[Result]) -> str:
    seconds = sum(result.environment.wall_seconds for result in results)
    peak = max((result.environment.peak_memory_bytes for result in results), default=0)
    return f"{_duration(seconds)} of training in all; at most {peak / 2**30:.1f} GiB of memory in one run"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def counted(values: Iterable[str], what: str = "runs") -> list[str]:
    """Each distinct value once, those of most runs first, with how many share it where they differ."""
    found = Counter(values)
    if len(found) == 1:
        return list(found)
    ordered = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return [f"{value} ({count} {what if count != 1 else what.removesuffix('s')})" for value, count in ordered]


def machines(results: Iterable[Result]) -> str:
    """The kinds of processors and devices that runs were made on."""
    return "; ".join(counted(device_kind(result.environment.device) for result in results))
