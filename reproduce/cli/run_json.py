"""What `run --json` prints: documented in docs/run_json.md, and as JSON Schema in docs/run_schema.json."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from reproduce.results.evaluate import Finding, MethodFindings
from reproduce.results.judge import Direction, Verdict, Word
from reproduce.results.record import Final, Result
from reproduce.training.plan import PlannedRun

RunStatus = Literal["completed", "diverged", "failed", "interrupted", "waiting"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunPlace(_Answer):
    """Where a Run was asked for."""

    method: str
    experiment: str
    task: str
    arm: str


class RunRow(_Answer):
    """One planned Run, and what became of it."""

    id: str
    places: tuple[RunPlace, ...]
    method: str
    seed: int
    params: dict[str, Any]
    status: RunStatus
    metric: str | None
    final: Final | None
    path: str | None


class VerdictRow(_Answer):
    """One claim, and what came out of it."""

    method: str
    experiment: str
    address: str
    ours: bool
    task: str
    arm: str
    over: str | None
    metric: str
    value: float | None
    tolerance: float | None
    claimed_direction: Literal["lower", "higher"] | None
    verdict: Word
    direction: Direction | None
    reason: str
    mean: float | None
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_adjusted: float | None


class RunAnswer(_Answer):
    """All that `run --json` prints."""

    version: Literal[1] = 1  # grows with every change of names
    runs: tuple[RunRow, ...]
    verdicts: tuple[VerdictRow, ...]
    pages: tuple[str, ...]
    results: dict[str, Final | None]
    failures: tuple[str, ...]


def answer(
    planned: Iterable[PlannedRun],
    results: Iterable[Result],
    failures: Sequence[str],
    evaluated: Iterable[MethodFindings],
    pages: Iterable[Path],
    runs: Path,
) -> RunAnswer:
    by_id = {result.id: result for result in results}
    ordered = sorted(planned, key=lambda run: run.config.folder)
    return RunAnswer(
        runs=tuple(_run_row(run, by_id.get(run.id), failures, runs) for run in ordered),
        verdicts=tuple(
            _verdict_row(method.folder.name, finding, verdict)
            for method in evaluated
            for finding in method.findings
            for verdict in finding.verdicts
        ),
        pages=tuple(map(str, pages)),
        results={run.id: by_id[run.id].final for run in ordered if run.id in by_id},
        failures=tuple(failures),
    )


def _run_row(run: PlannedRun, result: Result | None, failures: Iterable[str], runs: Path) -> RunRow:
    folder = runs / run.config.folder
    status: RunStatus = "waiting"
    if result is not None:
        status = result.status
    elif any(failure.startswith(f"{run.label}: ") for failure in failures):
        status = "failed"
    elif (folder / "checkpoint.pt").exists():
        status = "interrupted"
    return RunRow(
        id=run.id,
        places=tuple(RunPlace(**asdict(place)) for place in run.places),
        method=run.config.method,
        seed=run.config.seed,
        params=run.config.params,
        status=status,
        metric=result.metric if result else None,
        final=result.final if result else None,
        path=str(folder / "result.json") if result else None,
    )


def _verdict_row(method: str, finding: Finding, verdict: Verdict) -> VerdictRow:
    claim, ours = verdict.claim, verdict.ours
    interval = ours.interval if ours else None
    return VerdictRow(
        method=method,
        experiment=finding.name,
        address=claim.source,
        ours=claim.ours,
        task=claim.task,
        arm=claim.arm,
        over=claim.over,
        metric=claim.metric,
        value=claim.value,
        tolerance=claim.tolerance,
        claimed_direction=claim.direction,
        verdict=verdict.word,
        direction=verdict.direction,
        reason=verdict.reason,
        mean=ours.mean if ours else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n=ours.n if ours else 0,
        p=verdict.p_value,
        p_adjusted=verdict.p_adjusted,
    )
