"""The tables behind the pages: a row a run, a row an evaluated metric, a row a claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reproduce.experiment.identity import canonical_json
from reproduce.experiment.metrics import METRICS
from reproduce.report.csv_text import Value, computed
from reproduce.report.data_schema import EPOCHS, VERDICTS, Schema, runs_schema
from reproduce.results.evaluate import Finding, MethodFindings
from reproduce.results.judge import Verdict
from reproduce.results.record import Result

Row = Mapping[str, Value]
APART = ";"


@dataclass(frozen=True)
class DataTable:
    """A table of plain values under a declared schema."""

    schema: Schema
    rows: Sequence[Sequence[Value]]

    @property
    def name(self) -> str:
        return self.schema.name


class Place(NamedTuple):
    """Where a Run stands."""

    experiment: str
    task: str
    arm: str
    use: str


def data_tables(
    methods: Sequence[MethodFindings], results: Sequence[Result], address: Callable[[Result], str]
) -> list[DataTable]:
    """All three, with rows in an order that depends on nothing but what they hold.

    Args:
        results: all that are known, whether an experiment here asks for them or not.
        address: of a Result's file, from the folder of the pages.
    """
    ordered = sorted(results, key=lambda result: (result.id, result.environment.finished, result.seal))
    claims = ((method, finding) for method in methods for finding in method.findings)
    return [
        runs_table(ordered, places(methods), address),
        _table(EPOCHS, (row for result in ordered for row in _epoch_rows(result))),
        _table(VERDICTS, (row for method, finding in claims for row in _verdict_rows(method.folder.name, finding))),
    ]


def _table(schema: Schema, rows: Iterable[Row]) -> DataTable:
    columns = schema.columns
    return DataTable(schema, [[row[name] for name in columns] for row in rows])


def places(methods: Iterable[MethodFindings]) -> dict[str, list[Place]]:
    """By seal, every place where a Result stands, in order."""
    found: dict[str, set[Place]] = {}
    for method in methods:
        for finding in method.findings:
            for result, place in _places(f"{method.folder.name}/{finding.name}", finding):
                found.setdefault(result.seal, set()).add(place)
    return {seal: sorted(those) for seal, those in found.items()}


def _places(experiment: str, finding: Finding) -> Iterator[tuple[Result, Place]]:
    for task in finding.tasks.values():
        for arm in task.runs.arms.values():
            judged = arm.chosen.results.values() if arm.chosen else ()
            seals = {result.seal for result in judged}
            for point in arm.points:
                for result in point.results.values():
                    use = "judged" if result.seal in seals else "not judged"
                    yield result, Place(experiment, task.name, arm.name, use)
        for result in task.runs.superseded:
            yield result, Place(experiment, task.name, "", "superseded")


def runs_table(
    results: Sequence[Result], standing: Mapping[str, list[Place]], address: Callable[[Result], str]
) -> DataTable:
    """A row for each Result."""
    finals = {metric for result in results for metric in _finals(result)}
    schema = runs_schema(sorted(finals))
    empty: Row = dict.fromkeys(schema.columns)
    rows = ({**empty, **_run_row(result, standing.get(result.seal, []), address)} for result in results)
    return _table(schema, rows)


def _finals(result: Result) -> dict[str, float]:
    """The numbers that count, of declared metrics."""
    if result.final is None:
        return {}
    splits = {"test": result.final.test, "validation": result.final.validation}
    return {f"{split}.{name}": value for split, of in splits.items() for name, value in of.items() if name in METRICS}


def _run_row(result: Result, standing: list[Place], address: Callable[[Result], str]) -> Row:
    config, environment, final = result.config, result.environment, result.final
    content = config.model_dump(mode="json", exclude_none=True)
    return {
        "id": result.id,
        "method": config.method,
        "task_kind": config.task.kind,
        "dataset": config.task.dataset,
        "model": config.task.model,
        **{f"{name}s": APART.join(getattr(place, name) for place in standing) or None for name in Place._fields},
        "seed": config.seed,
        **{name: canonical_json(content[name]) for name in ("params", "task", "recipe")},
        "status": result.status,
        "diverged_step": result.diverged_step,
        "selection": final.selection if final else None,
        "epoch": final.epoch if final else None,
        **_finals(result),
        "parameters": result.parameters,
        "device": environment.device,
        "precision": environment.precision,
        "threads": environment.threads,
        "wall_seconds": environment.wall_seconds,
        "peak_memory_bytes": environment.peak_memory_bytes,
        "finished": environment.finished,
        "loop_version": config.loop_version,
        "method_version": config.method_version,
        "dataset_checksum": config.dataset_checksum,
        "torch": environment.packages.get("torch"),
        "commit": environment.commit,
        "dirty": environment.dirty,
        "counts": any(place.use != "superseded" for place in standing),
        "evidence": address(result),
    }


def _epoch_rows(result: Result) -> Iterator[Row]:
    for record in result.epochs:
        splits: dict[str, dict[str, float]] = {
            "test": record.test,
            "train": {"penalty": record.penalty, "train_loss": record.train_loss},
            "validation": record.validation,
        }
        shared: Row = {"id": result.id, "epoch": record.epoch, "step": record.step}
        for split, values in splits.items():
            for metric in sorted(values):
                yield {**shared, "split": split, "metric": metric, "value": values[metric]}


def _verdict_rows(method: str, finding: Finding) -> Iterator[Row]:
    for verdict in finding.verdicts:
        yield {"method": method, "experiment": finding.name, **_claim(finding, verdict), **_outcome(verdict)}


def _claim(finding: Finding, verdict: Verdict) -> Row:
    claim, arms = verdict.claim, finding.experiment.arms
    return {
        "scale": finding.experiment.scale,
        "task": claim.task,
        "arm": claim.arm,
        "arm_label": arms[claim.arm].label or claim.arm,
        "over": claim.over,
        "over_label": (arms[claim.over].label or claim.over) if claim.over else None,
        "metric": claim.metric,
        "claimed_value": claim.value,
        "claimed_direction": claim.direction,
        "tolerance": claim.tolerance,
        "paper_runs": claim.paper_runs,
        "source": claim.source,
        "ours": claim.ours,
    }


def _outcome(verdict: Verdict) -> Row:
    estimate = verdict.ours
    interval = estimate.interval if estimate else None
    return {
        "value": computed(estimate.mean if estimate else None),
        "low": computed(interval.low if interval else None),
        "high": computed(interval.high if interval else None),
        "n": estimate.n if estimate else None,
        "verdict": verdict.word,
        "points": verdict.direction,
        "reason": verdict.reason,
        "p": computed(verdict.p_value),
        "p_adjusted": computed(verdict.p_adjusted),
    }
