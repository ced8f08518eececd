"""How far the numbers of a method can be trusted: scale, seeds, data, choices, files, devices, in short lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from reproduce.report.provenance import counted, machines
from reproduce.results.evaluate import Finding
from reproduce.results.match import ArmRuns
from reproduce.results.record import Result

MOST = 3  # names of one kind that a line spells out
EPOCHS = {
    "last": "last",
    "best_validation": "best on validation",
    "best_validation_average": "best mean of validation over 10 epochs",
    "best_test": "best on test, as the paper took it: too good",
}


def trust(findings: Sequence[Finding], problems: Sequence[str]) -> list[tuple[str, str]]:
    """What each line is about, and what it says, of the experiments that ran."""
    ran = [finding for finding in findings if finding.ran]
    results = list({result.id: result for finding in ran for result in finding.results}.values())
    if not ran:
        return [("Runs", "nothing has run yet"), *_files(findings, problems)]
    return [
        ("Scale", _scale(findings)),
        ("Seeds", _seeds(ran)),
        ("Data", _data(ran)),
        ("Coefficients", _coefficients(ran)),
        ("Epoch", "; ".join(counted(EPOCHS[result.final.selection] for result in results if result.final))),
        ("Failures", _ended_badly(ran, results)),
        *_files(findings, problems),
        ("Devices", machines(results)),
    ]


def _scale(findings: Iterable[Finding]) -> str:
    """How many experiments of each scale ran, and how many did not."""
    by_scale: dict[str, list[bool]] = {}
    for finding in findings:
        by_scale.setdefault(finding.experiment.scale, []).append(_ran_beyond_baseline(finding))
    said = [
        f"{sum(ran)} of {len(ran)} {scale}{'-scale' if scale == 'paper' else ''} experiments"
        for scale, ran in by_scale.items()
    ]
    return f"{', '.join(said)} ran"


def _ran_beyond_baseline(finding: Finding) -> bool:
    """Whether it has Runs of its own: its baseline may have run for another method, on the same tasks."""
    experiment = finding.experiment
    ran = {name for task in finding.tasks.values() for name, arm in task.runs.arms.items() if arm.chosen is not None}
    return bool(ran - {experiment.baseline}) or (bool(ran) and len(experiment.arms) == 1)


def _arms(findings: Iterable[Finding]) -> list[tuple[Finding, ArmRuns]]:
    return [
        (finding, arm)
        for finding in findings
        for task in finding.tasks.values()
        for arm in task.runs.arms.values()
        if arm.chosen is not None
    ]


def _seeds(ran: Iterable[Finding]) -> str:
    """How many seeds an arm's mean rests on; of baselines apart, where they have more."""
    baselines: list[int] = []
    others: list[int] = []
    for finding, arm in _arms(ran):
        n = len(arm.chosen.results) if arm.chosen else 0
        (baselines if arm.name == finding.experiment.baseline else others).append(n)
    if not others or not baselines or max(baselines) <= max(others):
        return f"{_between([*baselines, *others])} an arm"
    return f"{_between(others)} an arm, {_between(baselines)} of baselines"


def _between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _data(ran: Iterable[Finding]) -> str:
    cards = {}
    for finding in ran:
        used = {finding.experiment.tasks[name].dataset for name, task in finding.tasks.items() if task.runs.results}
        cards.update({name: finding.datasets[name] for name in used})
    stand_ins = [card.title for card in cards.values() if not card.exact]
    if stand_ins:
        return f"{len(stand_ins)} of {len(cards)} datasets stand in: {_listed(sorted(stand_ins))}"
    return f"all {len(cards)} datasets exact" if len(cards) > 1 else "exact"


def _listed(names: Sequence[str]) -> str:
    more = f", {len(names) - MOST} more" if len(names) > MOST else ""
    return "; ".join(names[:MOST]) + more


def _coefficients(ran: Iterable[Finding]) -> str:
    """By what the arms with a grid chose."""
    chosen = Counter(
        "on the test set: too good"
        if arm.chosen_on_test
        else "on further seeds"
        if arm.choosing
        else "on validation, by the seeds that are judged"
        for _, arm in _arms(ran)
        if arm.arm.chooses
    )
    if not chosen:
        return "none to choose"
    return "chosen " + "; ".join(f"{how} ({count} arms)" if len(chosen) > 1 else how for how, count in chosen.items())


def _ended_badly(ran: Iterable[Finding], results: Sequence[Result]) -> str:
    diverged = sum(result.status == "diverged" for result in results)
    collapsed = {
        (row.runs.name, task.name, finding.name, seed)
        for finding in ran
        for task in finding.tasks.values()
        for row in task.rows
        for seed in row.collapsed
    }
    return f"{diverged or 'no'} run{'s' if diverged != 1 else ''} diverged, {len(collapsed) or 'none'} at chance level"


def _files(findings: Iterable[Finding], problems: Sequence[str]) -> list[tuple[str, str]]:
    old = {result.id for finding in findings for result in finding.superseded}
    old -= {result.id for finding in findings for result in finding.results}
    unreadable = f"{len(problems)} unreadable" if problems else "all readable"
    return [("Files", f"{unreadable}, {f'{len(old)} superseded' if old else 'none superseded'}")]
