"""The commands that make what a page shows once more."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from reproduce.experiment.folder import METHODS, MethodFolder
from reproduce.results.evaluate import Finding, TaskFinding
from reproduce.results.match import ArmRuns


def of_experiment(method: str, finding: Finding) -> str:
    """Every run of one experiment."""
    return _line("reproduce", "run", method, "--only", finding.name)


def of_arm(method: str, finding: Finding, task: TaskFinding, arm: ArmRuns) -> str:
    """The runs of one arm on one task, of those seeds that ran, else of those that are planned; "" of an arm that
    cannot run."""
    if arm.arm.pending:
        return ""
    seeds = sorted({seed for point in arm.points for seed in point.results}) or arm.planned
    words = ["reproduce", "run", method, "--only", finding.name, "--arms", arm.name]
    words += ["--tasks", task.name] if len(finding.experiment.tasks) > 1 else []
    return _line(*words, "--seeds", seeds_option(seeds))


def of_method(folder: MethodFolder, findings: Iterable[Finding]) -> tuple[str, ...]:
    """From a checkout to a page; then what ran here, scale by scale, whether or not the environment is active."""
    is_here = folder.path.parent == METHODS
    first, program = ([f"make reproduce-{folder.name}"], ".venv/bin/reproduce") if is_here else ([], "reproduce")
    scales = dict.fromkeys(finding.experiment.scale for finding in findings if finding.ran)
    return (*first, *(_line(program, "run", folder.name, "--scale", scale) for scale in scales or ("quick",)))


def seeds_option(seeds: Iterable[int]) -> str:
    """As `parse_seeds` reads them: a single one with a comma, since a number alone is a number of seeds."""
    text = ",".join(map(str, seeds))
    return text if "," in text else f"{text},"


def _line(*words: str) -> str:
    return " ".join(map(shlex.quote, words))
